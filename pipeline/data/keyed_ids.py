"""Sample ids under a key: what is kept of a purged id, so that it is known again and not read.

Ids are short and often numbered: a plain digest of one is found out by trying. HMAC-SHA256 cannot be tried
without the key, which lies in a file of the operator's, or in one beside the ledger of requests.
"""

import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from models.block_list import KEY_VARIABLE as KEY_VARIABLE
from pipeline import storage
from pipeline.errors import InputError

KEY_FILE = ("requests", "sample_ids.key")  # under the storage root
KEY_BYTES, SHORTEST_KEY = 32, 16


@dataclass(frozen=True)
class IdKey:
    """The key of a storage root. `name` says which key it is and gives nothing of it away."""

    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return self._hmac("the name of this key")[:16]

    def hashed(self, sample_id: str) -> str:
        """The keyed hash of an id, 64 hexadecimal digits."""
        return self._hmac(f"sample id:{sample_id}")

    def matches(self, sample_ids: Iterable[str], hashes: Iterable[str]) -> list[str]:
        """Those of `sample_ids` whose hash is among `hashes`, in their order."""
        known = frozenset(hashes)
        return [sample_id for sample_id in sample_ids if self.hashed(sample_id) in known]

    def require(self, name: str, where: str) -> None:
        """Raise `InputError` unless this is the key that `where` was written with: another one knows none of
        its ids again, and what was purged could come back unseen."""
        if name != self.name:
            raise InputError(
                f"{where}: its sample ids are hashed with key {name}, got key {self.name}; expected the key"
                " file that it was written with"
            )

    def _hmac(self, text: str) -> str:
        return hmac.digest(self.secret, text.encode(), "sha256").hex()


def read_key(storage_root: str, key_file: str | None = None, *, create: bool = True) -> IdKey:
    """The key in `key_file` (absent: the one that `UNLEARN_ID_KEY_FILE` names); without one, that of the
    storage root, made at random the first time where `create` allows it.

    Raises `InputError` for a file that is missing or too short. Losing the key of a storage root loses what
    its tombstones know: back it up, apart from them.
    """
    if key_file is not None:
        return _of_file(key_file)
    if (key := operators_key()) is not None:
        return key
    uri = storage.join(storage_root, *KEY_FILE)
    if not storage.exists(uri):
        if not create:
            raise InputError(
                f"key file: {uri} is missing, and this storage root has tombstones that were written with it;"
                f" restore it from its copy, or name the operator's file in {KEY_VARIABLE}"
            )
        # of two that make one at once the first stays: what is there is read either way
        storage.create(uri, f"{secrets.token_hex(KEY_BYTES)}\n".encode(), private=True)
    return _checked(storage.read_bytes(uri), uri)


def operators_key() -> IdKey | None:
    """The key in the file that `UNLEARN_ID_KEY_FILE` names; None where it names none."""
    key_file = os.environ.get(KEY_VARIABLE)
    return _of_file(key_file) if key_file else None


def _of_file(key_file: str) -> IdKey:
    path = Path(key_file).expanduser()
    if not path.is_file():
        raise InputError(
            f"key file: got {key_file!r}, which is missing; `openssl rand -hex {KEY_BYTES}` makes one"
        )
    return _checked(path.read_bytes(), key_file)


def _checked(text: bytes, where: str) -> IdKey:
    secret = text.strip()
    if len(secret) < SHORTEST_KEY:
        raise InputError(
            f"key file: {where} holds {len(secret)} bytes, expected at least {SHORTEST_KEY}; `openssl rand"
            f" -hex {KEY_BYTES}` makes one"
        )
    return IdKey(secret)
