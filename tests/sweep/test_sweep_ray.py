"""A whole sweep on a small Ray: trials side by side, a failing one, the winner, the page; nothing left of it
in the cluster."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeps import ROOT, TINY

from pipeline.config import SweepConfig, load
from pipeline.errors import InputError

pytestmark = pytest.mark.ray
TRIALS = 4


def sweep(root: str, *overrides: str) -> SweepConfig:
    path = str(ROOT / "jobs/configs/sweep_quickstart.yaml")
    return load(
        SweepConfig,
        path,
        [f"storage={root}", "run_id=small", f"budget.trials={TRIALS}", "trial.retries=1", *TINY, *overrides],
    )


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    from pipeline.runtime import cluster_ray

    cluster_ray.connect(cpus=2, dashboard=True)
    yield
    cluster_ray.disconnect()


@pytest.fixture(scope="module")
def summary(root: str, ray_session: None) -> dict[str, Any]:
    from pipeline.sweep import search

    # trial 2 was begun, and the outcome that it would leave cannot be read: it fails, is tried again, and
    # fails again
    begun = Path(root) / "sweeps" / "small" / "trials" / "002"
    (begun / "outcome.json").mkdir(parents=True)
    (begun / "settings.json").write_text(json.dumps({"method.penalty": 0.3, "method.surgery_every": 3}))
    return search.run(search.check(sweep(root)))


def test_every_trial_is_in_the_table_and_the_broken_one_says_why(summary: dict[str, Any], root: str) -> None:
    rows = summary["trials"]
    assert [row["number"] for row in rows] == list(range(TRIALS))
    assert [row["status"] for row in rows] == ["finished", "finished", "failed", "finished"]
    assert rows[2]["attempts"] == 2 and "outcome.json" in rows[2]["reason"]
    assert rows[2]["settings"] == {"method.penalty": 0.3, "method.surgery_every": 3}
    assert [row["settings"]["method.penalty"] for row in rows[:2]] == [0.01, 0.0] and summary[
        "default_trial"
    ] == 0
    assert set(summary["ranking"]) == {0, 1, 3} and set(summary["front"]) <= {0, 1, 3} and summary["front"]
    assert all(
        row["seconds"]["wall"] > row["seconds"]["steps"] + row["seconds"]["evaluation"] > 0
        for row in rows
        if row["status"] == "finished"
    )
    for number in (0, 1, 3):
        result = json.loads(
            (Path(root) / "sweeps/small/trials" / f"{number:03d}" / "result.json").read_text()
        )
        assert (
            result["run_id"] == f"small-{number:03d}"
            and result["method_config"]["penalty"] == result["settings"]["method.penalty"]
        )


def test_nothing_is_left_in_the_cluster(summary: dict[str, Any]) -> None:
    import ray
    from ray.util.state import list_actors, list_placement_groups

    here = ray.get_runtime_context().gcs_address  # other tests may have a Ray of their own
    assert [group for group in list_placement_groups(address=here) if group.state != "REMOVED"] == []
    assert [
        actor
        for actor in list_actors(address=here)
        if actor.state not in ("DEAD",) and "job" not in actor.class_name.lower()
    ] == []
    assert ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"] == 2


def test_the_winner_was_measured_again_before_it_was_registered(summary: dict[str, Any], root: str) -> None:
    winner = summary["winner"]
    assert winner["number"] in summary["ranking"] and winner["version"] is not None
    again = winner["verified"][-1]
    assert again["gate"]["passed"] and again["seed"] != summary["seed"]
    result = json.loads((Path(root) / "runs" / "small-best" / "result.json").read_text())
    assert result["after"] == again["after"] and result["selection"]["trial"] == winner["number"]
    registered = {"name": "dit-digits-unlearned", "version": winner["version"], "alias": "candidate"}
    assert {key: result["model"][key] for key in registered} == registered
    config = yaml.safe_load((Path(root) / "runs" / "small-best" / "config.yaml").read_text())
    chosen = next(row for row in summary["trials"] if row["number"] == winner["number"])
    assert config["method"]["penalty"] == chosen["settings"]["method.penalty"]
    page = (Path(root) / "runs" / "small-best" / "report.html").read_text()
    assert "Chosen by sweep small" in page


def test_runs_are_nested_in_mlflow(summary: dict[str, Any], root: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("unlearning").experiment_id])
    parent = next(run for run in runs if run.data.tags["run_id"] == "small")
    children = {
        run.data.tags["run_id"]: run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert set(children) == {f"small-{number:03d}" for number in range(TRIALS)} | {"small-best"}
    assert children["small-002"].info.status == "FAILED" and children["small-001"].info.status == "FINISHED"
    assert children["small-001"].data.params["method.penalty"] == "0.0"
    assert {item.path for item in client.list_artifacts(children["small-001"].info.run_id)} == {"result.json"}
    assert client.get_metric_history(children["small-001"].info.run_id, "forget_fraction")[-1].step == 2
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"sweep.html", "sweep.json"}


def test_the_page_needs_nothing_else_and_shows_penalty_zero(summary: dict[str, Any], root: str) -> None:
    page = (Path(root) / "sweeps" / "small" / "sweep.html").read_text()
    assert (
        'src="http' not in page and "href=" not in page.replace('href="data:', "") and "@import" not in page
    )
    assert 'data-value="0.0">0<' in page and "luckiest" in page and "Trial 2 failed after 2 attempts" in page


def test_a_finished_sweep_is_returned_and_a_changed_one_refused(summary: dict[str, Any], root: str) -> None:
    from pipeline.sweep import search

    again = search.run(search.check(sweep(root)))
    assert again == json.loads(json.dumps(summary))
    with pytest.raises(
        InputError,
        match=(
            r"small was begun with other settings \(base\.optim\.lr 0\.01 -> 0\.5; sweep\.search\.concurrency"
            r" 2 -> 1\)"
        ),
    ):
        search.check(sweep(root, "set.optim.lr=0.5", "search.concurrency=1"))
    with pytest.raises(
        InputError, match=r"budget\.steps: got 1, less than one trial takes \(optim\.max_steps 2\)"
    ):
        search.check(sweep(root, "run_id=other", "budget.steps=1"))


def test_early_stopping_goes_by_the_settled_measure(root: str, ray_session: None) -> None:
    """Median stopping: whoever holds worse than the others did at the same step goes; random search is not
    moved by it."""
    from pipeline.sweep import search

    changed = [
        "run_id=median",
        "search.algorithm=random",
        "scheduler.kind=median",
        "scheduler.min_trials=1",
        "scheduler.grace_steps=1",
    ]
    small = ["search.concurrency=1", "set.optim.max_steps=4", "budget.trials=3", "budget.steps=12"]
    config = sweep(root, *changed, *small)
    found = search.run(search.check(config))
    rows = found["trials"]
    assert (
        len(rows) == 3
        and {row["status"] for row in rows} <= {"finished", "stopped"}
        and rows[0]["status"] == "finished"
    )
    assert all(row["step"] < 4 and row["settled_step"] is None for row in rows if row["status"] == "stopped")
    assert found["ranking"] == [n for n in found["ranking"] if rows[n]["status"] == "finished"]
