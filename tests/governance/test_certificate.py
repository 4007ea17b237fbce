"""The certificate: everything that a result says is in it, it claims no more than was measured, and nothing
of it can be changed unseen."""

import base64
import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Tab, chromium, layout, visit
from proof_samples import ATTACK_SUITE
from tracking_samples import make_keys, result_json

from pipeline import storage
from pipeline.errors import InputError
from pipeline.evaluation.attacks.table import ATTACKS
from pipeline.governance import certificate, certificate_page, signing, verify_standalone
from pipeline.governance.certificate_facts import Surroundings
from pipeline.governance.signing import CertificateError
from pipeline.requests import ledger
from pipeline.requests.ledger import Entry as Move
from pipeline.tracking.alias_log import Entry

CONFIG = b"optim: {lr: 0.01}\nevaluate: {cfg_scale: 2.0}\nlake: digits\nattacks: {finetune_steps: 100}\n"
VERIFIER = Path(verify_standalone.__file__)


def around(**changes: Any) -> Surroundings:
    values = {"registered": "2026-05-01T10:00:00+00:00", "weights_file": "f" * 64, "by": "op@host", **changes}
    return Surroundings(**values)


def issued(
    key: str | None = None, surroundings: Surroundings | None = None, **changes: Any
) -> dict[str, Any]:
    result = result_json("run", "d" * 64) | changes
    return certificate.issue(
        result,
        model_name="m",
        version=3,
        config=CONFIG,
        override=None,
        key=key,
        around=surroundings or around(),
    )


def said(**changes: Any) -> dict[str, Any]:
    return signing.said_in(issued(**changes))


def written(document: dict[str, Any]) -> bytes:
    """As `storage.write_json` leaves it."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """Paths of a private key and of its public one."""
    return make_keys(tmp_path, "key")


def moves(*steps: tuple[str, dict[str, Any]], request: str = "r-1") -> ledger.Ledger:
    return ledger.fold(
        [
            Move(
                number=number,
                time=f"2026-04-{number:02}T09:00:00+00:00",
                by="dpo@host",
                previous="",
                digest=f"{number}",
                move=move,
                request=request,
                details=details,
            )
            for number, (move, details) in enumerate(steps, 1)
        ]
    )


TERMS = {
    "model_name": "m",
    "lake": "digits",
    "classes": [1],
    "exchange": {1: [7]},
    "samples": None,
    "received": "2026-04-01",
    "due": "2026-05-01",
    "legal_basis": "GDPR 17",
    "approver": "<b>dpo</b>",
}


def test_it_says_what_the_result_says() -> None:
    result = result_json("run", "d" * 64)
    body = said()
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
        "weights_file": "f" * 64,
        "version_files": None,
        "result": storage.digest_of(result),
        "config": storage.sha256(CONFIG),
    }
    assert body["settings"]["optim"] == {"lr": 0.01} and body["gate_override"] is None
    assert (body["issued_by"], body["ledger"], body["descendants"]) == ("op@host", None, [])


def test_it_is_an_in_toto_statement_in_a_dsse_envelope(keys: tuple[str, str]) -> None:
    """By the two specifications, in the words of neither of our files."""
    envelope = issued(keys[0])
    payload = base64.b64decode(envelope["payload"])
    statement = json.loads(payload)
    assert envelope.keys() == {"payloadType", "payload", "signatures"}
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "m/3/model.safetensors", "digest": {"sha256": "f" * 64}}]
    signed = b" ".join(
        [b"DSSEv1", b"28", b"application/vnd.in-toto+json", str(len(payload)).encode(), payload]
    )
    (signature,) = envelope["signatures"]
    public = signing.private_key(keys[0]).public_key()
    public.verify(base64.b64decode(signature["sig"]), signed)


def test_requests_have_dates_actors_scope_and_figures() -> None:
    answered = ("answered", {"version": 2, "run_id": "earlier-run"})
    known = moves(("received", TERMS), ("accepted", {}), answered, ("closed", {"version": 2}))
    share = {"value": 0.0, "n": 500, "low": 0.0, "high": 0.0076, "per_class": {}}
    requests = [
        {"id": "r-1", "classes": [1], "forget_fraction": share, "membership_auc": None, "closed": True},
        {
            "id": "r-2",
            "classes": [],
            "sample_count": 2,
            "sample_ids_digest": "e" * 64,
            "forget_fraction": None,
            "membership_auc": 0.51,
            "closed": True,
        },
    ]
    entry = Entry(
        number=5,
        time="2026-06-01",
        by="op",
        previous="",
        action="purge",
        alias="",
        came_from=None,
        version=2,
        details={"request": "r-1", "left": ["the base model"]},
    )
    ids = {1: {"a", "b"}, 2: {"c"}}
    purged = {"purges": {"r-1": (entry, 182)}, "not_purged": {"r-1": ["the base model"]}}
    body = said(surroundings=around(ledger=known, ids=ids, **purged), requests=requests)
    first, second = body["requests"]
    assert (first["received"], first["due"], first["done"][:10]) == ("2026-04-01", "2026-05-01", "2026-04-03")
    assert (first["approver"], first["legal_basis"], first["earlier"]) == ("<b>dpo</b>", "GDPR 17", True)
    assert [move["by"] for move in first["moves"]] == ["dpo@host"] * 4
    assert first["scope"] == {
        "classes": [1],
        "exchange": {"1": 7},
        "rows": {"count": 2, "digest": storage.digest_of(["a", "b"])},
        "samples": None,
        "stand_ins": None,
    }
    assert first["data"] == {"purged": "2026-06-01", "by": "op", "samples": 182}
    assert second["scope"]["samples"] == {"count": 2, "digest": "e" * 64} and not second["earlier"]
    assert (second["received"], second["done"]) == (None, "2026-05-01T10:00:00+00:00"), "not in the ledger"
    assert body["not_purged"] == {"r-1": ["the base model"]} and body["ledger"] == known.head
    assert (
        "which an earlier version answered" in body["summary"] and "data of r-1 was purged" in body["summary"]
    )
    assert "data of r-2 had not been purged" in body["summary"]


def test_the_first_paragraph_claims_no_more_than_was_measured() -> None:
    kept = said()["summary"]
    assert "Asked for class 1 (r-1) it gave images that the judge takes for that class in 2 of 500" in kept
    assert "it is no longer sampled when asked for" in kept and "No attack was tried" in kept
    assert "held-out images was not measured" in kept and "remov" not in kept and "delet" not in kept[80:]
    result = result_json("run", "d" * 64)
    worse = deepcopy(result["after"])
    worse["forget_fraction"] |= {"high": 0.06}
    assert "does not show that it is no longer sampled" in said(after=worse)["summary"], (
        "its upper end counts"
    )
    worse["forget_fraction"] |= {"high": 0.01, "per_class": {"1": {"value": 0.02, "n": 50, "high": 0.09}}}
    assert "does not show" in said(after=worse)["summary"], "the worst class counts"
    worse["forget_fraction"] = None
    text = said(after=worse)["summary"]
    assert "Whether it still gives class 1 (r-1) was not measured." in text and "no longer" not in text
    text = said(attack_suite=ATTACK_SUITE)["summary"]
    assert "it came back under: free label embedding" in text and "not tested: free null embedding" in text
    text = said(surroundings=around(not_honoured=["request r0 (class 3), honoured by the champion"]))[
        "summary"
    ]
    assert "It does not honour request r0 (class 3)" in text


def test_every_attack_stands_there_with_threat_and_budget_or_as_not_tested() -> None:
    untried = {one["attack"]: one for one in said()["attacks"]}
    assert untried.keys() == {*ATTACKS.keys() - {"none"}, "membership", "relearn_steps"}
    assert {one["outcome"] for one in untried.values()} == {"not tested"}
    assert all(one["threat"] for one in untried.values())
    tried = [one for one in said(attack_suite=ATTACK_SUITE)["attacks"] if one["outcome"] != "not tested"]
    assert {one["attack"] for one in tried} == {line["kind"] for line in ATTACK_SUITE["attacks"]} - {"none"}
    first = next(one for one in tried if one["attack"] == "finetune")
    assert first["budget"]["finetune_steps"] == 100 and first["budget"]["how"]
    assert first["forget_fraction"]["n"] == 200 and first["outcome"] in ("holds", "open", "returns")
    after = result_json("run", "d" * 64)["after"] | {
        "membership": {"auc": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    }
    (loss,) = (one for one in said(after=after)["attacks"] if one["attack"] == "membership")
    assert loss["outcome"] == "measured" and loss["budget"]["images"] == 9


def test_not_measured_lists_nothing_that_was_measured() -> None:
    result = result_json("run", "d" * 64)
    names = said()["not_measured"]
    assert not {"metrics.forget_fraction", "metrics.retain_accuracy", "metrics.fid"} & set(names)
    assert "metrics.earlier_fraction" not in names, "no class was forgotten earlier"
    assert {"metrics.kid", "metrics.membership", "attack_suite", "reference"} <= set(names)
    before, after = deepcopy(result["before"]), deepcopy(result["after"])
    after["membership"], before["fid"]["judge"], after["retain_accuracy"]["per_class"]["7"] = None, None, None
    checks = [
        {"name": "fid_increase/judge", "value": None, "bound": 1.0, "passed": False},
        {"name": "settled", "value": None, "bound": None, "passed": False},
        {"name": "forget_fraction", "value": 0.0, "bound": 0.05, "passed": True},
    ]
    metrics = {"before": {}, "after": {"membership": {"auc": 0.5}, "kid": {"value": 0.1}}}
    more = said(before=before, after=after, gate={"passed": False, "checks": checks}, metrics=metrics)
    assert set(more["not_measured"]) == {
        *(set(names) - {"metrics.kid", "metrics.membership"}),
        "before.fid.judge",
        "after.retain_accuracy.per_class.7",
        "gate.fid_increase/judge",
    }, "what was never reached is a finding, and what stands elsewhere was measured"


@pytest.mark.parametrize("with_key", [True, False])
def test_no_byte_of_it_can_be_changed(keys: tuple[str, str], with_key: bool) -> None:
    small = signing.sealed({"model": {}}, subject="m", sha256="0" * 64, key=keys[0] if with_key else None)
    text = written(small)
    public = keys[1] if with_key else None
    signing.opened(text, public_key=public)
    for place in range(len(text)):
        for bit in (0x01, 0x20, 0x80):
            changed = text[:place] + bytes([text[place] ^ bit]) + text[place + 1 :]
            with pytest.raises(CertificateError):
                signing.opened(changed, public_key=public)
    for changed in (text + b"\n", text[:-1], b" " + text, text.replace(b"\n", b"\r\n")):
        with pytest.raises(CertificateError):
            signing.opened(changed, public_key=public)


def test_a_signature_is_of_this_text_and_by_this_key(keys: tuple[str, str], tmp_path: Path) -> None:
    private, public = keys
    document = issued(private)
    assert signing.opened(written(document), public_key=public)[1].endswith("the one that was given")
    assert "give a public key" in signing.opened(written(document))[1]
    assert signing.is_signed(document) and not signing.is_signed(issued())
    other = issued(private, seed=1)
    zeros = [{**document["signatures"][0], "sig": base64.b64encode(bytes(64)).decode()}]
    for signatures, message in (
        (other["signatures"], "signature does not hold"),
        (zeros, "signature does not hold"),
        ([{"sig": ""}], "not by the key that it names"),
        ([], "another number of signatures"),
        (document["signatures"] * 2, "another number of signatures"),
    ):
        with pytest.raises(CertificateError, match=message):
            signing.opened(written({**document, "signatures": signatures}), public_key=public)
    with pytest.raises(CertificateError, match="not signed, expected a signature"):
        signing.opened(written(issued()), public_key=public)
    stranger = issued(make_keys(tmp_path, "stranger")[0])
    assert "signed by key" in signing.opened(written(stranger))[1]
    with pytest.raises(CertificateError, match="which is not the key that was given"):
        signing.opened(written(stranger), public_key=public)


def test_keys_of_another_kind_are_bad_input(keys: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no key")
    for path in (str(tmp_path / "text.pem"), str(tmp_path / "none.pem"), keys[1]):
        with pytest.raises(InputError, match="which is no readable PEM key"):
            signing.private_key(path)
    with pytest.raises(InputError, match=r"public_key: got .* no readable PEM key"):
        signing.opened(written(issued(keys[0])), public_key=keys[0])


def first_schema(private: str | None) -> dict[str, Any]:
    """A certificate as it was written before there were envelopes."""
    body = {
        "kind": "unlearning certificate",
        "schema": 1,
        "model": {"name": "m", "version": 1},
        "issued": "t",
    }
    digest = storage.digest_of(body)
    if private is None:
        return {**body, "digest": digest, "signature": None}
    key = signing.private_key(private)
    signature = {
        "algorithm": "Ed25519",
        "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        "value": base64.b64encode(key.sign(digest.encode())).decode(),
    }
    return {**body, "digest": digest, "signature": signature}


def test_certificates_of_before_still_hold(keys: tuple[str, str]) -> None:
    document = first_schema(keys[0])
    assert signing.opened(written(document), public_key=keys[1])[0] == document
    assert signing.opened(written(first_schema(None)))[1] == "not signed"
    assert signing.is_signed(document) and not signing.is_signed(first_schema(None))
    with pytest.raises(CertificateError, match="does not match its digest"):
        signing.opened(written({**document, "issued": "another day"}), public_key=keys[1])
    with pytest.raises(CertificateError, match="signature does not hold"):
        signing.opened(written({**document, "signature": {"value": ""}}), public_key=keys[1])


def test_the_verifier_stands_alone(keys: tuple[str, str], tmp_path: Path) -> None:
    """A copy of its one file, in an interpreter that has none of this project on its path."""
    (tmp_path / "alone").mkdir()
    verifier = tmp_path / "alone" / "verify.py"
    verifier.write_bytes(VERIFIER.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    surroundings = around(weights_file=storage.sha256(b"weights"))
    (tmp_path / "c.json").write_bytes(written(issued(keys[0], surroundings)))

    def call(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-I", str(verifier), *arguments],
            cwd=tmp_path / "alone",
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    code, text = call(str(tmp_path / "c.json"), "--public-key", keys[1], "--weights", str(weights))
    assert code == 0 and "certificate of m version 3" in text and "Asked for class 1" in text, text
    weights.write_bytes(b"others")
    code, text = call(str(tmp_path / "c.json"), "--weights", str(weights))
    assert code == 1 and "about other weights" in text
    (tmp_path / "c.json").write_bytes(written(issued(keys[0])).replace(b"signatures", b"signaturez"))
    code, text = call(str(tmp_path / "c.json"), "--public-key", keys[1])
    assert code == 1 and text.count("\n") == 1
    assert call(str(tmp_path / "none.json"))[0] == 2
    assert call(str(tmp_path / "c.json"), "--public-key", keys[0])[0] == 2


def page() -> str:
    answered = ("answered", {"version": 3, "run_id": "run"})
    known = moves(("received", TERMS), ("accepted", {}), answered, ("closed", {"version": 3}))
    return certificate_page.render(
        said(surroundings=around(ledger=known, ids={1: {"a"}}), attack_suite=ATTACK_SUITE)
    )


def test_the_page_says_the_same_and_needs_nothing_else() -> None:
    text = page()
    assert not re.search(r"https?://|<link|src=|@import|url\(", text)
    assert "<b>dpo</b>" not in text and "&lt;b&gt;dpo" in text
    for part in (
        "no longer sampled when asked for",
        "class 1, to give 7 instead",
        "not tested",
        "comes back",
    ):
        assert part in text, part
    assert "None" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "certificate.html"
    path.write_text(page())

    async def look(tab: Tab, width: int) -> dict[str, Any]:
        await tab.open(path.as_uri(), width=width)
        seen = await layout(tab)
        await tab.screenshot(tmp_path / f"certificate-{width}.png")
        return seen | {"said": tab.said, "asked": tab.asked}

    with chromium(tmp_path / "profile") as address:
        for width in (400, 1400):
            seen = visit(address, lambda tab, width=width: look(tab, width))
            assert seen["said"] == [] and seen["asked"] == [path.as_uri()]
            assert seen["wide"] <= width and seen["cut"] == [] and seen["small"] == []
