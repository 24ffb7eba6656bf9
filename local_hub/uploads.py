"""Uploads: first the plan, then large files through LFS, then one commit that names them all."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .access import (
    User,
    asked_commit,
    asked_repo,
    check_writable,
    flag,
    hub_state,
    json_body,
    json_response,
    kind_of,
    known_user,
    path_param,
    repo_url,
)
from .store import HubError, Repo, ignored


def _contributor(request: Request, repo: Repo) -> User:
    """Who may commit: an owner; or anybody known who only opens a pull request."""
    return known_user(request) if flag(request, "create_pr") else check_writable(request, repo.namespace)


async def preupload(request: Request) -> Response:
    """For each file: whether LFS takes it, whether .gitignore leaves it out, and what lies there already."""
    repo = asked_repo(request)
    _contributor(request, repo)
    commit, store, body = asked_commit(request, repo), hub_state(request).store, await json_body(request)
    gitignore = body.get("gitIgnore")
    if gitignore is None and ".gitignore" in commit.files:
        gitignore = store.read_text(commit.files[".gitignore"])
    answers = []
    for entry in body.get("files", []):
        path, sample = str(entry["path"]), base64.b64decode(entry.get("sample", ""))
        answer = {
            "path": path,
            "uploadMode": store.upload_mode(commit, path, int(entry["size"]), sample),
            "shouldIgnore": ignored(path, gitignore or ""),
        }
        if path in commit.files:
            answer["oid"] = commit.files[path].etag
        answers.append(answer)
    return json_response({"files": answers, "commitOid": commit.id})


async def lfs_batch(request: Request) -> Response:
    """Where to put each LFS object; nowhere, if this repository has it."""
    repo, hub = asked_repo(request), hub_state(request)
    known_user(request)
    body = await json_body(request)
    if body.get("operation") != "upload":
        raise HubError(400, "Only uploads go through LFS here; download files with resolve")
    objects = []
    for entry in body.get("objects", []):
        oid, size = str(entry["oid"]), int(entry["size"])
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if not hub.store.has_lfs(repo, oid):
            place = f"{request.base_url}lfs/{repo.kind}/{repo.id}/{oid}/{size}"
            upload = f"{place}?signature={hub.signature(repo, oid, size)}"
            answer["actions"] = {"upload": {"href": upload}, "verify": {"href": f"{place}/verify"}}
        objects.append(answer)
    return json_response({"transfer": "basic", "objects": objects})


async def lfs_upload(request: Request) -> Response:
    """Take the bytes of an LFS object, if they are those that were announced."""
    hub = hub_state(request)
    sha256, size = path_param(request, "oid"), int(path_param(request, "size"))
    repo = hub.store.find(kind_of(request), path_param(request, "repo"))
    signature = request.query_params.get("signature", "")
    if repo is None or not hmac.compare_digest(signature, hub.signature(repo, sha256, size)):
        raise HubError(403, "The signature of this upload is not valid")
    upload = hub.store.temporary_file()
    digest, received = hashlib.sha256(), 0
    try:
        with upload.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
        if (digest.hexdigest(), received) != (sha256, size):
            found = f"found {received} bytes with SHA-256 {digest.hexdigest()}"
            raise HubError(400, f"Not what was announced: {found}, expected {size} bytes with {sha256}")
        hub.store.add_lfs(repo, upload, sha256)
    finally:
        upload.unlink(missing_ok=True)
    return Response()


async def lfs_verify(request: Request) -> Response:
    """Whether an LFS object arrived."""
    repo, body, store = asked_repo(request), await json_body(request), hub_state(request).store
    oid = str(body.get("oid"))
    if oid != path_param(request, "oid") or not store.has_lfs(repo, oid):
        raise HubError(404, f"LFS object {oid} was not uploaded to {repo.id}")
    return json_response({})


async def commit(request: Request) -> Response:
    """Apply a list of operations, one JSON object a line, as one commit."""
    repo = asked_repo(request)
    user = _contributor(request, repo)
    try:
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        operations = [line for line in lines if line["key"] != "header"]
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise HubError(400, f"A commit is one JSON object a line and starts with a header: {error!r}") from error
    opens_pull_request = flag(request, "create_pr")
    done, ref = hub_state(request).store.add_commit(
        repo,
        path_param(request, "rev"),
        operations,
        title=str(header.get("summary", "")),
        message=str(header.get("description", "")),
        author=user.name,
        parent=header.get("parentCommit"),
        pull_request=opens_pull_request,
    )
    answer = {"success": True, "commitOid": done.id, "commitUrl": f"{repo_url(request, repo)}/commit/{done.id}"}
    if opens_pull_request:
        answer["pullRequestUrl"] = f"{repo_url(request, repo)}/discussions/{ref.removeprefix('refs/pr/')}"
    return json_response(answer)
