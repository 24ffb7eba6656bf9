"""What can go wrong between a client and the Hub, on demand: refusals, a cut connection, altered bytes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar


@dataclass
class Fault:
    """One thing that will go wrong; `hits` counts how often it did."""

    match: re.Pattern[str]
    times: int | None
    hits: int = 0

    def applies(self, line: str) -> bool:
        """Whether this request is meant, and there are times left."""
        return (self.times is None or self.hits < self.times) and self.match.search(line) is not None


@dataclass
class Failure(Fault):
    """The Hub answers with an error instead of doing what was asked."""

    status: int = 500
    message: str = ""
    code: str | None = None
    retry_after: int | None = None

    def headers(self) -> dict[str, str]:
        """Headers as the Hub sends them with such an answer."""
        headers = {"X-Error-Message": self.message}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
            if self.status == 429:
                headers["RateLimit"] = f'"api";r=0;t={self.retry_after}'
                headers["RateLimit-Policy"] = '"fixed window";"api";q=500;w=300'
        return headers


@dataclass
class Cut(Fault):
    """The Hub does what was asked, but the connection closes before its answer is complete."""

    after_bytes: int = 0


MESSAGES = {
    401: "Invalid credentials in Authorization header",
    403: "You don't have the required permissions",
    404: "Not found",
    409: "Conflict",
    412: "A commit has happened since. Please refresh and try again.",
    429: "We had to rate limit your IP",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
    503: "Service Unavailable",
}


F = TypeVar("F", bound=Fault)


@dataclass
class Faults:
    """All that was asked to go wrong; each is tried in the order it was added."""

    failures: list[Failure] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    altered: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

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
        """Answer requests with an error, before anything is done.

        Args:
            status: For example 401, 403, 404, 409, 412, 429, 500 or 503.
            match: Regular expression searched in "METHOD /path", percent-decoded and without the query.
            times: How often; None for always.
            retry_after: Seconds that the client is told to wait.
            code: X-Error-Code, such as RepoNotFound, EntryNotFound or GatedRepo.
            message: What the error says.
        """
        text = message if message is not None else MESSAGES.get(status, "")
        failure = Failure(re.compile(match), times, status=status, message=text, code=code, retry_after=retry_after)
        with self.lock:
            self.failures.append(failure)
        return failure

    def cut(self, *, match: str = "^GET .*/resolve/", after_bytes: int = 0, times: int | None = 1) -> Cut:
        """Carry requests out, but close the connection after so many bytes of the answer's body.

        With a `match` on a POST and no bytes, the answer gets lost: the client cannot know whether it was done.
        HEAD has no body to cut and is passed over.
        """
        cut = Cut(re.compile(match), times, after_bytes=after_bytes)
        with self.lock:
            self.cuts.append(cut)
        return cut

    def alter(self, repo: tuple[str, str], sha256: str, content: bytes) -> None:
        """Send other bytes for a content of one repository, while all that is told about it stays."""
        with self.lock:
            self.altered[(*repo, sha256)] = content

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self.lock:
            self.failures.clear()
            self.cuts.clear()
            self.altered.clear()

    def failure(self, line: str) -> Failure | None:
        """The failure this request meets, counted as one hit."""
        return self._take(self.failures, line)

    def cut_for(self, line: str) -> Cut | None:
        """The cut this request meets, counted as one hit."""
        return None if line.startswith("HEAD ") else self._take(self.cuts, line)

    def _take(self, faults: Sequence[F], line: str) -> F | None:
        with self.lock:
            for fault in faults:
                if fault.applies(line):
                    fault.hits += 1
                    return fault
        return None


def alteration(data: bytes | None, truncate: int | None) -> Callable[[bytes], bytes]:
    """How to alter a content: replace it, keep only its beginning, or else flip the bits of its middle byte."""
    if data is not None and truncate is not None:
        raise ValueError("Pass either data (what to send) or truncate (how many bytes to keep), not both.")
    if data is not None:
        return lambda content: data
    if truncate is not None:
        return lambda content: content[:truncate]
    return _flip_middle_byte


def _flip_middle_byte(content: bytes) -> bytes:
    if not content:
        raise ValueError("An empty file has no byte to flip. Pass the bytes to send instead: data=b'...'.")
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
