"""Sounds end to end: training, padding, refusals, pipelines, stitched architectures; and words that espeak-ng says."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from training import tiny_trainer
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AutoModel,
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
    pipeline,
)

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeModel,
    RelativeModelForAudioClassification,
    RelativeModelForImageClassification,
    stitch,
    stitching_matrix,
)
from hf_relreps.demos.speech import SAMPLING_RATE, Utterance, load_spoken_words, speak
from hf_relreps.errors import AnchorError, MissingExtraError, SampleError


RATE = 16_000
KINDS = ("low", "high", "rising", "noise")
SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def make_sound(kind: str, seed: int, seconds: float = 0.3) -> dict:
    """A tone, a rising tone or a burst of noise, of a loudness and pitch of its own."""
    rng = np.random.default_rng(seed)
    time_T = np.arange(round(seconds * RATE)) / RATE
    pitch = {"low": 300, "high": 2500, "rising": 600, "noise": 0}[kind] * rng.uniform(0.85, 1.15)
    swept = pitch * time_T * (1 + 4 * time_T / seconds) if kind == "rising" else pitch * time_T
    clean_T = rng.normal(0, 0.5, len(time_T)) if kind == "noise" else np.sin(2 * np.pi * (swept + rng.random()))
    array = rng.uniform(0.2, 0.8) * clean_T + rng.normal(0, 0.01, len(time_T))
    return {"array": array.astype(np.float32), "sampling_rate": RATE}


@pytest.fixture(scope="module")
def rows() -> dict:
    """96 sounds, 24 of each kind."""
    return {"sound": [make_sound(KINDS[i % 4], i) for i in range(96)], "label": [i % 4 for i in range(96)]}


@pytest.fixture(scope="module")
def held_out() -> dict:
    return {"sound": [make_sound(KINDS[i % 4], 1000 + i) for i in range(40)], "label": [i % 4 for i in range(40)]}


@pytest.fixture(scope="module")
def anchors(rows) -> AnchorSet:
    return AnchorSet([f"sound-{i}" for i in range(32)], {"sound": rows["sound"][:32]})


def whisper() -> WhisperModel:
    tokens = {"vocab_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    encoder = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 1, "max_target_positions": 1}
    config = WhisperConfig(d_model=24, num_mel_bins=24, max_source_positions=50, **tokens, **encoder, **decoder)
    return WhisperModel(config)


def ast() -> ASTModel:
    spectrum = {"num_mel_bins": 32, "max_length": 32, "patch_size": 16, "frequency_stride": 16, "time_stride": 16}
    return ASTModel(ASTConfig(hidden_size=24, **SIZES, **spectrum))


def wav2vec2(norm: str = "layer") -> Wav2Vec2Model:
    convolutions = {"conv_dim": (16, 16, 24), "conv_stride": (16, 5, 4), "conv_kernel": (32, 10, 8), "conv_bias": True}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    norms = {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer", "apply_spec_augment": False}
    return Wav2Vec2Model(Wav2Vec2Config(hidden_size=24, vocab_size=8, **SIZES, **convolutions, **positions, **norms))


READERS = {
    "whisper": lambda: WhisperFeatureExtractor(feature_size=24, chunk_length=1),
    "ast": lambda: ASTFeatureExtractor(num_mel_bins=32, max_length=32),
    "wav2vec2": lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True),
}
ENCODERS = {"whisper": whisper, "ast": ast, "wav2vec2": wav2vec2}


def make(anchors: AnchorSet, name: str = "whisper", seed: int = 0, **settings) -> RelativeModelForAudioClassification:
    """An untrained classifier of sounds."""
    names = {"id2label": dict(enumerate(KINDS)), "label2id": {kind: i for i, kind in enumerate(KINDS)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RelativeModelForAudioClassification.from_encoder(
            ENCODERS[name](), anchors.view(), READERS[name](), **names | settings
        )


def heard(sounds: list[dict], reader) -> dict:
    """Inputs as anybody makes them."""
    return dict(reader([sound["array"] for sound in sounds], sampling_rate=RATE, return_tensors="pt"))


def as_items(rows: dict, reader) -> list[dict]:
    """What the Trainer takes: the inputs of each sound with its label."""
    inputs = heard(rows["sound"], reader)
    return [{name: inputs[name][i] for name in inputs} | {"labels": label} for i, label in enumerate(rows["label"])]


def trained(model, rows: dict, folder, **arguments) -> RelativeModelForAudioClassification:
    long = {"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 5e-3}
    callback = AnchorCallback(refresh_every=5)
    tiny_trainer(model, None, as_items(rows, model.processor), folder, callback, **long | arguments).train()
    return model.eval()


# -- training


@pytest.mark.parametrize("name", ENCODERS)
def test_it_learns_sounds_and_keeps_the_anchors_of_its_own_encoder(name, anchors, rows, held_out, tmp_path):
    model = trained(make(anchors, name), rows, tmp_path)
    with torch.no_grad():
        predicted = model(**heard(held_out["sound"], model.processor)).logits.argmax(1)
    assert (predicted == torch.tensor(held_out["label"])).float().mean() > 0.8  # guessing gives 0.25
    own_AD = model.encoder.encode(anchors.view().samples)
    torch.testing.assert_close(model.encoder.projection.anchors_AD, own_AD)


def test_training_resumed_from_a_checkpoint_ends_in_the_same_weights_and_anchors(anchors, rows, tmp_path):
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}

    def trainer(seed):
        model = make(anchors, seed=seed)
        items = as_items(rows, model.processor)
        return tiny_trainer(model, None, items, tmp_path, AnchorCallback(refresh_every=3), **arguments)

    whole, resumed = trainer(0), trainer(1)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_stitched_across_architectures_it_is_far_above_the_absolute_control(anchors, rows, held_out, tmp_path):
    models = {
        name: trained(make(anchors, name, seed), rows, tmp_path, seed=seed) for seed, name in enumerate(ENCODERS)
    }
    matrix = stitching_matrix(models, models, held_out, metric="accuracy", train_dataset=rows, progress=False)
    assert matrix.own > 0.8
    assert matrix.stitched > 0.9 * matrix.own
    assert matrix.absolute_own > 0.8
    assert matrix.absolute_stitched < 0.55
    stitched = stitch(models["wav2vec2"], models["whisper"])
    assert isinstance(stitched, RelativeModelForAudioClassification)
    assert isinstance(stitched.processor, Wav2Vec2FeatureExtractor)  # the encoder's


# -- padding


@pytest.mark.parametrize(
    ("name", "encoder", "reader", "padding"),
    [
        ("whisper", whisper, READERS["whisper"], True),  # all sounds are filled up to one length
        ("ast", ast, READERS["ast"], True),
        ("layer norm", wav2vec2, READERS["wav2vec2"], True),  # the mask hides the padding
        ("group norm", lambda: wav2vec2("group"), Wav2Vec2FeatureExtractor, False),
        ("group norm, mask", lambda: wav2vec2("group"), READERS["wav2vec2"], False),
    ],
)
def test_a_sound_encoded_beside_longer_ones_is_the_same_as_alone(name, encoder, reader, padding):
    sounds = [make_sound(KINDS[i % 4], i, seconds) for i, seconds in enumerate((0.2, 0.31, 0.25, 0.2, 0.3))]
    model = RelativeModel.from_encoder(encoder().eval(), AnchorSet("abcde", {"sound": sounds}).view(), reader())
    assert model.config.padding is padding  # False: only sounds of one length share a batch
    alone_ND = torch.cat([model.encode([sound]) for sound in sounds])
    torch.testing.assert_close(model.encode(sounds), alone_ND, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.projection.anchors_AD, alone_ND, rtol=1e-4, atol=1e-5)


def test_with_a_mask_a_padded_batch_of_a_layer_norm_encoder_gives_the_logits_of_each_alone(anchors):
    model = make(anchors, "wav2vec2").eval()
    short, long = make_sound("low", 0, 0.2), make_sound("high", 1, 0.3)
    arrays = [short["array"], long["array"]]
    padded = model.processor(arrays, sampling_rate=RATE, padding=True, return_tensors="pt")
    alone = model.processor(arrays[:1], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits[:1], model(**alone).logits, rtol=1e-4, atol=1e-5)
        unmasked = model(input_values=padded["input_values"]).logits[:1]
    assert not torch.allclose(unmasked, model(**alone).logits, rtol=1e-4, atol=1e-5)


# -- sounds that are refused


def test_sounds_of_another_sampling_rate_are_refused_with_both_rates(anchors):
    model = make(anchors)
    with pytest.raises(
        SampleError, match="have 8000 samples per second, but the encoder reads 16000. Resample them first"
    ):
        model.encoder.encode([make_sound("low", 0) | {"sampling_rate": 8000}])
    with pytest.raises(SampleError, match="have 8000, 16000 samples per second"):
        model.encoder.encode([make_sound("low", 0), make_sound("low", 0) | {"sampling_rate": 8000}])
    telephone = [sound | {"sampling_rate": 8000} for sound in anchors.view().samples]
    with pytest.raises(SampleError, match="have 8000 samples per second, but the encoder reads 16000"):
        make(AnchorSet(anchors.ids, {"sound": telephone}))


def test_empty_sounds_and_sounds_of_two_channels_are_refused(anchors):
    encoder = make(anchors).encoder
    with pytest.raises(SampleError, match=r"samples\[1\] has shape \(0,\), expected one channel"):
        encoder.encode([make_sound("low", 0), {"array": [], "sampling_rate": RATE}])
    with pytest.raises(SampleError, match=r"samples\[0\] has shape \(2, 4800\), expected one channel"):
        encoder.encode([{"array": np.zeros((2, 4800)), "sampling_rate": RATE}])
    with pytest.raises(SampleError, match=r"view 'sound'\[0\] is a mapping with path, expected a sound"):
        AnchorSet("a", {"sound": [{"path": "a.wav"}]})


def test_a_rate_that_is_no_number_is_named(anchors):
    encoder = make(anchors).encoder
    encoder.processor.sampling_rate = {"of": "somebody else's file"}
    with pytest.raises(SampleError, match="but the encoder reads {'of'"):
        encoder.encode([make_sound("low", 0)])


def test_a_sound_longer_than_the_encoder_reads_is_truncated_with_a_warning(anchors, caplog):
    encoder = make(anchors).encoder
    long = make_sound("low", 3, seconds=1.5)
    x_ND = encoder.encode([make_sound("low", 0), long])
    assert "1 of 2 sounds are longer than 1 s, the most that the encoder reads" in caplog.text
    cut = long | {"array": long["array"][:RATE]}
    torch.testing.assert_close(x_ND[1:], encoder.encode([cut]))


def test_anchors_of_another_modality_are_refused(anchors):
    texts = AnchorSet("ab", {"en": ["a", "b"]})
    with pytest.raises(
        AnchorError, match="RelativeModelForAudioClassification reads audios, but the view 'en' contains texts"
    ):
        make(texts)
    with pytest.raises(AnchorError, match="RelativeModelForImageClassification reads images, but the view 'sound'"):
        RelativeModelForImageClassification.from_encoder(whisper(), anchors.view(), READERS["whisper"]())
    with pytest.raises(AnchorError, match="this encoder reads audios"):
        RelativeModelForImageClassification.from_encoder(make(anchors).encoder)


# -- saved, loaded, in a pipeline


def test_anchors_of_sounds_come_back_bit_for_bit(anchors, tmp_path):
    anchors.save_pretrained(tmp_path)
    loaded = AnchorSet.from_pretrained(tmp_path)
    assert loaded.fingerprint == anchors.fingerprint
    assert loaded.view().digest == anchors.view().digest
    for found, expected in zip(loaded.view().samples, anchors.view().samples, strict=True):
        assert found["sampling_rate"] == RATE
        assert np.array_equal(np.asarray(found["array"], dtype=np.float32), expected["array"])


@pytest.mark.parametrize("name", ENCODERS)
def test_saved_and_loaded_it_gives_the_same(name, anchors, tmp_path):
    model = make(anchors, name).eval()
    model.save_pretrained(tmp_path)
    sounds = [make_sound(kind, 50) for kind in KINDS]
    inputs = heard(sounds, model.processor)
    expected = model(**inputs)
    for door in (AutoModelForAudioClassification, RelativeModelForAudioClassification):
        whole = door.from_pretrained(tmp_path)
        assert isinstance(whole, RelativeModelForAudioClassification)
        torch.testing.assert_close(whole(**inputs).logits, expected.logits)
    encoder = AutoModel.from_pretrained(tmp_path, subfolder="encoder")
    relative = encoder(**inputs).relative_embeds
    torch.testing.assert_close(RelativeDecoder.from_pretrained(tmp_path)(relative).logits, expected.logits)
    torch.testing.assert_close(whole.encoder.encode(sounds), model.encoder.encode(sounds))  # with its own processor


@pytest.mark.parametrize("name", ENCODERS)
def test_an_upload_runs_in_the_pipeline_for_sounds(name, anchors, tmp_path):
    model = make(anchors, name).eval()
    model.save_pretrained(tmp_path)
    classify = pipeline("audio-classification", model=str(tmp_path), device="cpu")
    sound = make_sound("rising", 7)
    answers = {answer["label"]: answer["score"] for answer in classify(dict(sound), top_k=4)}
    with torch.no_grad():
        r_BA = model.encoder.projection(model.encoder.encode([sound]))
        expected = model.decoder(r_BA).logits.softmax(-1)[0]
    assert set(answers) == set(KINDS)  # and what the pipeline hears is described as the anchors are
    torch.testing.assert_close(torch.tensor([answers[kind] for kind in KINDS]), expected, rtol=1e-3, atol=1e-4)


# -- spoken words

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the program espeak-ng is not installed")
FEW = {"words": ("left", "stop"), "accents": ("en-us",), "takes": 1}


@needs_espeak
def test_words_are_said_by_other_voices_in_each_split_and_kept(tmp_path):
    train, test = (load_spoken_words(split, tmp_path, **FEW) for split in ("train", "test"))
    assert train.features["label"].names == ["left", "stop"]
    assert not set(train["voice"]) & set(test["voice"])
    assert sorted(set(train["label"])) == [0, 1]
    assert len(set(train["utterance"])) == len(train)
    sound = train[0]["audio"]
    assert sound["sampling_rate"] == SAMPLING_RATE
    assert len(sound["array"]) == 0.6 * SAMPLING_RATE
    assert 0.1 < np.abs(sound["array"]).max() <= 1
    kept = list(tmp_path.iterdir())
    assert len(kept) == 2
    again = load_spoken_words("train", tmp_path, **FEW)
    assert again[:] == train[:]
    assert list(tmp_path.iterdir()) == kept


@needs_espeak
def test_pitch_speed_voice_and_word_are_heard():
    usual = Utterance("seven", "en-us", "m1", 50, 150)
    others = [
        usual._replace(pitch=80),
        usual._replace(speed=250),
        usual._replace(voice="f2"),
        usual._replace(word="one"),
    ]
    assert np.array_equal(speak(usual), speak(usual))
    assert all(not np.array_equal(speak(usual), speak(other)) for other in others)
    lengths = [np.flatnonzero(speak(utterance, seconds=2))[-1] for utterance in (usual, usual._replace(speed=250))]
    assert lengths[1] < 0.8 * lengths[0]


@needs_espeak
def test_an_accent_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="espeak-ng has no accent 'en-atlantis'"):
        load_spoken_words("train", tmp_path, words=("left",), accents=("en-us", "en-atlantis"))


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="espeak-ng, which is not installed: apt-get install espeak-ng"):
        load_spoken_words("train", tmp_path, **FEW)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Found split 'dev', expected one of train, validation, test"):
        load_spoken_words("dev", tmp_path)
