"""Builds the bundled Debian descriptions from apt's package index and its translations.

    python -m benchmarks.assets.build_debian_descriptions

On a Debian machine, as root or not, with a network; about a minute and 30 MB. apt works on folders and settings of its
own, so that those of the system stay as they are. `--from-parquet` starts from a table that was joined before.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from hf_relreps.demos.debian import DATA_FILE, LANGUAGES, SECTIONS, SPLITS


APT_HELPER = "/usr/lib/apt/apt-helper"
APT_CONFIG = """\
APT::Architectures {{ "amd64"; }};
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::Languages;
Acquire::Languages {{ {languages} }};
Dir::State::Lists "{folder}/lists";
Dir::Cache "{folder}/cache";
"""
MAX_BYTES = 4_000_000

Row = dict[str, str]


def main(arguments: list[str] | None = None) -> None:
    """Builds the file and prints its rows per section and split."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--from-parquet", type=Path, metavar="FILE", help="a joined table instead of apt")
    parser.add_argument(
        "--suite", default="bookworm", help="the Debian release to read from apt (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=DATA_FILE, metavar="FILE", help="default: the bundled file")
    options = parser.parse_args(arguments)

    joined = read_parquet(options.from_parquet) if options.from_parquet else read_apt(options.suite)
    rows = [row | {"split": split_of(row["package"])} for row in select(joined)]
    write(rows, options.output)
    console = Console()
    console.print(f"{len(rows)} rows, {options.output.stat().st_size:,} bytes: {options.output}", soft_wrap=True)
    console.print(count_table(rows))


def read_parquet(file: Path) -> list[Row]:
    """Returns the rows of a joined table, without languages that are missing or empty."""
    table = pq.read_table(file, columns=["package", "section", *LANGUAGES])
    return [{name: text for name, text in row.items() if text} for row in table.to_pylist()]


def read_apt(suite: str) -> list[Row]:
    """Returns every package of the suite's main archive with its descriptions by language."""
    with tempfile.TemporaryDirectory() as folder:
        # apt drops its rights to a user of its own, which has to get in.
        Path(folder).chmod(0o755)
        lists = fetch_lists(Path(folder))
        packages = list(stanzas(find_list(lists, f"*_dists_{suite}_main_binary-amd64_Packages*")))
        texts = {
            language: read_translations(
                find_list(lists, f"*_dists_{suite}_main_i18n_Translation-{language}*"), language
            )
            for language in LANGUAGES
        }
    return join(packages, texts)


def fetch_lists(folder: Path) -> Path:
    """Downloads the indices of the system's apt sources into a folder and returns where they lie."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    config = folder / "apt.conf"
    languages = " ".join(f'"{language}";' for language in LANGUAGES)
    config.write_text(APT_CONFIG.format(languages=languages, folder=folder))
    subprocess.run(["apt-get", "--quiet", "-c", str(config), "update"], check=True)
    return folder / "lists"


def find_list(lists: Path, pattern: str) -> Path:
    """Returns the one index that matches."""
    found = sorted(lists.glob(pattern))
    if len(found) != 1:
        names = ", ".join(sorted(file.name for file in lists.iterdir() if file.is_file())) or "none"
        raise FileNotFoundError(
            f"Found {len(found)} indices for {pattern}, expected one. Run this where apt's sources hold the main "
            f"archive of that release once, or name another with --suite. Indices: {names}."
        )
    return found[0]


def read_translations(file: Path, language: str) -> dict[tuple[str, str], str]:
    """Returns texts by package and md5 of the English description: a name alone may have several versions."""
    key = f"Description-{language}"
    return {(s["Package"], s["Description-md5"]): text_of(s[key]) for s in stanzas(file) if key in s}


def join(packages: Iterable[Row], texts: dict[str, dict[tuple[str, str], str]]) -> list[Row]:
    """Returns one row for each package: name, section and the languages that have a text."""
    rows: dict[str, Row] = {}
    for stanza in packages:
        name, md5 = stanza["Package"], stanza.get("Description-md5", "")
        found = {language: by_key[name, md5] for language, by_key in texts.items() if by_key.get((name, md5))}
        rows.setdefault(name, {"package": name, "section": stanza.get("Section", "")} | found)
    return list(rows.values())


def stanzas(file: Path) -> Iterator[Row]:
    """Yields the stanzas of a deb822 index, compressed or not; continuation lines keep their breaks."""
    text = subprocess.run([APT_HELPER, "cat-file", str(file)], check=True, capture_output=True).stdout.decode()
    for block in text.split("\n\n"):
        stanza: Row = {}
        key = ""
        for line in block.split("\n"):
            if not line:
                continue
            if line.startswith(" "):
                stanza[key] += "\n" + line[1:]
            else:
                key, _, value = line.partition(":")
                stanza[key] = value.strip()
        if stanza:
            yield stanza


def text_of(description: str) -> str:
    r"""Returns the synopsis and the first paragraph of a description in one line.

    >>> text_of("a tool\nIt does\nthis.\n.\nAnd that.")
    'a tool. It does this.'
    """
    synopsis, *body = description.split("\n")
    # A dot alone is an empty line; a line may well start with ".vcf files".
    paragraph = " ".join(" ".join(takewhile(lambda line: line.strip() != ".", body)).split())
    return f"{synopsis.strip()}. {paragraph}" if paragraph else synopsis.strip()


def select(joined: Iterable[Row]) -> list[Row]:
    """Returns the rows in all languages and of the chosen sections, by name, each English text once."""
    columns = ("package", "section", *LANGUAGES)
    complete = (row for row in joined if row["section"] in SECTIONS and row.keys() >= set(columns))
    first: dict[str, Row] = {}
    for row in sorted(complete, key=lambda row: row["package"]):
        first.setdefault(row["en"], {name: row[name] for name in columns})
    return list(first.values())


def split_of(package: str) -> str:
    """Returns the split that a package always falls in: 70 % train, 10 % validation, 20 % test."""
    percent = int.from_bytes(hashlib.sha256(package.encode()).digest()[:8]) % 100
    return "train" if percent < 70 else "validation" if percent < 80 else "test"


def write(rows: list[Row], file: Path) -> None:
    """Writes the rows as parquet, or raises if the file would be too large to bundle."""
    table = pa.table({name: [row[name] for row in rows] for name in ("package", "section", *LANGUAGES, "split")})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, compression="zstd", compression_level=19)
    if file.stat().st_size >= MAX_BYTES:
        raise ValueError(
            f"Found {file.stat().st_size:,} bytes, expected fewer than {MAX_BYTES:,}. Choose fewer sections."
        )


def count_table(rows: list[Row]) -> str:
    """Returns the rows per section and split as a Markdown table."""
    counts = Counter((row["section"], row["split"]) for row in rows)
    lines = [f"| section | {' | '.join(SPLITS)} |", "|---" * (1 + len(SPLITS)) + "|"]
    for section in SECTIONS:
        lines.append(f"| {section} | {' | '.join(str(counts[section, split]) for split in SPLITS)} |")
    totals = [sum(counts[section, split] for section in SECTIONS) for split in SPLITS]
    return "\n".join([*lines, f"| all | {' | '.join(map(str, totals))} |"])


if __name__ == "__main__":
    main()
