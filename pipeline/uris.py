"""URIs as people write them: what is a local path, what is refused, what an object store
needs to be reached."""

import os
import re
import urllib.parse
from pathlib import Path

import fsspec

from pipeline.errors import InputError

SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>/.*)", re.DOTALL)
UNFIT = re.compile(r"[\x00-\x1f\x7f]")  # in no path that a line can name
NO_FOLDER = re.compile(r"(s3[an]?|gs|gcs|abfss?|az|r2|file|https?|hdfs|memory):|[a-z]:[\\/]", re.IGNORECASE)
BUCKETS = ("s3", "gs", "gcs", "abfs", "abfss", "az", "r2")  # schemes of stores that have buckets


def absolute(uri: str) -> str:
    """`uri` as it is used everywhere: a local path made absolute (workers run in other directories), a URI
    with its scheme in lower case, both without a trailing slash.

    Raises `InputError` for what looks like a URI and names nothing, or that no installed library can open.
    """
    match = SCHEME.match(uri)
    if (match is None and ("://" in uri or NO_FOLDER.match(uri))) or UNFIT.search(uri) or not uri.strip():
        raise InputError(f"got {uri!r}, expected a folder or <scheme>://<bucket>/<path>")
    if match is None:
        try:
            return str(Path(uri).expanduser().resolve())
        except (RuntimeError, OSError) as error:  # a user who is not known, a loop of links, a name too long
            raise InputError(f"got {uri!r}, which leads nowhere ({error}); expected a folder") from error
    scheme, rest = match["scheme"].lower(), match["rest"]
    scheme = {"s3a": "s3", "s3n": "s3", "local": "file"}.get(scheme, scheme)  # as Hadoop and fsspec call them
    if scheme == "file":
        host, slash, path = (
            rest.removeprefix("//").partition("/") if rest.startswith("//") else ("", "/", rest)
        )
        if host not in ("", "localhost") or not slash or not path:
            raise InputError(f"got {uri!r}, expected file:///<absolute path>")
        return str(Path("/", urllib.parse.unquote(path)).resolve())
    if not rest.startswith("//") or not rest.strip("/") or (scheme in BUCKETS and rest.startswith("///")):
        raise InputError(f"got {uri!r}, expected {scheme}://<bucket>/<path>; is a variable in it empty?")
    if "::" in uri or (scheme in BUCKETS and not {"?", "#"}.isdisjoint(rest)):
        raise InputError(f"got {uri!r}, expected a plain {scheme}://<bucket>/<path>, without ?, # and ::")
    _require_known(uri, scheme)
    return f"{scheme}:{rest}".rstrip("/")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def _require_known(uri: str, scheme: str) -> None:
    """Raise `InputError` unless a library for `scheme` is installed and its settings in the environment can
    be read."""
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise InputError(f"got {uri!r}, but {error}; expected that package beside this one") from error
    except ValueError as error:
        known = "a folder, s3://, gs:// or another scheme of fsspec"
        raise InputError(f"got {uri!r}, whose scheme {scheme!r} is not known; expected {known}") from error
    if scheme == "s3":
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            if (endpoint := os.environ.get(name)) and not _is_endpoint(endpoint):
                raise InputError(
                    f"got {uri!r} with {name}={endpoint!r}, expected http://<host>:<port> or https://<host>"
                )


def _is_endpoint(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # brackets that do not close, a port that is none
        return False
