"""The protocol: which path and method of the Hub's HTTP API leads to which handler.

Paths are matched as they are sent, percent-encoded, since a revision may hold an encoded slash (`refs%2Fpr%2F1`).
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import contents, repositories, uploads
from .access import HubState, error_response
from .store import KINDS, RESERVED_NAMES, HubError


class _KindConvertor(Convertor[str]):
    regex = "|".join(KINDS.values())

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _RepoConvertor(_KindConvertor):
    # one-word ids of old (gpt2) are known to the protocol, so that they can be answered with "not found"
    regex = rf"[^/]+/(?!(?:{'|'.join(RESERVED_NAMES)})(?:/|$))[^/]+|[^/]+"


register_url_convertor("hub_kind", _KindConvertor())
register_url_convertor("hub_repo", _RepoConvertor())


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    headers = {"X-Error-Message": error.message.replace("\n", " ")}
    if error.code:
        headers["X-Error-Code"] = error.code
    return error_response(error.status, error.message, headers)


def _not_found(request: Request, error: Exception) -> Response:
    return error_response(404, f"The local Hub does not support {request.method} {request.url.path}")


def _routes() -> list[Route]:
    repo = "/api/{kind:hub_kind}/{repo:hub_repo}"
    file = "/resolve/{rev}/{path:path}"
    batch = "/{repo:hub_repo}.git/info/lfs/objects/batch"
    lfs_object = "/lfs/{kind:hub_kind}/{repo:hub_repo}/{oid}/{size:int}"
    return [
        Route("/api/whoami-v2", repositories.whoami),
        Route("/api/validate-yaml", repositories.validate_yaml, methods=["POST"]),
        Route("/api/repos/create", repositories.create_repo, methods=["POST"]),
        Route("/api/repos/delete", repositories.delete_repo, methods=["DELETE"]),
        Route("/api/repos/move", repositories.move_repo, methods=["POST"]),
        Route("/api/{kind:hub_kind}", contents.search),
        Route(repo, contents.repo_info),
        Route(f"{repo}/revision/{{rev}}", contents.repo_info),
        Route(f"{repo}/settings", repositories.update_settings, methods=["PUT"]),
        Route(f"{repo}/user-access-request/grant", repositories.grant_access, methods=["POST"]),
        Route(f"{repo}/auth-check", repositories.check_access),
        Route(f"{repo}/auth-check/write", repositories.check_access),
        Route(f"{repo}/tree/{{rev}}", contents.tree),
        Route(f"{repo}/tree/{{rev}}/{{path:path}}", contents.tree),
        Route(f"{repo}/paths-info/{{rev}}", contents.paths_info, methods=["POST"]),
        Route(f"{repo}/refs", repositories.refs),
        Route(f"{repo}/branch/{{rev}}", repositories.branch, methods=["POST", "DELETE"]),
        Route(f"{repo}/tag/{{rev}}", repositories.tag, methods=["POST", "DELETE"]),
        Route(f"{repo}/commits/{{rev}}", repositories.commits),
        Route(f"{repo}/super-squash/{{rev}}", repositories.super_squash, methods=["POST"]),
        Route(f"{repo}/preupload/{{rev}}", uploads.preupload, methods=["POST"]),
        Route(f"{repo}/commit/{{rev}}", uploads.commit, methods=["POST"]),
        Route(f"{repo}{file}", contents.resolve),
        Route(f"/{{kind:hub_kind}}/{{repo:hub_repo}}{file}", contents.resolve),
        Route(f"/{{repo:hub_repo}}{file}", contents.resolve),
        Route(f"/{{kind:hub_kind}}{batch}", uploads.lfs_batch, methods=["POST"]),
        Route(batch, uploads.lfs_batch, methods=["POST"]),
        Route(lfs_object, uploads.lfs_upload, methods=["PUT"]),
        Route(f"{lfs_object}/verify", uploads.lfs_verify, methods=["POST"]),
    ]


def build_app(hub: HubState) -> Starlette:
    """The Hub as an ASGI application; it expects `scope["path"]` as it was sent, see `server.Wire`."""
    app = Starlette(routes=_routes(), exception_handlers={HubError: _refuse, 404: _not_found})
    app.router.redirect_slashes = False
    app.state.hub = hub
    return app
