"""Files that were published elsewhere: what a configuration's `weights` key names, as a local path for as
long as it is needed."""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline import storage
from pipeline.errors import InputError

FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
HUB = "hf://"


def locate(text: str) -> str:
    """A URI for what a configuration calls `weights`: a path made absolute, a URI as it is, `owner/name` as a
    Hugging Face repository."""
    if (
        "://" in text
        or Path(text).expanduser().exists()
        or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text)
        or text.endswith(FILES)
    ):
        return storage.absolute(text)
    return HUB + text


@contextlib.contextmanager
def fetched(uri: str, key: str) -> Iterator[Path]:
    """A local path of the file or folder at `uri`, fetched for the time of the context
    where it is elsewhere."""
    if uri.startswith(HUB):
        yield _from_hub(uri.removeprefix(HUB), key)
        return
    if storage.is_local(uri):
        path = Path(uri)
        if not path.exists():
            raise InputError(
                f"{key}: nothing at {uri}; expected weights there: a published .pt, a DiTPipeline or"
                " classifier folder, ..."
            )
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / uri.rsplit("/", 1)[-1]
        names = [] if uri.endswith(FILES) else storage.walk(uri)
        for name in names:
            if name.endswith((".json", *FILES)):
                storage.download(storage.join(uri, name), target / name)
        if not names:
            if not storage.exists(uri):
                raise InputError(f"{key}: nothing at {uri}; expected weights there")
            storage.download(uri, target)
        yield target


def require_sha256(path: Path, expected: str | None, key: str) -> None:
    """Raise `InputError` unless the file has the SHA-256 `expected` (None: any)."""
    if expected is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != expected.lower():
        raise InputError(
            f"{key.rsplit('.', 1)[0]}.sha256: {path.name} has {digest.hexdigest()}, expected {expected};"
            " it is another file or a damaged one"
        )


def _from_hub(name: str, key: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"{key}: {name} is on Hugging Face, which needs: pip install -e '.[diffusers]' in the checkout"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.pt"]))
    except Exception as error:  # offline, unknown, gated: huggingface_hub raises a dozen kinds
        raise InputError(
            f"{key}: the Hugging Face repository {name!r} cannot be fetched ({type(error).__name__}); "
            "expected a network and a known name, or a local folder"
        ) from error
