"""The certificate: everything that a result says is in it, and nothing of it can be changed unseen."""

import base64
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tracking_samples import result_json

from pipeline import storage
from pipeline.errors import InputError
from pipeline.governance import certificate
from pipeline.governance.certificate import CertificateError

CONFIG = b"optim: {lr: 0.01}\nevaluate: {cfg_scale: 2.0}\nlake: digits\n"


def issued(key: str | None = None, **changes: Any) -> dict[str, Any]:
    result = result_json("run", "d" * 64) | changes
    return certificate.issue(result, model_name="m", version=3, config=CONFIG, override=None, key=key)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """Paths of a private key and of its public one."""
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


def test_it_says_what_the_result_says() -> None:
    result = result_json("run", "d" * 64)
    body = certificate.issue(result, model_name="m", version=3, config=CONFIG, override="a reason", key=None)
    assert body["model"] == {"name": "m", "version": 3, "run_id": "run"}
    for name in (
        *("request", "method", "method_config", "code_version", "seed", "world_size", "steps"),
        *("first_crossing_step", "settled_step", "gate"),
    ):
        assert body[name] == result[name], name
    assert body["measures"] == {"before": result["before"], "after": result["after"]}
    assert body["digests"] == {
        "base": "a" * 64,
        "weights": "d" * 64,
        "lake": "b" * 64,
        "partition": "c" * 64,
        "result": storage.digest_of(result),
        "config": storage.sha256(CONFIG),
    }
    assert body["settings"]["optim"] == {"lr": 0.01} and body["settings"]["attacks"] is None
    assert body["gate_override"] == "a reason" and body["signature"] is None
    assert json.loads(json.dumps(body, allow_nan=False)) == body, "it is read back as it was written"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, child in items for leaf in leaves(child, (*path, key))] or [path]


def test_no_value_in_it_can_be_changed() -> None:
    body = issued()
    assert certificate.check(body, public_key=None) == "not signed"
    paths = [path for path in leaves(body) if path != ("signature",)]
    assert len(paths) > 50 and {path[0] for path in paths} == body.keys() - {"signature"}
    for path in paths:
        edited = deepcopy(body)
        place = edited
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "something else"
        with pytest.raises(CertificateError, match="its text does not match its digest: it was edited"):
            certificate.check(edited, public_key=None)
    for key in body.keys() - {"signature"}:
        with pytest.raises(CertificateError, match="does not match its digest"):
            certificate.check({name: body[name] for name in body if name != key}, public_key=None)
    with pytest.raises(CertificateError, match="does not match its digest"):
        certificate.check({**body, "more": None}, public_key=None)


def test_a_signature_is_of_this_text_and_by_this_key(keys: tuple[str, str], tmp_path: Path) -> None:
    private, public = keys
    body = issued(private)
    assert certificate.check(body, public_key=public).endswith(f"the one in {public}")
    assert "pass --set public_key" in certificate.check(body, public_key=None)
    other = issued(private, seed=1)
    for signature, message in (
        (other["signature"], "signature does not hold"),
        ({**body["signature"], "value": base64.b64encode(bytes(64)).decode()}, "signature does not hold"),
        ({"algorithm": "Ed25519"}, "signature does not hold"),
        (None, "not signed, expected a signature by the key"),
    ):
        with pytest.raises(CertificateError, match=message):
            certificate.check({**body, "signature": signature}, public_key=public)
    stranger = tmp_path / "other.pem"
    stranger.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    forged = issued(str(stranger))
    assert "signed by key" in certificate.check(forged, public_key=None)
    with pytest.raises(CertificateError, match="which is not the key in"):
        certificate.check(forged, public_key=public)


def test_keys_of_another_kind_are_bad_input(keys: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no key")
    for path in (str(tmp_path / "text.pem"), str(tmp_path / "none.pem"), keys[1]):
        with pytest.raises(InputError, match="which is no readable PEM key"):
            certificate.private_key(path)
    with pytest.raises(InputError, match=r"public_key: got .* no readable PEM key"):
        certificate.check(issued(keys[0]), public_key=keys[0])


def test_whatever_is_null_is_said_not_to_be_measured() -> None:
    result = result_json("run", "d" * 64)
    result["after"]["retain_accuracy"]["neighbours"] = result["before"]["retain_accuracy"]["neighbours"] = 0.9
    before, after = deepcopy(result["before"]), deepcopy(result["after"])
    before["fid"]["judge"], after["retain_accuracy"]["per_class"]["7"] = None, None
    checks = [
        {"name": "fid_increase/judge", "value": None, "bound": 1.0, "passed": False},
        {"name": "settled", "value": None, "bound": None, "passed": False},
        {"name": "forget_fraction", "value": 0.0, "bound": 0.05, "passed": True},
    ]
    plain = set(issued(before=result["before"], after=result["after"])["not_measured"])
    assert not any(name.startswith(("before", "after", "gate")) for name in plain)
    more = issued(before=before, after=after, gate={"passed": False, "checks": checks})["not_measured"]
    assert more == sorted(
        [*plain, "before.fid.judge", "after.retain_accuracy.per_class.7", "gate.fid_increase/judge"]
    ), "what was never reached is a finding, what was not measured is none"
