"""The app: what each way of putting parts together says, what the page shows, and the page in a real browser."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training import tiny_trainer

from hf_relreps import (
    AnchorCallback,
    AnchorSet,
    RelativeDecoder,
    RelativeDecoderConfig,
    RelativeModelForImageReconstruction,
    RelativeModelForSequenceClassification,
    app,
    compatibility,
)
from hf_relreps.app.pairs import Answer, Pair, _read, load_pair, refuse_closed
from hf_relreps.app.render import answers_html, error_html, report_html
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor
from hf_relreps.errors import MissingExtraError, UploadError


KINDS = {"animal", "food", "vehicle"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def uploads(
    make_model: Callable[..., RelativeModelForSequenceClassification],
    make_bert: Any,
    make_dataset: Any,
    tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """``en`` and ``fr`` are trained, each from its own seed; the others are for what cannot be answered."""
    folder = tmp_path_factory.mktemp("uploads")
    models = {"en": make_model(0), "fr": make_model(1, "fr"), "cosine": make_model(2, similarity="cosine")}
    for name in ("en", "fr"):
        arguments = {"max_steps": 60, "learning_rate": 5e-3}
        tiny_trainer(models[name], tokenizer, make_dataset(name), folder, AnchorCallback(), **arguments).train()
    for name, model in models.items():
        model.eval().save_pretrained(folder / name)
    models["en"].decoder.save_pretrained(folder / "decoder-only")
    models["fr"].encoder.save_pretrained(folder / "encoder-only")
    make_bert(3, hidden_size=64).save_pretrained(folder / "ordinary")
    tokenizer.save_pretrained(folder / "ordinary")
    return {path.name: str(path) for path in folder.iterdir() if path.is_dir()}


# -- what is said


def test_own_stitched_and_absolute_are_what_the_models_themselves_say(uploads: dict[str, str]) -> None:
    text = "petit chat ici"
    own, stitched, absolute = Pair.load(uploads["fr"], uploads["en"]).answers(text)
    fr, en = (RelativeModelForSequenceClassification.from_pretrained(uploads[name]).eval() for name in ("fr", "en"))
    inputs = fr.processor([text], return_tensors="pt")
    with torch.no_grad():
        encoded = fr.encoder(**inputs)
        expected = {
            "own": fr(**inputs).logits,
            "stitched": en.decoder(encoded.relative_embeds).logits,
            "absolute": en.decoder(en.encoder.projection(encoded.pooler_output)).logits,
        }
    for answer in (own, stitched, absolute):
        probabilities = expected[answer.title].softmax(-1)[0].tolist()
        assert list(answer.scores.values()) == pytest.approx(probabilities, abs=1e-4)
        assert set(answer.scores) == KINDS and not answer.why_not


def test_stitched_agrees_with_own_more_often_than_the_absolute_control(
    uploads: dict[str, str], texts: dict[str, list[str]], labels: list[int]
) -> None:
    pair = Pair.load(uploads["fr"], uploads["en"])
    kinds = sorted(KINDS)
    right = torch.zeros(3)
    for text, label in zip(texts["fr"], labels, strict=True):
        for i, answer in enumerate(pair.answers(text)):
            right[i] += max(answer.scores, key=answer.scores.__getitem__) == kinds[label]
    own, stitched, absolute = (right / len(labels)).tolist()
    assert own > 0.9 and stitched > 0.8
    assert absolute < 0.7


def test_the_decoders_own_pair_reads_its_own_language(uploads: dict[str, str]) -> None:
    answer = Pair.load(uploads["fr"], uploads["en"]).answer_of_other("small cat here")
    assert max(answer.scores, key=answer.scores.__getitem__) == "animal"


def test_the_example_is_an_anchor_in_the_language_of_the_encoder(uploads: dict[str, str]) -> None:
    assert Pair.load(uploads["fr"], uploads["en"]).example == "petit chat ici"
    assert Pair.load(uploads["en"], uploads["fr"]).example == "small cat here"
    assert Pair.load(uploads["ordinary"], uploads["fr"], "en").example == "small cat here"


def test_an_upload_of_one_part_says_what_it_does_not_hold(uploads: dict[str, str]) -> None:
    pair = Pair.load(uploads["encoder-only"], uploads["decoder-only"])
    own, stitched, absolute = pair.answers("petit chat ici")
    assert own.why_not == "This upload has no decoder."
    assert stitched.scores
    assert "has no encoder" in absolute.why_not
    assert pair.answer_of_other("small cat").why_not == "This upload has no encoder."


def test_parts_that_do_not_fit_have_no_stitched_answer(uploads: dict[str, str]) -> None:
    pair = Pair.load(uploads["cosine"], uploads["en"])
    own, stitched, absolute = pair.answers("small cat here")
    assert own.scores
    assert stitched.why_not == "The parts do not fit: similarity, rbf_gamma."
    assert absolute.why_not == "The parts do not fit."


def test_an_ordinary_model_has_no_own_answer_and_no_control_of_another_width(uploads: dict[str, str]) -> None:
    own, stitched, absolute = Pair.load(uploads["ordinary"], uploads["en"], "en").answers("small cat here")
    assert own.why_not and stitched.scores
    assert absolute.why_not == "No control: the spaces are 64 and 32 wide."


def test_a_decoder_that_draws_gives_images(tmp_path: Path) -> None:
    pixels = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    images = [Image.fromarray(one) for one in pixels]
    view = AnchorSet(list("abcd"), {"image": images}).view("image")
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = ConvEncoder(ConvEncoderConfig(image_size=12, num_channels=1, widths=[4, 8]))
        model = RelativeModelForImageReconstruction.from_encoder(
            encoder, view, image_processor(12), pooling="pooler", decoder_widths=[8, 4]
        )
        model.eval().save_pretrained(tmp_path / str(seed))
    pair = Pair.load(str(tmp_path / "0"), str(tmp_path / "1"))
    answers = pair.answers(images[1])
    assert pair.modality == "image"
    assert [answer.image.size for answer in answers] == [(12, 12)] * 3
    assert answers_html(answers).count("data:image/png;base64,") == 3


def test_pairs_are_loaded_once(uploads: dict[str, str]) -> None:
    assert load_pair(uploads["fr"], uploads["en"]) is load_pair(uploads["fr"], uploads["en"])


@pytest.mark.parametrize("name", [".", "/etc", "./model", "~/model", "a/b/c"])
def test_where_strangers_type_folders_are_refused(name: str) -> None:
    with pytest.raises(UploadError, match="not a valid repository name"):
        refuse_closed(name)


def test_where_strangers_type_only_public_uploads_are_opened(hub: Any, new_repo_id: Any, make_model: Any) -> None:
    public, private = new_repo_id(), new_repo_id()
    make_model(0).push_to_hub(public)
    make_model(0).push_to_hub(private, private=True)
    refuse_closed(public)
    with pytest.raises(UploadError, match="opens public uploads only"):
        refuse_closed(private)


# -- what is shown


def test_names_in_uploads_are_text_and_no_markup() -> None:
    answer = Answer("stitched", "<b>x</b>", scores={"<script>alert(1)</script>": 1.0})
    for shown in (answers_html([answer]), error_html("<script>")):
        assert "<script>" not in shown and "<b>x" not in shown


def test_labels_of_any_type_are_shown_as_text() -> None:
    decoder = RelativeDecoder(RelativeDecoderConfig(num_anchors=4, num_labels=3)).eval()
    decoder.config.id2label = {0: ["<x>"], 1: None, 2: 2.5}
    answer = _read(decoder, torch.randn(1, decoder.config.space.size), "own", "")
    assert set(answer.scores) == {"['<x>']", "None", "2.5"}
    shown = answers_html([answer])
    assert "None" in shown and "<x>" not in shown


def test_the_best_five_classes_are_shown_in_order() -> None:
    scores = {f"class {i}": i / 28 for i in range(8)}
    shown = answers_html([Answer("own", "", scores=scores)])
    assert [f"class {i}" in shown for i in range(8)] == [False] * 3 + [True] * 5
    assert shown.index("class 7") < shown.index("class 6") and "25%" in shown


def test_the_report_marks_what_differs(uploads: dict[str, str]) -> None:
    shown = report_html(Pair.load(uploads["cosine"], uploads["en"]).report)
    assert '<tr class="differs"><td>similarity</td>' in shown and "Does not fit" in shown
    assert 'class="rr-verdict yes"' in report_html(Pair.load(uploads["fr"], uploads["en"]).report)


def test_the_report_says_what_is_expected_of_the_stitch(uploads: dict[str, str], texts: dict[str, list[str]]) -> None:
    pairs = (texts["fr"] * 2, texts["en"] * 2)
    report = compatibility(uploads["fr"], uploads["en"], own_encoder=uploads["en"], pairs=pairs)
    assert f"Expected: keeps {100 * (report.expected_ratio or 0):.0f} %" in report_html(report)
    assert "Expected" not in report_html(compatibility(uploads["fr"], uploads["en"]))


def test_without_gradio_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_relreps.app.page", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf_relreps\[app\]'"):
        app.launch()


def test_it_is_pushed_as_a_space(hub: Any, hub_user: str) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    repo_id = f"{hub_user}/stitching-app"
    app.push_to_hub(repo_id)
    try:
        files = HfApi().list_repo_files(repo_id, repo_type="space")
        assert {"README.md", "app.py", "requirements.txt"} <= set(files)
        text = Path(hf_hub_download(repo_id, "requirements.txt", repo_type="space")).read_text()
        assert text.startswith("hf_relreps[app]>=")
    finally:
        HfApi().delete_repo(repo_id, repo_type="space")


# -- in a browser


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the running app."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    port = _free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        app.launch(server_port=port, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    import gradio

    yield f"http://127.0.0.1:{port}"
    gradio.close_all()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=BROWSER_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1180, "height": 1400})
    page.set_default_timeout(600_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    page.get_by_role("button", name="Compare").wait_for()
    yield page
    page.close()


def _name(page: Any, label: str, value: str) -> None:
    box = page.get_by_label(label, exact=True)
    box.fill(value)
    box.press("Enter")


def test_in_a_browser_a_stitched_answer_appears_beside_own_and_absolute(page: Any, uploads: dict[str, str]) -> None:
    _name(page, "Encoder", uploads["fr"])
    _name(page, "Decoder", uploads["en"])
    page.get_by_role("button", name="Compare").click()
    page.locator(".rr-verdict.yes").wait_for()
    page.get_by_label("Text, as the encoder reads it").fill("petit chat ici")
    page.get_by_role("button", name="Try", exact=True).click()
    page.locator(".rr-card").first.wait_for()
    assert page.locator(".rr-card h4").all_inner_texts() == ["Own", "Stitched", "Absolute"]
    assert page.locator(".rr-card.stitched .rr-bar.first span").first.inner_text() == "animal"
    assert not page.errors


def test_in_a_browser_names_that_were_given_are_compared_at_once_with_an_example_to_try(
    browser: Any, address: str, uploads: dict[str, str]
) -> None:
    port = _free_port()
    app.launch(
        *(uploads["fr"], uploads["en"]),
        **{"server_port": port, "server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True},
    )
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}")
    page.locator(".rr-verdict.yes").wait_for()
    assert page.get_by_label("Text, as the encoder reads it").input_value() == "petit chat ici"
    page.close()


def test_in_a_browser_what_goes_wrong_is_a_sentence(page: Any, uploads: dict[str, str]) -> None:
    page.get_by_role("button", name="Compare").click()
    page.locator(".rr-error").wait_for()
    assert "Name an encoder first" in page.locator(".rr-error").inner_text()
    _name(page, "Encoder", uploads["cosine"])
    _name(page, "Decoder", uploads["en"])
    page.get_by_role("button", name="Compare").click()
    page.locator(".rr-verdict.no").wait_for()
    assert page.locator(".rr-facts tr.differs").count() == 2


def test_in_a_browser_decoders_that_share_anchors_are_found(
    page: Any, uploads: dict[str, str], hub: Any, repo_id: str, make_model: Any
) -> None:
    make_model(5).push_to_hub(repo_id)
    _name(page, "Encoder", uploads["fr"])
    page.get_by_role("button", name="Find decoders").click()
    page.locator(".rr-hint", has_text="decoders that share the anchors").wait_for()
    assert page.get_by_label("Decoder", exact=True).input_value() == repo_id
