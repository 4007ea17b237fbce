"""Any list of metrics, and the attack suite, on any model: Ray tasks side by side, each a shard of some
computation, merged on the driver."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from models import weights
from models.families.transformer import Transformer
from models.generative import GenerativeModel, build
from models.judge import build_judge
from pipeline.config import Request
from pipeline.config.evaluate import Workers
from pipeline.config.measuring import Attacks, Measuring
from pipeline.data.lake import Lake
from pipeline.errors import InputError
from pipeline.evaluation.adm import Samples, assemble, make_parts
from pipeline.evaluation.attacks.suite import attack_suite_result
from pipeline.evaluation.attacks.table import attempts_of
from pipeline.evaluation.context import AFTER, BEFORE, REFERENCE, EvalContext, EvalSpec
from pipeline.evaluation.metrics.table import computations_of, metric_settings, results
from pipeline.evaluation.neighbours import nearest_classes
from pipeline.evaluation.partials import Shard, merge
from pipeline.evaluation.second_judge import SupportVectors, opened
from pipeline.weights import decoder
from pipeline.weights.feature_extractors import open_space
from pipeline.weights.model_folder import Stored

if TYPE_CHECKING:
    from torch import Tensor

RETRIES = 2  # of a task whose worker died
OF_REFERENCE = (
    "forget_fraction",
    "retain_accuracy",
    "retrained_reference",
)  # what a retrained reference is there for


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation that was checked: what is evaluated, against what, by whom, and how much of it.

    `models` by side: after and, where there are any, before and reference. `spaces`: where distances are
    taken beside the judge's features. `bound` is the gate's on the forget fraction, by which the attacks'
    verdicts go.
    """

    models: Mapping[str, Stored] = field(repr=False)
    judge: Stored = field(repr=False)
    lake: Lake
    spec: EvalSpec
    metrics: tuple[str, ...]
    attacks: Attacks | None
    bound: float
    workers: Workers
    facts: dict[str, Any]  # what goes into the JSON as it is: names and digests
    warnings: tuple[str, ...] = ()
    spaces: Mapping[str, Stored] = field(default_factory=dict, repr=False)
    second_judge: Stored | SupportVectors | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, with those that a retrained reference is there for."""
        return tuple(dict.fromkeys([*self.metrics, *(OF_REFERENCE if REFERENCE in self.models else ())]))


def spec_of(
    request: Request,
    lake: Lake,
    description: dict[str, Any],
    base: Stored | None,
    *,
    seed: int,
    settings: Measuring,
) -> EvalSpec:
    """The question that `request` asks of the lake's classes. Raises `InputError` where there is none."""
    from pipeline.data.selection import find_ids, read_sample_ids

    labels = [item.label for item in lake.manifest.classes]
    for key, classes in (
        ("classes", request.classes),
        ("forgotten_earlier", request.forgotten_earlier),
        ("sample_classes", request.sample_classes),
    ):
        if unknown := [label for label in classes if label not in labels]:
            raise InputError(
                f"request.{key}: class {unknown[0]} is not in lake {lake.manifest.name!r}, expected one of"
                f" {labels[0]} to {labels[-1]}"
            )
    forgotten = tuple(request.classes)
    earlier = tuple(label for label in request.forgotten_earlier if label not in forgotten)
    retained = tuple(label for label in labels if label not in request.forgotten_classes)
    if not retained:
        raise InputError("request.classes: got every class of the lake, expected at least one to be kept")
    own = metric_settings(settings)
    model = build(description)
    if base is not None:
        model = build(base.config)
        weights.load_into(model.net, base.state, base.uri)
    ids = read_sample_ids(request) or []
    sample_classes = tuple(request.sample_classes)
    if ids and not sample_classes:
        positions = find_ids(lake, lake.shards(), ids)
        sample_classes = tuple(
            sorted({shard.label for shard in lake.shards() if len(positions[shard.path][0])})
        )
    near = (
        nearest_classes(model, forgotten, retained, request.neighbours)
        if forgotten and base is not None
        else ()
    )
    return EvalSpec(
        forgotten=forgotten,
        earlier=earlier,
        exchange=request.exchange_classes,
        retained=retained,
        neighbours=tuple(near),
        null_label=model.null_label,
        timesteps=model.time.steps,
        num_classes=len(labels),
        seed=seed,
        settings=settings,
        own=own,
        conditional=model.conditional,
        sample_ids=tuple(ids),
        sample_classes=sample_classes if ids else (),
    )


def evaluate(evaluation: Evaluation) -> dict[str, Any]:
    """Everything that was asked for, as plain data: {before, after, reference, attack_suite, …}, the sides as
    in result.json. Needs a connected Ray."""
    import ray

    started = time.perf_counter()
    spec, workers, names = evaluation.spec, evaluation.workers, evaluation.names
    shared: Any = ray.put(evaluation)
    options: dict[str, Any] = {"num_cpus": workers.cpus_per_worker, "num_gpus": workers.gpus_per_worker}
    options |= {"max_retries": RETRIES, "retry_exceptions": False}
    shard = ray.remote(_shard).options(**options)
    attack = ray.remote(_attempt).options(**options)

    attempts = attempts_of(evaluation.attacks, spec.settings) if evaluation.attacks else {}
    shards = [
        shard.remote(shared, name, rank)
        for name in computations_of(names, spec)
        for rank in range(workers.workers)
    ]
    attack_tasks = {name: attack.remote(shared, name, AFTER) for name in attempts}
    compared = [name for name, one in attempts.items() if one.recalls and REFERENCE in evaluation.models]
    tried_on_reference = {name: attack.remote(shared, name, REFERENCE) for name in compared}
    sides = results(names, spec, merge(_tensors(ray.get(shards))), list(evaluation.models))
    outcomes = {name: _outcome(task) for name, task in attack_tasks.items()}
    of_reference = {name: _outcome(task) for name, task in tried_on_reference.items()}
    return {
        **evaluation.facts,
        "forgotten": list(spec.forgotten),
        "forgotten_earlier": list(spec.earlier),
        "seed": spec.seed,
        "settings": spec.settings.model_dump(mode="json"),
        "before": sides.get(BEFORE) if names else None,
        "after": sides[AFTER] if names else None,
        "reference": {**evaluation.facts["reference"], **sides[REFERENCE]} if REFERENCE in sides else None,
        "attack_suite": (
            attack_suite_result(
                outcomes, attempts, evaluation.bound, of_reference, evaluation.facts.get("second_judge")
            )
            if attempts
            else None
        ),
        "warnings": list(evaluation.warnings),
        "workers": workers.workers,
        "seconds": time.perf_counter() - started,
    }


def write_samples(evaluation: Evaluation, samples: Samples) -> None:
    """The archive that `samples` describes, its parts made by tasks side by side; parts that are there stay.
    Needs a connected Ray."""
    import ray

    workers = evaluation.workers
    shared: Any = ray.put(evaluation)
    task = ray.remote(_parts).options(
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
        max_retries=RETRIES,
        retry_exceptions=False,
    )
    ray.get([task.remote(shared, samples, rank) for rank in range(workers.workers)])
    assemble(samples)


def _parts(evaluation: Evaluation, samples: Samples, rank: int) -> None:
    """On a worker: its share of the archive's parts."""
    context = _opened(evaluation)
    assert isinstance(context.model, Transformer)
    own = range(rank, len(samples.parts), evaluation.workers.workers)
    make_parts(samples, context.model, context.to_pixels, own)


def _tensors(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, "Tensor"]]:
    import torch

    return [{name: torch.from_numpy(value.copy()) for name, value in part.items()} for part in parts]


def _outcome(reference: Any) -> dict[str, Any]:
    """What an attempt's task returned; a task that failed says why, which never counts as an attack that was
    withstood."""
    import ray

    try:
        return dict(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return {"error": f"{type(cause).__name__}: {cause}".splitlines()[0]}
    except ray.exceptions.RayError as error:
        return {"error": f"{type(error).__name__}: the worker did not finish"}


def _shard(evaluation: Evaluation, name: str, rank: int) -> dict[str, Any]:
    """On a worker: one shard of a computation, arrays by name."""
    context = _opened(evaluation)
    compute = computations_of(evaluation.names, evaluation.spec)[name]
    partials = compute(context, Shard(rank, evaluation.workers.workers))
    return {key: value.cpu().numpy() for key, value in partials.items()}


def _attempt(evaluation: Evaluation, name: str, side: str) -> dict[str, Any]:
    """On a worker: one attempt of an attack on the model of a side, plain data."""
    assert evaluation.attacks is not None
    started, context = time.perf_counter(), _opened(evaluation)
    context = replace(context, model=context.sides[side])
    attempt = attempts_of(evaluation.attacks, evaluation.spec.settings)[name]
    return {**attempt.run(context, evaluation.attacks), "seconds": time.perf_counter() - started}


def _opened(evaluation: Evaluation) -> EvalContext:
    """Models and judge loaded, on a GPU where this process has one."""
    import torch

    from pipeline.runtime import compat_ray
    from pipeline.runtime.precision import use_tf32

    compat_ray.quiet_data()
    torch.set_num_threads(evaluation.workers.threads)
    use_tf32(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def loaded(model: Any, stored: Stored) -> Any:
        weights.load_into(model.net, stored.state, stored.uri)
        model.net.to(device).eval()
        return model

    models: dict[str, GenerativeModel] = {
        side: loaded(build(stored.config), stored) for side, stored in evaluation.models.items()
    }
    return EvalContext(
        model=models[AFTER],
        base=models.get(BEFORE),
        reference=models.get(REFERENCE),
        judge=loaded(build_judge(evaluation.judge.config), evaluation.judge),
        spec=evaluation.spec,
        rows=evaluation.lake.read,
        spaces={
            name: open_space(stored.config, stored.state, device)
            for name, stored in evaluation.spaces.items()
        },
        to_pixels=decoder.to_pixels(evaluation.models[AFTER], device),
        second=opened(evaluation.second_judge, device) if evaluation.second_judge else None,
    )
