"""An evaluation of any weights, checked before Ray starts: which weights, which lake, what is asked, where
the answer goes."""

from collections.abc import Mapping
from typing import Any

from models.families.transformer import Transformer
from models.generative import build
from pipeline import storage
from pipeline.config import Gate
from pipeline.config.evaluate import EvaluateConfig
from pipeline.data.tombstones import open_lake
from pipeline.errors import InputError
from pipeline.evaluation.adm import Samples, samples_of
from pipeline.evaluation.attacks.table import attempts_of
from pipeline.evaluation.context import AFTER, BEFORE, REFERENCE, EvalSpec
from pipeline.evaluation.evaluate_ray import Evaluation, spec_of
from pipeline.evaluation.gate import judge_warning
from pipeline.evaluation.samplers import require_sampler, require_sampler_of
from pipeline.runs import resolve_weights, run_weights
from pipeline.runs.final_evaluation import require_metrics, require_unaware, second_judge
from pipeline.weights import model_folder
from pipeline.weights.feature_extractors import facts as space_facts
from pipeline.weights.feature_extractors import read_spaces

NOTHING_ASKED = (
    "metrics: got none, expected at least one, attack_suite=true, reference=<model> or evaluate.protocol=adm"
)


def check(config: EvaluateConfig) -> Evaluation:
    """Raise `InputError` for anything that would stop the evaluation later; nothing is written."""
    metrics = require_metrics(config.metrics, "metrics")
    asked = (metrics, config.attack_suite, config.reference, config.evaluate.protocol != "none")
    if not any(asked):
        raise InputError(NOTHING_ASKED)
    attempts_of(config.attacks, config.measuring)
    target = resolve_weights.find(config)
    run = target.run
    lake_name = config.lake or (run.lake if run else None)
    if lake_name is None:
        raise InputError(
            f"lake: got none, and {target.title} is no run's: say which images it was trained on, such as"
            " --set lake=digits"
        )
    lake = open_lake(config.storage, lake_name)
    request = (
        config.request if config.request.classes or config.request.sample_ids or run is None else run.request
    )
    encoder = run.encoder if run and not config.encoder.weights else config.encoder
    models = {AFTER: run_weights.with_decoder(target.stored, lake, encoder)}
    judge = run_weights.judge_at(
        run.judge if run and not config.judge.weights else config.judge, config.storage, lake_name
    )
    spaces = read_spaces((run.features if run else {}) if config.features is None else config.features)
    if config.base:
        models[BEFORE] = model_folder.read(resolve_weights.named_model(config.storage, config.base), "base")
    elif run:
        models[BEFORE] = resolve_weights.base_of(run)
    if config.reference:
        uri = resolve_weights.named_model(config.storage, config.reference)
        models[REFERENCE] = model_folder.read(uri, "reference")
        require_unaware(uri, request.classes, "reference", config.storage, lake_name)
    base, reference = models.get(BEFORE), models.get(REFERENCE)
    spec = spec_of(request, lake, target.description, base, seed=config.seed, settings=config.measuring)
    if config.attack_suite and not spec.forgotten:
        raise InputError(
            "attack_suite: it asks about forgotten classes, and there are none; give --set"
            " 'request.classes=[1]'"
        )
    if reference and not spec.forgotten and not spec.sample_ids:
        raise InputError(
            "reference: it asks about what was forgotten, and nothing was; give --set 'request.classes=[1]'"
        )
    _require_fit(models, spec, lake_name)
    accuracy = judge.manifest.get("heldout_accuracy")
    classifier, classifier_facts = second_judge(
        config.second_judge, config.storage, lake, judge, seed=config.seed, key="second_judge"
    )
    return Evaluation(
        models=models,
        judge=judge,
        lake=lake,
        spec=spec,
        metrics=metrics,
        attacks=config.attacks if config.attack_suite else None,
        bound=(run.gate if run else Gate()).max_forget_fraction,
        workers=config.train,
        facts={
            "what": target.title,
            "run_id": target.run_id,
            "weights_digest": target.digest,
            "base_digest": base.digest if base else None,
            "judge_digest": judge.digest,
            "judge_heldout_accuracy": accuracy,
            "features": space_facts(spaces, judge),
            "lake_digest": lake.digest,
            "reference": None
            if reference is None
            else {"name": config.reference, "weights_digest": reference.digest},
            "second_judge": classifier_facts,
        },
        warnings=tuple(line for line in [judge_warning(accuracy)] if line),
        spaces=spaces,
        second_judge=classifier,
    )


def _require_fit(models: Mapping[str, model_folder.Stored], spec: EvalSpec, lake_name: str) -> None:
    """Raise `InputError` for a model of other classes than the lake's, or without the sampler asked for."""
    for side, model in models.items():
        key = {AFTER: "version", BEFORE: "base"}.get(side, side)
        if (classes := model_folder.class_count(model.config)) != spec.num_classes:
            raise InputError(f"{key}: knows {classes} classes, but lake {lake_name!r} has {spec.num_classes}")
        require_sampler_of(spec.settings, "measuring", model.config)


def samples(config: EvaluateConfig, evaluation: Evaluation, output: str) -> Samples | None:
    """What `evaluate.protocol` asks for, beside `output`; None where it asks for nothing. Raises `InputError`
    for a family that nobody published samples of."""
    if config.evaluate.protocol == "none":
        return None
    model = build(dict(evaluation.models[AFTER].config), device="meta")
    if not isinstance(model, Transformer):
        family = model.config["family"]
        raise InputError(
            f"evaluate.protocol: got adm for a model of family {family}, expected a transformer's weights"
        )
    digest = evaluation.facts["weights_digest"]
    asked = samples_of(model, config.evaluate, output.rpartition("/")[0], seed=config.seed, digest=digest)
    steps = {"evaluate.steps": asked.steps}
    require_sampler(model.config, config.evaluate.sampler, "evaluate.", steps, own=model.published)
    return asked


def output_uri(config: EvaluateConfig, facts: Mapping[str, Any]) -> str:
    """Where the JSON goes: `output`, else evaluations/ in the run's folder or, for a model that no run made,
    under the storage root."""
    if config.output:
        return storage.absolute(config.output)
    question = config.model_dump(
        mode="json",
        include={
            "metrics",
            "attack_suite",
            "second_judge",
            "reference",
            "measuring",
            "attacks",
            "request",
            "seed",
        },
    )
    name = f"{facts['weights_digest'][:12]}-{storage.digest_of(question)[:8]}.json"
    return storage.join(
        config.storage, *(("runs", facts["run_id"]) if facts["run_id"] else ()), "evaluations", name
    )
