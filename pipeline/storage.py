"""Files by URI (fsspec): local paths, s3://, memory://. Writes are atomic; readers trust only what a manifest names."""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from pipeline.errors import InputError


def absolute(uri: str) -> str:
    """`uri` with a local path made absolute (workers run in other directories) and no trailing slash."""
    if "://" in uri:
        return uri.removeprefix("file://").rstrip("/") if uri.startswith("file://") else uri.rstrip("/")
    return str(Path(uri).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `uri` and the path inside it."""
    fs, path = url_to_fs(uri)
    return fs, path


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def write_bytes(uri: str, data: bytes) -> None:
    """Write all of `data` or nothing. An object store's single put is atomic by itself; a local file is renamed into place."""
    fs, path = filesystem(uri)
    if is_local(uri):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        fs.pipe_file(path, data)


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_text(uri: str, text: str) -> None:
    write_bytes(uri, text.encode())


def listing(uri: str) -> list[str]:
    """The names directly under `uri`, sorted; empty when there is nothing."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form: what content addresses are made of."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def require_writable(uri: str) -> None:
    """Raise `InputError` unless an object can be written and removed under `uri`; leaves nothing behind."""
    probe = join(uri, f".writable-{uuid.uuid4().hex[:8]}")
    made = []
    if is_local(uri):  # remember which parents do not exist yet, to leave none behind
        parent = Path(uri)
        while not parent.exists():
            made.append(parent)
            parent = parent.parent
    try:
        write_bytes(probe, b"")
        fs, path = filesystem(probe)
        fs.rm_file(path)
    except Exception as error:
        raise InputError(
            f"storage {uri!r} cannot be written ({type(error).__name__}: {error}); "
            "expected a writable folder or bucket: pass --set storage=<uri>"
        ) from error
    finally:
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def arrow_filesystem(uri: str) -> Any:
    """The filesystem of `uri` for libraries that want pyarrow's interface."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, _ = filesystem(uri)
    return PyFileSystem(FSSpecHandler(fs))
