"""What the main job asks at its end, beside the gate's measures: the battery, further measures, the gold
reference."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.config.evaluate import Workers
from pipeline.errors import InputError
from pipeline.evaluation.evaluate_ray import Asked, evaluate, scope_of
from pipeline.evaluation.metrics.table import MEASURES
from pipeline.runs import resolve_weights
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.lake import Lake

PROOF = "evaluations/proof.json"  # under the run
KEPT = ("measures", "battery", "gold")


def wanted(config: UnlearnConfig) -> bool:
    return config.evaluate.battery or bool(config.evaluate.measures) or config.evaluate.gold is not None


def check(config: UnlearnConfig) -> None:
    """Raise `InputError` for what `prove` could not do later."""
    unknown = [name for name in config.evaluate.measures if name not in MEASURES]
    if unknown:
        raise InputError(f"evaluate.measures: got {unknown[0]!r}, expected some of {', '.join(MEASURES)}")
    if config.evaluate.battery and not config.request.forgotten_classes:
        raise InputError(
            "evaluate.battery: it asks about forgotten classes, and the request names samples; leave it out"
        )
    if (
        config.evaluate.gold
        and model_folder.manifest_of(resolve_weights.named_model(config.storage, config.evaluate.gold))
        is None
    ):
        named = config.request.sample_ids
        without = f"without_samples={named}" if named else f"without={config.request.classes}"
        raise InputError(
            f"evaluate.gold: no model at {resolve_weights.named_model(config.storage, config.evaluate.gold)};"
            " make it with `python jobs/pretrain.py --config jobs/configs/pretrain_<lake>.yaml --set"
            f" {without}`"
        )


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
    """{measures, battery, gold} of the trained weights `state` for result.json, each None where it was not
    asked for.

    Taken once for a run: a continued one finds them. Needs a connected Ray.
    """
    if not wanted(config):
        return dict.fromkeys(KEPT)
    uri = storage.join(run_uri, PROOF)
    if storage.exists(uri):
        return dict(storage.read_json(uri))
    gold = (
        model_folder.read(resolve_weights.named_model(config.storage, config.evaluate.gold), "evaluate.gold")
        if config.evaluate.gold
        else None
    )
    train = config.train
    found = evaluate(
        Asked(
            subject=(base.config, state),
            base=(base.config, base.state),
            judge=(judge.config, judge.state),
            gold=None if gold is None else (gold.config, gold.state),
            autoencoder=None if base.autoencoder is None else (base.config["autoencoder"], base.autoencoder),
            lake=lake.uri,
            scope=scope_of(
                config.request, lake, base.config, base, seed=config.seed, settings=config.measuring
            ),
            measures=tuple(dict.fromkeys(config.evaluate.measures)),
            attacks=config.attacks if config.evaluate.battery else None,
            bound=config.gate.max_forget_fraction,
            workers=Workers(
                workers=train.most,
                cpus_per_worker=train.cpus_per_worker,
                gpus_per_worker=train.gpus_per_worker,
                threads=train.threads,
            ),
            spaces={name: (stored.config, stored.state) for name, stored in (spaces or {}).items()},
            facts={
                "gold": (
                    None if gold is None else {"name": config.evaluate.gold, "weights_digest": gold.digest}
                )
            },
        )
    )
    proof = {name: found[name] for name in KEPT}
    storage.write_json(uri, proof)
    return proof
