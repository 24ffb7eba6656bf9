"""The notebooks run from top to bottom on little data, and what is committed is what a run left.

Sizes are replaced in the cell of constants, and each replacement must be found there: a notebook that was changed
cannot silently run at full size. Scores on so little data mean nothing; what is checked is that everything happens.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[1] / "notebooks"
FILES = sorted(FOLDER.glob("[0-9]*.ipynb"))
LARGEST = 500_000  # bytes of a file with its pictures
TEXT = ("text/plain", "text/html", "text/markdown")  # kinds of output that a reader can read
# An absolute path, or one into an environment, of this machine or any other.
PLACE = re.compile(r"(?<![\w./<])/\w|\bfile://|(?<!\w)~/|\b[A-Za-z]:\\|site-packages")
DEBIAN = {"TRAIN_ROWS = 4366": "TRAIN_ROWS = 240", "EPOCHS = 3": "EPOCHS = 1"}
TESTED = {"TEST_ROWS = 1256": "TEST_ROWS = 60"}
# What stands in the cell of constants -> what a test puts there.
SMALL: dict[str, dict[str, str]] = {
    "01_relative_in_ten_lines": {"NUM_ANCHORS = 100": "NUM_ANCHORS = 30", "EPOCHS = 12": "EPOCHS = 2"},
    "02_fine_tune": DEBIAN
    | TESTED
    | {"NUM_ANCHORS = 300": "NUM_ANCHORS = 40", "VALIDATION_ROWS = 623": "VALIDATION_ROWS = 30"},
    "03_hub": DEBIAN | TESTED | {"NUM_ANCHORS = 300": "NUM_ANCHORS = 40"},
    "04_languages": DEBIAN | TESTED | {"NUM_ANCHORS = 300": "NUM_ANCHORS = 40"},
    "05_architectures_and_images": {
        "TRAIN_IMAGES = 1347": "TRAIN_IMAGES = 200",
        "NUM_ANCHORS = 150": "NUM_ANCHORS = 30",
        '{"cnn": 8, "vit": 10}': '{"cnn": 1, "vit": 1}',
    },
    "06_reconstruct": {
        "TRAIN_IMAGES = 1347": "TRAIN_IMAGES = 200",
        "NUM_ANCHORS = 300": "NUM_ANCHORS = 40",
        "EPOCHS = 25": "EPOCHS = 1",
    },
    "07_compare_and_choose_anchors": DEBIAN
    | TESTED
    | {"VALIDATION_ROWS = 623": "VALIDATION_ROWS = 60", "SIZES = (50, 300)": "SIZES = (10, 40)"},
    "08_upgrade_without_reindexing": {
        "ROWS = 6245": "ROWS = 900",
        "EPOCHS = 5": "EPOCHS = 2",
        "PAIRS = (100, 300, 1000, 3000)": "PAIRS = (100, 110, 120)",
        "CANDIDATES = 50": "CANDIDATES = 20",
    },
    # Fewer texts or narrower encoders give word pairs that are refused.
    "09_tag_another_language": {"NUM_ANCHORS = 1000": "NUM_ANCHORS = 300"},
    "10_images_and_texts": {
        "NUM_ANCHORS = 300": "NUM_ANCHORS = 100",
        "NUM_TEST = 400": "NUM_TEST = 100",
        "EPOCHS = 12": "EPOCHS = 1",
    },
}
# Each costs a kernel that imports everything; docs/fine_tuning.md has the example of 02, the README that of 03.
FAST = ("01", "09")


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def made_small(path: Path) -> Any:
    notebook = read(path)
    constants = code_cells(notebook)[0]
    for written, small in SMALL[path.stem].items():
        assert constants.source.count(written) == 1, f"{path.name}: {written!r} is not once in its first cell of code"
        constants.source = constants.source.replace(written, small)
    return notebook


def marked(path: Path) -> Any:
    return pytest.param(path, id=path.stem, marks=[] if path.stem.startswith(FAST) else [pytest.mark.slow])


@pytest.mark.parametrize("path", [marked(path) for path in FILES])
def test_a_notebook_runs_from_top_to_bottom_on_little_data(path, runner):
    before, notebook = read(path), runner.execute(made_small(path), timeout=3600)
    kinds = [[sorted(output.get("data", {"text": 0})) for output in cell.outputs] for cell in code_cells(before)]
    found = [[sorted(output.get("data", {"text": 0})) for output in cell.outputs] for cell in code_cells(notebook)]
    assert found == kinds  # every cell shows what the committed one shows: text, a table, a picture


def test_there_are_nine_numbered_notebooks_and_the_index_names_each():
    assert [path.stem for path in FILES] == list(SMALL)
    index = (FOLDER / "README.md").read_text("utf-8")
    for path in FILES:
        title = read(path).cells[0].source.splitlines()[0].removeprefix("# ").split(" · ", 1)[1]
        assert f"[{title}]({path.name})" in index


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_committed_notebook_holds_the_outputs_of_one_run_and_fits_a_page(path, runner):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {kind for cell in cells for output in cell.outputs for kind in output.get("data", {})}
    assert "image/png" in kinds or path.stem == "03_hub"
    assert runner.tidied(read(path)) == notebook  # no durations, no bars, no warnings
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            readable = [data for kind, data in output.get("data", {}).items() if kind in TEXT]
            place = PLACE.search("\n".join([output.get("text", ""), *readable]))
            assert not place, f"{path.name} shows {place}, a place on the machine that it ran on"


def test_the_picture_that_the_readme_shows_is_that_of_its_notebook(runner):
    for name, file in runner.PICTURES.items():
        assert file.read_bytes() == runner.picture(read(FOLDER / f"{name}.ipynb")), "run make notebooks"


PLACES = {"home": Path.home(), "temporary": tempfile.gettempdir(), "python": sys.prefix, "checkout": FOLDER.parent}


@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
def test_a_place_on_a_machine_is_told_from_other_text(place):
    for before in ("saved to ", "{'file': '", "saved\n", "at=", "at:", "file://"):
        assert PLACE.search(f"{before}{place}'")
    assert not PLACE.search("stitched/own 0.97, and/or, https://huggingface.co/me/relative-en, me/anchors, </td>, 1/2")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_begins_with_its_command_its_time_and_what_to_expect(path):
    first = read(path).cells[0].source
    assert re.match(r"# \d+ · ", first)
    for word in (f"| Run | `make notebooks NOTEBOOKS=notebooks/{path.name}`", "| Time | ", "| Expect | "):
        assert word in first


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_code_comes_after_a_sentence_and_cells_are_short(path):
    cells = read(path).cells
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 50
            assert max(map(len, cell.source.splitlines())) <= 94
        assert before.cell_type == "code" or cell.cell_type == "code" or before is cells[0]


def test_what_changes_from_run_to_run_is_taken_out(runner):
    bar = "<div>\n<progress value='9' max='9'></progress>\n[411/411 00:21, Epoch 3/3]</div>"
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", {"text/html": bar})])
    (output,) = runner.tidied(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert output.data["text/html"] == "<div>\n[411/411, Epoch 3/3]</div>"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("stderr", "UserWarning: careful", "warns: UserWarning"), ("stdout", str(FOLDER / "output"), "prints the path")],
)
def test_a_warning_or_a_path_of_this_machine_is_refused(name, text, says, runner):
    cell = nbformat.v4.new_code_cell("train()", outputs=[nbformat.v4.new_output("stream", name=name, text=text)])
    with pytest.raises(ValueError, match=rf"begins with 'train\(\)' {says}"):
        runner.tidied(nbformat.v4.new_notebook(cells=[cell]))
