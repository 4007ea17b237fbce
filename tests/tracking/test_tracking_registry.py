"""Runs and versions in MLflow: continued runs, loading without the project, aliases that survive being
killed, tampering."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from proof_samples import MEASURES as FURTHER
from proof_samples import REFERENCE, attack_suite
from tracking_samples import make_keys, result_json

from pipeline import storage
from pipeline.config import RegistryConfig, Tracking, parse
from pipeline.errors import InputError
from pipeline.evaluation.metrics.table import METRICS
from pipeline.governance import certificate, promotion, signing, verification, verify_standalone
from pipeline.governance.certificate_facts import Surroundings
from pipeline.tracking import alias_log, compat, registry
from pipeline.tracking.mlflow_runs import Tracker, client, tracking_uri
from pipeline.tracking.run_page import DataSet

Register = Callable[..., int]


def config(root: str, name: str, **values: object) -> RegistryConfig:
    return parse(RegistryConfig, {"storage": root, "tracking": {"model_name": name}, **values})


def at(root: str, name: str) -> dict[str, int]:
    """Where MLflow's aliases are."""
    model = client(Tracking(), root).get_registered_model(name)
    return {alias: int(version) for alias, version in model.aliases.items()}


def test_a_continued_run_is_the_same_mlflow_run(root: str) -> None:
    records = [
        {"kind": "step", "step": step, "phase": "uno", "loss/retain": 1 / step, "seconds": 0.1}
        for step in (1, 2, 3)
    ]
    evaluation = {
        "kind": "evaluation",
        "step": 0,
        "forget_fraction": 0.5,
        "exchange_fraction": None,
        "seconds": 2.0,
    }

    def opened(lr: float) -> Tracker:
        return Tracker(tracking=Tracking(), storage_root=root, run_id="continued", params={"optim.lr": lr})

    with pytest.raises(RuntimeError), opened(0.1) as first:
        first.log_records([*records[:2], evaluation])
        raise RuntimeError
    assert first.client.get_run(first.mlflow_run_id).info.status == "FAILED"
    with opened(0.2) as second:
        second.log_records([*records, evaluation])
        second.log_records(records)  # a worker that failed takes the run back to its checkpoint
        second.log_artifacts({"samples/after.png": b"png", "result.json": b"{}"})
    run = second.client.get_run(second.mlflow_run_id)
    assert second.mlflow_run_id == first.mlflow_run_id and run.info.status == "FINISHED"
    losses = [
        (metric.step, metric.value)
        for metric in second.client.get_metric_history(run.info.run_id, "loss/retain")
    ]
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.data.metrics["evaluation/seconds"] == 2.0 and run.data.metrics["seconds"] == 0.1
    assert "exchange_fraction" not in run.data.metrics and run.data.params == {"optim.lr": "0.1"}
    assert run.data.tags["params_on_continuing"] == "optim.lr=0.2"
    assert Path(run.info.artifact_uri, "samples/after.png").read_bytes() == b"png"


def test_the_pages_of_run_and_version_say_what_they_are(root: str, register_run: Register) -> None:
    lake = DataSet(name="digits", digest="b" * 64, uri=f"{root}/lakes/digits", rows=1797)
    for _ in range(2):  # a run that is continued says it once
        with Tracker(
            tracking=Tracking(),
            storage_root=root,
            run_id="paged",
            description="Request r-1: forget 1.",
            datasets=[lake],
        ) as tracker:
            pass
    run = tracker.client.get_run(tracker.mlflow_run_id)
    tags = run.data.tags
    assert tags["mlflow.user"] and tags["mlflow.source.name"] and tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.note.content"] == "Request r-1: forget 1."
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", "b" * 36)
    assert json.loads(used.dataset.source)["digest"] == "b" * 64

    number = register_run("paged-model", "paged-version")
    mlflow = client(Tracking(), root)
    version = mlflow.get_model_version("paged-model", str(number))
    (output,) = mlflow.get_run(version.run_id).outputs.model_outputs
    model = mlflow.get_logged_model(output.model_id)
    assert (model.status, model.artifact_location) == ("READY", version.source)
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "paged-model", "version": number}]
    metrics = {metric.key: metric.value for metric in model.metrics}
    assert metrics["after/forget_fraction"] == 0.004 and metrics["after/retain_accuracy/min"] == 0.95
    assert metrics["after/fid/judge"] == 3.2


def test_the_load_of_the_machine_is_recorded_beside_the_run(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "SYSTEM_S", 0.02)
    for turn in (1, 2):  # the second continues the first: the steps go on
        with Tracker(tracking=Tracking(), storage_root=root, run_id="watched", system=True) as tracker:
            assert tracker._monitor is not None
            first, deadline = tracker._monitor._logging_step, time.monotonic() + 60
            while tracker._monitor._logging_step < first + 2 and time.monotonic() < deadline:
                tracker.client.get_run(tracker.mlflow_run_id)
        run = tracker.client.get_run(tracker.mlflow_run_id)
        assert (
            run.info.status == "FINISHED"
            and 0 < run.data.metrics["system/system_memory_usage_percentage"] <= 100
        )
        steps = [
            m.step
            for m in tracker.client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
        ]
        assert sorted(steps) == list(range(len(steps))) and len(steps) >= 2 * turn


def test_remote_storage_needs_a_tracking_uri() -> None:
    with pytest.raises(InputError, match=r"tracking\.uri"):
        tracking_uri(Tracking(), "s3://bucket/runs")
    assert tracking_uri(Tracking(uri="http://host:5000"), "s3://bucket/runs") == "http://host:5000"


def test_a_version_loads_without_the_project(root: str, register_run: Register, tmp_path: Path) -> None:
    assert register_run("loads", "run-loads") == 1
    code = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [path for path in sys.path if path not in ("", sys.argv[2])]
import importlib.util
assert importlib.util.find_spec("pipeline") is None and importlib.util.find_spec("models") is None
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/loads@candidate")
labels, seeds = [1, 7, 3] * 4, list(range(12))
images = model.predict(pd.DataFrame({"label": labels, "seed": seeds}))
assert images.shape == (12, 8, 8, 1) and images.dtype == np.uint8 and images.std() > 0, images.shape
for k in (0, 5, 11):
    alone = pd.DataFrame({"label": labels[k:k + 1], "seed": seeds[k:k + 1]})
    assert (model.predict(alone) == images[k]).all(), k
assert (images[0] != images[3]).any()
assert (model.predict(pd.DataFrame({"label": [1], "seed": [0]}), {"cfg_scale": 6.0}) != images[0]).any()
"""
    checkout = str(Path(registry.__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, tracking_uri(Tracking(), root), checkout],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_registering_twice_makes_one_version(root: str, register_run: Register) -> None:
    assert [
        register_run("twice", "run-a"),
        register_run("twice", "run-a"),
        register_run("twice", "run-bb"),
    ] == [1, 1, 2]
    assert register_run("twice", "run-a") == 1
    # an older run that is completed does not take the alias back
    assert at(root, "twice") == {"candidate": 2}
    version = registry.resolve(Tracking(model_name="twice"), root, "candidate")
    assert (
        version.tags["gate"] == "passed"
        and version.tags["request_id"] == "r-1"
        and version.tags["run_id"] == "run-bb"
    )
    assert len(registry.rows(Tracking(model_name="twice"), root)) == 2


@pytest.mark.parametrize(
    ("which", "said"), [("9", "candidate, 1"), ("champion", "py promote .* makes a champion")]
)
def test_unknown_version_says_what_there_is(root: str, register_run: Register, which: str, said: str) -> None:
    register_run("unknown", "run-unknown")
    with pytest.raises(InputError, match=said):
        registry.resolve(Tracking(model_name="unknown"), root, which)


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is registered yet"):
        registry.resolve(Tracking(), str(tmp_path / "runs"), "candidate")
    assert not (tmp_path / "runs").exists()


def test_a_database_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    def dying(uri: str, artifacts: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half of the tables")
        raise Killed

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", dying)
    with pytest.raises(Killed):
        client(Tracking(), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_promotion_and_the_way_back(root: str, register_run: Register) -> None:
    for run_id in ("p-1", "p-22", "p-333"):
        register_run("way", run_id)
    with pytest.raises(InputError, match="no champion yet"):
        promotion.rollback(config(root, "way"))
    for version in (1, 2, 3):
        promotion.promote(config(root, "way", version=version))
    assert promotion.promote(config(root, "way", version=3)) == (3, None)
    assert promotion.rollback(config(root, "way")) == (3, 2)
    assert promotion.rollback(config(root, "way")) == (2, 1)
    with pytest.raises(InputError, match="nothing to roll back to"):
        promotion.rollback(config(root, "way"))
    assert at(root, "way") == {"candidate": 3, "champion": 1}
    found = promotion.history(config(root, "way"))
    assert [entry.action for entry in found.entries] == ["register"] * 3 + ["promote"] * 3 + ["rollback"] * 2
    assert not found.now and not found.before
    client(Tracking(), root).set_registered_model_alias("way", "champion", "2")
    assert promotion.history(config(root, "way")).now == [
        "champion is at version 2 in MLflow, the log says 1"
    ]
    # MLflow and the log are brought together
    assert promotion.promote(config(root, "way", version=2))[1] is not None
    found = promotion.history(config(root, "way"))
    assert promotion.champions(found.entries) == [1, 2] and not found.now and list(found.before) == [9]


def flattered(document: dict[str, Any]) -> str:
    """The payload of a certificate with a better figure in it, and the digest that belongs to that."""
    statement = verify_standalone.statement_of(document)
    statement["predicate"]["measures"]["after"]["forget_fraction"]["value"] = 0.0
    statement["predicate"]["digest"] = verify_standalone.digest_of(statement)
    return base64.b64encode(verify_standalone.compact(statement)).decode()


def test_the_gate_is_held_to(root: str, register_run: Register) -> None:
    register_run("gate", "refused", passed=False, value=0.31)
    with pytest.raises(InputError, match=r"forget_fraction is 0.31, bound 0.05"):
        promotion.promote(config(root, "gate"))
    assert at(root, "gate") == {"candidate": 1}
    _, entry = promotion.promote(
        config(root, "gate", override="the judge is known to be wrong on this class")
    )
    assert entry is not None and entry.details["override"].startswith("the judge")
    said = signing.said_in(entry.details["certificate"])
    assert said["gate_override"] == entry.details["override"]
    assert at(root, "gate")["champion"] == 1
    of_every_run = ["after.retain_accuracy.neighbours", "before.retain_accuracy.neighbours"]
    # by every run; and no class was forgotten earlier
    taken = {"forget_fraction", "exchange_fraction", "retain_accuracy", "fid", "earlier_fraction"}
    assert said["not_measured"] == sorted(
        [*of_every_run, "attack_suite", "reference", *(f"metrics.{name}" for name in METRICS.keys() - taken)]
    )
    assert (
        said["digests"]["weights"]
        and said["measures"]["after"]["forget_fraction"]["n"] == 500
        and said["not_claimed"]
    )


def test_the_certificate_holds_all_that_was_measured_and_says_what_was_not() -> None:
    result = result_json("run", "d" * 64) | {
        "attack_suite": attack_suite(finetune=-1),
        "metrics": FURTHER,
        "reference": REFERENCE,
    }
    result["after"]["retain_accuracy"]["neighbours"] = result["before"]["retain_accuracy"]["neighbours"] = 0.9
    settings = b"evaluate: {cfg_scale: 2.0}\ngate: {max_forget_fraction: 0.05}\nlake: digits\n"
    document = certificate.issue(
        result,
        model_name="m",
        version=1,
        config=settings,
        override=None,
        key=None,
        around=Surroundings(registered="2026-05-01T10:00:00+00:00", weights_file="f" * 64),
    )
    said = signing.said_in(document)
    assert said["further_measures"] == {
        "attack_suite": result["attack_suite"],
        "metrics": FURTHER,
        "reference": REFERENCE,
    }
    assert (
        said["settings"]["evaluate"] == {"cfg_scale": 2.0}
        and "lake" not in said["settings"]
        and said["digests"]["config"]
    )
    untaken = sorted(METRICS.keys() - FURTHER["after"].keys() - result["after"].keys() - {"earlier_fraction"})
    assert said["not_measured"] == ["attack_suite.attacks.finetune", *(f"metrics.{name}" for name in untaken)]
    signing.opened(verify_standalone.written(document))


def test_what_was_not_measured_never_passes() -> None:
    check = {"name": "fid", "value": None, "bound": 1.0, "passed": None}
    assert promotion.refusals({"gate": {"passed": True, "checks": [check]}}) == [
        "fid is not measured, bound 1"
    ]
    assert promotion.refusals({"gate": {"checks": [check | {"name": "settled", "bound": None}]}}) == [
        "settled is not reached"
    ]
    assert promotion.refusals({"gate": {"passed": True, "checks": []}})
    assert promotion.refusals({"gate": {"passed": None, "checks": [check | {"passed": True}]}})
    assert promotion.refusals({}) and not promotion.refusals(
        {"gate": {"passed": True, "checks": [check | {"passed": True}]}}
    )


def test_a_changed_result_or_none_is_refused(root: str, register_run: Register) -> None:
    register_run("result", "run-result", passed=False)
    uri = storage.join(root, "runs", "run-result", "result.json")
    result = storage.read_json(uri)
    for changed, said in (
        (
            result
            | {"gate": {"passed": True, "checks": [{"name": "x", "value": 0, "bound": 1, "passed": True}]}},
            "registered with 'failed'",
        ),
        (result | {"weights_digest": "d" * 64}, "weights_digest"),
        (result | {"run_id": "another"}, "result.json has run_id another"),
    ):
        storage.write_json(uri, changed)
        with pytest.raises(InputError, match=said):
            promotion.promote(config(root, "result"))
    storage.remove(uri)
    with pytest.raises(InputError, match="no result at"):
        promotion.promote(config(root, "result"))


def test_of_two_at_once_one_is_told(root: str, register_run: Register) -> None:
    for run_id in ("one", "other"):
        register_run("race", run_id)
    made = client(Tracking(), root)
    seen = alias_log.follow_log(made, root, "race")
    alias_log.change(made, root, "race", seen, action="promote", alias="champion", version=1)
    with pytest.raises(InputError, match="came first"):
        alias_log.change(made, root, "race", seen, action="promote", alias="champion", version=2)
    assert at(root, "race")["champion"] == 1 and len(alias_log.read(root, "race")) == 3


class Killed(BaseException):
    """Nothing in between catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("where", ["entry", "certificate", "alias", "tag"])
def test_a_killed_promotion_is_before_or_after(
    root: str, register_run: Register, monkeypatch: pytest.MonkeyPatch, where: str, when: str
) -> None:
    from mlflow import MlflowClient

    name = f"killed-{where}-{when}"
    register_run(name, f"{name}-1")
    register_run(name, f"{name}-22")
    promotion.promote(config(root, name, version=1))
    target, attribute = {
        "entry": (storage, "create"),
        "certificate": (storage, "write_json"),
        "alias": (MlflowClient, "set_registered_model_alias"),
        "tag": (MlflowClient, "set_registered_model_tag"),
    }[where]
    original = getattr(target, attribute)

    def dying(*arguments: object, **options: object) -> object:
        if when == "after":
            original(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target, attribute, dying)
        promotion.promote(config(root, name, version=2))
    assert at(root, name)["champion"] in (1, 2)
    assert promotion.promote(config(root, name, version=2))[0] == 2
    assert at(root, name)["champion"] == 2
    assert [
        entry.version for entry in promotion.history(config(root, name)).entries if entry.alias == "champion"
    ] == [1, 2]
    assert len(verification.verify(config(root, name))) == 6


@pytest.mark.parametrize(
    "where",
    ["log_model_artifacts", "finalize_logged_model", "create_model_version", "set_registered_model_alias"],
)
def test_a_killed_registration_is_completed(
    root: str, register_run: Register, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from mlflow import MlflowClient

    name = f"killed-{where}"
    original = getattr(MlflowClient, where)

    def dying(*arguments: object, **options: object) -> None:
        original(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MlflowClient, where, dying)
        register_run(name, name)
    assert register_run(name, name) == 1
    tracking = Tracking(model_name=name)
    assert at(root, name) == {"candidate": 1} and len(registry.rows(tracking, root)) == 1
    assert registry.local_copy(tracking, root, registry.resolve(tracking, root, "1")).is_dir()


def edited(path: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2) + "\n")


def test_every_edit_is_seen(root: str, register_run: Register, tmp_path: Path) -> None:
    pem = make_keys(tmp_path, "0")[0]
    make_keys(tmp_path, "1")
    for run_id in ("edit", "edit-2"):
        register_run("edits", run_id)
    assert promotion.promote(config(root, "edits", version=1))[1] is not None
    with pytest.raises(InputError, match="entry 3 moves champion to version 1 and is not signed by the key"):
        promotion.promote(config(root, "edits", version=1, key=pem))
    assert [entry.number for entry in promotion.sign(config(root, "edits", key=pem))[0]] == [3]
    for expected in (True, False):  # signed once, and not again
        assert (promotion.promote(config(root, "edits", version=1, key=pem))[1] is not None) == expected
    with pytest.raises(InputError, match="key: got none, and the log of edits is signed"):
        promotion.promote(config(root, "edits", version=2))
    promotion.promote(config(root, "edits", version=2, key=pem))
    assert promotion.champions(promotion.history(config(root, "edits")).entries) == [1, 2]
    signed = config(root, "edits", version=1, public_key=str(tmp_path / "0.pub"))
    lines = verification.verify(signed)
    assert "signed by key" in lines[0] and "certificate.html: as it was issued" in lines and len(lines) == 6
    with pytest.raises(InputError, match="not signed by the key that was given"):
        verification.verify(config(root, "edits", version=1, public_key=str(tmp_path / "1.pub")))

    folder = Path(root, "registry", "edits")
    certificate, log = folder / "v1" / "certificate.json", folder / "log"
    weights = next(Path(root, "mlartifacts").glob("models/*/artifacts/model.safetensors"))
    damages: list[tuple[Path, Callable[[dict], None], str]] = [
        (certificate, lambda value: value.update(payload=flattered(value)), "signature does not hold"),
        (
            certificate,
            lambda value: value["signatures"][0].update(sig=value["signatures"][0]["sig"][::-1]),
            "it was edited",
        ),
        (certificate, lambda value: value.update(signatures=[]), "another number of signatures"),
        (log / "000003.json", lambda value: value.update(by="someone@else"), "own digest"),
        (log / "000002.json", lambda value: value.update(version=1), "own digest"),
        (
            Path(root, "runs", "edit", "result.json"),
            lambda value: value.update(seed=1),
            "not the result that was certified",
        ),
    ]
    for path, change, said in damages:
        kept = path.read_bytes()
        edited(path, change)
        with pytest.raises(InputError, match=said):
            verification.verify(signed)
        path.write_bytes(kept)
    for lost, said in (("000002.json", "removed"), ("000006.json", "removed or replaced")):
        kept = (log / lost).read_bytes()
        (log / lost).unlink()
        with pytest.raises(InputError, match=said):
            promotion.history(config(root, "edits"))
        (log / lost).write_bytes(kept)
    page = folder / "v1" / "certificate.html"
    page.write_text(page.read_text().replace("not sampled", "sampled") + " ")
    with pytest.raises(InputError, match="not the page of this certificate: it was edited"):
        verification.verify(signed)
    certificate.unlink()
    with pytest.raises(InputError, match="no certificate at"):
        verification.verify(signed)
    assert promotion.promote(config(root, "edits", version=2, key=pem))[1] is None, "champion already"
    assert weights.is_file() and verification.verify(signed) == lines, "what was lost comes from the log"


def test_changed_weights_are_seen(root: str, register_run: Register) -> None:
    import numpy as np
    import safetensors.numpy

    register_run("weights", "run-weights")
    register_run("weights", "run-weights-2")
    promotion.promote(config(root, "weights", version=1))
    for number in ("1", "2"):
        version = registry.resolve(Tracking(model_name="weights"), root, number)
        path = registry.local_copy(Tracking(model_name="weights"), root, version) / "model.safetensors"
        state = {name: np.array(value) for name, value in safetensors.numpy.load_file(path).items()}
        next(iter(state.values())).flat[0] += 1
        safetensors.numpy.save_file(state, path)
    with pytest.raises(InputError, match=r"version 1: model\.safetensors was changed: its files have digest"):
        verification.verify(config(root, "weights"))
    with pytest.raises(InputError, match=r"version 2: model\.safetensors was changed"):
        promotion.promote(config(root, "weights", version=2))
    assert at(root, "weights")["champion"] == 1


def test_a_dry_run_moves_nothing(root: str, register_run: Register) -> None:
    for run_id in ("dry", "dry-2"):
        register_run("dry", run_id)
    before = at(root, "dry"), alias_log.read(root, "dry")
    assert promotion.promote(config(root, "dry", version=1), dry_run=True) == (1, None)
    with pytest.raises(InputError, match="which is no readable PEM key"):
        promotion.promote(config(root, "dry", version=1, key="/nowhere/key.pem"), dry_run=True)
    assert (at(root, "dry"), alias_log.read(root, "dry")) == before
    for version in (1, 2):
        promotion.promote(config(root, "dry", version=version))
    before = at(root, "dry"), alias_log.read(root, "dry")
    assert promotion.rollback(config(root, "dry"), dry_run=True) == (2, 1)
    assert (at(root, "dry"), alias_log.read(root, "dry")) == before


def test_a_reason_is_recorded_only_where_the_gate_refused(root: str, register_run: Register) -> None:
    register_run("reason", "run-reason")
    entry = promotion.promote(config(root, "reason", override="in case it is refused"))[1]
    assert entry is not None and entry.details["override"] is None
    assert signing.said_in(entry.details["certificate"])["gate_override"] is None


def test_another_certificate_of_the_right_digest_is_not_the_logs(root: str, register_run: Register) -> None:
    """Whoever can write the file can make one that holds by itself; the log's entry holds another."""
    register_run("swapped", "run-swapped")
    promotion.promote(config(root, "swapped"))
    uri = alias_log.certificate_uri(root, "swapped", 1)
    document = storage.read_json(uri)
    storage.write_json(uri, {**document, "payload": flattered(document)})
    signing.opened(storage.read_bytes(uri))
    with pytest.raises(InputError, match="not the certificate that entry 2 of the log holds"):
        verification.verify(config(root, "swapped"))


def test_the_job_speaks_in_one_line(
    root: str, register_run: Register, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import runpy

    from pipeline.runtime import command_line

    job = runpy.run_path(str(Path(registry.__file__).resolve().parents[2] / "jobs" / "registry.py"))
    register_run("job", "run-job", passed=False)

    def call(verb: str, *overrides: str) -> tuple[int, str, str]:
        sets = [
            part
            for text in (f"storage={root}", "tracking.model_name=job", *overrides)
            for part in ("--set", text)
        ]
        code = command_line.main(
            RegistryConfig, job["VERBS"], "", [verb, "--config", "jobs/configs/registry_digits.yaml", *sets]
        )
        return code, *capsys.readouterr()

    code, out, _ = call("list")
    assert code == 0 and "candidate" in out and "failed" in out and "run-job" in out
    code, out, error = call("promote")
    assert (
        code == 2
        and not out
        and error.startswith("error: job version 1: the gate refuses it")
        and error.count("\n") == 1
    )
    assert call("promote", "override=a reason that is long enough")[0] == 0
    for verb, said in (("show", "champion"), ("history", "chain is unbroken"), ("verify", "unbroken")):
        code, out, error = call(verb)
        assert code == 0 and said in out, (verb, out, error)
    assert call("rollback")[0] == 2 and call("show", "version=7")[0] == 2
    assert call("sign")[2].startswith("error: key: got none, expected the Ed25519 private key")
    code, out, _ = call("sign", f"key={make_keys(tmp_path, 'key')[0]}")
    assert code == 0 and out.startswith("vouched for entry 2 of ") and "entry 3 signs the log" in out
    code, out, _ = call("history", f"public_key={tmp_path}/key.pub")
    assert code == 0 and "entries 1 to 2" in out and "chain is unbroken, 1 signed" in out
    version = registry.resolve(Tracking(model_name="job"), root, "1")
    script = registry.local_copy(Tracking(model_name="job"), root, version) / "pyfunc_model.py"
    script.write_text(script.read_text() + "\nimport os\n")
    code, out, error = call("verify")
    assert code == 1 and not out and error.startswith("error: job version 1: pyfunc_model.py was changed")


@pytest.mark.parametrize("name", ["a%20b", "a?b"])
def test_a_root_whose_database_would_lie_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"storage: got .*expected a folder without \? and %-codes"):
        client(Tracking(), str(tmp_path / name))
    assert not any(tmp_path.iterdir())
