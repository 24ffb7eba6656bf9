"""A name where a name belongs: what else is given is named, with what to pass instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import pipeline

from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, stitch
from hf_relreps.errors import AnchorError, ConfigurationError, PartError, RelrepsError, UploadError
from hf_relreps.sources import Source, refuse_unnamed


def said_of(thing):
    with pytest.raises(PartError) as caught:
        Source.of(thing)
    return str(caught.value)


def test_names_are_strings_and_paths(tmp_path):
    assert Source.of("me/relative-en@v1") == Source("me/relative-en", options=(("revision", "v1"),))
    assert Source.of(tmp_path) == Source.of(str(tmp_path)) == Source(str(tmp_path))


def test_a_path_with_an_at_sign_has_no_revision(tmp_path):
    (tmp_path / "en@v1").mkdir()
    assert Source.of(tmp_path / "en@v1") == Source(str(tmp_path / "en@v1"))


def test_the_error_is_a_type_error_too():
    assert issubclass(PartError, TypeError) and issubclass(PartError, RelrepsError)


def test_parallel_wrappers_are_told_to_be_taken_off(make_bert):
    said = said_of(torch.nn.DataParallel(make_bert(0)))
    assert said == (
        "Found DataParallel, expected a folder, or the name of a repository. Pass the model "
        "inside the wrapper: model.module."
    )


def test_a_compiled_model_is_told_by_its_original(make_bert):
    model = make_bert(0)
    compiled = torch.compile(model)
    assert "Found OptimizedModule" in said_of(compiled)
    assert said_of(compiled).endswith("Pass the model from before torch.compile: model._orig_mod.")
    assert compiled._orig_mod is model
    assert said_of(torch.compile(torch.nn.DataParallel(model))).endswith("torch.compile: model._orig_mod.")


def test_a_pipeline_is_told_by_its_model(make_bert, tokenizer):
    whole = pipeline("feature-extraction", model=make_bert(0), tokenizer=tokenizer)
    assert said_of(whole).startswith("Found FeatureExtractionPipeline")
    assert said_of(whole).endswith("Pass the model inside the pipeline: pipeline.model.")
    assert isinstance(whole.model, type(make_bert(0)))


def test_a_sentence_transformer_is_told_by_its_transformer(make_bert, tokenizer, tmp_path):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    make_bert(0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = SentenceTransformer(modules=[Transformer(str(tmp_path))], device="cpu")
    assert said_of(model).endswith("Pass the transformer inside it: model[0].auto_model.")
    assert isinstance(model[0].auto_model, type(make_bert(0)))
    assert said_of(torch.nn.DataParallel(model)).endswith("Pass the model inside the wrapper: model.module.")


def test_a_model_where_only_a_name_will_do_is_told_to_be_saved(make_model):
    assert said_of(make_model(0)).endswith("save it with save_pretrained(folder), then pass the folder.")


@pytest.mark.parametrize(("thing", "given"), [(None, "Found None"), (3, "Found int"), (b"me/en", "Found bytes")])
def test_what_is_no_model_either_is_told_what_names_look_like(thing, given):
    said = said_of(thing)
    assert given in said and said.endswith("Pass a folder, or a repository as user/name.")


def test_who_expects_something_else_says_so():
    with pytest.raises(PartError, match="Found None, expected a decoder or its name. Pass"):
        refuse_unnamed(None, "a decoder or its name")


@pytest.mark.parametrize("door", [RelativeModel, AnchorSet])
def test_the_doors_say_it_too(door, make_bert):
    with pytest.raises(PartError, match=r"Found DataParallel.* model\.module"):
        door.from_pretrained(torch.nn.DataParallel(make_bert(0)))


def test_a_stitch_of_wrapped_parts_says_it_too(make_model):
    model, wrapped = make_model(0), torch.nn.DataParallel(make_model(0))
    for parts in ((wrapped, model), (model, wrapped)):
        with pytest.raises(PartError, match=r"Found DataParallel.* model\.module"):
            stitch(*parts)


def test_a_missing_folder_is_no_matter_of_types(tmp_path):
    assert not Source.of(Path(tmp_path, "nothing")).is_local


def test_files_that_are_nested_deeper_than_any_setting_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 200 + "]" * 200 + "}")
    with pytest.raises(UploadError, match="config.json of .* is nested more than 64 deep"):
        Source(str(tmp_path)).json("config.json")


def test_lists_where_names_belong_are_named_with_what_to_pass(make_bert, make_model):
    with pytest.raises(AnchorError, match="The anchors are a list, expected an AnchorSet or a view of one"):
        RelativeModel.from_encoder(make_bert(0), ["a", "b"])
    with pytest.raises(AnchorError, match="views is a list, expected the name of each view with its sentences"):
        AnchorSet.from_tokens([["a", "b"]], k=1)
    with pytest.raises(ConfigurationError, match="descriptions is a list, expected the name of each class"):
        RelativeDecoder.from_descriptions(["a", "b"], make_model(0))
