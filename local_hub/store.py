"""Repositories on disk: contents by their SHA-256, commits with parents, branches, tags and pull requests as refs.

    root/blobs/ab/abcd...                              every content once
    root/repos/models/me/name/repo.json                visibility, refs
    root/repos/models/me/name/commits/0123....json     one commit: parent, message, files
    root/repos/models/me/name/lfs/abcd...              LFS objects uploaded to this repository (empty markers)

A change first writes what it adds and then replaces `repo.json` in one step: whoever reads, or restarts after a crash,
sees it whole or not at all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from . import cards, git


KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
# Words that follow a repository in a URL: no repository can have such a name.
RESERVED_NAMES = (
    *("auth-check", "branch", "commit", "commits", "discussions", "paths-info", "preupload", "refs", "resolve"),
    *("revision", "settings", "super-squash", "tag", "tree", "user-access-request"),
)
MAX_REGULAR_SIZE = 10 * 1024**2
LFS_PATTERNS = (
    *("*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gz", "*.h5", "*.joblib", "*.lfs.*", "*.mlmodel"),
    *("*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt"),
    *("*.pth", "*.rar", "*.safetensors", "saved_model/**/*", "*.tar.*", "*.tar", "*.tflite", "*.tgz", "*.wasm"),
    *("*.xz", "*.zip", "*.zst", "*tfevents*"),
)
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()


class HubError(Exception):
    """A refusal as the Hub words it: HTTP status, X-Error-Code and a message."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True)
class File:
    """One file of a commit: its git blob id (of the pointer, if LFS keeps it), its size and its SHA-256."""

    oid: str
    size: int
    sha256: str
    lfs: bool = False

    @property
    def etag(self) -> str:
        """What names the content in the caches of clients."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One commit: what it says and every file of the repository after it."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, File]


@dataclass
class Repo:
    """What can change about a repository without a commit: who may see it, and where its refs point."""

    kind: str
    id: str
    created: str
    private: bool = False
    gated: str | bool = False
    granted: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    downloads: int = 0

    @property
    def namespace(self) -> str:
        """The user or organization that owns it."""
        return self.id.split("/")[0]


class Store:
    """All repositories under one folder; safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self._repos: dict[tuple[str, str], Repo] = {}
        self._commits: dict[tuple[str, str], Commit] = {}
        for file in sorted((root / "repos").glob("*/*/*/repo.json")):
            repo = Repo(**json.loads(file.read_text(encoding="utf-8")))
            self._repos[repo.kind, repo.id] = repo

    # -- repositories

    def repos(self, kind: str) -> list[Repo]:
        """All repositories of a kind, private ones too."""
        with self.lock:
            return [repo for (repo_kind, _), repo in self._repos.items() if repo_kind == kind]

    def find(self, kind: str, repo_id: str) -> Repo | None:
        """The repository, or None."""
        return self._repos.get((kind, repo_id))

    def create(self, kind: str, repo_id: str, *, author: str, private: bool = False) -> Repo:
        """A new repository with its first commit, as the Hub makes it."""
        _check_repo_id(repo_id)
        with self.lock:
            if self.find(kind, repo_id):
                raise HubError(409, f"You already created this {kind.removesuffix('s')} repo")
            repo = Repo(kind=kind, id=repo_id, created=_now(), private=private)
            first = self._write_commit(
                repo,
                parent=None,
                files={".gitattributes": self._regular_file(GITATTRIBUTES)},
                title="initial commit",
                message="",
                author=author,
            )
            repo.refs["refs/heads/main"] = first.id
            self._repos[kind, repo_id] = repo
            self.save(repo)
            return repo

    def delete(self, repo: Repo) -> None:
        """Forget a repository; contents stay, other repositories may share them."""
        with self.lock:
            del self._repos[repo.kind, repo.id]
            self._commits = {key: commit for key, commit in self._commits.items() if key[0] != _key(repo)}
            shutil.rmtree(self._folder(repo))

    def move(self, repo: Repo, new_id: str) -> None:
        """Give a repository another name."""
        _check_repo_id(new_id)
        with self.lock:
            if self.find(repo.kind, new_id):
                raise HubError(409, f"{new_id} exists already")
            old_folder = self._folder(repo)
            del self._repos[repo.kind, repo.id]
            repo.id = new_id
            self._folder(repo).parent.mkdir(parents=True, exist_ok=True)
            old_folder.rename(self._folder(repo))
            self._repos[repo.kind, new_id] = repo
            self.save(repo)

    def save(self, repo: Repo) -> None:
        """Make what was changed about a repository last."""
        _write(self._folder(repo) / "repo.json", json.dumps(asdict(repo), indent=1).encode())

    def _folder(self, repo: Repo) -> Path:
        return self.root / "repos" / repo.kind / repo.id

    # -- revisions

    def resolve(self, repo: Repo, revision: str) -> Commit:
        """The commit that a branch, a tag, a ref or a commit id (seven characters will do) names."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in repo.refs:
                return self.commit(repo, repo.refs[ref])
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [path.stem for path in self._commits_folder(repo).glob(f"{revision}*.json")]
            if len(found) == 1:
                return self.commit(repo, found[0])
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, repo: Repo, commit_id: str) -> Commit:
        """The commit of this id."""
        key = (_key(repo), commit_id)
        if key not in self._commits:
            stored = json.loads((self._commits_folder(repo) / f"{commit_id}.json").read_text(encoding="utf-8"))
            files = {path: File(**file) for path, file in stored.pop("files").items()}
            self._commits[key] = Commit(files=files, **stored)
        return self._commits[key]

    def history(self, repo: Repo, commit: Commit) -> Iterator[Commit]:
        """The commit, its parent, and so on."""
        while True:
            yield commit
            if commit.parent is None:
                return
            commit = self.commit(repo, commit.parent)

    def create_ref(self, repo: Repo, ref: str, revision: str) -> None:
        """A new branch or tag."""
        with self.lock:
            if ref in repo.refs:
                raise HubError(409, f"Reference already exists: {ref}")
            repo.refs[ref] = self.resolve(repo, revision).id
            self.save(repo)

    def delete_ref(self, repo: Repo, ref: str) -> None:
        """Remove a branch or a tag."""
        with self.lock:
            if ref == "refs/heads/main":
                raise HubError(403, "The main branch cannot be deleted")
            if ref not in repo.refs:
                raise HubError(404, f"Reference does not exist: {ref}", "RevisionNotFound")
            del repo.refs[ref]
            self.save(repo)

    def squash(self, repo: Repo, branch: str, message: str, author: str) -> None:
        """Replace the history of a branch by one commit with the same files."""
        with self.lock:
            ref = self._writable_ref(repo, branch)
            files = self.commit(repo, repo.refs[ref]).files
            squashed = self._write_commit(repo, parent=None, files=files, title=message, message="", author=author)
            repo.refs[ref] = squashed.id
            self.save(repo)

    def _commits_folder(self, repo: Repo) -> Path:
        return self._folder(repo) / "commits"

    def _writable_ref(self, repo: Repo, revision: str) -> str:
        for ref in (f"refs/heads/{revision}", revision):
            if ref in repo.refs and not ref.startswith("refs/tags/"):
                return ref
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # -- commits

    def add_commit(
        self,
        repo: Repo,
        revision: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        title: str,
        author: str,
        message: str = "",
        parent: str | None = None,
        pull_request: bool = False,
    ) -> tuple[Commit, str]:
        """Apply all operations or none; gives the commit and the ref that now points to it.

        Args:
            repo: Where to.
            revision: The branch, or the ref of a pull request.
            operations: `{"key": "file" | "lfsFile" | "deletedFile" | "deletedFolder", "value": {...}}`, in order.
            title: First line of the message.
            author: Name of the user.
            message: The rest of the message.
            parent: Refuse (412) unless this commit is the newest one.
            pull_request: Open a pull request from the revision, or from `parent`, instead of changing it.
        """
        with self.lock:
            head = self.resolve(repo, parent if pull_request and parent else revision)
            if not pull_request:
                ref = self._writable_ref(repo, revision)
                if parent and not head.id.startswith(parent):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            else:
                ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repo.refs)}"
            files = dict(head.files)
            for operation in operations:
                self._apply(repo, files, str(operation.get("key")), operation.get("value", {}))
            self._check_readme(head.files, files)
            commit = self._write_commit(repo, parent=head.id, files=files, title=title, message=message, author=author)
            repo.refs[ref] = commit.id
            self.save(repo)
            return commit, ref

    def _apply(self, repo: Repo, files: dict[str, File], key: str, value: Mapping[str, Any]) -> None:
        path = _checked_path(value.get("path"))
        if key == "file":
            files[path] = self._regular_file(_decoded(value))
        elif key == "lfsFile":
            files[path] = self._lfs_file(repo, str(value.get("oid")))
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        elif key == "deletedFolder":
            inside = [name for name in files if name.startswith(f"{path}/")]
            if not inside:
                raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation in a commit: {key!r}")

    def _check_readme(self, before: Mapping[str, File], after: Mapping[str, File]) -> None:
        readme = after.get("README.md")
        if readme is None or readme == before.get("README.md"):
            return
        errors, _ = cards.check_card(self.read_text(readme))
        if errors:
            raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")

    def _write_commit(
        self, repo: Repo, *, parent: str | None, files: Mapping[str, File], title: str, message: str, author: str
    ) -> Commit:
        try:
            tree_id = git.folder_ids({path: file.oid for path, file in files.items()})[""]
        except ValueError as error:
            raise HubError(400, str(error)) from error
        date = _now()
        seconds = int(datetime.fromisoformat(date).timestamp())
        parent_line = f"parent {parent}\n" if parent else ""
        signature = f"{author} <{author}@users.noreply.huggingface.co> {seconds} +0000"
        text = f"tree {tree_id}\n{parent_line}author {signature}\ncommitter {signature}\n\n{title}\n\n{message}\n"
        commit = Commit(git.object_id("commit", text.encode()), parent, title, message, author, date, dict(files))
        _write(self._commits_folder(repo) / f"{commit.id}.json", json.dumps(asdict(commit)).encode())
        self._commits[_key(repo), commit.id] = commit
        return commit

    # -- contents

    def content(self, file: File) -> Path:
        """Where the bytes of a file lie."""
        return self._blob(file.sha256)

    def read_text(self, file: File) -> str:
        """The content of a text file."""
        return self.content(file).read_text(encoding="utf-8", errors="replace")

    def has_lfs(self, repo: Repo, sha256: str) -> bool:
        """Whether this LFS object was uploaded to this repository."""
        return (self._folder(repo) / "lfs" / sha256).exists()

    def add_lfs(self, repo: Repo, upload: Path, sha256: str) -> None:
        """Take over an uploaded file whose digest has been checked."""
        with self.lock:
            blob = self._blob(sha256)
            blob.parent.mkdir(parents=True, exist_ok=True)
            upload.replace(blob)
            _write(self._folder(repo) / "lfs" / sha256, b"")

    def temporary_file(self) -> Path:
        """A path on the same disk for bytes that are not checked yet."""
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(8)

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    def _regular_file(self, content: bytes) -> File:
        if len(content) > MAX_REGULAR_SIZE:
            raise HubError(400, f"A file of {len(content)} bytes must be uploaded through LFS")
        sha256 = hashlib.sha256(content).hexdigest()
        if not self._blob(sha256).exists():
            _write(self._blob(sha256), content)
        return File(oid=git.object_id("blob", content), size=len(content), sha256=sha256)

    def _lfs_file(self, repo: Repo, sha256: str) -> File:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not self.has_lfs(repo, sha256):
            raise HubError(400, f"LFS object {sha256} was not uploaded to {repo.id}: upload it before the commit")
        size = self._blob(sha256).stat().st_size
        return File(git.object_id("blob", git.lfs_pointer(sha256, size)), size, sha256, lfs=True)

    # -- what the Hub derives from a commit

    def upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> str:
        """`lfs` or `regular`: by .gitattributes, by size, and by whether the first bytes are text."""
        if size == 0:
            return "regular"  # the Hub keeps no empty LFS objects
        if size > MAX_REGULAR_SIZE or not _is_text(sample):
            return "lfs"
        return "lfs" if any(_matches(path, pattern) for pattern in self._lfs_patterns(commit)) else "regular"

    def _lfs_patterns(self, commit: Commit) -> list[str]:
        attributes = commit.files.get(".gitattributes")
        lines = self.read_text(attributes).splitlines() if attributes else []
        return [line.split()[0] for line in lines if "filter=lfs" in line]

    def card(self, commit: Commit) -> tuple[dict[str, Any], str]:
        """The metadata of the card, and the whole card."""
        readme = commit.files.get("README.md")
        text = self.read_text(readme) if readme else ""
        return cards.read_card(text), text

    def config(self, commit: Commit) -> dict[str, Any]:
        """What the Hub keeps of config.json."""
        config = commit.files.get("config.json")
        return cards.read_config(self.read_text(config)) if config else {}

    def last_change(self, repo: Repo, commit: Commit, path: str) -> Commit:
        """The commit that last changed a file or anything in a folder."""

        def state(of: Commit) -> dict[str, File]:
            return {name: file for name, file in of.files.items() if name == path or name.startswith(f"{path}/")}

        found, wanted = commit, state(commit)
        for older in self.history(repo, commit):
            if state(older) != wanted:
                break
            found = older
        return found

    def replace_file(self, repo: Repo, revision: str, path: str, change: Callable[[bytes], bytes]) -> Commit:
        """Commit other bytes for a file, as anybody with write access could: all digests are those of the new."""
        with self.lock:
            file = self.file(repo, revision, path)
            content = change(self.content(file).read_bytes())
            sha256 = hashlib.sha256(content).hexdigest()
            operation: dict[str, Any] = {
                "key": "file",
                "value": {"path": path, "content": base64.b64encode(content), "encoding": "base64"},
            }
            if file.lfs:
                upload = self.temporary_file()
                upload.write_bytes(content)
                self.add_lfs(repo, upload, sha256)
                operation = {"key": "lfsFile", "value": {"path": path, "oid": sha256}}
            return self.add_commit(repo, revision, [operation], title=f"Update {path}", author=repo.namespace)[0]

    def file(self, repo: Repo, revision: str, path: str) -> File:
        """One file at a revision."""
        file = self.resolve(repo, revision).files.get(path)
        if file is None:
            raise HubError(404, f"{path} does not exist in {repo.id} at {revision}", "EntryNotFound")
        return file


def _key(repo: Repo) -> str:
    return f"{repo.kind}/{repo.id}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _check_repo_id(repo_id: str) -> None:
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo_id) or ".." in repo_id or "--" in repo_id:
        raise HubError(
            400, f"Invalid repository name {repo_id!r}: use namespace/name of letters, digits, '-', '_', '.'"
        )
    if repo_id.split("/")[1] in RESERVED_NAMES or repo_id.endswith((".git", ".ipynb")):
        raise HubError(400, f"Invalid repository name {repo_id!r}: reserved")


def _checked_path(path: object) -> str:
    if not isinstance(path, str) or "\0" in path or "\\" in path:
        raise HubError(400, f"Invalid path in a commit: {path!r}")
    path = path.removesuffix("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"Invalid path in a commit: {path!r}")
    return path


def _decoded(value: Mapping[str, Any]) -> bytes:
    content = value.get("content", "")
    if value.get("encoding") != "base64":
        return str(content).encode()
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HubError(400, f"The content of {value.get('path')} is not base64: {error}") from error


def _is_text(sample: bytes) -> bool:
    if b"\0" in sample:
        return False
    # the sample is the first 512 bytes: its last character may be cut
    return any(_decodes(sample[: len(sample) - cut]) for cut in range(min(4, len(sample))))


def _decodes(sample: bytes) -> bool:
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _matches(path: str, pattern: str) -> bool:
    return fnmatch(path if "/" in pattern else PurePosixPath(path).name, pattern)


def ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore leaves a file out; the last pattern that fits decides."""
    verdict = False
    for line in gitignore.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep = pattern.startswith("!")
        pattern = pattern.removeprefix("!").removeprefix("/").removesuffix("/")
        places = [path, *map(str, PurePosixPath(path).parents), *PurePosixPath(path).parts]
        if any(fnmatch(place, pattern) for place in places):
            verdict = not keep
    return verdict
