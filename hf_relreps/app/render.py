"""What the page shows, as HTML: reports, answers side by side, errors. Names in uploads are text, never markup."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape as escape_html

from PIL import Image

from hf_relreps.app.pairs import Answer
from hf_relreps.printing import one_line
from hf_relreps.stitching import CompatibilityReport


MOST_CLASSES = 5

# Colours are Gradio's own, so that light and dark both suit.
CSS = """
.html-container:has(.rr-verdict, .rr-cards, .rr-error, .rr-hint) { padding: 0 !important; }
.rr-verdict { padding: 10px 14px; border-radius: 8px; font-weight: 600; margin-bottom: 10px;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color); }
.rr-verdict.yes { border-left: 6px solid #2f9e6e; } .rr-verdict.no { border-left: 6px solid #d9822b; }
.rr-scroll { overflow-x: auto; }
.rr-facts { width: 100%; border-collapse: collapse; margin: 0; font-size: var(--text-sm);
  color: var(--body-text-color); }
.rr-facts, .rr-facts tr { border: none !important; }
.rr-facts th { text-align: left; font-weight: 600; color: var(--body-text-color-subdued); }
.rr-facts th, .rr-facts td { padding: 5px 12px 5px 8px; border: none;
  border-bottom: 1px solid var(--border-color-primary); vertical-align: top; }
.rr-facts td.value { font-family: var(--font-mono); font-size: 0.92em; }
.rr-facts tr.differs td { background: color-mix(in srgb, #d9822b 14%, transparent); }
.rr-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; }
.rr-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 14px;
  background: var(--block-background-fill); color: var(--body-text-color); }
.rr-card.stitched { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.rr-card h4 { margin: 0 0 2px 0; font-size: var(--text-lg); color: var(--body-text-color); }
.rr-card h4::first-letter { text-transform: uppercase; }
.rr-card p { margin: 0 0 12px 0; font-size: var(--text-sm); color: var(--body-text-color-subdued); }
.rr-card p.why { margin: 0; }
.rr-card .value { font-size: 1.6em; font-weight: 600; }
.rr-card img { width: 160px; max-width: 100%; image-rendering: pixelated; border-radius: 6px; }
.rr-bar { display: grid; grid-template-columns: 1fr auto; gap: 2px 8px; font-size: var(--text-sm); margin-top: 7px; }
.rr-bar i { grid-column: 1 / 3; height: 6px; border-radius: 3px; background: var(--border-color-primary); }
.rr-bar i b { display: block; height: 6px; border-radius: 3px; background: var(--color-accent); }
.rr-bar.first { font-weight: 600; }
.rr-error { padding: 10px 14px; border-radius: 8px; border: 1px solid #d9822b; color: var(--body-text-color); }
.rr-hint { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
"""


def escape(text: str) -> str:
    """A stranger's text for a page: neither markup nor characters that turn or hide what is written."""
    return escape_html(one_line(text))


def report_html(report: CompatibilityReport) -> str:
    """The verdict, and a table of what each side says."""
    rows = [
        f'<tr class="{"" if fact.fits else "differs"}"><td>{escape(fact.name)}</td>'
        f'<td class="value">{escape(fact.encoder)}</td><td class="value">{escape(fact.decoder)}</td>'
        f"<td>{'ok' if fact.fits else 'differs'}</td></tr>"
        for fact in report.facts
    ]
    verdict = report.verdict[0].upper() + report.verdict[1:]
    expected = hint_html(f"Expected: {report.prediction}.") if report.prediction else ""
    return (
        f'<div class="rr-verdict {"yes" if report.fits else "no"}">{escape(verdict)}</div>'
        '<div class="rr-scroll"><table class="rr-facts"><tr><th></th><th>encoder</th><th>decoder</th><th></th></tr>'
        f"{''.join(rows)}</table></div>{expected}"
    )


def answers_html(answers: Sequence[Answer]) -> str:
    """One card for each way of putting the parts together."""
    return f'<div class="rr-cards">{"".join(map(_card, answers))}</div>'


def error_html(message: str) -> str:
    """What went wrong, in the words of the library."""
    return f'<div class="rr-error">{escape(message)}</div>'


def hint_html(message: str) -> str:
    """A line of small text."""
    return f'<div class="rr-hint">{escape(message)}</div>'


def _card(answer: Answer) -> str:
    return (
        f'<div class="rr-card {escape(answer.title.split()[0])}"><h4>{escape(answer.title)}</h4>'
        f"<p>{escape(answer.parts)}</p>{_content(answer)}</div>"
    )


def _content(answer: Answer) -> str:
    if answer.why_not:
        return f'<p class="why">{escape(answer.why_not)}</p>'
    if answer.image is not None:
        return f'<img alt="{escape(answer.title)}" src="{_data_url(answer.image)}">'
    if answer.value is not None:
        return f'<div class="value">{answer.value:.3g}</div>'
    best = sorted(answer.scores.items(), key=lambda pair: -pair[1])[:MOST_CLASSES]
    return "".join(_bar(name, score, first=i == 0) for i, (name, score) in enumerate(best))


def _bar(name: str, score: float, first: bool) -> str:
    return (
        f'<div class="rr-bar {"first" if first else ""}"><span>{escape(name)}</span><span>{score:.0%}</span>'
        f'<i><b style="width:{score:.1%}"></b></i></div>'
    )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
