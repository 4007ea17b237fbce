"""What a promoted version is vouched for with: every figure, every digest, what was not measured, a digest
over it all, a signature."""

import base64
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import storage
from pipeline.errors import InputError
from pipeline.evaluation import stored_result

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

COPIED = (
    "request",
    "method",
    "method_config",
    "code_version",
    "seed",
    "world_size",
    "steps",
    "first_crossing_step",
    "settled_step",
)
DIGESTS = ("base_digest", "weights_digest", "lake_digest", "partition_digest")
PROOF = ("metrics", "attack_suite", "reference")  # what evaluate.* adds to the metrics that every run takes
# of the run's configuration: how it was trained and measured
SETTINGS = ("trainable", "optim", "evaluate", "measuring", "attacks", "gate")
# null here is a finding: the attack ran, relearning took more than the budget
SAID_BY_NULL = ("error", "steps")
NOT_CLAIMED = (
    "that the weights equal those of a model that never saw the data",
    "that no embedding, prompt or fine-tuning brings the class back, unless such a measure stands above",
    "anything about judges, samplers or settings other than those of the metrics above",
)


class CertificateError(InputError):
    """A certificate that does not hold: one line says what was changed."""


def issue(
    result: Mapping[str, Any],
    *,
    model_name: str,
    version: int,
    config: bytes | None,
    override: str | None,
    key: str | None,
) -> dict[str, Any]:
    """The certificate of `version` from its result.json, signed when `key` names an Ed25519 private key
    (PEM).

    `config` is the run's config.yaml: its digest is kept, and those of its sections that say how it was
    measured.
    """
    digest_of_result, result = storage.digest_of(result), stored_result.in_todays_words(result)
    settings = yaml.safe_load(config) if config else {}
    body: dict[str, Any] = {
        "kind": "unlearning certificate",
        "schema": 1,
        "model": {"name": model_name, "version": version, "run_id": result.get("run_id")},
        **{name: result.get(name) for name in COPIED},
        "digests": {
            **{name.removesuffix("_digest"): result.get(name) for name in DIGESTS},
            "result": digest_of_result,
            "config": storage.sha256(config) if config else None,
        },
        "settings": {name: settings.get(name) for name in SETTINGS},
        "measures": {"before": result.get("before"), "after": result.get("after")},
        "further_measures": {name: result.get(name) for name in PROOF},
        "gate": result.get("gate"),
        "gate_override": override,
        "not_measured": _not_measured(result),
        "not_claimed": list(NOT_CLAIMED),
        "issued": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    digest = storage.digest_of(body)
    return {**body, "digest": digest, "signature": None if key is None else _sign(digest, private_key(key))}


def check(certificate: Mapping[str, Any], *, public_key: str | None) -> str:
    """Raise `CertificateError` unless the certificate is as it was issued; says whose signature it bears.

    `public_key` names a PEM file: the signature must then be there and be that key's. Without it a signature
    only shows that whoever holds the key named inside signed this very text.
    """
    body = {key: value for key, value in certificate.items() if key not in ("digest", "signature")}
    if certificate.get("digest") != storage.digest_of(body):
        raise CertificateError("certificate: its text does not match its digest: it was edited")
    signature = certificate.get("signature")
    if signature is None:
        if public_key is not None:
            raise CertificateError(
                f"certificate: not signed, expected a signature by the key in {public_key}"
            )
        return "not signed"
    return _check_signature(str(certificate["digest"]), signature, public_key)


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


def _public_key(path: str) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"public_key: got {path!r}, which is no readable PEM key ({error}); `openssl pkey -pubout`"
            " writes one"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"public_key: got a {type(key).__name__} in {path}, expected Ed25519")
    return key


def _sign(digest: str, key: "Ed25519PrivateKey") -> dict[str, str]:
    return {
        "algorithm": "Ed25519",
        "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        "value": base64.b64encode(key.sign(digest.encode())).decode(),
    }


def _check_signature(digest: str, signature: Mapping[str, str], public_key: str | None) -> str:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = base64.b64decode(signature["public_key"], validate=True)
        Ed25519PublicKey.from_public_bytes(raw).verify(
            base64.b64decode(signature["value"], validate=True), digest.encode()
        )
    except (InvalidSignature, KeyError, ValueError, TypeError) as error:
        raise CertificateError(
            "certificate: its Ed25519 signature does not hold: certificate or signature was edited"
        ) from error
    name = f"key {storage.sha256(raw)[:16]}"
    if public_key is None:
        return f"signed by {name} (pass --set public_key=<pem> to hold it against a key you trust)"
    if _public_key(public_key).public_bytes_raw() != raw:
        raise CertificateError(f"certificate: signed by {name}, which is not the key in {public_key}")
    return f"signed by {name}, the one in {public_key}"


def _not_measured(result: Mapping[str, Any]) -> list[str]:
    """Every measure that there is and that the result does not hold, or holds as null."""
    from pipeline.evaluation.gate import NOT_REACHED
    from pipeline.evaluation.metrics.table import METRICS

    missing = [path for side in ("before", "after") for path in _nulls(result.get(side), side)]
    taken = result.get("metrics") or {}
    for name in METRICS:
        sides = {side: results[name] for side, results in taken.items() if results and name in results}
        if sides.get("after") is None:
            missing.append(f"metrics.{name}")
        else:
            missing += [path for side, one in sides.items() for path in _nulls(one, f"metrics.{side}.{name}")]
    missing += [path for name in ("attack_suite", "reference") for path in _nulls(result.get(name), name)]
    missing += [
        f"attack_suite.attacks.{line['name']}"
        for line in (result.get("attack_suite") or {}).get("attacks", [])
        if line["forget_fraction"] is None
    ]
    checks = (result.get("gate") or {}).get("checks") or []
    return sorted(
        missing
        + [
            f"gate.{check.get('name')}"
            for check in checks
            if check.get("value") is None and check.get("name") not in NOT_REACHED
        ]
    )


def _nulls(value: Any, path: str) -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in SAID_BY_NULL:
                yield from _nulls(inner, f"{path}.{key}")
