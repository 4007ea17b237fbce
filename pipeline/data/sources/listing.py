"""The files under a source's URI: those that can be read, those that cannot and why, and those passed over,
counted and named."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.data.sources.base import LARGEST_FILE, Split
from pipeline.errors import InputError

# what file managers, archivers, network disks and writers of tables leave behind; so do names that begin with
# a dot
JUNK = re.compile(
    r"\..*|@eadir|__macosx|__pycache__|#recycle|\$recycle\.bin|system volume information|lost\+found"
    r"|thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|_success|_temporary|_metadata|_common_metadata|_delta_log",
    re.IGNORECASE,
)
JUNK_REASON = "hidden files or those of the system"
SPLIT_WORDS: tuple[tuple[Split, re.Pattern[str]], ...] = (
    ("train", re.compile(r"(train|training)(set|data)?\d*")),
    (
        "heldout",
        re.compile(
            r"(val|valid|validation|test|testing|eval|evaluation|dev|heldout|holdout|t10k)(set|data)?\d*"
        ),
    ),
)
TEST = re.compile(r"test(ing)?(set|data)?\d*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. `path` is relative to the root and always text: bytes that are not UTF-8 are shown as
    `\\xNN`. `problem` says why it cannot be read."""

    path: str
    problem: str = ""


@dataclass
class PassedOver:
    """What a source holds and does not use: by reason, how many and the first."""

    counts: dict[str, int] = field(default_factory=dict)
    firsts: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.firsts[reason] = min(name, self.firsts.get(reason, name))

    def update(self, other: "PassedOver") -> None:
        for reason, count in other.counts.items():
            self.add(reason, other.firsts[reason], count)

    @property
    def lines(self) -> list[str]:
        return [
            f"{count} {reason} (first {self.firsts[reason]})" for reason, count in sorted(self.counts.items())
        ]


def split_of(name: str) -> Split | None:
    """The split that a folder's or file's name announces (train, val2017, imagenet-test and the like), None
    when it announces none."""
    words = split_words(name)
    return next((split for split, pattern in SPLIT_WORDS if any(map(pattern.fullmatch, words))), None)


def is_split_alone(name: str) -> bool:
    """Whether `name` says a split and nothing else: `val2017` does, `bullet_train` does not."""
    return all(any(pattern.fullmatch(word) for _, pattern in SPLIT_WORDS) for word in split_words(name))


def is_test(name: str) -> bool:
    return any(map(TEST.fullmatch, split_words(name)))


def split_words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def split_name(path: str) -> str:
    """What says the split of a file: its own name, or else the nearest of its folders that says one; "" where
    none does."""
    parts = PurePosixPath(path).with_suffix("").parts
    return next((part for part in reversed(parts) if split_of(part)), "")


def is_junk(path: str) -> bool:
    """Whether any part of `path` is hidden or one of the system's."""
    return any(JUNK.fullmatch(part) for part in path.split("/") if part not in ("", ".", ".."))


def list_files(uri: str, passed_over: PassedOver) -> list[Entry]:
    """Every file under `uri`, sorted by path; links are followed. None when there is nothing."""
    if storage.is_local(uri):
        return sorted(_walk(uri.removeprefix("file://"), passed_over), key=lambda entry: entry.path)
    entries = []
    for path, size in _walk_sizes(uri):
        if is_junk(path):
            passed_over.add(JUNK_REASON, path)
        else:
            entries.append(Entry(path, too_large(size) if size > LARGEST_FILE else ""))
    return entries


def _walk_sizes(uri: str) -> list[tuple[str, int]]:
    """Every object under `uri`, by path, with its bytes: a listing has them, a look at each would not be
    free."""
    fs, root = storage.filesystem(uri)
    prefix = root.rstrip("/") + "/"

    def call() -> dict[str, Any]:
        try:
            return dict(fs.find(root, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}

    entries = storage.retrying(uri, "list", call)
    return sorted(
        (path.removeprefix(prefix), int(info["size"] or 0))
        for path, info in entries.items()
        if not storage.is_marker(path) and path.strip("/") != root.strip("/")
    )


def too_large(size: int) -> str:
    return f"too large: {size} bytes, expected at most {LARGEST_FILE}"


def find_files(uri: str, suffix: str, passed_over: PassedOver) -> dict[str, str]:
    """The files of tables or archives that `uri` (a file, a folder or a glob) names: URI and `split_name` of
    the path under `uri`. Raises `InputError` when there are none, or one cannot be read."""
    uri = storage.absolute(uri)
    if "*" in uri:
        root, entries = _glob(uri)
    else:
        root, entries = uri, list_files(uri, passed_over)
        if not entries and uri.lower().endswith(suffix) and storage.exists(uri):
            root, _, name = uri.rpartition("/")
            entries = [Entry(name)]
    files: dict[str, str] = {}
    for entry in entries:
        if not entry.path.lower().endswith(suffix):
            passed_over.add(f"files that are no {suffix}", entry.path)
        elif entry.problem and not entry.problem.startswith("too large"):
            raise InputError(
                f"source: {entry.path} under {root} cannot be read ({entry.problem}); expected files: mend or"
                " remove it"
            )
        else:
            storage.require_file(file := storage.join(root, entry.path))
            files[file] = split_name(entry.path)
    if not files:
        raise InputError(
            f"source.uri: {uri!r} holds no {suffix} file; expected a file, a folder or a glob with some"
            + seen(entries)
        )
    return files


def seen(entries: Sequence[Entry]) -> str:
    """Some of what was listed instead, for messages."""
    names = ", ".join(entry.path for entry in entries[:3])
    return f"; got {len(entries)} other files such as {names}" if entries else ""


def _glob(uri: str) -> tuple[str, list[Entry]]:
    """The folder before the first `*`, and what matches under it."""
    fs, pattern = storage.filesystem(uri)
    matches = storage.retrying(uri, "list", lambda: fs.glob(pattern, detail=True))
    files = sorted(
        str(fs.unstrip_protocol(path)) for path, info in matches.items() if info["type"] != "directory"
    )
    root = uri.partition("*")[0].rpartition("/")[0]
    paths = [file.removeprefix("file://").removeprefix(root + "/") for file in files]
    return root, [Entry(path) for path in paths if not is_junk(path)]


def _walk(root: str, passed_over: PassedOver) -> Iterator[Entry]:
    """Folders are descended into by their inode, so that one that links to a folder above it is noticed."""
    pending: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(root, "", ())]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            status = Path(folder).stat()
            if not stat.S_ISDIR(status.st_mode):
                continue
            inode = (status.st_dev, status.st_ino)
            if inode in above:
                raise InputError(
                    f"source.uri: {shown(folder)} is a link to a folder that it lies in; expected folders"
                    " without loops: remove the link"
                )
            with os.scandir(folder) as children:
                entries = list(children)
        except (FileNotFoundError, NotADirectoryError):
            if prefix:
                raise
            return
        except OSError as error:
            raise InputError(
                f"source.uri: the folder {shown(folder)} cannot be listed ({error.strerror}); expected"
                " folders that this user may read"
            ) from error
        for child in entries:
            path = prefix + child.name
            if JUNK.fullmatch(child.name):
                passed_over.add(JUNK_REASON, shown(path))
            elif _is_folder(child):
                if shown(path) != path:
                    raise InputError(
                        f"source.uri: the name of the folder {shown(path)} is not UTF-8; expected"
                        " text: rename it"
                    )
                pending.append((child.path, path + "/", (*above, inode)))
            else:
                yield Entry(shown(path), _problem(child))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _problem(entry: "os.DirEntry[str]") -> str:
    if not entry.name.isascii() and shown(entry.name) != entry.name:
        return "its name is not UTF-8"
    if entry.is_file(follow_symlinks=False):
        return ""
    try:
        mode = Path(entry.path).stat().st_mode
    except OSError as error:
        return f"a link that leads nowhere ({error.strerror})"
    return "" if stat.S_ISREG(mode) else "no file but a pipe, socket or device"


def shown(name: str) -> str:
    """A name from a local disk as text: bytes that are not UTF-8 as `\\xNN`."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
