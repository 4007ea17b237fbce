"""Files and folders on a disk of this machine: put in place whole, and read only where they are files."""

import contextlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pipeline.errors import InputError
from pipeline.uris import is_local

ResultT = TypeVar("ResultT")


class NotAFileError(InputError, OSError):
    """What lies at a path cannot be read to an end: a folder, a pipe, a socket, a device."""


def place(target: Path, fill: Callable[[Path], ResultT]) -> ResultT:
    """Fill a temporary file beside `target` and rename it into place; what `fill` returned."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        result = fill(temporary)
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
        return result
    finally:
        temporary.unlink(missing_ok=True)


def read_local(path: str) -> bytes:
    """A pipe is opened without waiting for who writes into it, and neither it nor a device is read."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NotAFileError(f"{path}: is a pipe or a device, expected a file")
            return file.read()
    except IsADirectoryError as error:
        raise NotAFileError(f"{path}: is a folder, expected a file") from error


def require_file(uri: str) -> None:
    """Raise `NotAFileError` for a local pipe, device or folder, which libraries would read without an end."""
    if is_local(uri):
        path = uri.removeprefix("file://")
        try:
            mode = Path(path).stat().st_mode
        except OSError as error:
            raise NotAFileError(f"{path}: {error.strerror}, expected a file") from error
        if not stat.S_ISREG(mode):
            kind = "folder" if stat.S_ISDIR(mode) else "pipe or a device"
            raise NotAFileError(f"{path}: is a {kind}, expected a file")


def sync(path: Path) -> None:
    """Have the disk hold what was written: a rename may reach it before the bytes do, and a power cut between
    leaves an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def without_new_empty_folders(uri: str) -> Iterator[None]:
    """Remove at the end the local folders of `uri` that were not there before and hold nothing."""
    folders = []
    parent = Path(uri.removeprefix("file://"))
    while is_local(uri) and not parent.exists():
        folders.append(parent)
        parent = parent.parent
    try:
        yield
    finally:
        for parent in folders:
            with contextlib.suppress(OSError):  # it holds something, or never came to be
                parent.rmdir()
