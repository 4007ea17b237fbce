"""What the main job asks at its end, beside what decides the gate: the attack suite, further metrics, the
retrained reference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.config.commands import command, config_for
from pipeline.config.evaluate import Workers
from pipeline.errors import InputError
from pipeline.evaluation import second_judge as second
from pipeline.evaluation import stored_result
from pipeline.evaluation.attacks.table import attempts_of
from pipeline.evaluation.context import AFTER, BEFORE, REFERENCE
from pipeline.evaluation.evaluate_ray import Evaluation, evaluate, spec_of
from pipeline.evaluation.metrics.table import METRICS, metric_settings, named
from pipeline.runs import resolve_weights
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.lake import Lake

PROOF = "evaluations/proof.json"  # under the run
BLOCKS = ("metrics", "attack_suite", "reference")  # of result.json


def wanted(config: UnlearnConfig) -> bool:
    return (
        bool(config.evaluate.attack_suite)
        or bool(config.evaluate.metrics)
        or config.evaluate.reference is not None
    )


def require_metrics(names: Sequence[str], key: str) -> tuple[str, ...]:
    """`names` as the table has them, each once; `InputError` for one that it lacks."""
    unknown = [name for name in named(names) if name not in METRICS]
    if unknown:
        raise InputError(f"{key}: got {unknown[0]!r}, expected some of {', '.join(METRICS)}")
    return named(names)


def require_unaware(uri: str, classes: Sequence[int], key: str, storage_root: str, lake: str) -> None:
    """Raise `InputError` for a reference that was trained on one of `classes`, as far as its folder says what
    it was trained on."""
    made_with = (model_folder.manifest_of(uri) or {}).get("made_with")
    if made_with is None:
        return
    if saw := sorted(set(classes) - set(made_with.get("without", []))):
        pretrain = command(
            "pretrain", config_for("pretrain", lake), storage_root, f"without={sorted(classes)}"
        )
        raise InputError(
            f"{key}: {uri} was trained on class {saw[0]}, which a reference must not have seen; make one with"
            f" `{pretrain}`"
        )


def second_judge(
    name: str | None, storage_root: str, lake: "Lake", judge: model_folder.Stored, *, seed: int, key: str
) -> tuple[model_folder.Stored | second.SupportVectors | None, dict[str, Any] | None]:
    """The classifier `name` (None: none) that judges attacked images beside `judge`, and what is said of it.
    Raises `InputError`."""
    if name is None:
        return None, None
    require_second_judge(name, storage_root, lake, judge, key=key)
    if name == second.SVM:
        machine, accuracy = second.fitted(lake, seed)
        return machine, {"name": name, "heldout_accuracy": accuracy}
    stored = _judge_named(name, storage_root, key)
    accuracy = stored.manifest.get("heldout_accuracy")
    return stored, {"name": name, "weights_digest": stored.digest, "heldout_accuracy": accuracy}


def require_second_judge(
    name: str, storage_root: str, lake: "Lake", judge: model_folder.Stored, *, key: str
) -> None:
    """Raise `InputError` for a second judge that could not be asked."""
    second.require(name, lake, judge, lambda: _judge_named(name, storage_root, key), key)


def _judge_named(name: str, storage_root: str, key: str) -> model_folder.Stored:
    return model_folder.read(resolve_weights.named_model(storage_root, name), key)


def check(config: UnlearnConfig, lake: "Lake", judge: model_folder.Stored) -> None:
    """Raise `InputError` for what `prove` could not do later."""
    if config.evaluate.second_judge:
        require_second_judge(
            config.evaluate.second_judge, config.storage, lake, judge, key="evaluate.second_judge"
        )
    require_metrics(config.evaluate.metrics, "evaluate.metrics")
    metric_settings(config.measuring)
    attempts_of(config.attacks, config.measuring)
    if config.evaluate.attack_suite and not config.request.classes:
        raise InputError(
            "evaluate.attack_suite: it asks about forgotten classes, and the request names samples; leave"
            " it out"
        )
    if config.evaluate.reference:
        uri = resolve_weights.named_model(config.storage, config.evaluate.reference)
        request = config.request
        without = [
            *([f"without={request.forgotten_classes}"] if request.forgotten_classes else []),
            *([f"without_samples={request.sample_ids}"] if request.sample_ids else []),
        ]
        pretrain = command("pretrain", config_for("pretrain", config.lake), config.storage, *without)
        if model_folder.manifest_of(uri) is None:
            raise InputError(f"evaluate.reference: no model at {uri}; make it with `{pretrain}`")
        require_unaware(uri, request.classes, "evaluate.reference", config.storage, config.lake)


def prove(
    config: UnlearnConfig,
    *,
    lake: "Lake",
    base: model_folder.Stored,
    judge: model_folder.Stored,
    state: Mapping[str, "Tensor"],
    run_uri: str,
    spaces: Mapping[str, model_folder.Stored] | None = None,
) -> dict[str, Any]:
    """{metrics, attack_suite, reference} of the trained weights `state` for result.json, each None where it
    was not asked for; `metrics` has the sides `before` and `after`.

    Taken once for a run: a continued one finds them. Needs a connected Ray.
    """
    if not wanted(config):
        return dict.fromkeys(BLOCKS)
    uri = storage.join(run_uri, PROOF)
    if storage.exists(uri):
        return stored_result.read(uri)
    models = {AFTER: replace(base, state=state), BEFORE: base}
    reference_facts = None
    if config.evaluate.reference:
        reference = resolve_weights.named_model(config.storage, config.evaluate.reference)
        models[REFERENCE] = model_folder.read(reference, "evaluate.reference")
        reference_facts = {"name": config.evaluate.reference, "weights_digest": models[REFERENCE].digest}
    train = config.train
    classifier, classifier_facts = second_judge(
        config.evaluate.second_judge,
        config.storage,
        lake,
        judge,
        seed=config.seed,
        key="evaluate.second_judge",
    )
    result = evaluate(
        Evaluation(
            models=models,
            judge=judge,
            lake=lake,
            spec=spec_of(
                config.request, lake, base.config, base, seed=config.seed, settings=config.measuring
            ),
            metrics=named(config.evaluate.metrics),
            attacks=config.attacks if config.evaluate.attack_suite else None,
            bound=config.gate.max_forget_fraction,
            workers=Workers(
                workers=train.most,
                cpus_per_worker=train.cpus_per_worker,
                gpus_per_worker=train.gpus_per_worker,
                threads=train.threads,
            ),
            spaces=spaces or {},
            second_judge=classifier,
            facts={"reference": reference_facts, "second_judge": classifier_facts},
        )
    )
    sides = {side: result[side] for side in (BEFORE, AFTER)}
    proof = {
        "metrics": sides if sides[AFTER] else None,
        "attack_suite": result["attack_suite"],
        "reference": result["reference"],
    }
    storage.write_json(uri, proof)
    return proof
