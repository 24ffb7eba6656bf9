"""Finding uploads that share anchors, through the Hub's own search for tags."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi, ModelCard

from hf_relreps import AnchorSet, find_parts
from hf_relreps.errors import AnchorError, UploadError


@pytest.fixture
def world(hub, new_repo_id, make_model, anchors, texts):
    """Names of uploads: en and fr share their anchors, cosine has another projection, other has other anchors."""
    names = {name: new_repo_id() for name in ("en", "fr", "decoder", "cosine", "other", "anchors")}
    english = make_model(0, "en")
    english.push_to_hub(names["en"])
    make_model(1, "fr").encoder.push_to_hub(names["fr"])
    english.decoder.push_to_hub(names["decoder"])
    make_model(2, "en", similarity="cosine").push_to_hub(names["cosine"])
    anchors.push_to_hub(names["anchors"])
    return names


def rows(found):
    return {row.repo_id: (row.parts, row.views, row.fits) for row in found}


def test_uploads_that_share_anchors_find_one_another_whatever_names_them(world, make_model, anchors):
    model = make_model(0)
    for asked in (anchors, anchors.view("fr"), model, model.decoder, world["en"], world["decoder"], world["anchors"]):
        assert {row.repo_id for row in find_parts(asked)} == {world[n] for n in ("en", "fr", "decoder", "cosine")}
    for digits in (16, 64):
        assert len(find_parts(anchors.fingerprint[:digits])) == 4


def test_a_row_says_what_it_holds_and_whether_it_fits(world, make_model):
    found = find_parts(make_model(0).decoder)

    assert rows(found) == {
        world["en"]: (("encoder", "decoder"), ("en",), True),
        world["fr"]: (("encoder",), ("fr",), True),
        world["decoder"]: (("decoder",), ("en",), True),
        world["cosine"]: (("encoder", "decoder"), ("en",), False),
    }
    assert found[-1].reason == "other similarity"
    printed = str(found).splitlines()
    assert printed[0].split() == ["upload", "holds", "view", "task", "base", "model", "fits"]
    assert printed[-1].endswith("no: other similarity")
    assert list(found.to_pandas()["repo_id"]) == [row.repo_id for row in found]


def test_task_language_and_part_narrow_the_search(world, anchors):
    assert [row.repo_id for row in find_parts(anchors, language="fr")] == [world["fr"]]
    assert [row.repo_id for row in find_parts(anchors, task="feature-extraction")] == [world["fr"]]
    assert {row.repo_id for row in find_parts(anchors, part="encoder")} == {world[n] for n in ("en", "fr", "cosine")}


def test_other_anchors_find_nothing_and_say_so(world, texts):
    others = AnchorSet(["x", "y"], {"en": texts["en"][:2]})

    assert len(find_parts(others)) == 0
    assert str(find_parts(others)) == f"The Hub has no upload with anchors {others.fingerprint[:16]}."


def test_the_same_anchors_in_another_order_are_others(world, anchors):
    backwards = AnchorSet(anchors.ids[::-1], {"en": anchors.view("en").samples[::-1]})

    assert len(find_parts(backwards)) == 0


def test_private_uploads_are_found_by_those_who_may_see_them(hub, world, anchors):
    HfApi().update_repo_settings(world["fr"], private=True)

    assert len(find_parts(anchors)) == 4
    assert len(find_parts(anchors, token=hub.add_user("stranger"))) == 3


def test_a_tag_without_an_upload_behind_it_is_a_row_that_does_not_fit(hub, world, make_model, repo_id, anchors):
    card = ModelCard.load(world["en"])
    HfApi().create_repo(repo_id)
    card.push_to_hub(repo_id)

    row = next(row for row in find_parts(make_model(0)) if row.repo_id == repo_id)

    assert row.fits is False and row.parts == ()


def test_what_names_no_anchors_is_refused(hub, repo_id):
    with pytest.raises(
        AnchorError, match="does not identify anchors: it is neither a fingerprint of 16 to 64 hex digits"
    ):
        find_parts(repo_id)


def test_a_hub_that_does_not_search_says_so(hub, anchors):
    hub.fail(403, match="GET /api/models$", times=None)

    with pytest.raises(UploadError, match="search on the Hub failed"):
        find_parts(anchors)
