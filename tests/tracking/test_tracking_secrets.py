"""Planted secrets through what a run writes without a cluster: configuration, MLflow's database, report,
messages.

tests/cluster/test_local_cluster.py does the same with a submitted job, Ray's logs and the dashboard included.
"""

from pathlib import Path

import pytest
from tracking_samples import result_json

from pipeline import config as configuration
from pipeline.config import UnlearnConfig
from pipeline.errors import InputError
from pipeline.reports.run_report import render_report
from pipeline.tracking import mlflow_runs

KEY, PASSWORD, SIGNATURE = "planted-wJalrXUtnFEMIK7MDENG", "planted-hunter2hunter2", "planted-b0a1c2d3"


@pytest.fixture
def config(root: str, monkeypatch: pytest.MonkeyPatch) -> UnlearnConfig:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    return configuration.parse(
        UnlearnConfig,
        {
            "storage": root,
            "request": {
                "id": "r-1",
                "sample_ids": f"https://bucket/ids.txt?X-Amz-Signature={SIGNATURE}&part=1",
                "reason": f"pasted by mistake: {KEY}",
            },
            "tracking": {"uri": f"http://operator:{PASSWORD}@127.0.0.1:9"},
        },
    )


def test_nothing_that_is_kept_holds_a_secret(config: UnlearnConfig, root: str) -> None:
    settings = config.model_dump(mode="json")
    tracking = configuration.Tracking(uri=f"sqlite:///{root}/mlflow.db")
    params, tags = (
        mlflow_runs.flatten(settings),
        {"request_id": "r-1", "said": f"no answer from {config.tracking.uri}"},
    )
    with mlflow_runs.Tracker(
        tracking=tracking, storage_root=root, run_id="secrets", tags=tags, params=params
    ) as tracker:
        tracker.set_tags({"reason": config.request.reason})
        logged = tracker.client.get_run(tracker.mlflow_run_id).data
        assert logged.params["tracking.uri"] == "http://operator:***@127.0.0.1:9"
        assert logged.params["request.sample_ids"] == "https://bucket/ids.txt?X-Amz-Signature=***&part=1"
        assert logged.tags["reason"] == "pasted by mistake: ***"
        report = render_report(result_json("secrets", "d" * 64), [], {}, configuration.dump(config))
        tracker.log_artifacts(
            {"report.html": report.encode(), "config.yaml": configuration.dump(config).encode()}
        )
    assert "operator:***@" in report
    files = [path for path in Path(root).rglob("*") if path.is_file()]
    assert {"mlflow.db", "report.html", "config.yaml"} <= {path.name for path in files}
    for secret in (KEY, PASSWORD, SIGNATURE):
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []


def test_a_server_that_does_not_answer_is_named_without_its_password(
    config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="does not answer as an MLflow store") as refused:
        mlflow_runs.client(config.tracking, config.storage)
    assert PASSWORD not in str(refused.value) and "operator:***@127.0.0.1:9" in str(refused.value)
