"""Purging a finished request: its partitions, every other partition that holds its rows and every picture
sampled under a forgotten label go, a tombstone stays.

Its runs' and its sweeps' alike, and what jobs/generate.py drew of the versions that came of them.

Run again after an interruption it completes: the tombstone comes first, and a run's tensors, from which its
pictures could be made again, go last of what the run kept.
"""

from collections.abc import Sequence

from pipeline import storage
from pipeline.config import RegistryConfig
from pipeline.data import tombstones
from pipeline.evaluation import stored_result
from pipeline.governance.purge_plan import Purge, Run, find, mlflow_run_of
from pipeline.governance.purge_siblings import clean_trials, write_without
from pipeline.reports.pages import METRICS, REPORT, SETTINGS, pages, read_grids
from pipeline.runtime import metrics_log
from pipeline.tracking import alias_log, artifact_store

__all__ = ["find", "purge"]

ACTION = "purge"


def purge(config: RegistryConfig, plan: Purge) -> tombstones.Tombstone:
    """Remove what `plan` names and leave the tombstone; each registered model's log gets an entry that says
    so."""
    tombstone = tombstones.bury(
        config.storage, plan.request, plan.sample_ids, plan.partitions, labels=plan.labels, files=plan.files
    )
    for uri in [*plan.others, *plan.generated]:
        storage.remove(uri)
    for sweep in plan.sweeps:
        clean_trials(sweep, plan.labels)
    for run in plan.runs:
        if run.files or run.artifacts:
            _clean(config, run, plan)
    for name in sorted({run.settings["tracking"]["model_name"] for run in plan.runs}):
        _log(
            config,
            name,
            [run for run in plan.runs if run.settings["tracking"]["model_name"] == name],
            tombstone,
            plan.left,
        )
    return tombstone


def _clean(config: RegistryConfig, run: Run, plan: Purge) -> None:
    """The report is made again without the pictures, here and in MLflow; then the pictures go, and last the
    tensors of those labels."""
    remaining = {
        moment: {label: images for label, images in grids.items() if label not in plan.labels}
        for moment, grids in read_grids(run.uri).items()
    }
    mlflow, mlflow_run = mlflow_run_of(config, run.settings, run.run_id)
    if REPORT in [*run.files, *run.artifacts]:
        page = pages(
            stored_result.in_todays_words(run.result),
            metrics_log.read(storage.join(run.uri, METRICS)),
            remaining,
            storage.read_bytes(storage.join(run.uri, SETTINGS)).decode(),
            class_names=storage.read_json(storage.join(run.uri, "model", "config.json")).get("class_names"),
            note=(
                f"Pictures sampled under the labels {', '.join(map(str, plan.labels))} were purged with the"
                " request's data."
            ),
        )[REPORT]
        storage.write_bytes(storage.join(run.uri, REPORT), page)
        if mlflow_run is not None:
            artifact_store.write_text(mlflow, mlflow_run, REPORT, page.decode())
    if mlflow_run is not None:
        for name in run.artifacts:
            if name != REPORT:
                artifact_store.remove(mlflow, mlflow_run, name)
    for name in run.files:
        if name.endswith(".png"):
            storage.remove(storage.join(run.uri, name))
    write_without(run.uri, remaining, plan.labels)


def _log(
    config: RegistryConfig,
    name: str,
    runs: Sequence[Run],
    tombstone: tombstones.Tombstone,
    left: Sequence[str],
) -> None:
    """An entry in the model's log, once for each content of the tombstone. It says what was not reached."""
    entries = alias_log.read(config.storage, name)
    details = {
        "request": tombstone.request,
        "tombstone": tombstone.digest,
        "runs": [run.run_id for run in runs],
    }
    if not entries or any(
        entry.action == ACTION and entry.details.items() >= details.items() for entry in entries
    ):
        return
    mlflow, _ = mlflow_run_of(config, runs[-1].settings, runs[-1].run_id)
    alias_log.note(
        mlflow,
        config.storage,
        name,
        action=ACTION,
        version=max(int(run.result["model"]["version"]) for run in runs),
        details={**details, "left": list(left)},
    )
