"""What a certificate says of each request and of each attack, from the run's result and what is around it:
the ledger, the partition, the log, the other versions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import version_files
from pipeline import hash_chain, storage
from pipeline.config import RegistryConfig
from pipeline.data import tombstones
from pipeline.data.parquet_shards import FLIP_MARK, read_column
from pipeline.data.partition import find_partition
from pipeline.governance.purge_reach import still_left, whole_classes
from pipeline.requests import ledger
from pipeline.requests.ledger import Ledger, Request
from pipeline.tracking.alias_log import Entry
from pipeline.tracking.honoured_requests import registered_at
from pipeline.tracking.registry import versions
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_runs import MlflowClient
    from pipeline.tracking.registry import ModelVersion

NOT_TESTED = "not tested"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a certificate says beside its run's own result.

    `ids`: the forgotten rows' sample ids by class, of the run's partition; None where it is gone. `purges` by
    request: the log's entry and how many samples its tombstone remembers.
    """

    registered: str  # when the version was
    weights_file: str  # SHA-256 of the registered model.safetensors
    version_files: str | None = None  # the digest of all the version's files
    by: str = "unknown"  # who issues
    audit_days: int = 90
    ledger: Ledger = field(default_factory=lambda: Ledger(entries=(), requests={}))
    ids: Mapping[int, set[str]] | None = None
    purges: Mapping[str, tuple[Entry, int]] = field(default_factory=dict)
    descendants: Sequence[str] = ()
    not_honoured: Sequence[str] = ()
    not_purged: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by request, what is left of it


def gather(
    config: RegistryConfig,
    mlflow: "MlflowClient",
    version: "ModelVersion",
    result: Mapping[str, Any],
    entries: Sequence[Entry],
    not_honoured: Sequence[str],
    folder: Path,
) -> Surroundings:
    """What is around `version`, whose files lie in `folder`, now."""
    root, name = config.storage, config.tracking.model_name
    digest = str(result.get("weights_digest"))
    purges = {}
    for entry in entries:
        if entry.action == "purge":
            request = str(entry.details["request"])
            tombstone = tombstones.find(root, request)
            purges[request] = (entry, tombstone.count if tombstone else 0)
    files = version_files.digests(folder)
    return Surroundings(
        registered=registered_at(version),
        weights_file=files[model_folder.WEIGHTS],
        version_files=version_files.digest_of(files),
        by=hash_chain.user(),
        audit_days=config.audit_days,
        ledger=ledger.read(root),
        ids=_forgotten_ids(storage.join(root, "partitions", str(result.get("partition_digest"))[:32])),
        purges=purges,
        descendants=[
            f"version {other.version} of {name}"
            for other in reversed(versions(mlflow, name))
            if other.tags.get("base_digest") == digest
        ],
        not_honoured=not_honoured,
        not_purged=_not_purged(root, purges),
    )


def _not_purged(root: str, purges: Mapping[str, tuple[Entry, int]]) -> dict[str, list[str]]:
    """By request, what the purge of its data did not reach, and nothing has removed since."""
    if not purges:
        return {}
    purged = tombstones.buried(root)
    return {
        name: still_left(root, entry.details.get("left", []), name, purged)
        for name, (entry, _) in purges.items()
    }


def _forgotten_ids(uri: str) -> dict[int, set[str]] | None:
    partition = find_partition(uri)
    if partition is None:
        return None
    ids: dict[int, set[str]] = {}
    for file in partition.forgotten_images:
        names = read_column(partition.uri, file, "sample_id")
        ids.setdefault(file.label, set()).update(name.removesuffix(FLIP_MARK) for name in names)
    return ids


def requests_of(result: Mapping[str, Any], around: Surroundings) -> list[dict[str, Any]]:
    """Every request that the run answers: its dates and who acted, its scope, what was measured of it on
    these weights, what became of its data."""
    return [_request(one, result, around) for one in _answers(result)]


def _answers(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `requests` block of a result, or its one request in the form of such a block."""
    if (requests := result.get("requests")) is not None:
        return [dict(request) for request in requests]
    own, after = result.get("request") or {}, result.get("after") or {}
    membership = after.get("membership")
    return [
        {
            "id": own.get("id"),
            "classes": whole_classes(own) if own else [],
            "named": bool(own.get("sample_ids")),
            "forget_fraction": after.get("forget_fraction"),
            "membership_auc": membership and membership.get("auc"),
        }
    ]


def _request(one: Mapping[str, Any], result: Mapping[str, Any], around: Surroundings) -> dict[str, Any]:
    request_id, classes = str(one["id"]), list(one["classes"])
    known = around.ledger.requests.get(request_id)
    purge = around.purges.get(request_id)
    exchange = (result.get("request") or {}).get("exchange") or {}
    answered = known.last("answered") if known else None
    return {
        "id": request_id,
        **_dates(known, around),
        "scope": {
            "classes": classes,
            "exchange": {str(key): value for key, value in exchange.items() if int(key) in classes},
            "rows": _rows(one, classes, around),
            "samples": _samples(one, known, around),
            "stand_ins": _stand_ins(classes, result),
        },
        # answered by an earlier version, and measured again here
        "earlier": answered is not None and answered.details["run_id"] != result.get("run_id"),
        "forget_fraction": one.get("forget_fraction"),
        "membership_auc": one.get("membership_auc"),
        "membership_interval": _interval(one, result),
        "closed": one.get("closed"),
        "data": None if purge is None else {"purged": purge[0].time, "by": purge[0].by, "samples": purge[1]},
    }


def _dates(known: Request | None, around: Surroundings) -> dict[str, Any]:
    """Received, due and done, and on whose word: the ledger's; of a request that it does not know, when the
    version was registered."""
    if known is None:
        return {
            "in_ledger": False,
            "received": None,
            "due": None,
            "done": around.registered,
            "legal_basis": None,
            "approver": None,
            "moves": [],
        }
    answered = known.last("answered")
    return {
        "in_ledger": True,
        "received": known.terms.received.isoformat(),
        "due": known.terms.due.isoformat(),
        "done": answered.time if answered else around.registered,
        "legal_basis": known.terms.legal_basis,
        "approver": known.terms.approver,
        "moves": [{"move": entry.move, "time": entry.time, "by": entry.by} for entry in known.history],
    }


def _rows(one: Mapping[str, Any], classes: Sequence[int], around: Surroundings) -> dict[str, Any] | None:
    """Count and digest of the ids of the forgotten classes' rows; None where the run did not read them, or
    they were purged since."""
    if not classes or around.ids is None or not around.ids.keys() >= set(classes):
        return None
    return _list_of(name for label in classes for name in around.ids[label])


def _samples(one: Mapping[str, Any], known: Request | None, around: Surroundings) -> dict[str, Any] | None:
    """Count and digest of the named ids, as the run or the ledger keeps them."""
    if one.get("sample_count"):
        return {"count": one["sample_count"], "digest": one.get("sample_ids_digest")}
    if known is not None and known.terms.samples is not None:
        return {"count": known.terms.samples.count, "digest": known.terms.samples.digest}
    if one.get("named"):
        nothing = {"count": None, "digest": None}
        return nothing if around.ids is None else _list_of(set().union(*around.ids.values()))
    return None


def _stand_ins(classes: Sequence[int], result: Mapping[str, Any]) -> dict[str, Any] | None:
    """How many samples of the base were read in the place of purged rows, and the digest of all that the run
    read; None where rows were."""
    facts = result.get("stand_ins") or {"samples": {}}
    count = sum(facts["samples"].get(str(label), 0) for label in classes)
    return {"count": count, "digest": facts["digest"], "base": facts["weights_digest"]} if count else None


def _interval(one: Mapping[str, Any], result: Mapping[str, Any]) -> list[float] | None:
    """The 95 % interval of the loss attack, which is about all named samples of the run together."""
    measured = _measured(result, "membership")
    if one.get("membership_auc") is None or not measured or measured.get("low") is None:
        return None
    return [measured["low"], measured["high"]]


def _list_of(names: Any) -> dict[str, Any]:
    ids = sorted(names)
    return {"count": len(ids), "digest": storage.digest_of(ids)}


COMPARED = (  # of an attack's line: what it is compared with
    *("reference", "excess", "second", "relearned", "relearned_in_reference"),
    *("inversion", "inversion_of_reference", "inversion_excess"),
)


def attacks_of(result: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every attack there is, with whom it is about and what it was allowed, and its outcome, or that it was
    not tested."""
    from pipeline.evaluation.attacks.table import ATTACKS

    lines = (result.get("attack_suite") or {}).get("attacks", [])
    outcomes = []
    for kind, attack in ATTACKS.items():
        if kind == "none":
            continue  # the model as it is: what the metrics say
        tried = [line for line in lines if line.get("kind", line["name"]) == kind]
        about = {"attack": kind, "title": attack.title, "threat": attack.threat or attack.title}
        budget = {key: value for key, value in settings.items() if key.startswith(kind)}
        outcomes += [
            {
                **about,
                "name": line["name"],
                "budget": {"how": line["about"], **budget, **(line.get("budget") or {})},
                "forget_fraction": line["forget_fraction"],
                **{key: line[key] for key in COMPARED if key in line},
                "outcome": line["state"],
                "meaning": {"holds": attack.holds, "returns": attack.returns}.get(line["state"]),
            }
            for line in tried
        ]
        if not tried:
            outcomes.append({**about, "outcome": NOT_TESTED})
    return [*outcomes, *(_of_metric(result, name, *facts) for name, facts in METRICS.items())]


def _of_metric(
    result: Mapping[str, Any],
    name: str,
    title: str,
    threat: str,
    facts: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    about, measured = {"attack": name, "title": title, "threat": threat}, _measured(result, name)
    if not measured:
        return {**about, "outcome": NOT_TESTED}
    return {**about, "outcome": "measured", **facts(measured)}


# attacks that are metrics: title, threat, and what is said of a measured one
METRICS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "membership": (
        "Loss attack",
        "somebody who has images and the weights, and asks which images were trained on",
        lambda measured: {
            "name": "loss attack",
            "budget": {"images": measured.get("n"), "never_seen_images": measured.get("heldout_n")},
            "auc": {key: measured.get(key) for key in ("auc", "low", "high")},
        },
    ),
    "relearn_steps": (
        "Teaching it again",
        "somebody who has the weights and a few images of the class, and trains on them",
        lambda measured: {"name": "relearning", "figures": measured},
    ),
}


def _measured(result: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    sides = (result.get("after") or {}, (result.get("metrics") or {}).get("after") or {})
    return next((side[name] for side in sides if side.get(name)), None)
