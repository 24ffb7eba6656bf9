"""The documentation: each public name has a place and an example, examples run, errors say what the page says."""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import json
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import errors_page  # noqa: E402
import notebook_pages  # noqa: E402

import examples  # noqa: E402
import hf_relreps  # noqa: E402
from hf_relreps.encoders.images import ConvEncoder, ConvEncoderConfig, image_processor  # noqa: E402


API_PAGES = examples.pages()[:-1]
GUIDES = (
    "frozen_encoder",
    "encode",
    "stitch",
    "trust",
    "share",
    "choosing_anchors",
    "tokens",
    "pairs",
    "probes",
    "cross_modal",
    "troubleshooting",
)
# Encoders that a guide takes from the Hub -> the small one of the examples that stands there in their place.
ON_THE_HUB = {"sentence-transformers/all-MiniLM-L6-v2": "english", "intfloat/multilingual-e5-small": "french"}
USES_FORWARD = r"\.(forward|logits|loss|relative_embeds|reconstruction|last_hidden_state)\b"


@pytest.fixture(scope="module")
def beginning(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that every example begins with; ``me`` may push."""
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(tmp_path_factory.mktemp("examples")):
        patch.setenv("HF_TOKEN", hub.add_user("me", token="hf_me"))
        yield examples.beginning()


# -- places


def told_to_users() -> set[str]:
    """What README, guides and notebooks import or name in full."""
    texts = [page.read_text("utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        texts.append("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    found = set()
    for text in texts:
        for line in re.findall(r"^from hf_relreps[\w.]* import (?:\([^)]*\)|.+)", text, re.MULTILINE):
            found |= examples.imported_names(line)
        found |= set(re.findall(r"`hf_relreps\.([\w.]+)", text))
    return {name for name in found if not isinstance(examples.resolved(name), types.ModuleType)}


def public_names() -> set[str]:
    """Those of the package, of modules with `__all__`, errors, similarities, and what users are told to import."""
    modules = ("evaluation", "migration", "translation")
    names = {name for name in hf_relreps.__all__ if name != "errors"}
    names |= {f"{module}.{name}" for module in modules for name in examples.resolved(module).__all__}
    names |= {f"errors.{name}" for name, value in vars(hf_relreps.errors).items() if inspect.isclass(value)}
    names |= {f"similarities.{name}" for name in examples.resolved("similarities").SIMILARITIES}
    return names | told_to_users()


def test_every_public_name_has_a_place_on_a_page():
    text = "\n".join(page.read_text("utf-8") for page in examples.pages())
    places = [examples.resolved(entry.name) for page in examples.pages() for entry in examples.entries(page)]
    homeless = []
    for name in sorted(public_names()):
        value = examples.resolved(name)
        if inspect.isclass(value) or inspect.isroutine(value):
            found = any(value is place for place in places)
        else:  # a table
            found = f"`hf_relreps.{name}`" in text
        if not found:
            homeless.append(name)
    assert not homeless, f"no page of docs/api has [[autodoc]] {homeless[0]}; in all {len(homeless)}: {homeless}"


@pytest.mark.parametrize("page", examples.pages(), ids=lambda page: page.stem)
def test_everything_on_a_page_has_an_example(page):
    stories = examples.stories(page)
    code = "\n".join(examples.code_of(block) for story in stories for block in story.blocks)
    with_example = {story.where for story in stories}
    if page == examples.ERRORS:
        with_example |= {f"errors.{name}" for name in errors_page.sections(page.read_text("utf-8"))}
    lacking = []
    for entry in examples.entries(page):
        if entry.name not in with_example and not re.search(rf"\b{entry.name.rpartition('.')[2]}\b", code):
            lacking.append(entry.name)
        for member in entry.members:
            used = USES_FORWARD if member == "forward" else rf"\.{member}\b"
            if f"{entry.name}.{member}" not in with_example and not re.search(used, code):
                lacking.append(f"{entry.name}.{member}")
    assert not lacking, f"{page.name} shows {lacking[0]}, but no example on it uses that; in all: {lacking}"


def test_what_is_on_a_page_has_a_docstring():
    for page in examples.pages():
        for entry in examples.entries(page):
            for name, docstring in entry.docstrings():
                assert docstring.strip(), f"{name} on {page.name} has no docstring"


def test_every_page_is_in_the_table_of_contents_once():
    parts = yaml.safe_load((ROOT / "docs" / "_toctree.yml").read_text("utf-8"))
    listed = [page["local"] for part in parts for page in part["sections"]]
    files = [file for folder in (ROOT / "docs", ROOT / "docs" / "api") for file in folder.glob("*.md")]
    assert sorted(listed) == sorted(file.relative_to(ROOT / "docs").with_suffix("").as_posix() for file in files)


def test_each_notebook_is_a_page_with_its_outputs_and_its_links_lead_to_pages(tmp_path):
    notebook_pages.write(tmp_path / "notebooks")
    pages = {file.name: file.read_text("utf-8") for file in (tmp_path / "notebooks").glob("*.md")}
    assert set(pages) == {"index.md", *(f"{file.stem}.md" for file in notebook_pages.notebooks())}
    first = pages["01_relative_in_ten_lines.md"]
    assert "```python\n" in first and "mean reciprocal rank" in first and "](02_fine_tune.md)" in first
    assert all((tmp_path / "notebooks" / name).is_file() for name in re.findall(r"\]\((\w+\.png)\)", first))
    for name, text in pages.items():
        linked = re.findall(r"\]\((\w+\.(?:md|png))\)", text)
        assert all((tmp_path / "notebooks" / target).is_file() for target in linked), name


# -- examples


@pytest.mark.parametrize("page", API_PAGES, ids=lambda page: page.stem)
def test_examples_run(page, beginning):
    failures = [
        f"{where}: {type(error).__name__}: {error}" for where, error in examples.run_page(page, beginning) if error
    ]
    assert not failures, "\n\n".join(failures)


IMAGE_ENCODER = "google/vit-base-patch16-224-in21k"


@pytest.fixture(scope="module")
def encoders_on_the_hub(hub, beginning):
    net = ConvEncoder(ConvEncoderConfig(image_size=16, widths=[8, 16]))
    for part in (net, image_processor(16)):
        part.push_to_hub(IMAGE_ENCODER, token=hub.add_user(IMAGE_ENCODER.split("/")[0]))
    for repo_id, name in ON_THE_HUB.items():
        token = hub.add_user(repo_id.split("/")[0])
        for part in (beginning[name].encoder.backbone, beginning[name].processor):
            part.push_to_hub(repo_id, token=token)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.usefixtures("encoders_on_the_hub")
def test_guides_run(guide, beginning):
    blocks = examples.blocks((ROOT / "docs" / f"{guide}.md").read_text("utf-8"))
    assert blocks
    examples.run(examples.Story(f"docs/{guide}.md", blocks), dict(beginning))


def names_from_outside(block: str) -> set[str]:
    """What the code of an example uses and does not make."""
    lines = [line.lstrip() for line in block.splitlines()]
    prompts = [line[4:] for line in lines if line[:3] in (">>>", "...")]
    tree = ast.parse("\n".join(prompts) if prompts else textwrap.dedent(block))
    made, used = set(dir(builtins)), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (made if isinstance(node.ctx, ast.Store) else used).add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
    return used - made


def test_a_docstring_example_runs_as_it_stands_or_says_where_its_names_come_from():
    says = re.compile(r"Uses the names that .*`docs/api/\w+\.md` makes\.")
    silent = []
    for file in (ROOT / "hf_relreps").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            text = (ast.get_docstring(node) or "") if documented else ""
            _, _, example = text.partition("Example:\n")
            code = "\n".join(re.findall(r"```python\n(.*?)```", example, re.DOTALL))
            if names_from_outside(code) and not says.search(example):
                silent.append(f"{file.name}: {getattr(node, 'name', '')}")
    assert not silent


def test_an_example_that_prints_something_else_is_found():
    with pytest.raises(AssertionError, match="Expected:\n    3\nGot:\n    2"):
        examples.run(examples.Story("a page", [">>> 1 + 1\n3\n"]), {})


# -- errors


def test_messages_on_the_errors_page_are_those_of_the_code(beginning):
    text = examples.ERRORS.read_text("utf-8")
    assert errors_page.page(text, beginning) == text, "run python docs/errors_page.py"


def test_the_errors_page_has_a_section_for_each_error():
    raised = [
        name for name, value in vars(hf_relreps.errors).items() if inspect.isclass(value) and name != "RelrepsError"
    ]
    assert errors_page.sections(examples.ERRORS.read_text("utf-8")) == raised


# -- the site


def test_the_site_builds_without_a_warning_and_without_the_network(tmp_path):
    from sphinx.application import Sphinx

    said = tmp_path / "warnings.txt"
    with said.open("w") as warnings:
        docs, out = str(ROOT / "docs"), str(tmp_path / "site")
        # The longest page is one table, which is a third of the time.
        short = {"exclude_patterns": ["supported_models.md"], "suppress_warnings": ["toc.not_readable"]}
        site = Sphinx(docs, docs, out, str(tmp_path / "trees"), "html", short, status=None, warning=warnings)
        site.build()
    assert site.statuscode == 0 and not said.read_text("utf-8")
    anchors = (tmp_path / "site" / "api" / "anchors.html").read_text("utf-8")
    assert 'id="hf_relreps.AnchorSet.without"' in anchors and "[[autodoc]]" not in anchors
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+', anchors), "needs the network"
