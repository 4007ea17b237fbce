"""certificate.html: what certificate.json says, for people. The JSON is what is signed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.governance import signing
from pipeline.reports.html import environment
from pipeline.reports.text import check_title, share
from pipeline.tracking import alias_log
from pipeline.tracking.alias_log import Entry

TEMPLATES = Path(__file__).with_name("templates")
PAGE = "certificate.html"
PILLS = {"holds": "good", "returns": "bad", "not tested": "plain", "measured": "plain"}
OUTCOMES = {"holds": "does not come back", "returns": "comes back", "open": "undecided"}
OUTCOMES |= {"skipped": "not tried", "uncompared": "nothing to compare with"}


def write_missing(storage_root: str, model_name: str, entries: Sequence[Entry]) -> None:
    """Make the page of the certificate that was issued last, where it is not there yet."""
    issued = [entry for entry in entries if entry.details.get("certificate")]
    if not issued:
        return
    document, version = issued[-1].details["certificate"], issued[-1].version
    said = signing.said_in(document)
    if said.get("schema") != 2:  # issued before there was a page
        return
    uri = page_uri(storage_root, model_name, version)
    if storage.exists(uri) and said["digest"].encode() in storage.read_bytes(uri):
        return
    storage.write_text(uri, render(said))


def page_uri(storage_root: str, model_name: str, version: int) -> str:
    return storage.join(alias_log.certificate_uri(storage_root, model_name, version).rsplit("/", 1)[0], PAGE)


def render(said: Mapping[str, Any]) -> str:
    """The page; every text from outside is escaped."""
    gate = said["gate"] or {"passed": None, "checks": []}
    return (
        environment(TEMPLATES)
        .get_template(PAGE)
        .render(
            said=said,
            state=("good", "gate passed") if gate["passed"] else ("bad", "gate not passed"),
            requests=[_request(request) for request in said["requests"]],
            attacks=[_attack(attack) for attack in said["attacks"]],
            checks=[_check(check) for check in gate["checks"]],
            digests=[(name.replace("_", " "), digest or "none") for name, digest in said["digests"].items()],
            signed="Ed25519, with the key named in it" if said["issuer"]["public_key"] else "not signed",
        )
    )


def _request(request: Mapping[str, Any]) -> dict[str, Any]:
    scope, data = request["scope"], request["data"]
    facts = [
        ("Received", request["received"] or "not recorded"),
        ("Due", request["due"] or "not recorded"),
        ("Done", request["done"]),
        ("Legal basis", request["legal_basis"] or "not given"),
        ("Approver", request["approver"] or "not given"),
        *_lists(scope),
        (
            "Data",
            f"purged {data['purged']} by {data['by']}, {data['samples']} samples" if data else "not purged",
        ),
    ]
    return {
        "id": request["id"],
        "asked": _asked(scope),
        "earlier": request["earlier"],
        "due": request["due"] or "not recorded",
        "done": request["done"][:10],
        "measured": _measured(request),
        "facts": facts,
        "moves": [(move["move"], move["time"], move["by"]) for move in request["moves"]],
    }


def _asked(scope: Mapping[str, Any]) -> str:
    exchange = {
        label: ", ".join(map(str, to if isinstance(to, list) else [to]))
        for label, to in scope["exchange"].items()
    }
    parts = [
        f"class {label}" + (f", to give {exchange[str(label)]} instead" if str(label) in exchange else "")
        for label in scope["classes"]
    ]
    if scope["samples"]:
        parts.append(f"{scope['samples']['count'] or 'some'} named samples")
    return "; ".join(parts)


def _lists(scope: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Count and digest of the ids that the scope comes to."""
    names = {"rows": "Rows of its classes", "samples": "Named samples"}
    return [
        (title, f"{scope[key]['count']}, digest of the ids {scope[key]['digest']}")
        for key, title in names.items()
        if scope[key]
    ]


def _measured(request: Mapping[str, Any]) -> str:
    share_of, auc = request["forget_fraction"], request["membership_auc"]
    parts = []
    if share_of:
        parts.append(
            f"{share(share_of['value'])} of {share_of['n']} images, at most {share(share_of['high'])}"
        )
    if auc is not None:
        parts.append(f"loss attack: AUC {auc:.2f}")
    return "; ".join(parts) or "not measured"


def _attack(attack: Mapping[str, Any]) -> dict[str, Any]:
    left, auc = attack.get("forget_fraction"), attack.get("auc")
    budget = attack.get("budget") or {}
    others = [f"{key.replace('_', ' ')} {value}" for key, value in budget.items() if key != "how"]
    return {
        "title": attack["title"] + (f": {attack['name']}" if attack.get("name") else ""),
        "threat": attack["threat"],
        "budget": "; ".join(filter(None, [budget.get("how"), ", ".join(others)])),
        "outcome": OUTCOMES.get(attack["outcome"], attack["outcome"]),
        "pill": PILLS.get(attack["outcome"], "open"),
        "figure": (
            f"{share(left['value'])}, at most {share(left['high'])}"
            if left
            else f"AUC {auc['auc']:.2f}"
            if auc
            else ""
        ),
    }


def _check(check: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    value = "not measured" if check["value"] is None else f"{check['value']:.4g}"
    bound = "" if check.get("bound") is None else f"{check['bound']:g}"
    return check_title(check), value, bound, bool(check["passed"])
