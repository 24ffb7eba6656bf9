"""Sphinx reads the pages as Hugging Face's doc-builder does, so that ``make docs`` gives a site that needs no network.

Pages are Markdown with ``[[autodoc]]`` and links such as ``[`stitch`]``, their order is in ``_toctree.yml``, and
docstrings are Markdown in Google's sections. What is here turns these four into what Sphinx knows. doc-builder itself
reads the same pages, once the modules of ``hf_relreps.demos`` are imported: offline it stops at MDX, as its pages need
node and a checkout of its kit.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx


sys.path.insert(0, str(Path(__file__).parent))

import notebook_pages  # noqa: E402

import examples  # noqa: E402
import hf_relreps  # noqa: E402


project = "hf_relreps"
version = release = hf_relreps.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns: list[str] = []
smartquotes_action = "D"  # dashes alone: messages are quoted as they are

myst_enable_extensions = ["alert"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_use_rtype = False
napoleon_use_ivar = True
strip_signature_backslash = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"hf_relreps {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

COLON = "\N{RATIO}"
_TOCTREE = Path(__file__).with_name("_toctree.yml")
_REPOSITORY = Path(__file__).parents[1]

# Name as it stands on a page -> where Sphinx finds it.
_TARGETS = {
    name: f"hf_relreps.{name}"
    for page in examples.pages()
    for entry in examples.entries(page)
    for name in (entry.name, *(f"{entry.name}.{member}" for member in entry.members))
}
_SHORT = {name.rpartition(".")[2]: name for name in _TARGETS if name.rpartition(".")[2][:1].isupper()}


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_notebooks)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", restore_colon, priority=600)


def write_notebooks(app: Sphinx) -> None:
    """The pages of the notebooks, before Sphinx looks for pages."""
    notebook_pages.write(Path(app.srcdir) / "notebooks")


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """From doc-builder's Markdown to MyST's."""
    text = examples.AUTODOC.sub(_directive, source[0])
    text = re.sub(r"\[`(~?)([\w.]+)`\](?!\()", _link, text)
    text = re.sub(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[\w./-]+)\)", lambda match: _outside(app, docname, match), text)
    if docname == "index":
        text += "\n" + "\n".join(_toctrees())
    source[0] = text


def _directive(match: re.Match[str]) -> str:
    name = match["name"]
    members = re.findall(r"- (\w+)", match["members"])
    kind = "autoclass" if isinstance(examples.resolved(name), type) else "autofunction"
    lines = [f".. {kind}:: hf_relreps.{name}"]
    if members:
        lines.append(f"   :members: {', '.join(members)}")
    if name.startswith("errors."):
        lines.append("   :show-inheritance:")
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def _link(match: re.Match[str]) -> str:
    name = match[2].removeprefix("hf_relreps.")
    shown = name.rpartition(".")[2] if match[1] else name
    if name not in _TARGETS:
        raise ValueError(f"[`{match[2]}`] names nothing that an API page shows. Add an [[autodoc]], or write `code`.")
    return f"{{py:obj}}`{shown} <{_TARGETS[name]}>`"


def _outside(app: Sphinx, docname: str, match: re.Match[str]) -> str:
    """A link that leaves this folder becomes that to a notebook's page, or the file's name in the repository."""
    place = (Path(app.srcdir) / docname).parent
    file = place.joinpath(match[2]).resolve()
    if file.is_relative_to(app.srcdir):
        return match[0]
    name = file.relative_to(_REPOSITORY).as_posix()
    if name == "notebooks/README.md" or file in notebook_pages.notebooks():
        page = Path(app.srcdir) / "notebooks" / ("index.md" if file.suffix == ".md" else f"{file.stem}.md")
        return f"[{match[1]}]({os.path.relpath(page, place)})"
    return match[1] if name in match[1] else f"{match[1]} (`{name}`)"


def _toctrees() -> list[str]:
    lines = []
    notebooks = [{"local": "notebooks/index", "title": "Overview"}]
    notebooks += [
        {"local": f"notebooks/{file.stem}", "title": notebook_pages.title(file)} for file in notebook_pages.notebooks()
    ]
    parts = yaml.safe_load(_TOCTREE.read_text("utf-8"))
    parts.insert(2, {"title": "Notebooks", "sections": notebooks})  # after the guides
    for part in parts:
        lines += ["```{toctree}", ":hidden:", f":caption: {part['title']}", ""]
        lines += [f"{page['title']} <{_local(page)}>" for page in part["sections"]]
        lines += ["```", ""]
    return lines


def _local(page: dict[str, str]) -> str:
    return "self" if page["local"] == "index" else page["local"]


def read_docstring(app: Sphinx, what: str, name: str, target: Any, options: Any, lines: list[str]) -> None:
    """From Markdown to reStructuredText: fences, code that is a link, links, underscores at the end of names."""
    text = re.sub(r"(?m)^( *)```(?:python|py)\n(.*?)^\1```$", _code_block, "\n".join(lines), flags=re.DOTALL)
    kept: list[str] = []
    for line in text.split("\n"):
        kept.append(line if line.startswith("    ") and kept and _in_code(kept) else _inline(line, name))
    if what == "property" and lines:
        kept[0] = kept[0].replace(": ", COLON)
    lines[:] = kept


def restore_colon(app: Sphinx, what: str, name: str, target: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in the first line of a property for its type; so it was hidden."""
    lines[:] = [line.replace(COLON, ": ") for line in lines]


def _code_block(match: re.Match[str]) -> str:
    body = [f"{match[1]}    {line[len(match[1]) :]}".rstrip() for line in match[2].rstrip().split("\n")]
    return "\n".join([f"{match[1]}.. code-block:: python", "", *body, ""])


def _in_code(lines: list[str]) -> bool:
    for line in reversed(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() == ".. code-block:: python":
            return True
        if line.strip() and indent < 4:
            return False
    return False


def _inline(line: str, inside: str) -> str:
    line = re.sub(r"(?<!`)`([^`]+)`(?!`)", lambda match: _code(match[1], inside), line)
    return re.sub(r"\[([^\]`]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", line)


def _code(text: str, inside: str) -> str:
    name = text.removeprefix("hf_relreps.")
    owner = inside.removeprefix("hf_relreps.")
    candidates = (name, f"{owner}.{name}", f"{owner.rpartition('.')[0]}.{name}", _SHORT.get(name, ""))
    found = next((candidate for candidate in candidates if candidate in _TARGETS), None)
    return f":py:obj:`{name} <{_TARGETS[found]}>`" if found else f"``{text}``"
