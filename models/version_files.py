"""The files of a registered version and one digest over them all.

It lies here because it is saved inside every version: the version's own script checks its folder with it.
"""

import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

LIST = "files.json"  # in a version's folder, written last: SHA-256 by path of every other file
BYTECODE = "__pycache__"  # made by Python where it loads; `bytecode` finds it
BY_MLFLOW = "registered_model_meta"  # left in a local folder by whoever loads it by name; nothing reads it


class ChangedError(ValueError):
    """A version's folder is not as it was registered: one line says which file."""


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by path of every file of the version in `folder`, but `LIST`, what MLflow leaves and bytecode.

    A folder that is a link is a file whose content is where it leads: nothing below it goes unseen. Raises
    `ChangedError` for what is no file: a pipe, a device, a link that leads nowhere.
    """
    files = {}
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = [name for name in folders if name not in links and name != BYTECODE]
        for name in [*names, *links]:
            path = Path(parent, name)
            place = path.relative_to(folder).as_posix()
            if place in (LIST, BY_MLFLOW):
                continue
            if name in links:
                files[place] = hashlib.sha256(f"link to {path.readlink()}".encode()).hexdigest()
            else:
                files[place] = file_digest(path)
    return files


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of a version: of the names and digests of its files."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_list(folder: Path) -> str:
    """Write `LIST` into `folder`, which is complete; the version's digest."""
    files = digests(folder)
    (folder / LIST).write_text(_text(files))
    return digest_of(files)


def _text(files: Mapping[str, str]) -> str:
    return json.dumps(files, indent=1, sort_keys=True) + "\n"


def require_as_listed(folder: Path) -> None:
    """Raise `ChangedError` unless the files in `folder` are those of its list.

    It finds what was damaged or changed by itself. Whoever changes file and list together, or the script that
    calls this, is found only by who knows the digest from elsewhere.
    """
    try:
        text = (folder / LIST).read_text()
        listed = dict(json.loads(text))
        if text != _text(listed):
            raise ValueError("it is not as it was written")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ChangedError(f"{folder}: {LIST} cannot be read ({error}); the version is not whole") from error
    if (change := first_difference(listed, digests(folder))) is not None:
        raise ChangedError(f"{folder}: {change} since it was registered")


def first_difference(listed: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """In words, the first file that is not as it is listed; None where all are."""
    for name in sorted({*listed, *there}):
        if listed.get(name) != there.get(name):
            verb = "was added" if name not in listed else "is gone" if name not in there else "was changed"
            return f"{name} {verb}"
    return None


def bytecode(folder: Path) -> list[str]:
    """Compiled files below `folder`: Python would run them in place of the scripts, and they are in no
    digest."""
    caches = [path for path in folder.rglob(BYTECODE) if path.is_dir() and not path.is_symlink()]
    return sorted(path.relative_to(folder).as_posix() for cache in caches for path in cache.iterdir())


def in_same_root(uri: str, base: str) -> str | None:
    """Where `base`, of a delta that lies at `uri`, is when both lie under one storage root, wherever that was
    when the delta was made; None for others."""
    root = re.match(r"(.+)/(?:mlartifacts|runs)/", uri)
    place = re.match(r".*(/models/[^/]+|/mlartifacts/.+)$", base)
    return f"{root[1]}{place[1]}" if root and place else None


def file_digest(path: Path) -> str:
    """SHA-256 of a local file, computed once a process while the file stays as it is."""
    try:
        state = path.stat()
    except OSError as error:
        raise ChangedError(f"{path}: a link that leads nowhere, or unreadable ({error.strerror})") from error
    if not stat.S_ISREG(state.st_mode):
        raise ChangedError(f"{path}: a pipe, socket or device, expected a file; remove it")
    return _file_digest(str(path), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _file_digest(path: str, *state: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
