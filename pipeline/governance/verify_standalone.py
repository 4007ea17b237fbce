"""Checks an unlearning certificate without this project: one file, Python 3.11 and `cryptography` are all it
needs.

    python verify_standalone.py certificate.json --public-key key.pub [--weights model.safetensors]

A certificate is a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto Statement v1
(https://github.com/in-toto/attestation), signed with Ed25519. Exit code 0: it holds; 1: it does not, one line
says why; 2: a file cannot be read.
"""

import argparse
import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:unlearn-dit:unlearning-certificate:v2"


class CertificateProblem(ValueError):
    """A certificate that does not hold: one line says why."""


def opened(text: bytes, public_key: bytes | None) -> tuple[dict[str, Any], str]:
    """What a certificate says, and whose signature it bears, in words.

    `text` are the bytes of certificate.json, `public_key` those of a PEM file: the signature must then be
    there and be that key's. Raises `CertificateProblem` where one byte of either was changed.
    """
    envelope = _json(text)
    if envelope.get("kind") == "unlearning certificate":
        return envelope, _checked_first_schema(envelope, public_key)
    if envelope.keys() != {"payloadType", "payload", "signatures"} or envelope["payloadType"] != PAYLOAD_TYPE:
        raise CertificateProblem(
            f"not a DSSE envelope of {PAYLOAD_TYPE}: it was edited, or is something else"
        )
    if text != written(envelope):
        raise CertificateProblem("not as it was written, though it reads alike: it was edited")
    payload = _decoded(envelope["payload"], "payload")
    statement = _json(payload)
    predicate = statement.get("predicate")
    if (
        not isinstance(predicate, dict)
        or statement.get("_type") != STATEMENT
        or payload != compact(statement)
    ):
        raise CertificateProblem("its payload is no in-toto statement as it was written: it was edited")
    if predicate.get("digest") != digest_of(statement):
        raise CertificateProblem("its text does not match its digest: it was edited")
    named = predicate["issuer"]["public_key"]
    signatures = envelope["signatures"]
    if not signatures and named is None:
        if public_key is not None:
            raise CertificateProblem("not signed, expected a signature by the key that was given")
        return predicate, "not signed"
    if not isinstance(signatures, list) or len(signatures) != 1 or named is None:
        raise CertificateProblem("it names another number of signatures than it bears: it was edited")
    raw = _decoded(named, "issuer.public_key")
    (signature,) = signatures
    if signature.keys() != {"keyid", "sig"} or signature["keyid"] != keyid(raw):
        raise CertificateProblem("its signature is not by the key that it names: it was edited")
    _verify(raw, _decoded(signature["sig"], "signature"), authenticated(payload))
    return predicate, _signer(raw, public_key)


def statement_of(envelope: Any) -> dict[str, Any]:
    """The in-toto statement in an envelope, unchecked."""
    return _json(_decoded(envelope["payload"], "payload"))


def digest_of(statement: Any) -> str:
    """Of all that a statement says but this digest, which stands in it: for those that are not signed."""
    predicate = {key: value for key, value in statement["predicate"].items() if key != "digest"}
    return hashlib.sha256(compact({**statement, "predicate": predicate})).hexdigest()


def authenticated(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def compact(value: Any) -> bytes:
    """The one way in which a statement is written."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def written(envelope: Any) -> bytes:
    """The one way in which an envelope is written to its file."""
    return (json.dumps(envelope, indent=2, allow_nan=False) + "\n").encode()


def keyid(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _signer(raw: bytes, public_key: bytes | None) -> str:
    name = f"key {keyid(raw)[:16]}"
    if public_key is None:
        return f"signed by {name} (give a public key to hold it against one that you trust)"
    if raw_key(public_key) != raw:
        raise CertificateProblem(f"signed by {name}, which is not the key that was given")
    return f"signed by {name}, the one that was given"


def _checked_first_schema(certificate: dict[str, Any], public_key: bytes | None) -> str:
    """The form before DSSE: a digest over the text, and a signature over the digest."""
    body = {key: value for key, value in certificate.items() if key not in ("digest", "signature")}
    digest, signature = certificate.get("digest"), certificate.get("signature")
    if digest != hashlib.sha256(compact(body)).hexdigest():
        raise CertificateProblem("its text does not match its digest: it was edited")
    if signature is None:
        if public_key is not None:
            raise CertificateProblem("not signed, expected a signature by the key that was given")
        return "not signed"
    if not isinstance(signature, dict) or not {"public_key", "value"} <= signature.keys():
        raise CertificateProblem("its Ed25519 signature does not hold: certificate or signature was edited")
    raw = _decoded(signature["public_key"], "signature.public_key")
    _verify(raw, _decoded(signature["value"], "signature.value"), str(digest).encode())
    return _signer(raw, public_key)


def _verify(raw: bytes, signature: bytes, message: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise CertificateProblem(
            "its Ed25519 signature does not hold: certificate or signature was edited"
        ) from error


def raw_key(pem: bytes) -> bytes:
    """Raises `ValueError` for what is no Ed25519 public key in PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(pem)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"got a {type(key).__name__}, expected Ed25519")
    return key.public_bytes_raw()


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CertificateProblem(f"not JSON any more ({error}): it was edited or damaged") from error
    if not isinstance(value, dict):
        raise CertificateProblem("not a JSON object: it was edited, or is something else")
    return value


def _decoded(text: Any, name: str) -> bytes:
    """Base64 in its one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise CertificateProblem(f"its {name} is not base64: it was edited") from error
    if base64.b64encode(data).decode() != text:
        raise CertificateProblem(f"its {name} is not base64 as it was written: it was edited")
    return data


def _file_digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks an unlearning certificate.")
    parser.add_argument("certificate", help="certificate.json")
    parser.add_argument("--public-key", metavar="PEM", help="the Ed25519 key that must have signed it")
    parser.add_argument("--weights", metavar="FILE", help="model.safetensors that it must be about")
    arguments = parser.parse_args()
    try:
        text = Path(arguments.certificate).read_bytes()
        key = Path(arguments.public_key).read_bytes() if arguments.public_key else None
        weights = _file_digest(arguments.weights) if arguments.weights else None
        if key is not None:
            raw_key(key)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        said, signer = opened(text, key)
        if weights is not None:
            expected = said["digests"].get("weights_file")
            if weights != expected:
                raise CertificateProblem(f"about other weights than {arguments.weights}")
    except (CertificateProblem, KeyError, TypeError, AttributeError) as error:
        print(f"certificate: {error}", file=sys.stderr)
        return 1
    model = said["model"]
    print(f"certificate of {model['name']} version {model['version']}, issued {said['issued']}: {signer}")
    if weights is not None:
        print(f"{arguments.weights}: the weights that it is about")
    print(said.get("summary", ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
