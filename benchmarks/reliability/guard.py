"""Watches what reading a hostile upload does to the machine: files, processes, network, code, memory, time.

Python's own audit events tell of every file that Python opens; inotify tells of the bait outside the upload, also
where Rust or C++ reads it. The kernel ends a process that asks for too much memory at once: an error instead might be
caught by whoever asked, and nobody would hear of it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


EVENTS = 0x20 | 0x1 | 0x2 | 0x100 | 0x200  # of inotify: opened, accessed, modified, created, deleted
NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.connect")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
CODE = ("exec", "compile", "import", "pickle.find_class")
TIMERS = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
PATIENCE = 6
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


# Numbers of mmap and mremap; the bit of anonymous memory; what seccomp's programs are made of.
CALLS = {"x86_64": (9, 25), "aarch64": (222, 216)}
ANONYMOUS = 0x20
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # of prctl


class Hang(BaseException):
    """A case took longer than it may; no library catches it by mistake."""


class Guard:
    """Notes every step outside of what a case may do.

    Args:
        inside: Folders that a case may read and write.
        bait: A folder outside the upload that nothing may touch.
        seconds: How long a case may compute; a machine that is busy with others may take `PATIENCE` times that.
    """

    def __init__(self, inside: list[Path], bait: Path, seconds: float = 20.0) -> None:
        libraries = [sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *filter(None, sys.path)]
        self.writable = tuple(str(folder.resolve()) for folder in inside)
        system = ("/proc", "/sys", "/dev", "/usr/share", "/usr/lib", "/lib", "/etc/mime.types", "/etc/apache2")
        self.readable = (*self.writable, *map(os.path.realpath, libraries), *system)
        self.bait = bait
        self.seconds = seconds
        self.active = False
        self.steps: list[str] = []
        self.inotify = _watch(bait)
        sys.addaudithook(self._heard)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect the steps of one case in `steps`.

        Raises:
            Hang: If the case takes too long.
        """
        self.steps = []
        _drain(self.inotify)
        before = [signal.signal(number, _too_long) for number in TIMERS]
        for timer, seconds in zip(TIMERS.values(), (self.seconds, PATIENCE * self.seconds), strict=True):
            signal.setitimer(timer, seconds)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            for (number, timer), handler in zip(TIMERS.items(), before, strict=True):
                signal.setitimer(timer, 0)
                signal.signal(number, handler)
            if _drain(self.inotify):
                self.steps.append(f"touched the bait {self.bait}")

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in NEVER:
            self.steps.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            flags = arguments[2] or 0
            self._path(arguments[0], "wrote" if flags & WRITING else "read", bool(flags & WRITING))
        elif event in CHANGES and isinstance(arguments[0], str | bytes):
            self._path(_in_folder(arguments), event, changes=True)
        elif event in CODE and "evil" in repr(arguments[:2]):
            self.steps.append(f"{event} {arguments!r:.200}")

    def _path(self, path: str | bytes, what: str, changes: bool) -> None:
        real = os.path.realpath(os.fsdecode(path))
        if not real.startswith(self.writable if changes else self.readable):
            self.steps.append(f"{what} {real}")


def _in_folder(arguments: tuple[Any, ...]) -> str:
    """The path of an event that may be told as a name in a folder that is open, by its descriptor at the end."""
    name, descriptor = Path(os.fsdecode(arguments[0])), arguments[-1]
    is_of_folder = len(arguments) > 1 and isinstance(descriptor, int) and descriptor >= 0
    return str(Path(f"/proc/self/fd/{descriptor}").resolve() / name if is_of_folder else name)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise Hang


def _watch(folder: Path) -> int:
    """A descriptor of inotify for a folder and those below it."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        if libc.inotify_add_watch(descriptor, os.fsencode(place), EVENTS) < 0:
            raise OSError(ctypes.get_errno(), f"inotify cannot watch {place}")
    return descriptor


def _drain(descriptor: int) -> int:
    """How many events were waiting."""
    events = 0
    while True:
        try:
            content = os.read(descriptor, 65536)
        except BlockingIOError:
            return events
        place = 0
        while place < len(content):
            place += 16 + struct.unpack_from("I", content, place + 12)[0]
            events += 1


class Memory:
    """What is used, and what is asked for, beyond what there was when this was made, in bytes."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # measures the peak anew
        self._used, self._asked, self._peak = (memory(field) for field in ("VmRSS", "VmSize", "VmPeak"))

    @property
    def used(self) -> int:
        """The peak of what was really used."""
        return memory("VmHWM") - self._used

    @property
    def asked(self) -> int:
        """The peak of what was asked for, used or not; 0 where it lies below an earlier one."""
        peak = memory("VmPeak")
        return peak - self._asked if peak > self._peak else 0


def memory(field: str) -> int:
    """Bytes of this process: `VmHWM` is the peak, `VmRSS` now, `VmSize` what was asked for, `VmPeak` its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def limit_memory(more: int) -> None:
    """From now on no more than so many bytes beyond those that are in use; what asks for more gets an error."""
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + more, resource.RLIM_INFINITY))


def end_at_requests_above(most: int) -> None:
    """From now on the kernel ends this process, with SIGSYS, if it asks for more than so many bytes at once.

    An allocator gets large memory by mmap, whose length and flags a filter of seccomp can read. Files that are mapped
    do not count.

    Args:
        most: Bytes, less than 4 GB.

    Raises:
        OSError: If the kernel does not allow filters, or the numbers of its calls are not known for this processor.
    """
    if platform.machine() not in CALLS:
        raise OSError(f"The numbers of system calls of {platform.machine()} are not known here.")
    map_, remap = CALLS[platform.machine()]
    length, new_length, flags = 24, 32, 40  # where the arguments lie: 8 bytes each behind 16 of other things
    program = b"".join(
        struct.pack("HBBI", *step)
        for step in (
            (LOAD, 0, 0, 0),  # the number of the call
            (EQUAL, 2, 0, map_),
            (EQUAL, 7, 0, remap),
            (RETURN, 0, 0, ALLOW),
            (LOAD, 0, 0, flags),
            (ANY_BIT, 0, 8, ANONYMOUS),
            (LOAD, 0, 0, length + 4),  # its upper half
            (AT_LEAST, 7, 0, 1),
            (LOAD, 0, 0, length),
            (AT_LEAST, 5, 4, most),
            (LOAD, 0, 0, new_length + 4),
            (AT_LEAST, 3, 0, 1),
            (LOAD, 0, 0, new_length),
            (AT_LEAST, 1, 0, most),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, KILL),
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    steps = ctypes.create_string_buffer(program)
    about = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(steps))
    for call in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SECCOMP, FILTER, ctypes.create_string_buffer(about), 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "The kernel does not let this process filter its own calls")
