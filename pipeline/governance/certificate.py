"""What a promoted version is vouched for with: the requests it answers, every figure, every attack, what was
not measured and what is not claimed."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipeline import storage
from pipeline.evaluation import stored_result
from pipeline.governance import signing
from pipeline.governance.certificate_facts import Surroundings, attacks_of, requests_of
from pipeline.governance.certificate_words import summary
from pipeline.weights import model_folder

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
    "that no embedding, prompt or fine-tuning brings the class back, unless such an attack stands above",
    "anything about judges, samplers or settings other than those of the metrics above",
    "anything about copies that were made of the data or of earlier versions",
)


def issue(
    result: Mapping[str, Any],
    *,
    model_name: str,
    version: int,
    config: bytes | None,
    override: str | None,
    key: str | None,
    around: Surroundings,
) -> dict[str, Any]:
    """The certificate of `version` from its result.json and what is `around` it, in its envelope, signed when
    `key` names an Ed25519 private key (PEM).

    `config` is the run's config.yaml: its digest is kept, and those of its sections that say how it was
    measured.
    """
    digest_of_result, result = storage.digest_of(result), stored_result.in_todays_words(result)
    settings = yaml.safe_load(config) if config else {}
    now = datetime.datetime.now(datetime.UTC)
    body: dict[str, Any] = {
        "kind": "unlearning certificate",
        "schema": 2,
        "model": {"name": model_name, "version": version, "run_id": result.get("run_id")},
        "issued": now.isoformat(timespec="seconds"),
        "issued_by": around.by,
        "next_audit": (now.date() + datetime.timedelta(days=around.audit_days)).isoformat(),
        "requests": requests_of(result, around),
        "ledger": around.ledger.head if around.ledger.entries else None,
        "not_honoured": list(around.not_honoured),
        "attacks": attacks_of(result, settings.get("attacks") or {}),
        **{name: result.get(name) for name in COPIED},
        "digests": {
            **{name.removesuffix("_digest"): result.get(name) for name in DIGESTS},
            "weights_file": around.weights_file,
            "version_files": around.version_files,
            "result": digest_of_result,
            "config": storage.sha256(config) if config else None,
        },
        "settings": {name: settings.get(name) for name in SETTINGS},
        "measures": {"before": result.get("before"), "after": result.get("after")},
        "further_measures": {name: result.get(name) for name in PROOF},
        "gate": result.get("gate"),
        "gate_override": override,
        "descendants": list(around.descendants),
        "not_purged": around.not_purged,
        "not_measured": not_measured(result),
        "not_claimed": list(NOT_CLAIMED),
    }
    return signing.sealed(
        {"summary": summary(body), **body},
        subject=f"{model_name}/{version}/{model_folder.WEIGHTS}",
        sha256=around.weights_file,
        key=key,
    )


def not_measured(result: Mapping[str, Any]) -> list[str]:
    """Every metric and attack that there is and that was not taken of the weights, and every null in what
    was: never one that stands elsewhere in the result."""
    from pipeline.evaluation.gate import NOT_REACHED
    from pipeline.evaluation.metrics.table import METRICS

    always = {side: result.get(side) or {} for side in ("before", "after")}
    further = {side: metrics or {} for side, metrics in (result.get("metrics") or {}).items()}

    def taken(side: str, name: str) -> bool:
        return any(part.get(side, {}).get(name) is not None for part in (always, further))

    # what no request was about is nothing that could have been measured
    earlier = (result.get("request") or {}).get("forgotten_earlier")
    idle = set() if earlier else {"earlier_fraction"}
    missing = [f"metrics.{name}" for name in METRICS if name not in idle and not taken("after", name)]
    for block, sides in (("", always), ("metrics.", further)):
        for side, metrics in sides.items():
            for name, metric in metrics.items():
                if metric is not None:
                    missing += _nulls(metric, f"{block}{side}.{name}")
                elif name not in METRICS or (side == "before" and taken("after", name)):
                    missing.append(f"{block}{side}.{name}")
    missing += [path for name in ("attack_suite", "reference") for path in _nulls(result.get(name), name)]
    missing += [
        f"attack_suite.attacks.{line['name']}"
        for line in (result.get("attack_suite") or {}).get("attacks", [])
        if line["state"] in ("failed", "skipped")
    ]
    checks = (result.get("gate") or {}).get("checks") or []
    missing += [
        f"gate.{check.get('name')}"
        for check in checks
        if check.get("value") is None and check.get("name") not in NOT_REACHED
    ]
    return sorted(set(missing))


def _nulls(value: Any, path: str) -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in SAID_BY_NULL:
                yield from _nulls(inner, f"{path}.{key}")
