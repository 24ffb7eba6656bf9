"""What is built, what it holds, what it says of itself, and that it works where nothing else is installed."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from readme import README, offline_example

from hf_relreps.demos.quickstart import launch
from hf_relreps.errors import MissingExtraError


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = ("pyproject.toml", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE", "hf_relreps", "hf_relreps_cli.py")
DEVELOPERS = ("tests", "local_hub", "examples")  # lie beside the package, and in neither archive
# What someone's checkout holds beside the sources, and no package may.
STRAY = (
    "hf_relreps/notes.txt",
    "hf_relreps/demos/data/big.bin.tmp",
    "tests/data/secret.json",
    "out/model.safetensors",
)
INDEX_SERVES_CUDA = "torch"  # so constraints/oldest.txt leaves it out
HUB = {"starlette", "uvicorn"}  # what the local Hub of the tests needs beside


def tracked(folder: str) -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


@dataclass
class Built:
    """A wheel and an sdist, and their files without the top folder of the sdist."""

    wheel: Path
    sdist: Path

    @property
    def wheel_files(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    @property
    def sdist_files(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {member.name.split("/", 1)[1] for member in archive if member.isfile()}

    def says(self, name: str) -> str:
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.read(f"{self._info}/{name}").decode()

    @property
    def _info(self) -> str:
        return next(name for name in self.wheel_files if name.endswith("/METADATA")).split("/")[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built from a copy of the sources among which stray files lie, with the setuptools of this environment."""
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("sources")
    for name in set().union(*map(tracked, SOURCES + DEVELOPERS)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in STRAY:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("stray")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = (copy / "dist").glob("*.whl"), (copy / "dist").glob("*.tar.gz")
    return Built(wheel, sdist)


# -- what it holds


def test_the_wheel_holds_the_package_and_nothing_else(built):
    in_package = {name for name in built.wheel_files if ".dist-info/" not in name}
    assert in_package == tracked("hf_relreps") | {"hf_relreps_cli.py"}
    assert {
        "hf_relreps/py.typed",
        "hf_relreps/model_card_template.md",
        "hf_relreps/anchors_card_template.md",
    } <= in_package
    assert "hf_relreps/demos/data/debian_descriptions.parquet" in in_package


def test_the_sdist_holds_what_the_wheel_is_built_from(built):
    made = {name for name in built.sdist_files if name.startswith("hf_relreps.egg-info/")} | {"PKG-INFO"}
    assert built.sdist_files - made == tracked("hf_relreps") | set(SOURCES) - {"hf_relreps"}


def test_the_wheel_installs_on_every_platform_and_stays_small(built):
    assert built.wheel.name == f"hf_relreps-{PROJECT['version']}-py3-none-any.whl"
    assert built.wheel.stat().st_size < 4_000_000  # two of them are the Debian descriptions


# -- what it says of itself


@pytest.fixture(scope="module")
def metadata(built: Built) -> Metadata:
    """Read as an index does, which refuses a package whose metadata breaks a rule."""
    return Metadata.from_email(built.says("METADATA"), validate=True)


def test_the_metadata_is_valid_and_shows_the_readme(metadata, built):
    assert (metadata.name, str(metadata.version)) == ("hf_relreps", PROJECT["version"])
    assert metadata.license_expression == "Apache-2.0" and metadata.license_files == ["LICENSE"]
    assert metadata.description_content_type == "text/markdown"
    assert email.message_from_string(built.says("METADATA")).get_payload().strip() == README.read_text("utf-8").strip()
    assert metadata.summary and len(metadata.keywords) > 2


def test_the_classifiers_exist_and_name_the_pythons_that_are_allowed(metadata):
    trove_classifiers = pytest.importorskip("trove_classifiers")
    assert set(metadata.classifiers) <= trove_classifiers.classifiers
    assert not set(metadata.classifiers) & set(trove_classifiers.deprecated_classifiers)
    named = [c.rsplit(" ", 1)[1] for c in metadata.classifiers if re.search(r"Python :: 3\.\d+$", c)]
    assert named[0] == "3.11" and all(version in metadata.requires_python for version in named)
    assert "3.10" not in metadata.requires_python


def test_the_urls_are_whole(metadata):
    assert "Paper" in metadata.project_urls
    assert all(re.match(r"https://\S+$", url) for url in metadata.project_urls.values())


def test_the_command_is_installed_and_its_function_exists(built):
    assert built.says("entry_points.txt").split() == ["[console_scripts]", "hf-relreps", "=", "hf_relreps_cli:main"]


def test_each_extra_that_a_message_or_the_readme_names_exists(metadata):
    text = README.read_text("utf-8") + "".join((ROOT / name).read_text("utf-8") for name in tracked("hf_relreps/*.py"))
    named = set(re.findall(r"hf[_-]relreps\[([a-z-]+)\]", text))
    assert {"app", "onnx", "plots"} <= named <= set(metadata.provides_extra)


# -- ranges


def bounds() -> dict[str, Requirement]:
    """What the package and its extras ask for, without the tools of developers."""
    extras = PROJECT["optional-dependencies"]
    asked = [
        *PROJECT["dependencies"],
        *(one for extra in extras if extra not in ("quality", "dev") for one in extras[extra]),
    ]
    found = {canonicalize_name(Requirement(one).name): Requirement(one) for one in asked}
    return {name: requirement for name, requirement in found.items() if name != "hf-relreps"}


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / "constraints" / file).read_text("utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in found}


def lowest(requirement: Requirement) -> Version:
    return next(Version(one.version) for one in requirement.specifier if one.operator == ">=")


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    demo = [
        *PROJECT["dependencies"],
        *(one for extra in ("plots", "demo") for one in PROJECT["optional-dependencies"][extra]),
    ]
    names = {canonicalize_name(Requirement(one).name) for one in demo} - {"hf-relreps", INDEX_SERVES_CUDA}
    names |= HUB
    assert pins("oldest.txt") == {name: lowest(bounds()[name]) for name in names}


def test_the_versions_of_development_lie_within_the_bounds():
    developed = pins("dev.txt")
    for name, requirement in bounds().items():
        if name not in developed:  # only those that a test installs are pinned
            assert name in ("gradio",)
            continue
        assert requirement.specifier.contains(developed[name])


def test_the_quickstart_names_the_extra_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"needs matplotlib. .* pip install 'hf_relreps\[demo\]'"):
        launch(tmp_path)


def test_what_the_local_hub_needs_comes_with_the_tests_and_not_with_the_demo():
    extras = {
        name: {canonicalize_name(Requirement(one).name) for one in asked}
        for name, asked in PROJECT["optional-dependencies"].items()
    }
    assert HUB <= extras["test"] and HUB <= extras["notebooks"]
    assert not HUB & extras["demo"]
    assert "HUB_RUNS := starlette uvicorn" in (ROOT / "Makefile").read_text("utf-8")


# -- installed where nothing else is


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty environment with the wheel in it and no extras; the versions are those of development."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    pinned = ["--constraint", str(ROOT / "constraints" / "dev.txt"), str(built.wheel)]
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(python), *pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return python


def run_outside(python: Path, *arguments: str, timeout: int = 3600) -> str:
    folder = python.parents[2]
    done = subprocess.run(
        [str(python), *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_imports_without_any_extra_and_outside_the_checkout(installed):
    place = run_outside(installed, "-c", "import hf_relreps; print(hf_relreps.__file__)", timeout=3600)
    assert Path(place).is_relative_to(installed.parents[1])
    for extra in ("matplotlib", "starlette", "gradio", "peft", "pytest"):
        absent = f"import importlib.util; print(importlib.util.find_spec({extra!r}))"
        assert run_outside(installed, "-c", absent).strip() == "None"


@pytest.mark.slow
def test_the_installed_command_teaches(installed):
    done = subprocess.run(
        [str(installed.with_name("hf-relreps")), "--help"], capture_output=True, text=True, check=True
    )
    assert {"quickstart", "stitch", "find"} <= set(re.findall(r"\w+", done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize(("command", "extra"), [("quickstart", "demo"), ("app", "app")])
def test_a_command_that_needs_an_extra_names_it_in_one_line(installed, command, extra, tmp_path):
    script = str(installed.with_name("hf-relreps"))
    done = subprocess.run([script, command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode and f"pip install 'hf_relreps[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_readmes_offline_example_runs_to_its_end_from_the_wheel_alone(installed):
    code, shown = offline_example()
    script = installed.parents[2] / "example.py"
    script.write_text(code)
    printed = run_outside(installed, str(script), timeout=7200)
    last = r"own (0\.\d+)   ·   stitched (0\.\d+) \([\d.]+% of own, worst [\d.]+\)   ·   absolute stitched (0\.\d+)"
    own, stitched, absolute = map(float, re.search(last, printed).groups())
    assert re.search(last, shown)
    assert own > 0.75 and stitched > 0.9 * own and absolute < 0.25
