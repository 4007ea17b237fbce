"""certificate.html: what certificate.json says, for people. The JSON is what is signed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
    """Write the last certificate of every version, and its page, where they are not there as they were
    issued: the log holds them."""
    issued = {entry.version: entry for entry in entries if entry.details.get("certificate")}
    for version, entry in issued.items():
        document = entry.details["certificate"]
        uri = alias_log.certificate_uri(storage_root, model_name, version)
        if not storage.exists(uri) or storage.read_bytes(uri) != storage.json_bytes(document):
            storage.write_json(uri, document)
        if has_page(document) and page_state(storage_root, model_name, entry) in ("missing", "edited"):
            page = render(signing.said_in(document))
            storage.write_text(page_uri(storage_root, model_name, version), page)


def has_page(document: Mapping[str, Any]) -> bool:
    """Whether a certificate was issued since there are pages."""
    return signing.said_in(document).get("schema") == 2


def digest_of(document: Mapping[str, Any]) -> str | None:
    """Of the page, for the log's entry: SHA-256; None where there is none."""
    return storage.sha256(render(signing.said_in(document)).encode()) if has_page(document) else None


def page_state(
    storage_root: str, model_name: str, entry: Entry
) -> Literal["issued", "missing", "edited", "unknown"]:
    """What lies there as the page of the certificate that `entry` issued. `unknown`: it is not the page that
    this program makes, and the log of that time did not note its digest."""
    uri, document = page_uri(storage_root, model_name, entry.version), entry.details["certificate"]
    if not storage.exists(uri):
        return "missing"
    page, noted = storage.read_bytes(uri), entry.details.get("page")
    if storage.sha256(page) in (noted, digest_of(document)):
        return "issued"
    of_this = signing.said_in(document)["digest"].encode() in page  # or of a certificate before it
    return "unknown" if noted is None and of_this else "edited"


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
            null_label=_null_label(said),
            digests=[(name.replace("_", " "), digest or "none") for name, digest in said["digests"].items()],
            signed="Ed25519, with the key named in it" if said["issuer"]["public_key"] else "not signed",
        )
    )


def _null_label(said: Mapping[str, Any]) -> tuple[str, str] | None:
    """The share under the null label, and a note on it."""
    measured = (((said["measures"] or {}).get("after") or {}).get("leakage") or {}).get("null_label")
    if not measured:
        return None
    return share(measured["value"]), f"of {measured['n']} images, at most {share(measured['high'])}"


def _request(request: Mapping[str, Any]) -> dict[str, Any]:
    scope, data = request["scope"], request["data"]
    facts = [
        ("Received", request["received"] or "not recorded"),
        ("Due", request["due"] or "not recorded"),
        ("Done", request["done"]),
        ("Legal basis", request["legal_basis"] or "not given"),
        ("Approver", request["approver"] or "not given"),
        *_lists(scope),
        *_stand_ins(scope),
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


def _stand_ins(scope: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not (sampled := scope.get("stand_ins")):
        return []
    text = (
        f"{sampled['count']} samples of the base under its old label, read in the place of purged rows;"
        f" digest {sampled['digest']}, drawn by the weights {sampled['base']}"
    )
    return [("Stand-ins", text)]


def _measured(request: Mapping[str, Any]) -> str:
    share_of, auc = request["forget_fraction"], request["membership_auc"]
    parts = []
    if share_of:
        parts.append(
            f"{share(share_of['value'])} of {share_of['n']} images, at most {share(share_of['high'])}"
        )
    if auc is not None:
        interval = request.get("membership_interval")
        ends = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        parts.append(f"loss attack: AUC {auc:.2f}{ends}")
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
            else f"AUC {auc['auc']:.2f}" + (f" ({auc['low']:.2f} to {auc['high']:.2f})" if auc["low"] else "")
            if auc
            else ""
        ),
    }


def _check(check: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    value = "not measured" if check["value"] is None else f"{check['value']:.4g}"
    bound = "" if check.get("bound") is None else f"{check['bound']:g}"
    return check_title(check), value, bound, bool(check["passed"])
