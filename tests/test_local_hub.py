"""The local Hub, asked by the real `huggingface_hub` client over HTTP."""

from __future__ import annotations

import doctest
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2  # the client of the client
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    file_download,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http

from local_hub import HubError, LocalHub
from local_hub.cards import check_card, read_card, read_config


CARD = """---
library_name: transformers
pipeline_tag: text-classification
license: mit
language: [en, fr]
base_model: xlm-roberta-base
datasets: [me/debian]
tags: [relative-representations, "relreps-anchors:0123456789abcdef"]
---
# A model

From https://arxiv.org/abs/2209.15430
"""
ENCODER = os.urandom(40_000)
DECODER = os.urandom(400)


@pytest.fixture(scope="module")
def running_hub():
    with LocalHub() as hub:
        hub.add_user("stranger", token="hf_stranger")
        yield hub


@pytest.fixture
def hub(running_hub):
    yield running_hub
    running_hub.faults.clear()
    running_hub.requests.clear()


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def stranger(hub):
    return HfApi(endpoint=hub.url, token="hf_stranger")


@pytest.fixture
def repo(api, request):
    """An empty model repository of the local user."""
    name = f"local-user/{hashlib.sha1(request.node.name.encode()).hexdigest()[:12]}"
    api.create_repo(name)
    yield name
    api.delete_repo(name, missing_ok=True)


@pytest.fixture
def upload(tmp_path):
    """A folder laid out in parts."""
    folder = tmp_path / "upload"
    for part, weights in (("encoder", ENCODER), ("decoder", DECODER)):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        (folder / part / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text('{"model_type": "relreps", "architectures": ["RelativeModel"]}')
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def waits(monkeypatch):
    """The client's clock: its pauses are written down instead of slept."""
    slept: list[float] = []
    clock = SimpleNamespace(**{name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")})
    clock.sleep = slept.append
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    return slept


def fetch(hub, repo, path, cache, **options):
    """The bytes of a file as the client gives them."""
    options = {"endpoint": hub.url, "token": hub.token, "cache_dir": cache} | options
    return Path(hf_hub_download(repo, path, **options)).read_bytes()


def push(api, repo, **files):
    """Commit files given by their names (`__` for a slash) and texts."""
    operations = [
        CommitOperationAdd(name.replace("__", "/"), text.encode() if isinstance(text, str) else text)
        for name, text in files.items()
    ]
    return api.create_commit(repo, operations, commit_message="files").oid


def cached_contents(cache):
    """What of any file is in the client's cache, half or whole."""
    return [path.name for path in Path(cache).rglob("*") if path.is_file() and path.parts[-2] == "blobs"]


def authorized(hub):
    return {"Authorization": f"Bearer {hub.token}"}


# -- who asks


def test_a_token_names_its_user(api, stranger):
    assert api.whoami()["name"] == "local-user"
    assert stranger.whoami()["name"] == "stranger"


def test_an_unknown_token_is_refused(hub):
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(endpoint=hub.url, token="hf_nobody").whoami()
    assert caught.value.response.status_code == 401


def test_strangers_and_readers_may_not_write_but_members_may(hub, api, stranger, repo):
    hub.add_user("local-user", token="hf_reader", role="read")
    hub.add_user("member", token="hf_member", organizations=("lab",))
    reader, member = (HfApi(endpoint=hub.url, token=token) for token in ("hf_reader", "hf_member"))
    for person in (stranger, reader):
        with pytest.raises(HfHubHTTPError) as caught:
            push(person, repo, config__json="{}")
        assert caught.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as caught:
        stranger.create_repo("local-user/not-mine")
    assert caught.value.response.status_code == 403
    assert api.list_repo_files(repo) == [".gitattributes"]
    member.create_repo("lab/shared")
    push(member, "lab/shared", note="hello")
    assert "note" in member.list_repo_files("lab/shared")


def test_without_a_token_public_files_can_be_read_and_nothing_written(hub, api, repo, tmp_path):
    push(api, repo, note="hello")
    assert fetch(hub, repo, "note", tmp_path, token=False) == b"hello"
    with pytest.raises(HfHubHTTPError) as caught:
        push(HfApi(endpoint=hub.url, token=False), repo, note="bye")
    assert caught.value.response.status_code == 401


# -- repositories


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_a_repository_lives_from_create_to_delete(api, hub, kind, tmp_path):
    repo = f"local-user/life-of-a-{kind}"
    options = {"repo_type": kind} | ({"space_sdk": "static"} if kind == "space" else {})
    url = api.create_repo(repo, **options)
    assert (url.repo_id, url.repo_type) == (repo, kind)
    assert api.create_repo(repo, exist_ok=True, **options) == url
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo(repo, **options)
    assert caught.value.response.status_code == 409
    large = os.urandom(1000)
    for path, content in (("data/x.bin", large), ("note.txt", b"small")):
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo, repo_type=kind)
        assert fetch(hub, repo, path, tmp_path, repo_type=kind) == content
    assert api.repo_info(repo, repo_type=kind).sha == api.list_repo_commits(repo, repo_type=kind)[0].commit_id
    api.move_repo(repo, f"{repo}-moved", repo_type=kind)
    assert not api.repo_exists(repo, repo_type=kind)
    api.delete_repo(f"{repo}-moved", repo_type=kind)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(f"{repo}-moved", repo_type=kind)
    api.delete_repo(f"{repo}-moved", repo_type=kind, missing_ok=True)


def test_what_is_missing_is_named_as_the_hub_names_it(hub, api, repo, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("local-user/nowhere")
    with pytest.raises(RepositoryNotFoundError):
        fetch(hub, "bert-base-uncased", "config.json", tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info("local-user/nowhere")
    with pytest.raises(RevisionNotFoundError):
        fetch(hub, repo, "config.json", tmp_path, revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        fetch(hub, repo, "config.json", tmp_path)
    assert not api.file_exists(repo, "config.json")
    assert not api.revision_exists(repo, "0" * 40)


def test_a_private_repository_does_not_exist_for_strangers(hub, api, stranger, repo, tmp_path):
    push(api, repo, README__md="x", note="secret")
    api.update_repo_settings(repo, private=True)
    assert api.model_info(repo).private
    assert repo in {model.id for model in api.list_models(author="local-user")}
    for person in (stranger, HfApi(endpoint=hub.url, token=False)):
        assert repo not in {model.id for model in person.list_models(author="local-user")}
        with pytest.raises(RepositoryNotFoundError):
            person.model_info(repo)
        with pytest.raises(RepositoryNotFoundError):
            fetch(hub, repo, "note", tmp_path, token=person.token)
    api.update_repo_settings(repo, visibility="public")
    assert fetch(hub, repo, "note", tmp_path, token="hf_stranger") == b"secret"


def test_a_gated_repository_shows_its_card_but_gives_no_file_before_access_is_granted(
    hub, api, stranger, repo, tmp_path
):
    push(api, repo, note="guarded")
    api.update_repo_settings(repo, gated="manual")
    assert stranger.model_info(repo).gated == "manual"
    for token in ("hf_stranger", False):
        with pytest.raises(GatedRepoError):
            fetch(hub, repo, "note", tmp_path, token=token)
    with pytest.raises(GatedRepoError):
        stranger.auth_check(repo)
    assert fetch(hub, repo, "note", tmp_path / "owner") == b"guarded"
    api.grant_access(repo, "stranger")
    assert fetch(hub, repo, "note", tmp_path, token="hf_stranger") == b"guarded"


# -- uploads


def test_an_uploaded_folder_comes_back_byte_for_byte(hub, api, repo, upload, tmp_path):
    commit = api.upload_folder(repo_id=repo, folder_path=upload)
    got = Path(snapshot_download(repo, endpoint=hub.url, token=hub.token, cache_dir=tmp_path / "cache"))
    for file in (path for path in upload.rglob("*") if path.is_file()):
        assert (got / file.relative_to(upload)).read_bytes() == file.read_bytes()
    assert got.name == commit.oid == api.model_info(repo).sha
    assert [commit.title for commit in api.list_repo_commits(repo)] == [
        "Upload folder using huggingface_hub",
        "initial commit",
    ]


def test_an_unchanged_folder_is_neither_sent_nor_committed_again(hub, api, repo, upload):
    first = api.upload_folder(repo_id=repo, folder_path=upload)
    hub.requests.clear()
    again = api.upload_folder(repo_id=repo, folder_path=upload)
    assert again.oid == first.oid
    assert not [request for request in hub.requests if request.method == "PUT" or "/commit/" in request.path]


def test_pulling_the_decoder_moves_only_the_decoder(hub, api, repo, upload, tmp_path):
    api.upload_folder(repo_id=repo, folder_path=upload)
    hub.requests.clear()
    snapshot_download(repo, allow_patterns="decoder/*", endpoint=hub.url, token=hub.token, cache_dir=tmp_path)
    moved = {
        path.split("/resolve/")[1].split("/", 1)[1]: sent
        for _, path, sent in hub.requests
        if sent > 0 and "/resolve/" in path
    }
    assert moved == {"decoder/config.json": 2, "decoder/model.safetensors": len(DECODER)}


def test_large_and_binary_files_go_through_lfs_and_text_does_not(api, repo):
    files = {
        "model.safetensors": b"text by content, weights by name",
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0",
        "big.txt": b"a" * (10 * 1024**2 + 1),
        "empty.bin": b"",
        "note.txt": "é".encode() * 400,  # the 512 bytes the client sends end within a character
    }
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(repo, operations, commit_message="all kinds")
    entries = {entry.path: entry for entry in api.list_repo_tree(repo)}
    assert [path for path in files if entries[path].lfs] == ["model.safetensors", "picture.png", "big.txt"]
    for path, content in files.items():
        assert entries[path].size == len(content)
        if entries[path].lfs:
            assert entries[path].lfs.sha256 == hashlib.sha256(content).hexdigest()


def test_gitignored_files_are_left_out(api, repo, upload):
    (upload / ".gitignore").write_text("*.log\n!keep.log\nruns/\n")
    (upload / "runs").mkdir()
    for name in ("a.log", "keep.log", "runs/b.txt"):
        (upload / name).write_text("x")
    api.upload_folder(repo_id=repo, folder_path=upload)
    files = set(api.list_repo_files(repo))
    assert "keep.log" in files
    assert not files & {"a.log", "runs/b.txt"}


def test_an_lfs_upload_whose_bytes_are_not_those_announced_is_refused(hub, api, repo):
    announced = hashlib.sha256(b"right").hexdigest()
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": announced, "size": 5}]}
    url = f"{hub.url}/{repo}.git/info/lfs/objects/batch"
    with httpx2.Client(headers=authorized(hub)) as client:
        href = client.post(url, json=batch).json()["objects"][0]["actions"]["upload"]["href"]
        wrong, longer = client.put(href, content=b"wrong"), client.put(href, content=b"right and more")
        unsigned = client.put(href.split("?")[0], content=b"right")
        other_size = client.put(href.replace("/5?", "/14?"), content=b"right and more")
    assert (wrong.status_code, longer.status_code) == (400, 400)
    assert announced in wrong.json()["error"]
    assert hashlib.sha256(b"wrong").hexdigest() in wrong.json()["error"]
    assert (unsigned.status_code, other_size.status_code) == (403, 403)
    header = {"key": "header", "value": {"summary": "names what was never uploaded"}}
    entry = {"key": "lfsFile", "value": {"path": "a.bin", "oid": announced}}
    lines = "\n".join(map(json.dumps, (header, entry)))
    answer = httpx2.post(f"{hub.url}/api/models/{repo}/commit/main", content=lines, headers=authorized(hub))
    assert (answer.status_code, "upload it before" in answer.json()["error"]) == (400, True)
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_knowing_a_digest_gives_no_access_to_the_content_of_others(hub, api, stranger, repo):
    push(api, repo, **{"secret.bin": b"\0secret"})
    api.update_repo_settings(repo, private=True)
    stranger.create_repo("stranger/copy")
    entry = {"key": "lfsFile", "value": {"path": "a.bin", "oid": hashlib.sha256(b"\0secret").hexdigest()}}
    lines = "\n".join(map(json.dumps, ({"key": "header", "value": {"summary": "copy"}}, entry)))
    headers = {"Authorization": "Bearer hf_stranger"}
    answer = httpx2.post(f"{hub.url}/api/models/stranger/copy/commit/main", content=lines, headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ("---\ntags: [a, b\n---\n", "cannot be read"),
        ("---\njust words\n---\n", "key: value pairs"),
        ("---\nbase_model: /home/me/bert\n---\n", '"base_model" with value "/home/me/bert" is not valid'),
        ("---\nmodel-index:\n- name: x\n---\n", '"model-index[0].results" is required'),
        (
            "---\nmodel-index:\n- name: x\n  results:\n  - {task: {type: t}, dataset: {type: d}, metrics: []}\n---\n",
            '"model-index[0].results[0].dataset.name" is required',
        ),
    ],
)
def test_a_card_whose_metadata_is_wrong_is_refused_with_the_place(hub, api, repo, card, complaint):
    with pytest.raises(ValueError, match="Invalid metadata in README.md") as caught:
        push(api, repo, **{"README.md": card})
    assert complaint in str(caught.value)
    with pytest.raises(HubError, match="Invalid metadata"):  # also for a client that does not ask first
        hub.store.add_commit(
            hub.repo(repo),
            "main",
            [{"key": "file", "value": {"path": "README.md", "content": card}}],
            title="card",
            author="local-user",
        )
    assert api.list_repo_files(repo) == [".gitattributes"]


# -- commits, branches, tags


def test_ids_are_those_that_git_gives(api, repo, upload, tmp_path):
    (upload / "decoder" / "anchors").mkdir()
    for name in ("anchors/set.json", "anchors.json"):  # git sorts the file before the folder
        (upload / "decoder" / name).write_text("[]")
    api.upload_folder(repo_id=repo, folder_path=upload, ignore_patterns="*.safetensors")
    work = tmp_path / "git"
    snapshot_download(repo, endpoint=api.endpoint, token=api.token, local_dir=work)

    def git(*arguments):
        command = ["git", "-c", "filter.lfs.clean=cat", "-c", "core.autocrlf=false", *arguments]
        return subprocess.run(command, cwd=work, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".gitattributes", "README.md", "config.json", "encoder", "decoder")
    entries = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}
    root = git("write-tree")
    for path in ("encoder", "decoder", "decoder/anchors"):
        assert entries[path].tree_id == git("rev-parse", f"{root}:{path}")
    for path in ("README.md", "encoder/config.json"):
        assert entries[path].blob_id == git("rev-parse", f"{root}:{path}")


def test_a_revision_is_a_branch_a_tag_a_ref_or_a_commit(hub, api, repo, tmp_path):
    first = push(api, repo, note="one")
    api.create_tag(repo, tag="v1", revision=first)
    api.create_branch(repo, branch="feature/x")
    push(api, repo, note="two")
    api.upload_file(path_or_fileobj=b"three", path_in_repo="note", repo_id=repo, revision="feature/x")
    expected = {"main": b"two", "v1": b"one", first: b"one", "feature/x": b"three", "refs/heads/feature/x": b"three"}
    for number, (revision, content) in enumerate(expected.items()):
        assert fetch(hub, repo, "note", tmp_path / str(number), revision=revision) == content
    refs = api.list_repo_refs(repo)
    assert [branch.name for branch in refs.branches] == ["feature/x", "main"]
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    api.create_branch(repo, branch="feature/x", exist_ok=True)
    for again in (lambda: api.create_branch(repo, branch="feature/x"), lambda: api.create_tag(repo, tag="v1")):
        with pytest.raises(HfHubHTTPError) as caught:
            again()
        assert caught.value.response.status_code == 409
    api.delete_tag(repo, tag="v1")
    api.delete_branch(repo, branch="feature/x")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="v1")
    with pytest.raises(HfHubHTTPError, match="cannot be deleted"):
        api.delete_branch(repo, branch="main")


def test_a_commit_on_an_old_parent_is_refused_and_changes_nothing(api, repo):
    old = push(api, repo, note="one")
    new = push(api, repo, note="two")
    operation = CommitOperationAdd("note", b"three")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        api.create_commit(repo, [operation], commit_message="late", parent_commit=old)
    assert caught.value.response.status_code == 412
    assert api.model_info(repo).sha == new
    api.create_commit(repo, [operation], commit_message="in time", parent_commit=new)


def test_a_commit_is_done_whole_or_not_at_all(api, repo):
    before = push(api, repo, keep="kept")
    operations = [CommitOperationAdd("new", b"new"), CommitOperationDelete("missing")]
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.create_commit(repo, operations, commit_message="half of it cannot be done")
    with pytest.raises(BadRequestError, match="a file and a folder at once"):
        push(api, repo, keep__inside="x")
    assert api.model_info(repo).sha == before
    assert api.list_repo_files(repo) == [".gitattributes", "keep"]


def test_concurrent_commits_are_all_there(api, repo):
    with ThreadPoolExecutor(8) as threads:
        oids = list(threads.map(lambda number: push(api, repo, **{f"file{number}": str(number)}), range(8)))
    assert set(api.list_repo_files(repo)) == {".gitattributes", *(f"file{number}" for number in range(8))}
    assert {commit.commit_id for commit in api.list_repo_commits(repo)} > set(oids)


def test_files_and_folders_can_be_deleted_and_history_squashed(api, repo, upload):
    api.upload_folder(repo_id=repo, folder_path=upload)
    api.delete_file("config.json", repo)
    api.delete_folder("encoder", repo)
    files = api.list_repo_files(repo)
    assert files == [".gitattributes", "README.md", "decoder/config.json", "decoder/model.safetensors"]
    api.super_squash_history(repo)
    assert len(api.list_repo_commits(repo)) == 1
    assert api.list_repo_files(repo) == files


def test_a_pull_request_leaves_main_alone(hub, api, stranger, repo, tmp_path):
    before = push(api, repo, note="mine")
    done = stranger.upload_file(path_or_fileobj=b"yours", path_in_repo="note", repo_id=repo, create_pr=True)
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    assert api.model_info(repo).sha == before
    assert fetch(hub, repo, "note", tmp_path / "pr", revision="refs/pr/1") == b"yours"
    assert fetch(hub, repo, "note", tmp_path / "main") == b"mine"
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [ref.name for ref in refs.pull_requests] == ["refs/pr/1"]


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a/../../b", "a//b", ".git/config", "a\\b", ""])
def test_paths_that_leave_the_repository_are_refused(hub, repo, path):
    operation = {"key": "file", "value": {"path": path, "content": "x"}}
    with pytest.raises(HubError, match="Invalid path"):
        hub.store.add_commit(hub.repo(repo), "main", [operation], title="x", author="local-user")


# -- what is told about repositories


def test_a_config_of_thousands_of_brackets_is_no_config():
    assert read_config("[" * 50_000 + "]" * 50_000) == {}
    assert read_config('{"a":' * 50_000 + "1" + "}" * 50_000) == {}


@pytest.mark.parametrize(
    "metadata",
    ["license: " + "[" * 20_000, "a: &a [x, x]\nb: &b [*a, *a]\ntags: [*b, *b]", "license: !!python/name:os.system"],
    ids=["thousands of brackets", "aliases", "code"],
)
def test_a_card_that_cannot_be_read_is_no_card_and_searches_go_on(hub, api, repo, metadata):
    assert read_card(f"---\n{metadata}\n---\n") == {}
    assert check_card(f"---\n{metadata}\n---\n")[0]


def test_tags_come_from_the_card_the_files_and_the_config(api, repo, upload):
    api.upload_folder(repo_id=repo, folder_path=upload)
    info = api.model_info(repo)
    assert set(info.tags) == {
        *("transformers", "relreps", "text-classification", "safetensors", "en", "fr", "license:mit"),
        *("relative-representations", "relreps-anchors:0123456789abcdef", "dataset:me/debian", "arxiv:2209.15430"),
        *("base_model:xlm-roberta-base", "base_model:finetune:xlm-roberta-base", "region:us"),
    }
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-classification")
    assert info.card_data.base_model == "xlm-roberta-base"
    assert info.config == {"architectures": ["RelativeModel"], "model_type": "relreps"}
    assert api.model_info(repo, expand=["tags"]).sha is None
    sizes = {sibling.rfilename: sibling.size for sibling in api.model_info(repo, files_metadata=True).siblings}
    assert sizes["encoder/model.safetensors"] == len(ENCODER)


def test_tags_of_a_dataset_carry_their_key(api):
    api.create_repo("local-user/tagged", repo_type="dataset")
    card = b"---\nlanguage: [en]\nlicense: mit\ntask_categories: [translation]\ntags: [anchors]\n---\n"
    options = {"repo_id": "local-user/tagged", "repo_type": "dataset"}
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", **options)
    api.upload_file(path_or_fileobj=b"PAR1", path_in_repo="data/train.parquet", **options)
    tags = set(api.dataset_info("local-user/tagged").tags)
    assert {"language:en", "license:mit", "task_categories:translation", "anchors", "format:parquet"} <= tags


def test_a_search_finds_what_carries_all_tags_page_by_page(hub, api):
    for number in range(5):
        name = f"local-user/found-{number}"
        api.create_repo(name)
        language = "fr" if number % 2 else "en"
        card = f"---\nlanguage: {language}\npipeline_tag: text-classification\ntags: ['relreps-anchors:77']\n---\n"
        push(api, name, **{"README.md": card})
    hub.page_size = 2
    try:
        hub.requests.clear()
        found = [model.id for model in api.list_models(filter="relreps-anchors:77")]
        assert sorted(found) == [f"local-user/found-{number}" for number in range(5)]
        assert [request.path for request in hub.requests] == ["/api/models"] * 3
    finally:
        hub.page_size = 1000

    def names(**options):
        return sorted(model.id[-1] for model in api.list_models(**options))

    assert names(filter=["relreps-anchors:77", "fr"]) == ["1", "3"]
    assert names(filter=["relreps-anchors:77", "it"]) == []
    assert names(filter="relreps-anchors:77", pipeline_tag="image-classification") == []
    assert names(filter="relreps-anchors:77", author="stranger") == []
    assert names(search="found-3") == ["3"]
    assert len(list(api.list_models(filter="relreps-anchors:77", limit=3))) == 3
    newest = next(iter(api.list_models(filter="relreps-anchors:77", sort="last_modified", cardData=True)))
    assert (newest.id, newest.card_data.language) == ("local-user/found-4", "en")


def test_trees_are_listed_by_folder_by_page_and_with_their_last_commit(hub, api, repo, upload):
    api.upload_folder(repo_id=repo, folder_path=upload)
    last = push(api, repo, encoder__note="new")
    assert [entry.path for entry in api.list_repo_tree(repo)] == [
        *(".gitattributes", "README.md", "config.json", "decoder", "encoder")
    ]
    hub.page_size = 2
    try:
        entries = {entry.path: entry for entry in api.list_repo_tree(repo, "encoder", recursive=True, expand=True)}
    finally:
        hub.page_size = 1000
    assert list(entries) == ["encoder/config.json", "encoder/model.safetensors", "encoder/note"]
    assert entries["encoder/note"].last_commit.oid == last != entries["encoder/config.json"].last_commit.oid
    known = api.get_paths_info(repo, ["encoder", "decoder/config.json", "nowhere"], expand=True)
    assert {entry.path: entry.last_commit.oid == last for entry in known} == {
        "encoder": True,
        "decoder/config.json": False,
    }
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "nowhere"))


def test_a_range_of_a_file_can_be_read(hub, api, repo, upload):
    api.upload_folder(repo_id=repo, folder_path=upload)
    url = f"{hub.url}/{repo}/resolve/main/encoder/model.safetensors"
    head = httpx2.head(url)
    part = httpx2.get(url, headers={"Range": "bytes=100-199"})
    beyond = httpx2.get(url, headers={"Range": "bytes=40000-"})
    digest = hashlib.sha256(ENCODER).hexdigest()
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(ENCODER)))
    assert head.headers["ETag"] == head.headers["X-Linked-Etag"] == f'"{digest}"'
    assert head.headers["X-Repo-Commit"] == api.model_info(repo).sha
    assert "X-Xet-Hash" not in head.headers
    assert (part.status_code, part.content) == (206, ENCODER[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(ENCODER)}"
    assert beyond.status_code == 416
    files = HfFileSystem(endpoint=hub.url, token=hub.token)
    with files.open(f"{repo}/encoder/model.safetensors", block_size=1000) as file:
        file.seek(20_000)
        assert file.read(100) == ENCODER[20_000:20_100]


# -- what goes wrong on demand


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_the_client_takes_altered_bytes_of_the_right_size_for_good(hub, api, repo, tmp_path, path):
    push(api, repo, **{path: '{"hidden_size": 768}'})
    hub.corrupt(repo, path)
    got = fetch(hub, repo, path, tmp_path)
    assert len(got) == 20
    assert got != b'{"hidden_size": 768}'
    hub.faults.clear()
    assert fetch(hub, repo, path, tmp_path) == got  # it stays in the cache: nobody compares digests
    found = api.verify_repo_checksums(repo, cache_dir=tmp_path).mismatches  # unless asked to
    assert [mismatch["path"] for mismatch in found] == [path]
    assert fetch(hub, repo, path, tmp_path, force_download=True) == b'{"hidden_size": 768}'


@pytest.mark.parametrize("alteration", [{"truncate": 5}, {"data": b"more than there was in the file"}, {"data": b""}])
def test_the_client_refuses_bytes_of_another_size_and_keeps_none(hub, api, repo, tmp_path, alteration):
    push(api, repo, **{"model.safetensors": "twenty bytes of data"})
    hub.corrupt(repo, "model.safetensors", **alteration)
    size = alteration.get("truncate", len(alteration.get("data", b"")))
    with pytest.raises(OSError, match=f"should be of size 20 but has size {size}"):
        fetch(hub, repo, "model.safetensors", tmp_path)
    assert cached_contents(tmp_path) == []
    hub.faults.clear()
    assert fetch(hub, repo, "model.safetensors", tmp_path) == b"twenty bytes of data"


@pytest.mark.parametrize("path", ["model.safetensors", "anchors.json"])
def test_a_tampered_upload_looks_sound_to_the_client(hub, api, repo, tmp_path, path):
    honest = push(api, repo, **{path: "the original bytes"})
    tampered = hub.corrupt(repo, path, consistent=True)
    assert fetch(hub, repo, path, tmp_path) != b"the original bytes"
    assert api.model_info(repo).sha == tampered != honest
    assert not api.verify_repo_checksums(repo, cache_dir=tmp_path).mismatches
    assert fetch(hub, repo, path, tmp_path, revision=honest) == b"the original bytes"


def test_a_cut_download_goes_on_where_it_stopped(hub, api, repo, tmp_path, waits):
    content = os.urandom(11 * 1024**2)  # the client writes, and resumes, in steps of 10 MB
    api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id=repo)
    hub.requests.clear()
    cut = hub.cut(after_bytes=len(content) - 1000)
    assert fetch(hub, repo, "model.safetensors", tmp_path) == content
    sent = [(request.status, request.sent) for request in hub.requests if request.method == "GET"]
    assert sent == [(200, len(content) - 1000), (206, 1024**2)]
    assert (cut.hits, waits) == (1, [1])


def test_a_download_that_is_always_cut_fails_and_leaves_no_half_file(hub, api, repo, tmp_path, waits):
    push(api, repo, **{"model.safetensors": "twenty bytes of data"})
    hub.cut(after_bytes=7, times=None)
    with pytest.raises(httpx2.RemoteProtocolError, match="received 7 bytes, expected 20"):
        fetch(hub, repo, "model.safetensors", tmp_path)
    assert waits == [1] * 5
    assert cached_contents(tmp_path) == []
    hub.faults.clear()
    assert fetch(hub, repo, "model.safetensors", tmp_path) == b"twenty bytes of data"


def test_the_client_waits_as_long_as_the_hub_asks_for_and_tries_again(hub, api, repo, tmp_path, waits):
    push(api, repo, note="hello")
    hub.fail(429, match="GET .*/resolve/", retry_after=7)
    assert fetch(hub, repo, "note", tmp_path) == b"hello"
    assert waits == [8]
    hub.fail(503, match="/preupload/", times=2, retry_after=3)
    push(api, repo, note="bye")
    assert waits == [8, 4, 4]
    hub.fail(500, match="PUT ")
    push(api, repo, **{"a.bin": b"\0weights"})
    assert waits == [8, 4, 4, 1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failed_look_up_is_tried_again_but_a_failed_download_or_commit_is_not(
    hub, api, repo, tmp_path, waits, status
):
    push(api, repo, note="hello")
    hub.fail(status, match="HEAD ", times=2)
    assert fetch(hub, repo, "note", tmp_path / "1") == b"hello"
    if status != 429:
        hub.fail(status, match="GET .*/resolve/")
        with pytest.raises(HfHubHTTPError) as caught:
            fetch(hub, repo, "note", tmp_path / "2")
        assert caught.value.response.status_code == status
    hub.fail(status, match="/commit/")
    with pytest.raises(HfHubHTTPError) as caught:
        push(api, repo, note="bye")
    assert caught.value.response.status_code == status
    assert fetch(hub, repo, "note", tmp_path / "3") == b"hello"


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412])
def test_a_refusal_on_demand_reaches_the_caller_at_once(hub, api, repo, waits, status):
    before = push(api, repo, note="hello")
    failure = hub.fail(status, match=f"POST .*{repo}/commit/main")
    with pytest.raises(HfHubHTTPError) as caught:
        push(api, repo, note="bye")
    assert caught.value.response.status_code == status
    assert (failure.hits, waits) == (1, [])
    assert api.model_info(repo).sha == before
    push(api, repo, note="bye")


def test_refusals_can_carry_the_code_of_a_kind(hub, api, repo, tmp_path):
    push(api, repo, note="hello")
    for code, error in (("GatedRepo", GatedRepoError), ("RepoNotFound", RepositoryNotFoundError)):
        hub.fail(403, match="/resolve/", code=code)
        with pytest.raises(error):
            fetch(hub, repo, "note", tmp_path)
    hub.fail(403, match="/resolve/")
    with pytest.raises(LocalEntryNotFoundError):
        fetch(hub, repo, "note", tmp_path)


def test_a_lost_answer_leaves_a_commit_that_the_client_does_not_know_of(hub, api, repo):
    before = push(api, repo, note="one")
    hub.cut(match="POST .*/commit/")
    with pytest.raises(httpx2.RemoteProtocolError):
        push(api, repo, note="two")
    assert api.model_info(repo).sha != before
    assert len(api.list_repo_commits(repo)) == 3


def test_an_upload_that_never_arrives_leaves_the_last_good_revision(hub, api, repo, upload, waits):
    before = api.upload_folder(repo_id=repo, folder_path=upload).oid
    (upload / "encoder" / "model.safetensors").write_bytes(os.urandom(1000))
    hub.fail(503, match="PUT ", times=None)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.upload_folder(repo_id=repo, folder_path=upload)
    assert api.model_info(repo).sha == before
    assert waits == [1, 2, 4, 8, 8]
    hub.faults.clear()
    assert api.upload_folder(repo_id=repo, folder_path=upload).oid != before


def test_a_client_that_dies_within_an_upload_leaves_nothing_behind(hub, repo):
    digest = hashlib.sha256(b"x" * 1000).hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": digest, "size": 1000}]}
    url = f"{hub.url}/{repo}.git/info/lfs/objects/batch"
    href = httpx2.post(url, json=batch, headers=authorized(hub)).json()["objects"][0]["actions"]["upload"]["href"]
    with socket.create_connection(("127.0.0.1", hub.port)) as connection:
        path = href.removeprefix(hub.url)
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + b"x" * 500)
    deadline = time.monotonic() + 300
    while not any(request.method == "PUT" for request in hub.requests) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [request.received for request in hub.requests if request.method == "PUT"] == [500]
    assert not hub.store.has_lfs(hub.repo(repo), digest)
    assert list((hub.root / "tmp").iterdir()) == []


# -- running


def test_the_port_is_known_before_the_start_and_free_after_the_stop():
    before = set(threading.enumerate())
    hub = LocalHub()
    assert hub.port > 0
    with hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo("local-user/x")
        httpx2.get(f"{hub.url}/local-user/x/resolve/main/.gitattributes").raise_for_status()
    deadline = time.monotonic() + 300
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) - before == set()
    assert not hub.root.exists()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", hub.port))
    with pytest.raises(RuntimeError, match="Pass root= to keep the folder"):
        hub.start()


def test_repositories_in_a_folder_outlive_the_hub(tmp_path):
    with LocalHub(root=tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("local-user/kept", private=True)
        commit = push(api, "local-user/kept", **{"a.bin": b"\0weights"})
        api.create_tag("local-user/kept", tag="v1")
    with LocalHub(root=tmp_path / "hub", port=hub.port) as again:
        assert again.url == hub.url
        info = api.model_info("local-user/kept", revision="v1")
        assert (info.sha, info.private) == (commit, True)
        assert fetch(again, "local-user/kept", "a.bin", tmp_path / "cache") == b"\0weights"


def test_an_answer_does_not_wait_for_more_to_send(api, repo):
    def seconds():
        start = time.perf_counter()
        api.model_info(repo)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(30)) < 0.03  # with Nagle's algorithm none takes less than 40 ms


def test_a_port_in_use_is_an_error_at_construction(hub):
    with pytest.raises(OSError, match="in use"):
        LocalHub(port=hub.port)


def test_the_environment_overrides_what_a_user_has_set(hub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    environment = hub.environment("/cache", token="hf_stranger")
    assert environment["HF_ENDPOINT"] == hub.url
    assert environment["HF_TOKEN"] == "hf_stranger"
    assert environment["HF_HUB_CACHE"] == "/cache/hub"
    assert environment["NO_PROXY"] == "internal.example,127.0.0.1"


ROOT = Path(__file__).parents[1]


def by_hand(*arguments, environment=None):
    command = [sys.executable, "-m", "local_hub", *map(str, arguments)]
    how = {"capture_output": True, "text": True, "check": False, "timeout": 3600}
    return subprocess.run(command, cwd=ROOT, env=environment, **how)


def test_the_hub_can_be_run_by_hand(tmp_path):
    command = [sys.executable, "-m", "local_hub", "--root", str(tmp_path / "hub")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline().strip() for _ in range(4)]
        exported = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export"))
        try:
            api = HfApi(endpoint=exported["HF_ENDPOINT"], token=exported["HF_TOKEN"])
            assert lines[1] == f"# you are {api.whoami()['name']}: push to local-user/NAME"
            assert api.create_repo("local-user/by-hand").repo_id == "local-user/by-hand"
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=3600)
    assert process.returncode == 0
    assert (tmp_path / "hub" / "repos" / "models" / "local-user" / "by-hand").is_dir()


ASKS = """
import os, sys, urllib.request
request = urllib.request.Request(os.environ["HF_ENDPOINT"] + "/api/whoami-v2")
request.add_header("Authorization", "Bearer " + os.environ["HF_TOKEN"])
answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).read()
print(answer, os.environ["HF_HOME"], sys.argv[1:])
sys.exit(7)
"""


def test_a_command_runs_with_the_hub_and_its_exit_code_is_passed_on(tmp_path):
    done = by_hand("--cache", tmp_path, "--", sys.executable, "-c", ASKS, "--port", "kept")
    assert done.returncode == 7, done.stderr
    assert "local-user" in done.stdout and str(tmp_path) in done.stdout
    assert "['--port', 'kept']" in done.stdout  # what follows -- is the command's


def test_a_command_that_does_not_exist_is_one_line():
    done = by_hand("--", "no-such-program")
    assert done.returncode == 127
    assert (
        done.stderr == "local_hub: cannot run no-such-program: No such file or directory. Name a program after --.\n"
    )


def test_a_port_in_use_is_one_line_that_says_to_choose_another(hub):
    done = by_hand("--port", hub.port)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"Cannot listen on port {hub.port}: " in done.stderr and "--port N" in done.stderr


def test_what_is_not_installed_is_one_line_that_says_how_to_install_it(tmp_path):
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')")
    done = by_hand(environment=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == (
        "local_hub: The local Hub needs uvicorn, which is not installed. Run: pip install starlette uvicorn\n"
    )


def test_the_example_in_the_docstring_is_true():
    examples = doctest.DocTestFinder(recurse=False).find(LocalHub, "LocalHub", globs={})
    code = examples[0].docstring.replace("```", "")
    test = doctest.DocTestParser().get_doctest(code, {}, "LocalHub", None, 0)
    assert test.examples and not doctest.DocTestRunner(verbose=False).run(test).failed


LIBRARIES = """
import os, sys
from datasets import Dataset, load_dataset
from transformers import (AutoModel, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification,
                          Trainer, TrainingArguments)

config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
model = BertForSequenceClassification(config)
model.push_to_hub("local-user/pushed", tags=["tiny"])
model.push_to_hub("local-user/pushed", revision="next", commit_message="on a branch")
loaded = AutoModelForSequenceClassification.from_pretrained("local-user/pushed", revision="next")
assert loaded.classifier.weight.equal(model.classifier.weight)
try:
    AutoModel.from_pretrained("local-user/nowhere")
except OSError as error:
    assert "is not a local folder and is not a valid model identifier" in str(error), error

rows = {"input_ids": [[1, 2, 3]] * 4, "labels": [0, 1, 0, 1]}
Dataset.from_dict(rows).push_to_hub("local-user/rows", config_name="small", private=True)
data = load_dataset("local-user/rows", "small", split="train")
assert data[:]["labels"] == rows["labels"]
assert next(iter(load_dataset("local-user/rows", "small", split="train", streaming=True)))["labels"] == 0

arguments = TrainingArguments(
    output_dir=sys.argv[1], push_to_hub=True, hub_model_id="local-user/trained", hub_strategy="every_save",
    save_steps=1, max_steps=2, use_cpu=True, disable_tqdm=True,
)
trainer = Trainer(model=model, args=arguments, train_dataset=data)
trainer.train()
trainer.push_to_hub("the end")
trained = AutoModelForSequenceClassification.from_pretrained("local-user/trained")
assert trained.classifier.weight.equal(model.classifier.weight)
"""


def test_transformers_trainer_and_datasets_push_to_it_and_load_from_it(hub, api, tmp_path):
    environment = os.environ | hub.environment(tmp_path / "cache") | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LIBRARIES), str(tmp_path / "trainer")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "tiny" in api.model_info("local-user/pushed").tags
    assert api.dataset_info("local-user/rows").private
    titles = [commit.title for commit in api.list_repo_commits("local-user/trained")]
    assert titles[0] == "the end"
    assert any("in progress" in title for title in titles)
    assert not [request for request in hub.requests if request.status == 500]
