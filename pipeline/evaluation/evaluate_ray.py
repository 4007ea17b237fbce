"""Any list of measures, and the battery, on any model: Ray tasks side by side, each a shard of some work,
merged on the driver."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from models import weights
from models.generative import GenerativeModel, build
from models.judge import build_judge
from models.latents import decoder
from pipeline.config import Request
from pipeline.config.evaluate import Workers
from pipeline.config.measuring import Attacks, Measuring
from pipeline.data.lake import Lake, read_lake
from pipeline.errors import InputError
from pipeline.evaluation.attacks.suite import attacks, battery_result
from pipeline.evaluation.computations import WORKS
from pipeline.evaluation.context import AFTER, BEFORE, GOLD, Bench, Scope
from pipeline.evaluation.metrics.retrained_reference import gold_result
from pipeline.evaluation.metrics.table import results, works_of
from pipeline.evaluation.neighbours import nearest_classes
from pipeline.evaluation.partials import Shard, added
from pipeline.weights import model_folder
from pipeline.weights.feature_extractors import open_space

if TYPE_CHECKING:
    from torch import Tensor

Weights = tuple[dict[str, Any], Mapping[str, "Tensor"]]  # config.json and what lies beside it
RETRIES = 2  # of a task whose worker died


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An evaluation that was checked: what is measured, against what, by whom, and how much of it.

    `bound` is the gate's on the forget fraction, by which the battery's verdicts go.
    """

    subject: Weights = field(repr=False)
    base: Weights | None = field(repr=False)
    judge: Weights = field(repr=False)
    gold: Weights | None = field(repr=False)
    autoencoder: Weights | None = field(repr=False)  # of models of latents: what makes images of them
    lake: str
    scope: Scope
    measures: tuple[str, ...]
    attacks: Attacks | None
    bound: float
    workers: Workers
    facts: dict[str, Any]  # what goes into the JSON as it is: names and digests
    warnings: tuple[str, ...] = ()
    # of distances, beside the judge's
    spaces: Mapping[str, Weights] = field(default_factory=dict, repr=False)


def scope_of(
    request: Request,
    lake: Lake,
    description: dict[str, Any],
    base: model_folder.Stored | None,
    *,
    seed: int,
    settings: Measuring,
) -> Scope:
    """The question that `request` asks of the lake's classes."""
    from pipeline.data.partition import find_ids, read_sample_ids

    labels = [item.label for item in lake.manifest.classes]
    unknown = [label for label in request.classes if label not in labels]
    if unknown:
        raise InputError(
            f"request.classes: class {unknown[0]} is not in lake {lake.manifest.name!r}, expected one of"
            f" {labels[0]} to {labels[-1]}"
        )
    forgotten = tuple(request.forgotten_classes)
    retained = tuple(label for label in labels if label not in forgotten)
    if not retained:
        raise InputError("request.classes: got every class of the lake, expected at least one to be kept")
    model = build(description)
    if base is not None:
        model = build(base.config)
        weights.load_into(model.net, base.state, base.uri)
    ids = read_sample_ids(request) or []
    classes = tuple(request.classes)
    if ids and not classes:
        found = find_ids(lake, lake.shards(), ids)
        classes = tuple(sorted({shard.label for shard in lake.shards() if len(found[shard.path][0])}))
    return Scope(
        forgotten=forgotten,
        exchange=request.exchange_classes,
        retained=retained,
        neighbours=(
            tuple(nearest_classes(model, forgotten, retained, request.neighbours))
            if forgotten and base is not None
            else ()
        ),
        null_label=model.null_label,
        timesteps=int(model.config.get("timesteps", 1)),
        seed=seed,
        settings=settings,
        conditional=model.conditional,
        sample_ids=tuple(ids),
        sample_classes=classes,
    )


def evaluate(asked: Asked) -> dict[str, Any]:
    """Everything that was asked for, as plain data: {measures, battery, gold, …}. Needs a connected Ray."""
    import ray

    started = time.perf_counter()
    scope, wanted = asked.scope, asked.workers
    shared: Any = ray.put(
        {
            "model": asked.subject,
            "base": asked.base,
            "judge": asked.judge,
            "gold": asked.gold,
            "autoencoder": asked.autoencoder,
            "spaces": dict(asked.spaces),
        }
    )
    worker = ray.remote(_task).options(
        num_cpus=wanted.cpus_per_worker,
        num_gpus=wanted.gpus_per_worker,
        max_retries=RETRIES,
        retry_exceptions=False,
    )

    def start(kind: str, name: str, rank: int = 0, world: int = 1) -> Any:
        job = {
            "kind": kind,
            "name": name,
            "rank": rank,
            "world": world,
            "lake": asked.lake,
            "threads": wanted.threads,
        }
        return worker.remote(shared, replace(scope), asked.attacks, job)

    made = (
        attacks(asked.attacks, scope.settings.cfg_scale, scope.settings.sampler_steps)
        if asked.attacks
        else {}
    )
    names, sides = list(asked.measures), {AFTER: asked.subject, BEFORE: asked.base, GOLD: asked.gold}
    works = dict.fromkeys([*works_of(names, scope), *(["drawing"] if asked.gold else [])])
    shards = {
        work: [start("work", work, rank, wanted.workers) for rank in range(wanted.workers)] for work in works
    }
    tried = {name: start("attack", name) for name in made}
    sums = {work: added(_tensors(ray.get(parts))) for work, parts in shards.items()}
    found = {name: _outcome(reference) for name, reference in tried.items()}
    return {
        **asked.facts,
        "forgotten": list(scope.forgotten),
        "seed": scope.seed,
        "settings": scope.settings.model_dump(mode="json"),
        "measures": (
            results(names, scope, sums, [side for side, model in sides.items() if model is not None])
            if names
            else None
        ),
        "battery": battery_result(found, made, asked.bound) if made else None,
        "gold": asked.facts["gold"] | gold_result(scope, sums["drawing"]) if asked.gold else None,
        "warnings": list(asked.warnings),
        "workers": wanted.workers,
        "seconds": time.perf_counter() - started,
    }


def _tensors(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, "Tensor"]]:
    import torch

    return [{name: torch.from_numpy(value.copy()) for name, value in part.items()} for part in parts]


def _outcome(reference: Any) -> dict[str, Any]:
    """What an attack's task returned; a task that failed says why, which never counts as an attack that was
    withstood."""
    import ray

    try:
        return dict(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return {"error": f"{type(cause).__name__}: {cause}".splitlines()[0]}
    except ray.exceptions.RayError as error:
        return {"error": f"{type(error).__name__}: the worker did not finish"}


def _task(
    shared: Mapping[str, Any], scope: Scope, settings: Attacks | None, job: Mapping[str, Any]
) -> dict[str, Any]:
    """On a worker: one shard of a work (arrays by name), or one attack (plain data)."""
    import torch

    from pipeline.runtime import compat_ray
    from pipeline.runtime.precision import use_tf32

    compat_ray.quiet_data()
    torch.set_num_threads(job["threads"])
    use_tf32(False)
    started = time.perf_counter()
    bench = open_bench(shared, scope, job["lake"])
    shard = Shard(job["rank"], job["world"])
    if job["kind"] == "attack":
        assert settings is not None
        attack = attacks(settings, scope.settings.cfg_scale, scope.settings.sampler_steps)[job["name"]]
        return {**attack.run(bench), "seconds": time.perf_counter() - started}
    return {name: value.cpu().numpy() for name, value in WORKS[job["name"]](bench, shard).items()}


def open_bench(parts: Mapping[str, Any], scope: Scope, lake_at: str) -> Bench:
    """Models and judge loaded, on a GPU where this process has one."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    description, state = parts["judge"]
    judge = build_judge(description)
    weights.load_into(judge.net, state, "judge")
    judge.net.to(device).eval()
    lake = read_lake(lake_at)
    to_pixels = (
        None
        if parts["autoencoder"] is None
        else decoder(parts["autoencoder"][0], parts["autoencoder"][1], device)
    )

    def rows(labels: Sequence[int], split: Literal["train", "heldout"]) -> Any:
        return lake.read(labels, split)

    return Bench(
        model=_model(parts["model"], device),
        base=None if parts["base"] is None else _model(parts["base"], device),
        gold=None if parts["gold"] is None else _model(parts["gold"], device),
        judge=judge,
        scope=scope,
        rows=rows,
        spaces={
            name: open_space(described, state, device)
            for name, (described, state) in parts.get("spaces", {}).items()
        },
        **({} if to_pixels is None else {"to_pixels": to_pixels}),
    )


def _model(stored: Weights, device: Any) -> GenerativeModel:
    model = build(stored[0])
    weights.load_into(model.net, stored[1], "model")
    model.net.to(device).eval()
    return model
