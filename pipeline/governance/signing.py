"""The envelope of a certificate: an in-toto statement in DSSE, signed with Ed25519 where there is a key."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.governance import verify_standalone
from pipeline.governance.verify_standalone import PAYLOAD_TYPE, PREDICATE, STATEMENT, CertificateProblem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class CertificateError(InputError):
    """A certificate that does not hold: one line says what was changed."""


def sealed(predicate: Mapping[str, Any], *, subject: str, sha256: str, key: str | None) -> dict[str, Any]:
    """The envelope around `predicate`, about the file `subject` with that digest; signed when `key` names an
    Ed25519 private key (PEM)."""
    signer = None if key is None else private_key(key)
    raw = None if signer is None else signer.public_key().public_bytes_raw()
    body = {**predicate, "issuer": {"public_key": raw and base64.b64encode(raw).decode()}}
    statement: dict[str, Any] = {
        "_type": STATEMENT,
        "subject": [{"name": subject, "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": body,
    }
    statement["predicate"] = {**body, "digest": verify_standalone.digest_of(statement)}
    payload = verify_standalone.compact(statement)
    signatures = []
    if signer is not None and raw is not None:
        signature = signer.sign(verify_standalone.authenticated(payload))
        signatures = [{"keyid": verify_standalone.keyid(raw), "sig": base64.b64encode(signature).decode()}]
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": signatures,
    }


def opened(text: bytes, *, public_key: str | None = None) -> tuple[dict[str, Any], str]:
    """What a certificate.json says and whose signature it bears. Raises `CertificateError` unless it is as it
    was issued; those issued before there were envelopes are read as well.

    `public_key` names a PEM file: the signature must then be there and be that key's. Without it a signature
    only shows that whoever holds the key named inside signed this very text.
    """
    pem = None if public_key is None else public_pem(public_key)
    try:
        said, signer = verify_standalone.opened(text, pem)
    except CertificateProblem as error:
        where = f" ({public_key})" if public_key else ""
        raise CertificateError(f"certificate: {error}{where}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CertificateError(f"certificate: not in its form ({error!r}): it was edited") from error
    return said, signer


def said_in(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a certificate of the log says, of any date; unchecked but for its form."""
    if "payload" not in document:
        said = dict(document)
    else:
        try:
            said = dict(verify_standalone.statement_of(document)["predicate"])
        except (CertificateProblem, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CertificateError(f"certificate: not in its form ({error!r}): it was edited") from error
    if not isinstance(said.get("model"), Mapping) or not isinstance(said.get("digest"), str):
        raise CertificateError("certificate: not in its form, it has no model or no digest: it was edited")
    return said


def is_signed(document: Mapping[str, Any]) -> bool:
    return bool(document.get("signatures") or document.get("signature"))


def private_key(path: str) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(Path(path).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"key: got {path!r}, which is no readable PEM key ({error}); `openssl genpkey -algorithm ed25519`"
            " makes one"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            f"key: got a {type(key).__name__} in {path}, expected Ed25519; `openssl genpkey -algorithm"
            " ed25519` makes one"
        )
    return key


def public_pem(path: str) -> bytes:
    try:
        pem = Path(path).read_bytes()
        verify_standalone.raw_key(pem)
    except (OSError, ValueError) as error:
        raise InputError(
            f"public_key: got {path!r}, which is no readable PEM key ({error}); `openssl pkey -pubout`"
            " writes one"
        ) from error
    return pem
