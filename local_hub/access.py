"""Who asks for what, and how the Hub words its answers: what all handlers share."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from .faults import Faults
from .store import Commit, HubError, Repo, Store


PAGE_SIZE = 1000  # of searches, trees and histories


@dataclass(frozen=True)
class User:
    """Who a token stands for."""

    name: str
    organizations: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, namespace: str) -> bool:
        """Whether repositories of this namespace are theirs."""
        return namespace == self.name or namespace in self.organizations


@dataclass
class HubState:
    """What the handlers share."""

    store: Store
    faults: Faults
    users: dict[str, User] = field(default_factory=dict)  # by token
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    page_size: int = PAGE_SIZE

    def signature(self, repo: Repo, sha256: str, size: int) -> str:
        """What allows the upload of one LFS object, without a token, as a signed URL of a storage does."""
        return hmac.new(self.secret, f"{repo.kind}/{repo.id}/{sha256}/{size}".encode(), "sha256").hexdigest()


# -- who asks, and for what


def hub_state(request: Request) -> HubState:
    """The Hub that this request came to."""
    hub: HubState = request.app.state.hub
    return hub


def asking_user(request: Request) -> User | None:
    """Who asks; None without a token, and an error for a token that nobody has."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return None
    user = hub_state(request).users.get(token)
    if user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def known_user(request: Request) -> User:
    """Who asks, which must be somebody."""
    user = asking_user(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return user


def path_param(request: Request, name: str) -> str:
    """A part of the path, decoded; empty if this path has none of that name."""
    return unquote(str(request.path_params.get(name, "")))


def kind_of(request: Request) -> str:
    """Which kind of repository the path is about; models have no prefix."""
    return path_param(request, "kind") or "models"


def asked_repo(request: Request) -> Repo:
    """The repository that the path names, if it may be seen."""
    return visible_repo(request, kind_of(request), path_param(request, "repo"))


def visible_repo(request: Request, kind: str, repo_id: str) -> Repo:
    """A repository, if it may be seen: a private one does not exist for strangers."""
    user = asking_user(request)
    repo = hub_state(request).store.find(kind, repo_id)
    if repo is None or not may_see(user, repo):
        raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
    return repo


def may_see(user: User | None, repo: Repo) -> bool:
    """Whether a user may know of a repository."""
    return not repo.private or (user is not None and user.owns(repo.namespace))


def check_files_readable(request: Request, repo: Repo) -> None:
    """Refuse files of a gated repository to those who have no access yet."""
    user = asking_user(request)
    if not repo.gated or (user and (user.owns(repo.namespace) or user.name in repo.granted)):
        return
    message = f"Access to {repo.kind.removesuffix('s')} {repo.id} is restricted. Ask for access to it."
    raise HubError(403 if user else 401, message, "GatedRepo")


def check_writable(request: Request, namespace: str) -> User:
    """Who asks, who must have the right to write to the namespace."""
    user = known_user(request)
    if user.role != "write" or not user.owns(namespace):
        raise HubError(403, f"You don't have the rights to write to {namespace} (you are {user.name}, {user.role})")
    return user


def writable_repo(request: Request) -> tuple[Repo, User]:
    """The repository asked for and who asks, who must have the right to write to it."""
    repo = asked_repo(request)
    return repo, check_writable(request, repo.namespace)


def asked_commit(request: Request, repo: Repo) -> Commit:
    """The commit that the path names; the newest one of main, if it names none."""
    return hub_state(request).store.resolve(repo, path_param(request, "rev") or "main")


# -- answers


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    # cards hold dates, and metrics may be NaN
    body = json.dumps(content, default=str).encode()
    return Response(body, status, headers=dict(headers or {}), media_type="application/json")


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as the Hub words it."""
    printable = {name: value.encode("ascii", "replace").decode() for name, value in (headers or {}).items()}
    return json_response({"error": message}, status, printable)


def page_response(request: Request, items: Sequence[Any], size: int) -> Response:
    """One page of a list, with a link to the next one."""
    start = int(request.query_params.get("cursor", 0))
    following = request.url.include_query_params(cursor=start + size)
    headers = {"Link": f'<{following}>; rel="next"'} if start + size < len(items) else None
    return json_response(items[start : start + size], headers=headers)


def flag(request: Request, name: str) -> bool:
    """Whether the query switches something on."""
    return request.query_params.get(name, "").lower() in ("1", "true")


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent."""
    raw = await request.body()
    try:
        content = json.loads(raw or b"{}")
    except ValueError as error:
        raise HubError(400, f"The body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise HubError(400, "The body must be a JSON object")
    return content


def repo_url(request: Request, repo: Repo) -> str:
    """Where a repository lives."""
    prefix = "" if repo.kind == "models" else f"{repo.kind}/"
    return f"{request.base_url}{prefix}{repo.id}"
