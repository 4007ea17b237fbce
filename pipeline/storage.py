"""Files by URI (fsspec): local paths, s3://, memory://. Writes are atomic; readers trust only what a manifest
names.

Every call on an object store is tried again, with growing pauses, while the store is busy or away
(`PATIENCE_S`). S3 takes endpoint, region and credentials from AWS_ENDPOINT_URL, AWS_DEFAULT_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or from the usual AWS profile.
"""

import contextlib
import glob
import hashlib
import io
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
import yaml
from fsspec.core import url_to_fs
from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError
from pipeline.local_files import NotAFileError as NotAFileError
from pipeline.local_files import place, read_local
from pipeline.local_files import require_file as require_file
from pipeline.local_files import without_new_empty_folders as without_new_empty_folders
from pipeline.retries import StorageError as StorageError
from pipeline.retries import retrying as retrying
from pipeline.uris import absolute as absolute
from pipeline.uris import is_local as is_local
from pipeline.uris import join as join

CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")

RESTORE = "restore it, or remove it and run the command that made it again"

# schemes that fsspec opens and that are no storage root
NO_ROOT = {
    "memory": "ends with the process",
    **dict.fromkeys(("http", "https", "data", "github", "zip", "tar", "libarchive"), "can only be read"),
}

ModelT = TypeVar("ModelT", bound=BaseModel)
ResultT = TypeVar("ResultT")


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `uri` and the path inside it. Listings are not cached: other processes write there
    too."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if uri.startswith("s3://"):
        # Servers other than AWS's answer a range with the whole object's checksum; lengths, and digests in
        # manifests, are checked here.
        checksums = {name: os.environ.get(f"AWS_{name.upper()}", "when_required") for name in CHECKSUMS}
        options["config_kwargs"] = checksums
    fs, path = url_to_fs(uri, **options)
    return fs, path


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)

    def call() -> bool:
        try:  # not fs.exists: it takes every failure of the store for absence
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    return retrying(uri, "look for", call)


def read_bytes(uri: str) -> bytes:
    if is_local(uri):  # by far the most common call: a source's every image
        return read_local(uri.removeprefix("file://"))
    fs, path = filesystem(uri)
    return retrying(uri, "read", lambda: bytes(fs.cat_file(path)))


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end). Raises `StorageError` when the file ends before."""
    fs, path = filesystem(uri)
    data = retrying(uri, "read", lambda: bytes(fs.cat_file(path, start=start, end=end)))
    if len(data) != end - start:
        raise StorageError(
            f"{uri} ends early: got {len(data)} bytes from {start}, expected {end - start}; fetch it again"
        )
    return data


def size(uri: str) -> int:
    fs, path = filesystem(uri)
    return retrying(uri, "look for", lambda: int(fs.size(path)))


def write_bytes(uri: str, data: bytes) -> None:
    """Write all of `data` or nothing. An object store's single put is atomic by itself; a local file is
    renamed into place."""
    fs, path = filesystem(uri)
    if is_local(uri):
        place(Path(path), lambda temporary: temporary.write_bytes(data))
    else:
        retrying(uri, "write", lambda: fs.pipe_file(path, data))


def write_through(uri: str, fill: Callable[[BinaryIO], ResultT]) -> ResultT:
    """Write all that `fill` puts into the file that it is given, or nothing; what it returned. A local file
    is never in memory as a whole."""

    def written(temporary: Path) -> ResultT:
        with temporary.open("wb") as file:
            return fill(file)

    _, path = filesystem(uri)
    if is_local(uri):
        return place(Path(path), written)
    memory = io.BytesIO()
    result = fill(memory)
    write_bytes(uri, memory.getvalue())
    return result


def create(uri: str, data: bytes, *, private: bool = False) -> bool:
    """Create `uri` with all of `data`; False when it exists. Atomic against others and against being killed.

    `private` lets no other user of the machine read a local file. An object store has to honour conditional
    puts (AWS and most others do); where it does not, what lies there afterwards says who came last.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.touch(mode=0o600 if private else 0o666)
            temporary.write_bytes(data)
            os.link(temporary, target)  # unlike a rename, a link never replaces what is there
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True
    if exists(uri):
        return False
    # it may be ours all the same, when the answer to the first try was lost
    with contextlib.suppress(FileExistsError):
        retrying(uri, "write", lambda: fs.pipe_file(path, data, mode="create"))
    return read_bytes(uri) == data


def upload(source: Path, uri: str) -> None:
    """Copy a local file to `uri`, all of it or nothing."""
    fs, path = filesystem(uri)
    if is_local(uri):
        place(Path(path), lambda temporary: shutil.copyfile(source, temporary))
    else:
        retrying(uri, "write", lambda: fs.put_file(str(source), path))


def download(uri: str, target: Path) -> None:
    """Copy the file at `uri` to a local path, all of it or nothing."""
    fs, path = filesystem(uri)
    place(target, lambda temporary: retrying(uri, "read", lambda: fs.get_file(path, str(temporary))))


def remove(uri: str) -> None:
    """Remove a file, or a folder with all it holds. What is not there is no error; what the store will not
    give up is a `StorageError`."""
    fs, path = filesystem(uri)
    if exists(uri):
        if not is_local(uri) and glob.has_magic(path):  # which fsspec would take for a pattern
            keys = [glob.escape(key) for key in fs.find(path)]
            retrying(uri, "remove", lambda: fs.rm(keys))
        else:
            retrying(uri, "remove", lambda: fs.rm(path, recursive=True))
        leftovers = [] if is_local(uri) else walk(uri) or ([path] if fs.isfile(path) else [])
        if leftovers:  # s3fs passes over what a store refuses to delete
            raise StorageError(
                f"could not remove {uri}: the store keeps {len(leftovers)} objects, the first is"
                f" {leftovers[0]}; check that its policy allows to delete"
            )


def read_json(uri: str, kind: type[Any] = dict) -> Any:
    """The JSON value at `uri`, a `kind`. Raises `InputError` for a file that is empty, cut, damaged or holds
    another kind of value."""
    data = read_bytes(uri)
    try:
        value = json_value(data)
    except (ValueError, RecursionError) as error:
        state = "is empty" if not data.strip(b"\0 \r\n\t") else f"is no JSON ({error})"
        raise InputError(f"{uri}: {state}: it was cut off or damaged; {RESTORE}") from error
    if not isinstance(value, kind):
        raise InputError(f"{uri}: holds a {type(value).__name__}, expected a {kind.__name__}; {RESTORE}")
    return value


def json_value(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text. Raises `ValueError`, also for an object with a key twice, of which readers
    take one or the other, and where it is to be `finite` for NaN and infinities, which JSON does not have."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"the key {twice!r} is there twice")
        return values

    def constant(name: str) -> float:
        if finite:
            raise ValueError(f"{name} is no number")
        return float(name)

    return json.loads(text, object_pairs_hook=unique, parse_constant=constant)


def read_yaml(uri: str) -> dict[str, Any]:
    """The mapping in the YAML file at `uri`. Raises `InputError` for a file that is empty, cut, damaged or
    holds anything else."""
    try:
        value = yaml.safe_load(read_bytes(uri))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{uri}: is no YAML ({yaml_problem(error)}); {RESTORE}") from error
    if not isinstance(value, dict):
        raise InputError(f"{uri}: holds a {type(value).__name__}, expected keys and values; {RESTORE}")
    return value


def yaml_problem(error: Exception) -> str:
    """What is wrong with a YAML text, and where; never the text itself, which may be any file's."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"{error.problem or 'not YAML'} in line {mark.line + 1}, column {mark.column + 1}"  # type: ignore[attr-defined]


def read_model(uri: str, model: type[ModelT]) -> ModelT:
    """The JSON at `uri` as a pydantic model. Raises `InputError` for one that does not fit it."""
    try:
        return model.model_validate(read_json(uri))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise InputError(f"{uri}: {where}: {first['msg']}; {RESTORE}") from error


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A JSON file of ours: `value` as it is written."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_text(uri: str, text: str) -> None:
    write_bytes(uri, text.encode())


def listing(uri: str) -> list[str]:
    """The names directly under `uri`, sorted; empty when there is nothing."""
    return [entry.rsplit("/", 1)[-1] for entry in _list(uri, deep=False)]


def walk(uri: str) -> list[str]:
    """Every file under `uri`, as paths relative to it, sorted; empty when there is nothing."""
    _, root = filesystem(uri)
    prefix = root.rstrip("/") + "/"
    return [entry.removeprefix(prefix) for entry in _list(uri, deep=True)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form: what content addresses are made of."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def arrow_filesystem(uri: str) -> Any:
    """The filesystem of `uri` for libraries that want pyarrow's interface."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, _ = filesystem(uri)
    return PyFileSystem(FSSpecHandler(fs))


def require_root(uri: str) -> None:
    """Raise `InputError` for what cannot be a storage root: it has to be written, and to be there after the
    process."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme in NO_ROOT:
        raise InputError(
            f"got {uri!r}, which {NO_ROOT[scheme]}; expected a folder, s3://, gs:// or another store that"
            " keeps what is written"
        )
    if is_local(uri) and Path(uri).exists() and not Path(uri).is_dir():
        raise InputError(f"got {uri!r}, which is no folder; expected one, or one that can be made")


def require_writable(uri: str) -> None:
    """Raise `InputError` unless an object can be written and removed under `uri`; leaves nothing behind."""
    probe = join(uri, f".writable-{uuid.uuid4().hex[:8]}")
    try:
        with without_new_empty_folders(uri):
            write_bytes(probe, b"")
            fs, path = filesystem(probe)
            fs.rm_file(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"storage {uri!r} cannot be written ({type(error).__name__}: {error}); "
            "expected a writable folder or bucket: pass --set storage=<uri>"
        ) from error


def _list(uri: str, *, deep: bool) -> list[str]:
    fs, path = filesystem(uri)

    def call() -> list[str]:
        try:
            entries = fs.find(path) if deep else fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        own = path.strip("/")  # some stores list a folder's own marker inside it
        names = (str(entry) for entry in entries if not (deep and is_marker(str(entry))))
        return sorted(name.rstrip("/") for name in names if name.strip("/") != own)

    return retrying(uri, "list", call)


def is_marker(path: str) -> bool:
    """Whether an object is what consoles and syncs make of a folder, and no file."""
    return path.endswith(("/", "_$folder$"))
