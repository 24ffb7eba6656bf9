"""`LocalHub`: the Hub in a thread of this process, with its log of requests and its faults."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import HubState, User, error_response
from .app import build_app
from .faults import Cut, Failure, Faults, alteration
from .store import KINDS, HubError, Repo, Store


HOST = "127.0.0.1"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestRecord:
    """One request as it was answered; unpacks as `method, path, sent`.

    The path is percent-decoded and without its query; `sent` and `received` count the bytes of the bodies.
    """

    method: str
    path: str
    sent: int
    received: int
    status: int | None

    def __iter__(self) -> Iterator[str | int]:
        return iter((self.method, self.path, self.sent))


class Wire:
    """What lies between the socket and the Hub: it writes down every request and lets go wrong what should."""

    def __init__(self, app: ASGIApp, faults: Faults, requests: list[RequestRecord]) -> None:
        self.app = app
        self.faults = faults
        self.requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = _Exchange(scope, receive, send, self.requests)
        failure = self.faults.failure(exchange.line)
        exchange.cut = None if failure else self.faults.cut_for(exchange.line)
        try:
            if failure is None:
                raw_scope = {**scope, "path": scope["raw_path"].decode("ascii")}
                await self.app(raw_scope, exchange.receive, exchange.send)
            else:
                await exchange.read_all()
                response = error_response(failure.status, failure.message, failure.headers())
                await response(scope, exchange.receive, exchange.send)
        except Exception:
            logger.exception("The local Hub failed at %s", exchange.line)
            raise
        finally:
            exchange.write_down()


class _Exchange:
    """One request and its answer on the way: counted, and cut where it should be."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, requests: list[RequestRecord]) -> None:
        self.method: str = scope["method"]
        self.path = unquote(scope["raw_path"].decode("ascii"))
        self.cut: Cut | None = None
        self.sent = self.received = 0
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._requests = requests
        self._is_cut = self._is_written = False

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    def write_down(self) -> None:
        if not self._is_written:
            self._is_written = True
            self._requests.append(RequestRecord(self.method, self.path, self.sent, self.received, self.status))

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def read_all(self) -> None:
        """Take in the whole body, so that the client hears the answer and not a broken pipe."""
        while (await self.receive()).get("more_body", False):
            pass

    async def send(self, message: Message) -> None:
        if self._is_cut:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            message = self._counted(message)
        await self._send(message)

    def _counted(self, message: Message) -> Message:
        body = b"" if self.method == "HEAD" else message.get("body", b"")
        if self.cut is not None and self.sent + len(body) > self.cut.after_bytes:
            # uvicorn closes the connection of an answer that never gets its last part
            self._is_cut = True
            body = body[: self.cut.after_bytes - self.sent]
            message = {**message, "body": body, "more_body": True}
        self.sent += len(body)
        if self._is_cut or not message.get("more_body", False):
            self.write_down()  # before the client can have it all, and look
        return message


class LocalHub:
    """A Hugging Face Hub on this machine, for the real `huggingface_hub` client.

    Args:
        root: Folder that keeps the repositories, also over restarts; None for a temporary one that `stop` removes.
        port: Port on 127.0.0.1; 0 picks a free one. It is taken from now on, so `url` is known before `start`.
        user: Name of the first user.
        token: Their token.

    Example:
        ```python
        >>> from local_hub import LocalHub
        >>> with LocalHub() as hub:  # or hub.start() and hub.stop()
        ...     hub.add_user("somebody", token="hf_somebody")
        ...     sorted(hub.environment("cache"))[:3]  # for the processes that talk to it
        'hf_somebody'
        ['HF_DATASETS_CACHE', 'HF_ENDPOINT', 'HF_HOME']

        ```
    """

    def __init__(
        self, root: str | Path | None = None, port: int = 0, user: str = "local-user", token: str = "hf_local"
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="local-hub-") if root is None else None
        self.root = Path(root if root is not None else self._temporary.name)  # type: ignore[union-attr]
        self.user = user
        self.token = token
        self.faults = Faults()
        self.requests: list[RequestRecord] = []
        self.store = Store(self.root)
        self._state = HubState(self.store, self.faults)
        self._socket: socket.socket | None = _bound_socket(port)
        self.port: int = self._socket.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.add_user(user, token)

    @property
    def url(self) -> str:
        """The endpoint for clients."""
        return f"http://{HOST}:{self.port}"

    @property
    def page_size(self) -> int:
        """How many entries a page of a search, a tree or a history holds."""
        return self._state.page_size

    @page_size.setter
    def page_size(self, size: int) -> None:
        self._state.page_size = size

    # -- running

    def start(self) -> Self:
        """Answer requests from a thread until `stop`."""
        if self._thread is not None:
            raise RuntimeError(f"The local Hub is already running at {self.url}.")
        if not self.root.exists() and self._temporary is not None:
            raise RuntimeError(
                "The local Hub was stopped and its temporary folder removed. Pass root= to keep the folder."
            )
        if self._socket is None:
            self._socket = _bound_socket(self.port)
        app = Wire(build_app(self._state), self.faults, self.requests)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # a cut answer is no error worth a line; our own are logged by Wire
            access_log=False,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="local-hub", daemon=True
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError(f"The local Hub could not start at {self.url}.")
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Close every connection and the port; remove the temporary folder, if it was one."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
            self._server = self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def environment(self, cache_dir: str | Path, token: str | None = None) -> dict[str, str]:
        """What a client process needs in its environment before it imports `huggingface_hub`.

        Args:
            cache_dir: Folder for everything that clients cache.
            token: Of another user than the first.
        """
        cache = Path(cache_dir)
        environment = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(cache),
            # named too, since they would win over HF_HOME where they are set
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
            "HF_MODULES_CACHE": str(cache / "modules"),
        }
        if any(os.environ.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
            outside = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
            environment |= dict.fromkeys(("NO_PROXY", "no_proxy"), f"{outside},{HOST}" if outside else HOST)
        return environment

    def add_user(
        self, name: str, token: str | None = None, *, organizations: tuple[str, ...] = (), role: str = "write"
    ) -> str:
        """One more user, or one more token of a user; gives the token. The role is `write` or `read`."""
        token = token or f"hf_{secrets.token_hex(8)}"
        self._state.users[token] = User(name, organizations, role)
        return token

    # -- faults

    def fail(
        self,
        status: int,
        *,
        match: str = "",
        times: int | None = 1,
        retry_after: int | None = None,
        code: str | None = None,
        message: str | None = None,
    ) -> Failure:
        """Answer requests with an error, before anything is done; see `Faults.fail`."""
        return self.faults.fail(status, match=match, times=times, retry_after=retry_after, code=code, message=message)

    def cut(self, *, match: str = "^GET .*/resolve/", after_bytes: int = 0, times: int | None = 1) -> Cut:
        """Close the connection after so many bytes of an answer; see `Faults.cut`."""
        return self.faults.cut(match=match, after_bytes=after_bytes, times=times)

    def corrupt(
        self,
        repo_id: str,
        path: str,
        *,
        repo_type: str = "model",
        revision: str = "main",
        data: bytes | None = None,
        truncate: int | None = None,
        consistent: bool = False,
    ) -> str:
        """Alter a file; gives the commit it is altered in.

        Args:
            repo_id: Repository.
            path: File in it.
            repo_type: `model`, `dataset` or `space`.
            revision: Which version of the file; a branch, if the alteration is to be consistent.
            data: What to send instead; without it and `truncate`, the middle byte is flipped.
            truncate: Send only so many bytes.
            consistent: False: the bytes are altered on their way, while sizes, ETag and digests stay those of the
                original, until `faults.clear()`. True: a tampered upload, that is a new commit with the altered bytes
                and everything told about them agrees.
        """
        repo = self.repo(repo_id, repo_type)
        change = alteration(data, truncate)
        if consistent:
            return self.store.replace_file(repo, revision, path, change).id
        file = self.store.file(repo, revision, path)
        self.faults.alter((repo.kind, repo.id), file.sha256, change(self.store.content(file).read_bytes()))
        return self.store.resolve(repo, revision).id

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """A repository as the Hub keeps it, whoever may see it."""
        repo = self.store.find(KINDS[repo_type], repo_id)
        if repo is None:
            raise HubError(404, f"There is no {repo_type} {repo_id!r} on the local Hub", "RepoNotFound")
        return repo


def _bound_socket(port: int) -> socket.socket:
    # with the protocol named, asyncio switches Nagle's algorithm off, which else costs 40 ms a request
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        raise
    return bound
