"""Users and repositories: create, delete, who may see them, their refs and history."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from . import cards
from .access import (
    User,
    asked_commit,
    asked_repo,
    check_files_readable,
    check_writable,
    flag,
    hub_state,
    json_body,
    json_response,
    known_user,
    page_response,
    path_param,
    repo_url,
    visible_repo,
    writable_repo,
)
from .store import KINDS, HubError


# -- identity and repositories


async def whoami(request: Request) -> Response:
    """Who the token stands for."""
    user = known_user(request)
    return json_response(
        {
            "type": "user",
            "id": hashlib.sha1(user.name.encode()).hexdigest()[:24],
            "name": user.name,
            "fullname": user.name,
            "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.organizations],
            "auth": {"type": "access_token", "accessToken": {"displayName": "local", "role": user.role}},
        }
    )


async def validate_yaml(request: Request) -> Response:
    """Whether the metadata of a card can be read, and what is wrong with it."""
    body = await json_body(request)
    errors, warnings = cards.check_card(str(body.get("content", "")))
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return json_response(answer, 400 if errors else 200)


def _named_in(body: Mapping[str, Any], user: User) -> tuple[str, str]:
    kind = KINDS.get(body.get("type") or "model")
    if kind is None:
        raise HubError(400, f"Unknown type of repository: {body.get('type')!r}")
    return kind, f"{body.get('organization') or user.name}/{body.get('name')}"


async def create_repo(request: Request) -> Response:
    """A new repository; 409 with its URL where there is one already."""
    body, store = await json_body(request), hub_state(request).store
    kind, repo_id = _named_in(body, known_user(request))
    user = check_writable(request, repo_id.split("/")[0])
    private = body.get("visibility") == "private" or bool(body.get("private"))
    try:
        repo = store.create(kind, repo_id, author=user.name, private=private)
    except HubError as error:
        if error.status != 409:
            raise
        existing = store.find(kind, repo_id)
        assert existing is not None
        answer = {"error": error.message, "url": repo_url(request, existing), "name": repo_id, "id": repo_id}
        return json_response(answer, 409, {"X-Error-Message": error.message})
    return json_response({"url": repo_url(request, repo), "name": repo_id, "id": repo_id})


async def delete_repo(request: Request) -> Response:
    """Forget a repository."""
    kind, repo_id = _named_in(await json_body(request), known_user(request))
    repo = visible_repo(request, kind, repo_id)
    check_writable(request, repo.namespace)
    hub_state(request).store.delete(repo)
    return json_response({})


async def move_repo(request: Request) -> Response:
    """Give a repository another name or owner."""
    body = await json_body(request)
    kind, new_id = KINDS.get(body.get("type") or "model", "models"), str(body.get("toRepo"))
    repo = visible_repo(request, kind, str(body.get("fromRepo")))
    check_writable(request, repo.namespace)
    check_writable(request, new_id.split("/")[0])
    hub_state(request).store.move(repo, new_id)
    return json_response({"url": repo_url(request, repo)})


async def update_settings(request: Request) -> Response:
    """Visibility, and whether readers must ask first."""
    repo, _ = writable_repo(request)
    body = await json_body(request)
    if "visibility" in body or "private" in body:
        repo.private = body.get("visibility") == "private" or bool(body.get("private"))
    repo.gated = body.get("gated", repo.gated)
    hub_state(request).store.save(repo)
    return json_response({"private": repo.private, "gated": repo.gated})


async def grant_access(request: Request) -> Response:
    """Let a user read the files of a gated repository."""
    repo, _ = writable_repo(request)
    name = (await json_body(request)).get("user")
    if not repo.gated:
        raise HubError(400, f"{repo.id} is not gated")
    if name not in {user.name for user in hub_state(request).users.values()}:
        raise HubError(404, f"There is no user {name!r}")
    repo.granted.append(str(name))
    hub_state(request).store.save(repo)
    return json_response({})


async def check_access(request: Request) -> Response:
    """Nothing, if the files may be read, or written where the path says so."""
    repo = asked_repo(request)
    check_files_readable(request, repo)
    if request.url.path.endswith("/write"):
        check_writable(request, repo.namespace)
    return json_response({})


# -- refs and history


async def refs(request: Request) -> Response:
    """Branches and tags, and pull requests where asked for."""
    repo = asked_repo(request)

    def named(prefix: str) -> list[dict[str, str]]:
        pointers = sorted(repo.refs.items())
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": target}
            for ref, target in pointers
            if ref.startswith(prefix)
        ]

    answer = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": []}
    if flag(request, "include_prs"):
        answer["pullRequests"] = [entry | {"name": entry["ref"]} for entry in named("refs/pr/")]
    return json_response(answer)


async def branch(request: Request) -> Response:
    """A new branch, or one less."""
    repo, _ = writable_repo(request)
    name, store = path_param(request, "rev"), hub_state(request).store
    if name.startswith("refs/"):
        raise HubError(400, f"Invalid reference for a branch: {name}")
    if request.method == "DELETE":
        store.delete_ref(repo, f"refs/heads/{name}")
    else:
        store.create_ref(repo, f"refs/heads/{name}", (await json_body(request)).get("startingPoint") or "main")
    return json_response({})


async def tag(request: Request) -> Response:
    """A new tag on the revision of the path; or one less, the tag of the path."""
    repo, _ = writable_repo(request)
    name, store = path_param(request, "rev"), hub_state(request).store
    if request.method == "DELETE":
        store.delete_ref(repo, f"refs/tags/{name}")
    else:
        store.create_ref(repo, f"refs/tags/{(await json_body(request)).get('tag')}", name)
    return json_response({})


async def commits(request: Request) -> Response:
    """The history of a revision, newest first."""
    repo, hub = asked_repo(request), hub_state(request)
    items = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date,
            "authors": [{"user": commit.author}],
            "formatted": {"title": commit.title, "message": commit.message},
        }
        for commit in hub.store.history(repo, asked_commit(request, repo))
    ]
    return page_response(request, items, hub.page_size)


async def super_squash(request: Request) -> Response:
    """One commit in place of the history of a branch."""
    repo, user = writable_repo(request)
    message = str((await json_body(request)).get("message") or "Super-squash")
    hub_state(request).store.squash(repo, path_param(request, "rev"), message, user.name)
    return json_response({})
