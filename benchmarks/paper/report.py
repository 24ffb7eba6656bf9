"""The page `docs/reproduction.md`, made from the JSON that the tables wrote."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.paper.options import RESULTS
from benchmarks.reporting import markdown, versions


PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"
NAMES = ("table1", "proxy", "table2", "table3", "table4", "table5", "table6", "ablations")
OPENING = """# The paper's tables, measured again

*Relative representations enable zero-shot latent space communication* (Moschella et al., ICLR 2023), table by table:
our figures beside those of the paper. Each section is one command, for example

    python -m benchmarks.paper table1 --data DATA --assets ASSETS

`--quick` shows in less than two minutes that it works. `DATA` and `ASSETS` are folders with files from packages and
public archives (`--help` lists them). Without them the paper's own datasets and models are loaded from the Hub, by the
names in the modules. `python -m benchmarks.paper --report` writes this page from `benchmarks/results/paper/*.json`. ±
is the standard deviation over seeds, unless the section says otherwise. No two encoders of an absolute control share a
seed, and nothing was chosen on the reported data. We know the paper's figures second hand; those that are from memory
only are in brackets.
"""


def module_of(name: str) -> ModuleType:
    """The module of a table."""
    return importlib.import_module(f"benchmarks.paper.{name}")


def title(module: ModuleType) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(module) or "").splitlines()[0].removesuffix(".")


def protocol(module: ModuleType) -> str:
    """The rest of its docstring."""
    return "\n".join((inspect.getdoc(module) or "").splitlines()[1:]).strip()


def write(folder: Path = RESULTS, page: Path = PAGE) -> None:
    """The page, of all tables that have results."""
    found = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in NAMES if _there(folder, name)}
    modules = {name: module_of(name) for name in found}
    summary = [_summary(modules[name], results) for name, results in found.items()]
    parts = [OPENING, markdown(("table", "paper", "here", "same shape"), summary), ""]
    parts += [_section(modules[name], results) for name, results in found.items()]
    page.write_text("\n".join(parts), "utf-8")


def _there(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").is_file()


def _summary(module: ModuleType, results: dict[str, Any]) -> tuple[str, ...]:
    name = title(module)
    link = f"[{name}](#{''.join(c for c in name.lower().replace(' ', '-') if c.isalnum() or c in '-_')})"
    headline = module.headline(results) if hasattr(module, "headline") else ("", "see below", "")
    return link, *headline


def _section(module: ModuleType, results: dict[str, Any]) -> str:
    return f"## {title(module)}\n\n{protocol(module)}\n\n{module.render(results).strip()}\n\n{_run(results['run'])}\n"


def _run(facts: dict[str, Any]) -> str:
    machine = facts["machine"]
    return (
        f"`{facts['command']}`: {facts['seconds'] / 60:.1f} minutes, {facts['seeds']} seeds, {machine['threads']} "
        f"thread{'s' * (machine['threads'] > 1)} of {machine['processor']}. *{versions(machine)}.*"
    )
