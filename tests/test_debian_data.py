"""The bundled Debian descriptions are what their README says."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.assets import build_debian_descriptions as build
from hf_relreps.demos.debian import DATA_FILE, LANGUAGES, SECTIONS, SPLITS, load_debian_descriptions


COLUMNS = ["package", "section", "en", "fr", "it", "da", "split"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return pq.read_table(DATA_FILE).to_pylist()


def test_the_file_is_small_enough_to_bundle():
    assert DATA_FILE.stat().st_size < 4_000_000
    assert pq.ParquetFile(DATA_FILE).metadata.row_group(0).column(2).compression == "ZSTD"


def test_the_columns_are_names_texts_and_a_split(rows):
    assert pq.read_schema(DATA_FILE).names == COLUMNS
    assert len(rows) > 6000


def test_every_text_is_there_in_every_language_in_one_line(rows):
    texts = [row[column] for row in rows for column in COLUMNS]
    assert all(text and text == text.strip() and "\n" not in text for text in texts)


def test_the_eleven_sections_are_all_in_every_split(rows):
    assert len(SECTIONS) == 11 and list(SECTIONS) == sorted(SECTIONS)
    assert {(row["section"], row["split"]) for row in rows} == {
        (section, split) for section in SECTIONS for split in SPLITS
    }


def test_no_package_and_no_english_text_is_there_twice_so_that_splits_share_none(rows):
    assert len({row["package"] for row in rows}) == len(rows)
    assert len({row["en"] for row in rows}) == len(rows)


def test_the_split_follows_from_the_name_of_the_package(rows):
    assert all(row["split"] == build.split_of(row["package"]) for row in rows)
    shares = [sum(row["split"] == split for row in rows) / len(rows) for split in SPLITS]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_the_readme_beside_the_file_counts_its_rows(rows):
    assert build.count_table(rows) in DATA_FILE.with_name("README.md").read_text()


def test_loading_gives_labels_beside_the_texts():
    dataset = load_debian_descriptions()
    assert dataset.column_names == [*COLUMNS, "label"]
    assert dataset.features["label"].names == sorted(SECTIONS)
    assert dataset.features["label"].int2str(dataset["label"][:]) == dataset["section"][:]
    assert dataset.cache_files == []


def test_the_three_splits_together_are_all_rows():
    packages = [name for split in SPLITS for name in load_debian_descriptions(split)["package"]]
    assert sorted(packages) == sorted(load_debian_descriptions()["package"])


def test_an_unknown_split_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="Found split 'dev', expected one of train, validation, test"):
        load_debian_descriptions("dev")


PACKAGES = """\
Package: alpha
Section: net
Description: a tool
Description-md5: 11

Package: beta
Section: games
Description-md5: 22

Package: gamma
Section: net
Description-md5: 33

Package: delta
Section: libs
Description-md5: 44
"""
TRANSLATION = """\
Package: alpha
Description-md5: 11
Description-{0}: {0} tool
 It reads
 .vcf files.
 .
 More.

Package: alpha
Description-md5: 10
Description-{0}: {0} text of an older version

Package: beta
Description-md5: 22
Description-{0}: {0} game

Package: gamma
Description-md5: 33
Description-{0}: {0} tool
 It reads .vcf files.

Package: delta
Description-md5: 44
Description-{0}: {0} library
"""


@pytest.mark.skipif(not Path(build.APT_HELPER).exists(), reason="needs apt-helper of Debian")
def test_indices_of_apt_become_rows(tmp_path):
    (tmp_path / "Packages").write_text(PACKAGES)
    for language in LANGUAGES:
        (tmp_path / language).write_bytes(gzip.compress(TRANSLATION.format(language).encode()))
        (tmp_path / language).rename(tmp_path / f"{language}.gz")
    texts = {language: build.read_translations(tmp_path / f"{language}.gz", language) for language in LANGUAGES}
    chosen = build.select(build.join(build.stanzas(tmp_path / "Packages"), texts))
    # gamma says the same as alpha, and libs is not one of the sections.
    assert [row["package"] for row in chosen] == ["alpha", "beta"]
    assert chosen[0]["da"] == "da tool. It reads .vcf files."
    assert chosen[1]["fr"] == "fr game"


def test_a_joined_table_gives_the_bundled_file_again(tmp_path):
    table = pq.read_table(DATA_FILE).drop_columns("split")
    extra = pa.table(
        {
            name: [
                "zz-only-english"
                if name == "package"
                else "net"
                if name == "section"
                else "x"
                if name == "en"
                else None
            ]
            for name in table.column_names
        },
        schema=table.schema,
    )
    pq.write_table(pa.concat_tables([extra, table]), tmp_path / "joined.parquet")
    build.main(["--from-parquet", str(tmp_path / "joined.parquet"), "--output", str(tmp_path / "built.parquet")])
    assert pq.read_table(tmp_path / "built.parquet").equals(pq.read_table(DATA_FILE))


def test_a_release_that_apt_does_not_know_is_refused_with_the_indices_found(tmp_path):
    (tmp_path / "mirror_dists_trixie_main_binary-amd64_Packages.lz4").touch()
    with pytest.raises(FileNotFoundError, match="Found 0 indices for .*bookworm.*trixie_main_binary-amd64_Packages"):
        build.find_list(tmp_path, "*_dists_bookworm_main_binary-amd64_Packages*")
