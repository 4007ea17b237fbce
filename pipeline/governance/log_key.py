"""The operator's key on the alias log: it signs the entries that move champion, and what it did not sign is
not carried out."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import RegistryConfig
from pipeline.config.commands import registry_command
from pipeline.errors import InputError
from pipeline.governance import signing, verify_standalone
from pipeline.tracking.alias_log import CHAMPION, Entry, LogError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, kw_only=True)
class LogKey:
    """The key of certificates (`signing`); without `signer` it only reads.

    An entry's digest covers all entries before it, so a signature vouches for those too: only what moves
    champion after the last signed entry is not vouched for.
    """

    raw: bytes  # the Ed25519 public key
    signer: "Ed25519PrivateKey | None" = None
    sign_command: str = "jobs/registry.py sign"  # what a message calls the remedy

    @property
    def keyid(self) -> str:
        return verify_standalone.keyid(self.raw)

    def sign(self, model_name: str, digest: str) -> dict[str, str]:
        if self.signer is None:
            raise InputError(
                "key: got a public key alone, expected the private key that signs: --set key=<pem>"
            )
        signature = self.signer.sign(_message(model_name, digest))
        return {"keyid": self.keyid, "sig": base64.b64encode(signature).decode()}

    def signed(self, model_name: str, entry: Entry) -> bool:
        """Whether `entry` bears this key's signature, for this model."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            signature = base64.b64decode(str((entry.signature or {}).get("sig")), validate=True)
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, _message(model_name, entry.digest))
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True

    def require(self, model_name: str, entries: Sequence[Entry]) -> None:
        if loose := not_vouched_for(self, model_name, entries):
            raise LogError(
                f"alias log of {model_name}: entry {loose[0].number} moves {CHAMPION} to version"
                f" {loose[0].version} and is not signed by the key that was given; if it is right (a log of"
                f" before there was a key, another key), `{self.sign_command}` vouches for the log as it is"
            )


def of(config: RegistryConfig) -> LogKey | None:
    """The key that `config` gives, private or public; None where it gives none."""
    sign = registry_command("sign", config.tracking, config.storage, f"key={config.key or '<pem>'}")
    if config.key is not None:
        signer = signing.private_key(config.key)
        return LogKey(raw=signer.public_key().public_bytes_raw(), signer=signer, sign_command=sign)
    if config.public_key is not None:
        return LogKey(raw=verify_standalone.raw_key(signing.public_pem(config.public_key)), sign_command=sign)
    return None


def not_vouched_for(key: LogKey, model_name: str, entries: Sequence[Entry]) -> list[Entry]:
    """The entries that move champion after the last one that `key` signed."""
    last = max((place for place, entry in enumerate(entries, 1) if key.signed(model_name, entry)), default=0)
    return [entry for entry in entries[last:] if entry.alias == CHAMPION]


def unsigned_after_signed(entries: list[Entry], number: int) -> str | None:
    """What to say where the latest certificate of version `number` is unsigned and one before it was signed:
    whoever took the key away must not go unseen."""
    issued = [entry for entry in entries if entry.details.get("certificate")]
    last = max((place for place, entry in enumerate(issued) if entry.version == number), default=0)
    signed = [entry for entry in issued[:last] if signing.is_signed(entry.details["certificate"])]
    if not signed or signing.is_signed(issued[last].details["certificate"]):
        return None
    return (
        f"the certificate of version {number} is unsigned, that of version {signed[-1].version} (entry"
        f" {signed[-1].number}) was signed; promote it once more with --set key=<file>"
    )


def _message(model_name: str, digest: str) -> bytes:
    return f"unlearn-dit alias log\n{model_name}\n{digest}".encode()
