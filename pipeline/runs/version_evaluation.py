"""An evaluation of any weights, checked before Ray starts: which weights, which lake, what is asked, where
the answer goes."""

from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.config.evaluate import EvaluateConfig
from pipeline.data.lake import lake_uri, read_lake
from pipeline.errors import InputError
from pipeline.evaluation.evaluate_ray import Asked, scope_of
from pipeline.evaluation.gate import judge_warning
from pipeline.evaluation.metrics.table import MEASURES
from pipeline.runs import resolve_weights, run_weights
from pipeline.weights import model_folder
from pipeline.weights.feature_extractors import facts as space_facts
from pipeline.weights.feature_extractors import read_spaces


def check(config: EvaluateConfig) -> Asked:
    """Raise `InputError` for anything that would stop the evaluation later; nothing is written."""
    unknown = [name for name in config.measures if name not in MEASURES]
    if unknown:
        raise InputError(f"measures: got {unknown[0]!r}, expected some of {', '.join(MEASURES)}")
    if not config.measures and not config.battery and not config.gold:
        raise InputError("measures: got none, expected at least one measure, battery=true or gold=<model>")
    found = resolve_weights.find(config)
    run = found.run
    lake_name = config.lake or (run.lake if run else None)
    if lake_name is None:
        raise InputError(
            f"lake: got none, and {found.what} is no run's: say which images it was trained on, such as --set"
            " lake=digits"
        )
    lake = read_lake(lake_uri(config.storage, lake_name))
    request = (
        config.request if config.request.classes or config.request.sample_ids or run is None else run.request
    )
    encoder = run.encoder if run and not config.encoder.weights else config.encoder
    subject = run_weights.with_decoder(found.stored, lake, encoder)
    judge = run_weights.judge_at(
        run.judge if run and not config.judge.weights else config.judge, config.storage, lake_name
    )
    spaces = read_spaces((run.features if run else {}) if config.features is None else config.features)
    base = resolve_weights.base_of(run) if run and not config.base else None
    if config.base:
        base = model_folder.read(resolve_weights.named_model(config.storage, config.base), "base")
    gold = (
        model_folder.read(resolve_weights.named_model(config.storage, config.gold), "gold")
        if config.gold
        else None
    )
    scope = scope_of(request, lake, found.description, base, seed=config.seed, settings=config.measuring)
    if config.battery and not scope.forgotten:
        raise InputError(
            "battery: it asks about forgotten classes, and there are none; give --set 'request.classes=[1]'"
        )
    if gold and not scope.forgotten and not scope.sample_ids:
        raise InputError(
            "gold: it asks about what was forgotten, and nothing was; give --set 'request.classes=[1]'"
        )
    for what, other in (
        ("version", found.description),
        ("base", base and base.config),
        ("gold", gold and gold.config),
    ):
        if other and model_folder.class_count(other) != len(lake.manifest.classes):
            raise InputError(
                f"{what}: knows {model_folder.class_count(other)} classes, but lake {lake_name!r} has"
                f" {len(lake.manifest.classes)}"
            )
    accuracy = judge.manifest.get("heldout_accuracy")
    return Asked(
        subject=(found.description, found.state),
        base=None if base is None else (base.config, base.state),
        judge=(judge.config, judge.state),
        gold=None if gold is None else (gold.config, gold.state),
        autoencoder=(
            None if subject.autoencoder is None else (subject.config["autoencoder"], subject.autoencoder)
        ),
        lake=lake.uri,
        scope=scope,
        measures=tuple(dict.fromkeys(config.measures)),
        attacks=config.attacks if config.battery else None,
        bound=run.gate.max_forget_fraction if run else 0.05,
        workers=config.train,
        facts={
            "what": found.what,
            "run_id": found.run_id,
            "weights_digest": found.digest,
            "base_digest": base.digest if base else None,
            "judge_digest": judge.digest,
            "judge_heldout_accuracy": accuracy,
            "features": space_facts(spaces, judge),
            "lake_digest": lake.digest,
            "gold": None if gold is None else {"name": config.gold, "weights_digest": gold.digest},
        },
        warnings=tuple(line for line in [judge_warning(accuracy)] if line),
        spaces={name: (stored.config, stored.state) for name, stored in spaces.items()},
    )


def output_uri(config: EvaluateConfig, found: Mapping[str, Any]) -> str:
    """Where the JSON goes: `output`, else evaluations/ in the run's folder or, for a model that no run made,
    under the storage root."""
    if config.output:
        return storage.absolute(config.output)
    asked = config.model_dump(
        mode="json", include={"measures", "battery", "gold", "measuring", "attacks", "request", "seed"}
    )
    name = f"{found['weights_digest'][:12]}-{storage.digest_of(asked)[:8]}.json"
    return storage.join(
        config.storage, *(("runs", found["run_id"]) if found["run_id"] else ()), "evaluations", name
    )
