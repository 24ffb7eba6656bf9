"""What repositories hold: searches, trees, and the bytes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from . import cards, git
from .access import (
    asked_commit,
    asked_repo,
    asking_user,
    check_files_readable,
    error_response,
    flag,
    hub_state,
    json_response,
    kind_of,
    may_see,
    page_response,
    path_param,
)
from .store import Commit, File, HubError, Repo


EXPANDED_PAGE_SIZE = 50  # of trees with the last commit of every entry


def _info(request: Request, repo: Repo, commit: Commit) -> dict[str, Any]:
    store = hub_state(request).store
    card, readme = store.card(commit)
    config = store.config(commit) if repo.kind == "models" else {}
    info: dict[str, Any] = {
        "_id": hashlib.sha1(f"{repo.kind}/{repo.id}".encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": repo.downloads,
        "likes": 0,
        "cardData": card,
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    if repo.kind != "models":
        return info | {"tags": cards.dataset_tags(card, readme, commit.files)}
    return info | {
        "modelId": repo.id,
        "tags": cards.model_tags(card, readme, commit.files, config),
        "library_name": card.get("library_name") or ("transformers" if "model_type" in config else None),
        "pipeline_tag": card.get("pipeline_tag"),
        "config": config,
        "model-index": card.get("model-index"),
    }


def _expanded(info: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key in ("_id", "id", *keys)}


async def repo_info(request: Request) -> Response:
    """All about a repository at a revision."""
    repo = asked_repo(request)
    commit = asked_commit(request, repo)
    info = _info(request, repo, commit)
    if flag(request, "blobs"):
        info["siblings"] = [
            {"rfilename": path, "size": file.size, "blobId": file.oid} | _lfs(file, "sha256")
            for path, file in sorted(commit.files.items())
        ]
    keys = request.query_params.getlist("expand")
    return json_response(_expanded(info, keys) if keys else info)


async def search(request: Request) -> Response:
    """Repositories that carry all tags asked for; never those that the user may not see."""
    hub, user, query = hub_state(request), asking_user(request), request.query_params
    wanted = {tag for entry in query.getlist("filter") for tag in entry.split(",") if tag}
    if "pipeline_tag" in query:
        wanted.add(query["pipeline_tag"])
    found = []
    for repo in hub.store.repos(kind_of(request)):
        if not may_see(user, repo) or query.get("author", repo.namespace).lower() != repo.namespace.lower():
            continue
        if query.get("search", "").lower() not in repo.id.lower():
            continue
        info = _info(request, repo, hub.store.resolve(repo, "main"))
        if wanted <= set(info["tags"]):
            found.append(info)
    order = query.get("sort", "lastModified")
    found.sort(key=lambda info: (info.get(order) or 0, info["id"]), reverse=query.get("direction") != "1")
    size = min(int(query.get("limit") or hub.page_size), hub.page_size)
    return page_response(request, [_listed(request, info) for info in found], size)


def _listed(request: Request, info: dict[str, Any]) -> dict[str, Any]:
    if keys := request.query_params.getlist("expand"):
        return _expanded(info, keys)
    left_out = {"siblings", "usedStorage", "model-index"}
    for key, asked in (("cardData", "cardData"), ("config", "config"), ("siblings", "full")):
        if flag(request, asked):
            left_out.discard(key)
        else:
            left_out.add(key)
    return {key: value for key, value in info.items() if key not in left_out}


def _lfs(file: File, digest_key: str) -> dict[str, Any]:
    if not file.lfs:
        return {}
    pointer_size = len(git.lfs_pointer(file.sha256, file.size))
    return {"lfs": {digest_key: file.sha256, "size": file.size, "pointerSize": pointer_size}}


def _entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """Every folder and every file of a commit, as trees list them."""
    folders = git.folder_ids({path: file.oid for path, file in commit.files.items()})
    entries: dict[str, dict[str, Any]] = {
        path: {"type": "directory", "oid": oid, "size": 0, "path": path} for path, oid in folders.items() if path
    }
    for path, file in commit.files.items():
        entries[path] = {"type": "file", "oid": file.oid, "size": file.size, "path": path} | _lfs(file, "oid")
    return dict(sorted(entries.items()))


def _with_last_change(request: Request, repo: Repo, commit: Commit, entry: dict[str, Any]) -> dict[str, Any]:
    last = hub_state(request).store.last_change(repo, commit, entry["path"])
    security = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
    changed = {"id": last.id, "title": last.title, "date": last.date}
    return entry | {"lastCommit": changed} | ({"securityFileStatus": security} if entry["type"] == "file" else {})


async def tree(request: Request) -> Response:
    """What lies in a folder, or anywhere below it."""
    repo = asked_repo(request)
    commit = asked_commit(request, repo)
    folder = path_param(request, "path").strip("/")
    entries = _entries(commit)
    if folder and entries.get(folder, {}).get("type") != "directory":
        raise HubError(404, f"{folder} does not exist on {path_param(request, 'rev')}", "EntryNotFound")
    inside = [entry for path, entry in entries.items() if not folder or path.startswith(f"{folder}/")]
    if not flag(request, "recursive"):
        depth = folder.count("/") + 1 if folder else 0
        inside = [entry for entry in inside if entry["path"].count("/") == depth]
    size = hub_state(request).page_size
    if flag(request, "expand"):
        inside = [_with_last_change(request, repo, commit, entry) for entry in inside]
        size = min(size, EXPANDED_PAGE_SIZE)
    return page_response(request, inside, size)


async def paths_info(request: Request) -> Response:
    """What is known about some paths; those that do not exist are left out."""
    repo = asked_repo(request)
    commit = asked_commit(request, repo)
    form = parse_qs((await request.body()).decode())
    entries = _entries(commit)
    found = [entries[path.strip("/")] for path in form.get("paths", []) if path.strip("/") in entries]
    if form.get("expand", [""])[0].lower() == "true":
        found = [_with_last_change(request, repo, commit, entry) for entry in found]
    return json_response(found)


async def resolve(request: Request) -> Response:
    """The bytes of a file, or of a range of it; for HEAD only what is known about them."""
    repo, hub = asked_repo(request), hub_state(request)
    check_files_readable(request, repo)
    commit, path = asked_commit(request, repo), path_param(request, "path")
    file = commit.files.get(path)
    headers = {"X-Repo-Commit": commit.id, "Access-Control-Expose-Headers": "*"}
    if file is None:
        headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return error_response(404, "Entry not found", headers)
    headers |= {"ETag": f'"{file.etag}"', "Content-Disposition": f"inline; filename*=UTF-8''{quote(path)}"}
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(file.size), "Accept-Ranges": "bytes"})
    if path == "config.json" and "range" not in request.headers:
        repo.downloads += 1
    content, afterwards = hub.store.content(file), None
    if (altered := hub.faults.altered.get((repo.kind, repo.id, file.sha256))) is not None:
        content = hub.store.temporary_file()
        content.write_bytes(altered)
        afterwards = BackgroundTask(content.unlink)
    return FileResponse(content, headers=headers, media_type="application/octet-stream", background=afterwards)
