"""The model that requests are about, as it is registered, and the main job that makes another version of
it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import storage
from pipeline.config import EvaluateConfig, parse
from pipeline.config.process import ProcessConfig
from pipeline.errors import InputError
from pipeline.reports.terminal import refusals, summary
from pipeline.requests.merge import Union
from pipeline.requests.plan import Plan, Version
from pipeline.requests.process import Outcome, reason_of
from pipeline.tracking import alias_log
from pipeline.tracking.registry import CHAMPION, find_version, honoured


class RegisteredModel:
    """`promote` makes a version of the model the champion; it belongs to a later room, and whoever only
    measures gives none."""

    def __init__(self, config: ProcessConfig, promote: Callable[[int], object] | None = None) -> None:
        self.config, self._promote = config, promote

    def champion(self) -> Version | None:
        """By the log of the aliases, which MLflow follows."""
        from pipeline.tracking.mlflow_runs import client

        tracking, root = self.config.tracking, self.config.storage
        numbers = [
            entry.version for entry in alias_log.read(root, tracking.model_name) if entry.alias == CHAMPION
        ]
        if not numbers:
            return None
        version = find_version(client(tracking, root, create=False), tracking, root, str(numbers[-1]))
        return Version(number=numbers[-1], request_ids=request_ids(version.tags))

    def check(self, plan: Plan) -> None:
        from pipeline.runs import preflight

        preflight.check(plan.config)

    def answer(self, plan: Plan) -> Outcome:
        from pipeline.runs import preflight, unlearn
        from pipeline.runs.result import REPORT

        prepared = preflight.check(plan.config)
        result = unlearn.run(prepared)
        print(summary(result, storage.join(prepared.run_uri, REPORT)), flush=True)
        return outcome_of(result, plan)

    def promote(self, version: int) -> None:
        assert self._promote is not None, "a processor is given one"
        self._promote(version)

    def measure(self, version: int, union: Union, seed: int) -> Mapping[str, Any]:
        """The `after` block of an evaluation of `version` that asks for everything in `union`; all of it is
        kept beside the version's run."""
        from pipeline.evaluation import evaluate_ray
        from pipeline.runs import version_evaluation
        from pipeline.runtime import cluster_ray

        with TemporaryDirectory() as folder:
            names = Path(folder, "sample_ids.txt")
            names.write_text("\n".join(union.sample_ids))
            config = evaluation_config(self.config, version, union, seed, str(names))
            evaluation = version_evaluation.check(config)
        cluster_ray.connect()
        result = evaluate_ray.evaluate(evaluation)
        storage.write_json(version_evaluation.output_uri(config, evaluation.facts), result)
        return dict(result["after"])


def evaluation_config(
    config: ProcessConfig, version: int, union: Union, seed: int, names: str
) -> EvaluateConfig:
    """`names`: where the union's sample ids are listed."""
    settings, named = config.audit, bool(union.sample_ids)
    return parse(
        EvaluateConfig,
        {
            "storage": config.storage,
            "tracking": config.tracking.model_dump(),
            "version": str(version),
            "lake": config.lake,
            "seed": seed,
            "metrics": ["forget_fraction", "leakage", *(["membership"] if named else [])],
            "request": {
                "classes": list(union.classes),
                "exchange": {label: list(given) for label, given in union.exchange.items()},
                "without_exchange": True,
                "sample_ids": names if named else None,
                "sample_classes": list(union.sample_classes),
            },
            "measuring": {
                "samples": max(20, settings.samples * len(union.classes)),
                "cfg_scales": [],
            },
            "train": {
                "workers": settings.workers,
                "cpus_per_worker": settings.cpus_per_worker,
                "gpus_per_worker": settings.gpus_per_worker,
            },
        },
    )


def outcome_of(result: Mapping[str, Any], plan: Plan) -> Outcome:
    """What result.json says of the requests. Raises `InputError` where it says nothing of one."""
    blocks = {str(block["id"]): block for block in result.get("requests") or []}
    if missing := [name for name in plan.request_ids if name not in blocks]:
        raise InputError(
            f"run {plan.run_id}: its result says nothing of request {missing[0]}; it was made by an earlier"
            " version of this program: remove its folder and call again"
        )
    bound = plan.config.gate.max_forget_fraction
    return Outcome(
        version=int(result["model"]["version"]),
        refusals=tuple(refusals(result)),
        failures={name: reason_of(block, bound) for name, block in blocks.items() if not block["closed"]},
    )


def request_ids(tags: Mapping[str, str]) -> tuple[str, ...]:
    """The requests that a registered version honours, by its tags."""
    listed = honoured(tags)
    if listed is not None:
        return tuple(map(str, listed["request_ids"]))
    return (tags["request_id"],) if "request_id" in tags else ()
