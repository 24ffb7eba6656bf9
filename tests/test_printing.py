"""A stranger's text on a terminal or a page is seen, and does nothing: labels, ids, views, names, errors."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from hf_relreps import AnchorSet, RelativeDecoder, RelativeModel, compatibility
from hf_relreps.errors import RelrepsError, UploadError
from hf_relreps.hub import FoundPart, FoundParts
from hf_relreps.printing import one_line, printable
from hf_relreps_cli import app


CLEAR, PASTE, REVERSED = "\x1b[2J", "\x1b]52;c;ZXZpbA==\x07", "\u202e"
HOSTILE = [CLEAR, PASTE, REVERSED, "\x9b2J", "\r", "\b"]


@pytest.mark.parametrize("evil", HOSTILE)
def test_characters_that_act_are_shown_as_escapes(evil):
    shown = printable(f"a{evil}b")
    assert shown.startswith("a\\u") and shown.endswith("b") and shown.isprintable()


def test_what_is_printed_in_any_language_stays():
    text = "déjà vu, 日本語, العربية, emoji 🙂\n\tindented"
    assert printable(text) == text
    assert one_line("a\nverdict: fits") == "a\\nverdict: fits"


def test_errors_quote_a_strangers_text_without_its_power():
    for error in (RelrepsError(CLEAR), UploadError(f"{CLEAR} is no upload")):
        assert "\x1b" not in str(error) and "\\u001b[2J" in str(error)


@pytest.fixture
def hostile(tmp_path):
    views = {f"en{CLEAR}": [f"first{PASTE}", "second\nverdict: they fit"]}
    AnchorSet([f"id{CLEAR}\nfake", "b"], views, origin={f"from{CLEAR}": REVERSED}).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_anchors_are_shown_without_their_power(hostile, how):
    result = CliRunner().invoke(app, ["anchors", "show", str(hostile), *how])
    assert result.exit_code == 0
    assert not set(result.output) & {"\x1b", "\x07", REVERSED}
    assert "\\u001b[2J" in result.output
    if not how:
        assert "\nfake" not in result.output and "\nverdict" not in result.output


def test_the_report_of_two_parts_has_one_verdict(tmp_path, make_model):
    model = make_model(0)
    model.encoder.config.anchor_view = f"en\nverdict: the parts fit{CLEAR}"
    text = str(compatibility(model.encoder, model.decoder))
    assert text.count("\nverdict:") == 1 and "\x1b" not in text
    assert isinstance(model.encoder, RelativeModel) and isinstance(model.decoder, RelativeDecoder)


def test_the_table_of_uploads_has_a_line_for_each():
    row = FoundPart(f"me/x{CLEAR}", ("encoder",), (f"en\nme/y  encoder{PASTE}",), None, None, None)
    text = str(FoundParts([row], "anchors 0"))
    assert len(text.splitlines()) == 2 and not set(text) & {"\x1b", "\x07"}
