"""An index of texts and a new model: `migrate`, its search and renewal, indexes in files, the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

import hf_relreps_cli
from hf_relreps.demos.debian import load_debian_descriptions
from hf_relreps.errors import ConfigurationError, EmbeddingError, SampleError, UploadError
from hf_relreps.migration import Migration, RenewedVectors, TextMigration, in_memory, migrate
from hf_relreps.migration.indexes import migrate_index
from hf_relreps.migration.measuring import known_answers, recalls, share_of


PAIRS = 300


class Words:
    """A model of words: real vectors of real texts, in a moment. It counts what it reads."""

    def __init__(self, texts, width, **how):
        self.model = make_pipeline(TfidfVectorizer(**how), TruncatedSVD(width, random_state=0)).fit(texts)
        self.read = 0

    def __call__(self, texts):
        self.read += len(texts)
        return np.float32(self.model.transform(texts))


@pytest.fixture(scope="module")
def texts():
    return load_debian_descriptions("train")["en"][:900]


@pytest.fixture(scope="module")
def models(texts):
    pieces = {"analyzer": "char_wb", "ngram_range": (3, 3), "sublinear_tf": True, "max_features": 4000}
    return Words(texts, 48, stop_words="english"), Words(texts, 64, **pieces)


@pytest.fixture(scope="module")
def index(texts, models):
    return models[0](texts)


@pytest.fixture
def new(models):
    models[1].read = 0
    return models[1]


@pytest.fixture(scope="module")
def switched(index, texts, models):
    return migrate(index, texts, models[1], pairs=PAIRS, ways=["procrustes", "relative"])


def own(model, queries, texts, k=10):
    """What the new model finds in an index of its own."""
    documents, asking = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (model(texts), model(queries)))
    return (asking @ documents.T).argsort(1)[:, ::-1][:, :k]


def shared(one, other):
    return np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(one.tolist(), other.tolist(), strict=True)])


# -- what it finds


def test_only_a_sample_is_encoded_and_the_report_says_what_to_expect(index, texts, new):
    switched = migrate(index, texts, new, pairs=PAIRS, ways=["procrustes"], old_model="words", new_model="pieces")
    assert new.read == PAIRS == switched.migration.facts.pairs
    assert switched.report.startswith(switched.migration.report) and "pieces asks an index of words" in switched.report
    assert "expected recall@10" in switched.report and switched.report.endswith("measure(queries, answers).")


def test_two_stages_find_more_of_what_the_new_model_finds_than_one(switched, texts, new):
    queries = [text.partition(". ")[0] for text in texts[:60]]
    best = own(new, queries, texts)
    two = switched.search(queries, candidates=60)
    one = switched.nearest(switched.queries(queries), 10)
    assert shared(two.ids, best) > shared(np.array([list(row) for row in one]), best) + 0.1
    assert two.stored == len(texts) and 0 < two.share_renewed < 1
    assert switched.search(queries, candidates=60).encoded == 0


def test_queries_with_known_answers_tell_the_recall_of_both_stages_and_of_today(switched, index, texts, models):
    queries, answers = [text.partition(". ")[0] for text in texts[:80]], list(range(80))
    first = in_memory(index, texts)(models[0](queries), 10)
    found = switched.measure(queries, np.arange(80), today=[list(row) for row in first], candidates=60)
    one = switched.nearest(switched.queries(queries), 10)
    two = switched.search(queries, candidates=60)
    assert found.one_stage == np.mean([i in row for i, row in zip(answers, one, strict=True)])
    assert found.two_stages == np.mean([i in row for i, row in zip(answers, two.ids, strict=True)]) > found.one_stage
    assert found.today == np.mean([i in row for i, row in zip(answers, first, strict=True)]) > 0.5  # chance 10/900
    assert (found.k, found.candidates, two.encoded) == (10, 60, 0)
    assert "of what is found today" in str(found) and "of 80 queries" in str(found)


def test_several_answers_count_as_shares_of_what_k_can_hold():
    right = known_answers([["a", "b"], "c", ("a", "b", "c")], 3)
    assert recalls([["b", "x", "a"], ["x", "y", "c"], ["c", "a", "b"]], right, k=2).tolist() == [0.5, 0, 1]


def test_the_error_of_a_share_is_that_of_many_draws():
    draw = np.random.default_rng(0)
    shares, errors = [], []
    for _ in range(400):
        today = (draw.random(200) < 0.8).astype(float)
        found = today * (draw.random(200) < 0.9)
        share, error = share_of(found, today)
        shares.append(share)
        errors.append(error)
    assert np.mean(shares) == pytest.approx(0.9, abs=0.01)
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.15)


def test_one_query_may_be_a_text_alone_and_none_finds_nothing(switched):
    assert switched.search("a game of cards", k=3).ids.shape == (1, 3)
    assert switched.search([], k=3).ids.shape == (0, 3)


def test_queries_without_answers_choose_the_way_and_correct_for_documents_near_to_everything(index, texts, new):
    queries = [text.partition(". ")[0] for text in texts]
    how = {"pairs": PAIRS, "ways": ["procrustes", "relative"]}
    switched = migrate(index, texts, new, queries=queries[300:500], **how)
    migration, way = switched.migration, switched.way
    assert migration.facts.agreed is not None
    hubs = migration.hubs(index, new(queries[300:500]), way)
    scores = migration.scores(new(queries[:20]), index, hubs, way)
    found = switched.nearest(switched.queries(queries[:20]), 5)
    assert [list(row)[0] for row in found] == scores.argmax(1).tolist()
    assert np.mean([i in row for i, row in enumerate(found)]) > 0.3  # chance 5/900


def test_a_store_is_asked_with_translated_queries_and_gives_its_own_ids(index, texts, new):
    names = [f"document {row}" for row in range(len(texts))]
    store, asked = in_memory(index, texts, names), []

    def nearest(queries, count):
        asked.append((queries, count))
        return store(queries, count)

    switched = migrate(index, texts, new, nearest=nearest, ids=names, pairs=PAIRS, ways=["procrustes", "relative"])
    found = switched.search(["a game of cards"], k=2, candidates=7)
    (queries, count), *more = asked
    assert not more and count == 7 and queries.shape == (1, 48)
    np.testing.assert_allclose(queries, switched.migration.queries(new(["a game of cards"]), "procrustes"), rtol=1e-5)
    assert set(found.ids[0]) <= set(store(queries, 7)[0]) and found.stored is None and found.share_renewed is None


def test_a_new_model_that_reads_queries_in_another_way_is_asked_so(index, texts, new):
    switched = migrate(index, texts, new, new_queries=lambda some: new(texts[:1]), pairs=PAIRS, ways=["procrustes"])
    assert switched.search("whatever is asked", k=1).ids[0, 0] == 0


def test_in_memory_the_best_way_searches_and_in_a_store_the_one_that_leaves_it(index, texts, new):
    how = {"pairs": PAIRS, "ways": ["relative"], "new_queries": None}
    assert migrate(index, texts, new, **how).queries("a game").shape == (1, PAIRS)
    ids = range(len(texts))
    assert migrate(index, texts, new, nearest=in_memory(index, texts), ids=ids, **how).queries("a game").shape == (
        1,
        48,
    )


# -- rows that are of no use, and settings


def test_rows_without_a_text_or_a_vector_and_texts_that_come_twice_are_passed_over(index, texts, new):
    some, vectors = list(texts), index.copy()
    some[:100], some[100:200], vectors[200:300] = [""] * 100, [None] * 100, 0
    some[300:400] = [some[400]] * 100
    switched = migrate(vectors, some, new, pairs=800, ways=["procrustes"])
    assert switched.migration.facts.pairs == 500 == new.read
    with pytest.raises(SampleError, match="1 of 900 rows have a text of their own and a vector, expected 100 or more"):
        migrate(index, ["the same"] * 900, new)


def test_what_does_not_go_together_is_refused(index, texts, new):
    with pytest.raises(EmbeddingError, match="There are 900 vectors, 899 texts. Row i of each"):
        migrate(index, texts[:-1], new)
    with pytest.raises(EmbeddingError, match="There are 900 vectors, 900 texts, 3 ids"):
        migrate(index, texts, new, ids=[1, 2, 3])
    with pytest.raises(EmbeddingError, match=r"The stored vectors have shape \(48,\)"):
        migrate(index[0], texts, new)
    with pytest.raises(EmbeddingError, match="The pairs do not belong together"):
        migrate(index, texts[::-1], new, pairs=PAIRS)
    with pytest.raises(SampleError, match=r"texts\[\d+\] is a int, expected a text"):
        migrate(index, list(range(900)), new)
    with pytest.raises(ConfigurationError, match="300 documents have 1 ids"):
        migrate(index, texts, new, ids=[5] * 900, pairs=PAIRS)
    with pytest.raises(ConfigurationError, match=r"The id of a document is \d+\.5, a float, expected a whole"):
        migrate(index, texts, new, ids=[row + 0.5 for row in range(900)], pairs=PAIRS)
    with pytest.raises(ConfigurationError, match="nearest gives the ids of a store, but ids was left out"):
        migrate(index, texts, new, nearest=in_memory(index, texts))
    with pytest.raises(ConfigurationError, match="new is a int, expected a SentenceTransformer"):
        migrate(index, texts, 7)
    with pytest.raises(ConfigurationError, match="pairs=20 must be a whole number, 100 or more"):
        migrate(index, texts, new, pairs=20)


def test_searches_that_cannot_be_are_refused(switched, index, texts, new):
    with pytest.raises(ConfigurationError, match="There is no index to ask. Give nearest"):
        TextMigration(switched.migration, new).search("a game")
    few = TextMigration(switched.migration, new, nearest=lambda queries, count: [{7: "a game"}] * len(queries))
    with pytest.raises(ConfigurationError, match="k=10 documents are to be found among 1 candidates. Ask for"):
        few.search("a game")
    none = TextMigration(switched.migration, new, nearest=lambda queries, count: [])
    with pytest.raises(ConfigurationError, match="nearest gave candidates of 0 queries, expected 2"):
        none.search(["a game", "a server"])
    numbers = TextMigration(switched.migration, new, nearest=lambda queries, count: [[7, 3]] * len(queries))
    with pytest.raises(ConfigurationError, match="nearest gave a list, expected a mapping. For each query return"):
        numbers.search("a game")
    with pytest.raises(ConfigurationError, match="The new model is a function, of which no SentenceTransformer"):
        switched.adapter()
    for given, answers, kind, words in (
        ([], [], SampleError, "There are no queries"),
        (["a game", "a server"], [3], ConfigurationError, "There are 2 queries and answers to 1"),
        (["a game", "a server"], [3, []], SampleError, "Query 1 has no answer"),
        (["a game"], ["3"], ConfigurationError, "ids such as [0-9]+, the answers are such as '3'"),
        (["a game"], [3.5], ConfigurationError, "The id of a document is 3.5, a float"),
    ):
        with pytest.raises(kind, match=words):
            switched.measure(given, answers)
    with pytest.raises(ConfigurationError, match="today has the ids of 2 queries, expected 1"):
        switched.measure(["a game"], [3], today=[[3], [4]])


# -- what was encoded is kept


def test_what_the_pairs_cost_is_kept_for_the_search_and_for_the_next_run(index, texts, new, tmp_path):
    how = {"pairs": PAIRS, "ways": ["procrustes"], "renewed": tmp_path}
    first = migrate(index, texts, new, **how)
    assert len(RenewedVectors(tmp_path)) == PAIRS
    new.read = 0
    again = migrate(index, texts, new, **how)
    assert new.read == 1  # one is encoded again, to see whether the folder is of this model
    np.testing.assert_array_equal(first.queries("a game of cards"), again.queries("a game of cards"))
    found = again.search("a game of cards")
    assert found.renewed == PAIRS + found.encoded


def test_a_renewal_goes_on_where_it_was_and_reads_nothing_twice(switched, texts, new, tmp_path):
    def renewal():
        return TextMigration(switched.migration, new, renewed=tmp_path)

    new.read = 0
    assert renewal().renew(enumerate(texts), at_most=300) == 300
    assert renewal().renew(enumerate(texts)) == 600
    assert new.read == 901  # and one to see whether the folder is of this model
    assert sorted(RenewedVectors(tmp_path).ids) == list(range(900))
    np.testing.assert_allclose(RenewedVectors(tmp_path).take([899])[0], new(texts[899:])[0], rtol=1e-4, atol=1e-6)


def test_the_folder_of_another_model_or_index_is_refused(switched, index, texts, new, tmp_path):
    TextMigration(switched.migration, new, renewed=tmp_path).renew(enumerate(texts), at_most=300)
    with pytest.raises(EmbeddingError, match=r"keeps a vector of document \d+ whose cosine .* expected 0.95 or more"):
        migrate(index, texts, lambda some: new(some)[:, ::-1].copy(), pairs=PAIRS, renewed=tmp_path)
    others = TextMigration(switched.migration, new, nearest=in_memory(index, texts[::-1]), renewed=tmp_path)
    with pytest.raises(EmbeddingError, match="A folder of renewed vectors is for one index and one new model"):
        others.search("a game of cards", candidates=400)
    other_model = TextMigration(switched.migration, lambda some: new(some)[:, ::-1].copy(), renewed=tmp_path)
    with pytest.raises(EmbeddingError, match="keeps a vector of document"):
        other_model.renew(enumerate(texts))
    (tmp_path / "strange.safetensors").write_bytes(b"strange")
    with pytest.raises(UploadError, match=r"strange.safetensors holds no renewed vectors .*remove that file"):
        RenewedVectors(tmp_path)


KILLED = """
    import os, signal, sys
    import numpy as np
    from hf_relreps.migration import Migration, TextMigration

    read = 0

    def encode(texts):  # killed in the midst of the third batch
        global read
        read += 1
        if read == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.float32([[len(text), *map(ord, text[:63].ljust(63))] for text in texts])

    migration, folder = Migration.load(sys.argv[1]), sys.argv[2]
    TextMigration(migration, encode, renewed=folder).renew((i, f"document {i}") for i in range(900))
"""


@pytest.mark.slow  # the same as for vectors alone, with a command
def test_a_renewal_that_is_killed_keeps_every_batch_that_was_whole(switched, tmp_path):
    switched.save(tmp_path / "fitted")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "fitted"), str(tmp_path / "renewed")]
    ended = subprocess.run(command, check=False, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL
    assert RenewedVectors(tmp_path / "renewed").ids.__len__() == 512


# -- saved


def test_saved_and_loaded_a_function_searches_as_before(switched, index, texts, new, tmp_path):
    switched.save(tmp_path)
    nearest = in_memory(switched.migration.indexed(index, switched.way), texts)
    loaded = TextMigration.load(tmp_path, new, nearest=nearest, way=switched.way)
    queries = ["a game of cards", "a web server"]
    np.testing.assert_array_equal(loaded.search(queries).ids, switched.search(queries).ids)
    assert str(loaded) == str(switched)


# -- indexes in files


def written(folder, index, texts, new=None):
    folder.mkdir(exist_ok=True)
    table = {"id": list(range(len(texts))), "vector": list(index), "text": texts}
    pq.write_table(pa.table(table | ({} if new is None else {"new": new})), folder / "documents.parquet")
    np.save(folder / "old.npy", index)
    (folder / "texts.txt").write_text("\n".join(text.replace("\n", " ") for text in texts), "utf-8")
    return folder


def test_parquet_and_npy_give_the_same_as_arrays(index, texts, new, tmp_path):
    folder = written(tmp_path, index, texts)
    how = {"pairs": PAIRS, "ways": ["procrustes"]}
    of_table = migrate_index(folder / "documents.parquet", new, **how)
    of_folder = migrate_index(folder, new, **how)
    of_array = migrate_index(folder / "old.npy", new, texts=folder / "texts.txt", **how)
    assert of_table.migration.facts == of_folder.migration.facts
    assert of_array.migration.facts.pairs == PAIRS
    np.testing.assert_array_equal(of_table.queries("a game"), migrate(index, texts, new, **how).queries("a game"))


def test_given_pairs_are_fitted_without_a_model(index, texts, new, tmp_path):
    vectors = new(texts)
    folder = written(tmp_path, index, texts, [row if i % 2 else None for i, row in enumerate(vectors)])
    np.save(folder / "new.npy", vectors)
    of_column = migrate_index(folder / "documents.parquet", new_vectors="new", ways=["procrustes"])
    assert isinstance(of_column, Migration) and of_column.facts.pairs == 450
    of_file = migrate_index(folder / "old.npy", new_vectors=folder / "new.npy", ways=["procrustes"], pairs=PAIRS)
    assert of_file.facts.pairs == PAIRS


def test_a_large_index_is_sampled(index, texts, new, tmp_path):
    np.save(tmp_path / "old.npy", np.tile(index, (8, 1)))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts * 8), "utf-8")
    found = migrate_index(tmp_path / "old.npy", new, texts=tmp_path / "texts.jsonl", pairs=PAIRS, ways=["procrustes"])
    assert (found.migration.facts.pairs, found.migration.facts.stored) == (PAIRS, 4000)
    assert found.nearest.stored == 4300
    row = int(found.search("a game of cards", k=1).ids[0, 0])  # of the index, not of the sample
    assert row in found.renewed and found.nearest.texts[found.nearest.ids.index(row)] == (texts * 8)[row]


def test_a_table_of_lancedb_gives_the_same_as_arrays(run, index, texts, new, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    database = lancedb.connect(tmp_path / "database")
    rows = [{"id": f"d{i}", "text": text, "vector": index[i]} for i, text in enumerate(texts)]
    table = database.create_table("documents", rows)
    version = table.version
    how = {"pairs": PAIRS, "ways": ["procrustes"]}
    expected = migrate(index, texts, new, **how).queries("a game of cards")
    for place in ("database", "database/documents.lance"):
        found = migrate_index(tmp_path / place, new, **how)
        np.testing.assert_allclose(found.queries("a game of cards"), expected, rtol=1e-5)
        assert table.checkout_latest() or table.version == version  # only read
    with pytest.raises(EmbeddingError, match="has no column 'embedding' of vectors, only id, text, vector"):
        migrate_index(tmp_path / "database", new, vector_column="embedding")
    with pytest.raises(FileNotFoundError, match="none.lance does not exist. Give the folder of a table of LanceDB"):
        migrate_index(tmp_path / "database" / "none.lance", new)
    database.create_table("others", [row | {"new": new([row["text"]])[0]} for row in rows[:600]])
    with pytest.raises(ConfigurationError, match="has the tables documents, others. Say which one: table"):
        migrate_index(tmp_path / "database", new)
    with pytest.raises(ConfigurationError, match="has no table 'other', only documents, others"):
        migrate_index(tmp_path / "database", new, table="other")
    code, out, err = run(tmp_path / "database", "--table", "others", "--new-vectors", "new", "--pairs", 300)
    assert code == 0, err
    assert "300 pairs from 64 to 48 dimensions" in out and "expected recall@10" in out


def test_files_that_are_no_index_are_refused(index, texts, new, tmp_path):
    folder = written(tmp_path, index, texts)
    with pytest.raises(FileNotFoundError, match=r"none.parquet does not exist. Give a .npy or parquet file"):
        migrate_index(tmp_path / "none.parquet", new)
    with pytest.raises(ConfigurationError, match=r"texts.txt is in no known form. Give a .npy file, .parquet"):
        migrate_index(folder / "texts.txt", new)
    with pytest.raises(ConfigurationError, match="Give either the new model"):
        migrate_index(folder / "old.npy")
    with pytest.raises(EmbeddingError, match="has no column 'embedding' of vectors, only id, vector, text"):
        migrate_index(folder / "documents.parquet", new, vector_column="embedding")
    with pytest.raises(SampleError, match="has no column 'body' of texts, only id, vector, text"):
        migrate_index(folder / "documents.parquet", new, text_column="body")
    with pytest.raises(EmbeddingError, match="Column 'id' of .* holds int64, expected lists of numbers"):
        migrate_index(folder / "documents.parquet", new, vector_column="id")
    with pytest.raises(SampleError, match="holds vectors only. Give texts"):
        migrate_index(folder / "old.npy", new)
    np.save(folder / "new.npy", index[:-1])
    with pytest.raises(EmbeddingError, match=r"old.npy has 900 rows, .*new.npy has 899"):
        migrate_index(folder / "old.npy", new_vectors=folder / "new.npy")
    np.save(folder / "words.npy", np.array(texts))
    with pytest.raises(EmbeddingError, match=r"words.npy holds <U\d+ of shape \(900,\), expected floats"):
        migrate_index(folder / "words.npy", new)
    (folder / "broken.npy").write_bytes(b"\x80\x04pickled")
    with pytest.raises(EmbeddingError, match=r"broken.npy is no .npy file of numbers"):
        migrate_index(folder / "broken.npy", new)
    widths = pa.table({"vector": [[1.0], [1.0, 2.0]], "text": ["a", "b"]})
    pq.write_table(widths, folder / "widths.parquet")
    with pytest.raises(EmbeddingError, match=r"holds vectors of the widths \[1, 2\], expected one"):
        migrate_index(folder / "widths.parquet", new)


# -- the command line


@pytest.fixture
def run(capsys, monkeypatch):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-relreps", "migrate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            hf_relreps_cli.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return command


def test_the_command_line_fits_given_pairs_and_saves_what_was_fitted(run, index, texts, new, tmp_path):
    np.save(tmp_path / "old.npy", index)
    np.save(tmp_path / "new.npy", new(texts))
    how = [tmp_path / "old.npy", "--new-vectors", tmp_path / "new.npy", "--output", tmp_path / "fitted"]
    code, out, err = run(*how, "--pairs", 300, "--old-name", "words")
    assert code == 0, err
    assert "the new model asks an index of words" in out and "saved in" in out
    assert Migration.load(tmp_path / "fitted").facts.pairs == 300
    code, out, _ = run(*how, "--pairs", 300, "--json")
    told = json.loads(out)
    assert told["pairs"] == 300 and told["expected_recall"] == told["expected"][told["method"]] and told["verdict"]


def test_the_command_line_explains_what_is_wrong(run, index, texts, tmp_path):
    folder = written(tmp_path, index, texts)
    code, out, err = run(folder / "old.npy", "--new-vectors", folder / "old.npy", "--push", "me/adapter")
    assert code == 2 and "--push needs --new" in err
    code, out, _ = run(folder / "documents.parquet", "--json", "--new-vectors", "new")
    assert (
        code == 2 and json.loads(out)["error"] == "EmbeddingError" and "no column 'new'" in json.loads(out)["message"]
    )
    code, _, err = run(folder / "missing.npy", "--new-vectors", folder / "old.npy")
    assert code == 2 and "missing.npy" in err
