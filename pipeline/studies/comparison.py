"""Many settings of the main job side by side: every row of a grid on every request, a pair of classes or
named samples, and seed, in plain processes.

The same partition, loop and metrics as the main job, without Ray, MLflow or registry. Results are appended
as they come, so an interrupted comparison goes on.
"""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import CompareConfig, UnlearnConfig
from pipeline.data.tombstones import open_lake
from pipeline.studies import named_samples
from pipeline.studies.grid import Cell, cells, label_of, request_of
from pipeline.studies.resumable import flattened, markdown, require_same_settings, results, stored

if TYPE_CHECKING:
    from pipeline.data.partition import Partition
    from pipeline.runs.preflight import Prepared
    from pipeline.studies.pictures import Drawn
    from pipeline.training.step import Inputs

BASE = "base"


def compare(config: CompareConfig, results_uri: str) -> Iterator[dict[str, Any]]:
    """Run what `results_uri` (JSON lines) does not hold yet; yields every result, old ones first. Samples go
    into a folder beside it."""
    require_same_settings(settings_of(config), f"{samples_uri(config)}.yaml")
    return results(
        cells(config)[config.shard :: config.shards],
        partial(run_cell, samples_uri=samples_uri(config)),
        results_uri,
        config.processes,
    )


def samples_uri(config: CompareConfig) -> str:
    """The folder of the pictures; beside it lie the results and the settings."""
    return storage.join(config.storage, "comparisons", config.name)


def results_uri(config: CompareConfig) -> str:
    """Where this shard's results lie."""
    part = f"-{config.shard}-of-{config.shards}" if config.shards > 1 else ""
    return f"{samples_uri(config)}{part}.jsonl"


def every_result(config: CompareConfig) -> list[dict[str, Any]]:
    """Those of the comparison's runs that any shard has left, in the order of the grid."""
    lines = results_of(config.storage, config.name)
    return [lines[cell.key] for cell in cells(config) if cell.key in lines]


def results_of(storage_root: str, name: str) -> dict[str, dict[str, Any]]:
    """What the shards of comparison `name` have left, by key."""
    folder = storage.join(storage_root, "comparisons")
    lines: dict[str, dict[str, Any]] = {}
    for file in storage.listing(folder):
        if re.fullmatch(rf"{re.escape(name)}(-\d+-of-\d+)?\.jsonl", file):
            lines |= stored(storage.join(folder, file))
    return lines


def settings_of(config: CompareConfig) -> dict[str, Any]:
    """What the runs depend on, by dotted key. Rows, requests and seeds may be added to a comparison."""
    shared = {"lake": config.lake, "cpu_seconds": config.cpu_seconds, "unlearn": config.unlearn}
    return {**flattened(shared), **{f"rows.{row}": settings for row, settings in config.rows.items()}}


def assembled(config: UnlearnConfig) -> "tuple[Prepared, Partition, Inputs]":
    """All that a run of the main job needs, in this process and on one thread."""
    import torch

    from pipeline.runs import local, preflight
    from pipeline.runs.unlearn import with_own_weights

    torch.set_num_threads(1)
    prepared = with_own_weights(preflight.check(config))
    return prepared, *local.open_run(prepared)


def run_cell(cell: Cell, samples_uri: str) -> dict[str, Any]:
    """One run in this process, on one thread; a run that breaks down numerically is a result too."""
    from pipeline.runs.result import base_metrics_of
    from pipeline.studies.behaviour import probe_losses
    from pipeline.training.loop import Hooks, unlearn
    from pipeline.training.sample_grids import draw_grids
    from pipeline.unlearning.collectives import NonFiniteError

    prepared, partition, inputs = assembled(cell.config)
    before_uri, base_metrics = base_metrics_of(prepared, partition.digest)
    checks: list[dict[str, Any]] = []  # the base's first
    hooks = Hooks(
        before=base_metrics,
        record=lambda r: checks.append(r) if r["kind"] == "evaluation" else None,
    )
    request = PurePosixPath(before_uri).stem  # the base, the request, the seed and how it is sampled
    facts: dict[str, Any] = {
        "key": cell.key,
        "row": cell.row,
        "pair": list(cell.pair),
        "seed": cell.config.seed,
        "samples": request,
    }
    if cell.named:
        facts |= {"named": cell.named, "labels": list(inputs.subject.spec.sample_classes)}

    def draw(name: str) -> None:
        inputs.model.net.eval()
        draw_grids(inputs.model, prepared.config, inputs.subject, _samples_of(samples_uri, request, name))

    draw(BASE)
    try:
        outcome = unlearn(inputs, hooks=hooks)
    except NonFiniteError as error:
        return {**facts, "failed": str(error)}
    if base_metrics is None:  # the other rows of this request and seed start from the same measures
        storage.write_json(before_uri, {"result": outcome.before, "record": checks[0]})
    inputs.model.net.load_state_dict(dict(outcome.trained), strict=False)
    draw(cell.key)
    losses = None
    if inputs.model.conditional and cell.pair:
        losses = probe_losses(inputs.model, prepared.lake, cell.pair[0])
    after = outcome.after
    return {
        **facts,
        "steps": outcome.steps,
        "first_crossing_step": outcome.first_crossing_step,
        "settled_step": outcome.settled_step,
        "forget_fraction": (after["forget_fraction"] or {}).get("value"),
        "exchange_fraction": (after["exchange_fraction"] or {}).get("value"),
        "exchange_density": ((after["exchange_density"] or {}).get("forgotten") or {}).get("value"),
        "exchange_density_own": ((outcome.before["exchange_density"] or {}).get("own") or {}).get("value"),
        "retain_mean": after["retain_accuracy"]["mean"],
        "retain_min": after["retain_accuracy"]["min"],
        "retain_mean_before": outcome.before["retain_accuracy"]["mean"],
        "retain_min_before": outcome.before["retain_accuracy"]["min"],
        "fid": after["fid"]["judge"],
        "retain_neighbours": after["retain_accuracy"].get("neighbours"),
        "step_cpu_seconds": outcome.timing["step_cpu_seconds"],
        "prepare_cpu_seconds": outcome.timing["prepare_cpu_seconds"],
        "losses": losses,
        **(named_samples.figures(outcome.before, after, checks) if cell.named else {}),
        **_image_quality(cell.config, prepared, inputs),
    }


def _image_quality(config: UnlearnConfig, prepared: "Prepared", inputs: "Inputs") -> dict[str, Any]:
    """Kernel distance, precision and recall of as many images of the retained classes as the final check
    samples, by the space they are taken in."""
    from pipeline.config.measuring import Measuring
    from pipeline.evaluation.context import AFTER, EvalContext
    from pipeline.evaluation.evaluate_ray import spec_of
    from pipeline.evaluation.metrics.table import evaluate
    from pipeline.evaluation.partials import Shard

    checks = config.evaluate
    settings = Measuring(
        samples=20,  # the least of what is not looked at
        null_samples=1,
        cfg_scales=[],
        retain_samples=max(2, checks.final_retain_samples),
        cfg_scale=checks.cfg_scale,
        sampler_steps=checks.sampler_steps,
        sampler=checks.sampler,
    )
    spec = spec_of(
        config.request,
        prepared.lake,
        prepared.base.config,
        prepared.base,
        seed=config.seed,
        settings=settings,
    )
    context = EvalContext(
        model=inputs.model,
        judge=inputs.subject.judge,
        spec=spec,
        rows=prepared.lake.read,
        spaces=inputs.subject.spaces,
        to_pixels=inputs.subject.to_pixels,
    )
    return evaluate(("kid", "precision_recall"), context, Shard())[AFTER]


def _samples_of(samples_uri: str, request: str, name: str) -> str:
    return storage.join(samples_uri, request, f"{name}.safetensors")


def drawn_of(config: CompareConfig, result: Mapping[str, Any], name: str) -> "Drawn":
    """The images that a run, or the base before it (`BASE`), left, by label."""
    from models.weights import from_bytes

    uri = _samples_of(samples_uri(config), result["samples"], name)
    return {int(label): images.numpy() for label, images in from_bytes(storage.read_bytes(uri), uri).items()}


def draw_sheets(config: CompareConfig, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A picture for each request, of its first seed: what the base and every row sample on the same noise.
    Returns where they lie."""
    from pipeline.studies.pictures import sheet

    names = [item.name for item in open_lake(config.storage, config.lake).manifest.classes]
    uris = []
    for request in dict.fromkeys(map(request_of, results)):
        of_row = {
            r["row"]: r
            for r in results
            if request_of(r) == request and r["seed"] == config.seeds[0] and "failed" not in r
        }
        rows = [(row, of_row[row]) for row in config.rows if "samples" in of_row.get(row, {})]
        if not rows:
            continue
        base = drawn_of(config, rows[0][1], BASE)
        uri = storage.join(samples_uri(config), f"{'-to-'.join(map(str, request))}.png")
        lines = [(BASE, base), *((row, drawn_of(config, result, result["key"])) for row, result in rows)]
        storage.write_bytes(uri, sheet(lines, label_of(rows[0][1]), names))
        uris.append(uri)
    return uris


def table(results: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> str:
    """Markdown: a line for each row of the grid with medians over runs, the worst retention and how many
    settled; of requests for named samples a table of their own."""
    of_samples = [result for result in results if not result.get("pair", True)]
    if of_samples:
        of_classes = [result for result in results if result["pair"]]
        tables = [table(of_classes, rows)] if of_classes else []
        return "\n\n".join([*tables, named_samples.table(of_samples, rows)])
    head = [
        "settings",
        "runs",
        "first crossing",
        "settled (of runs)",
        "forget",
        "as exchange",
        "density of real ones (base's own)",
        "retain mean (worst run)",
        "retain min (worst run)",
        "against the base, mean / min (worst run)",
        "Frechet, judge features",
        "CPU s a step",
    ]
    lines: list[list[str]] = []
    for row in rows:
        all_runs = [r for r in results if r["row"] == row]
        runs = [r for r in all_runs if "failed" not in r]
        if not runs:
            continue
        settled = [r["settled_step"] for r in runs if r["settled_step"] is not None]
        crossed = [r["first_crossing_step"] for r in runs if r["first_crossing_step"] is not None]
        means, minima = [r["retain_mean"] for r in runs], [r["retain_min"] for r in runs]
        exchange, alike, own = (
            [r[key] for r in runs if r.get(key) is not None]
            for key in ("exchange_fraction", "exchange_density", "exchange_density_own")
        )
        cells_ = [
            row,
            str(len(all_runs)),
            f"{statistics.median(crossed):g} ({len(crossed)})" if crossed else "never",
            f"{statistics.median(settled):g} ({len(settled)})" if settled else "never",
            f"{statistics.median(r['forget_fraction'] for r in runs):.3f}",
            f"{statistics.median(exchange):.2f}" if exchange else "",
            f"{statistics.median(alike):.2f} ({statistics.median(own):.2f})" if alike and own else "",
            f"{statistics.median(means):.3f} ({min(means):.3f})",
            f"{statistics.median(minima):.2f} ({min(minima):.2f})",
            f"{_change(runs, 'retain_mean')} / {_change(runs, 'retain_min')}",
            f"{statistics.median(r['fid'] for r in runs):.3g}",
            f"{statistics.median(r['step_cpu_seconds'] / r['steps'] for r in runs):.3f}",
        ]
        lines.append(cells_)
    return markdown(head, lines)


def _change(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    """Median and worst of after less before, of runs on the same noise."""
    changes = [r[name] - r[f"{name}_before"] for r in runs]
    return f"{statistics.median(changes):+.3f} ({min(changes):+.3f})"
