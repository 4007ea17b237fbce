"""Methods under attack: the runs of a comparison, each followed by attacks of the attack suite and by
relearning, in plain processes."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import storage
from pipeline.config.attack import AttackMethodsConfig
from pipeline.config.measuring import Attacks, Measuring
from pipeline.errors import InputError
from pipeline.evaluation.attacks.suite import retained_mean
from pipeline.evaluation.attacks.table import attempts_of
from pipeline.studies import comparison
from pipeline.studies.grid import Cell, cells, model_uri_of
from pipeline.studies.resumable import markdown, results
from pipeline.weights import model_folder

BASE, REFERENCE = "the model before", "never saw the class"


@dataclass(frozen=True, kw_only=True)
class AttackedCell:
    """A run and what is tried on it. `reference` names weights that are taken as they are, without a run."""

    cell: Cell
    measuring: Measuring
    attacks: Attacks
    attack_suite: tuple[str, ...]
    reference: str | None = None

    @property
    def key(self) -> str:
        settings = [
            self.measuring.model_dump(mode="json"),
            self.attacks.model_dump(mode="json"),
            list(self.attack_suite),
            self.reference,
        ]
        return storage.digest_of([self.cell.key, settings])


def attacked_cells(config: AttackMethodsConfig) -> list[AttackedCell]:
    """Every run, then the references; raises `InputError` for a setting or an attack that there is not."""
    suite = attempts_of(config.attacks, config.measuring)
    unknown = [name for name in config.attack_suite if name not in suite]
    if unknown:
        raise InputError(f"attack_suite: got {unknown[0]!r}, expected some of {', '.join(suite)}")
    attacked = []
    options: dict[str, Any] = {
        "measuring": config.measuring,
        "attacks": config.attacks,
        "attack_suite": tuple(config.attack_suite),
    }
    runs = cells(config)
    for cell in runs:
        attacked.append(AttackedCell(cell=cell, **options))
    if config.references:
        first = next(iter(config.rows))
        for cell in (cell for cell in runs if cell.row == first):
            base = model_uri_of(cell)
            reference = f"{base}-without-{cell.pair[0]}"
            for row, uri in ((BASE, base), (REFERENCE, reference)):
                if model_folder.manifest_of(uri) is not None:
                    attacked.append(AttackedCell(cell=replace(cell, row=row), reference=uri, **options))
    return attacked


def compare(config: AttackMethodsConfig, results_uri: str) -> Iterator[dict[str, Any]]:
    """Run what `results_uri` (JSON lines) does not hold yet; yields every result, old ones first."""
    runs = attacked_cells(config)[config.shard :: config.shards]
    return results(runs, run_attacked, results_uri, config.processes)


def run_attacked(attacked_cell: AttackedCell) -> dict[str, Any]:
    """One run, attacked, in this process and on one thread."""
    import torch

    from models import weights
    from pipeline.evaluation.context import AFTER, EvalContext
    from pipeline.evaluation.evaluate_ray import spec_of
    from pipeline.evaluation.metrics.relearning import relearn_steps, relearning
    from pipeline.evaluation.partials import Shard
    from pipeline.training.loop import unlearn
    from pipeline.unlearning.collectives import NonFiniteError

    cell = attacked_cell.cell
    prepared, _, inputs = comparison.assembled(cell.config)
    facts: dict[str, Any] = {
        "key": attacked_cell.key,
        "row": cell.row,
        "pair": list(cell.pair),
        "seed": cell.config.seed,
        "settled_step": None,
    }
    if attacked_cell.reference:
        stored = model_folder.read(attacked_cell.reference, "reference")
        weights.load_into(inputs.model.net, stored.state, stored.uri)
    else:
        try:
            outcome = unlearn(inputs)
        except NonFiniteError as error:
            return {**facts, "failed": str(error)}
        facts["settled_step"] = outcome.settled_step
        with torch.no_grad():
            for name, parameter in inputs.model.net.named_parameters():
                if name in outcome.trained:
                    parameter.copy_(outcome.trained[name])
    inputs.model.net.eval()
    spec = spec_of(
        cell.config.request,
        prepared.lake,
        prepared.base.config,
        prepared.base,
        seed=cell.config.seed,
        settings=attacked_cell.measuring,
    )
    context = EvalContext(model=inputs.model, judge=inputs.subject.judge, spec=spec, rows=prepared.lake.read)
    suite = attempts_of(attacked_cell.attacks, attacked_cell.measuring)
    return {
        **facts,
        "attack_suite": {
            name: suite[name].run(context, attacked_cell.attacks) for name in attacked_cell.attack_suite
        },
        "relearn": relearn_steps(spec, relearning(context, Shard()), AFTER),
    }


def table(results: Sequence[Mapping[str, Any]], config: AttackMethodsConfig) -> str:
    """Markdown: a line for each row with medians over its runs: forget fraction after each attack, relearning
    steps."""
    embeddings = [name for name in config.attack_suite if name.startswith("embedding")]
    others = [name for name in config.attack_suite if name not in embeddings]
    head = ["method", "runs", "settled", "retained right", *(_title(name) for name in others)]
    head += [*(["free embedding (worst start)"] if embeddings else []), "relearn steps", "a new label"]
    lines: list[list[str]] = []
    for row in dict.fromkeys(r["row"] for r in results):
        all_runs = [r for r in results if r["row"] == row]
        runs = [r for r in all_runs if "failed" not in r]
        if not runs:
            lines.append([row, str(len(all_runs)), *["failed"] * (len(head) - 2)])
            continue

        def shares(names: Sequence[str], runs: Sequence[Mapping[str, Any]] = runs) -> str:
            worst = [max(r["attack_suite"][name]["forget_fraction"]["value"] for name in names) for r in runs]
            return f"{statistics.median(worst):.2f} ({min(worst):.2f} to {max(worst):.2f})"

        settled = [r for r in runs if r["settled_step"] is not None]
        accuracies = [retained_mean(r["attack_suite"][others[0]]) or 0.0 for r in runs] if others else []
        cells = [
            row,
            str(len(all_runs)),
            "" if row in (BASE, REFERENCE) else f"{len(settled)} of {len(runs)}",
        ]
        cells += [
            f"{statistics.median(accuracies):.3f}" if accuracies else "",
            *(shares([name]) for name in others),
        ]
        cells += [shares(embeddings)] if embeddings else []
        cells += [_steps(runs, variant) for variant in ("forgotten_label", "never_trained_label")]
        lines.append(cells)
    return markdown(head, lines)


def _title(name: str) -> str:
    return {"none": "forget fraction", "finetune": "after fine-tuning"}.get(name, name)


def _steps(runs: Sequence[Mapping[str, Any]], variant: str) -> str:
    """The steps of each run, in order; what is not reached counts as more than the budget."""
    budget = runs[0]["relearn"]["budget"]
    steps = sorted(
        budget + 1 if r["relearn"][variant]["steps"] is None else r["relearn"][variant]["steps"] for r in runs
    )
    texts = [f"> {budget}" if step > budget else str(step) for step in steps]
    return f"{texts[len(texts) // 2]} ({texts[0]} to {texts[-1]})" if len(set(texts)) > 1 else texts[0]
