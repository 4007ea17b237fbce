"""A storage root that an earlier version left: its runs are read, continued and measured, its versions
listed, promoted and verified.

What the earlier version wrote lies in root_before/ or is written here by hand: the files on disk are the
contract, not the classes that write them today. Their words are never brought up to date.
"""

import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from untrained import fill

from models.weights import weights_digest
from pipeline import storage
from pipeline.config import RegistryConfig, Tracking, UnlearnConfig, parse, parse_stored
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.renamed import with_new_keys
from pipeline.errors import InputError
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.context import AFTER
from pipeline.evaluation.metrics.retain_accuracy import accuracy
from pipeline.evaluation.stopping_rule import SettleRule
from pipeline.governance import promotion, verification
from pipeline.runs import preflight, resolve_weights
from pipeline.runs.local import open_run
from pipeline.runtime import command_line
from pipeline.tracking.mlflow_runs import Tracker, client
from pipeline.tracking.registry import register
from pipeline.training import periodic_eval
from pipeline.training.checkpoint import Checkpoint, latest
from pipeline.training.loop import RULE_BEFORE, Hooks, Outcome, unlearn
from pipeline.weights import model_folder

ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).with_name("root_before")
RUN, MODEL = "forget-1-before", "dit-digits-unlearned"
GONE = ("autopilot", "stand_in")  # sections that configurations had
# What checks find, by step: how many of 200 images are still the class, and how many of 27 others are right.
CHECKS = {2: (0, 27), 4: (0, 13), 6: (0, 13)}


@dataclass(frozen=True, kw_only=True)
class Before:
    """The root, and what its run comes to when it is not stopped."""

    storage: str
    outcome: Outcome
    saved: list[Checkpoint]
    digest: str  # of all weights of the registered model

    @property
    def run(self) -> str:
        return storage.join(self.storage, "runs", RUN)


def file(name: str, root: str) -> str:
    return (FILES / name).read_text().replace("STORAGE", root)


def today(root: str, **changes: Any) -> UnlearnConfig:
    """What somebody submits today who means the run of before."""
    return parse_stored(UnlearnConfig, {**yaml.safe_load(file("config.yaml", root)), **changes})


def carry_out(config: UnlearnConfig, start: Checkpoint | None) -> tuple[Outcome, list[Checkpoint]]:
    """A worker's run, without Ray."""
    _, inputs = open_run(preflight.check(config))
    saved: list[Checkpoint] = []

    def save(checkpoint: Checkpoint) -> None:  # as it is at this step: its progress is the run's own
        saved.append(Checkpoint.from_files(checkpoint.to_files()))

    return unlearn(inputs, start, hooks=Hooks(save=save)), saved


def tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks find what CHECKS says: gone for good from step 2 on, but best as a whole at step 2."""
    evaluate = periodic_eval.evaluate

    def told(names: Any, context: Any, *further: Any) -> Any:
        spec, sides = context.spec, evaluate(names, context, *further)
        final = spec.purpose == "final"
        hits, right = (0, 27) if final else CHECKS[int(spec.purpose.removeprefix("check at "))]
        labels = sorted([label for label in spec.retained for _ in range(3)])
        predicted = [label if index < right else -1 for index, label in enumerate(labels)]
        metrics = {
            "forget_fraction": proportion(hits, 200).to_dict(),
            "retain_accuracy": accuracy(labels, predicted, spec.neighbours),
        }
        return {AFTER: sides[AFTER] | metrics}

    monkeypatch.setattr(periodic_eval, "evaluate", told)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """The two files of a checkpoint as they have always been written."""
    groups = {
        "trained": checkpoint.trained,
        "average": checkpoint.average,
        "moments": checkpoint.moments,
        "kept": checkpoint.best_weights,
    }
    tensors = {f"{group}/{name}": value for group, named in groups.items() for name, value in named.items()}
    data = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
    progress = {
        "before": checkpoint.progress["before"],
        "step_seconds": [0.25, 0.25],
        "cpu_seconds": 0.5,
        "first_batch": 0.1,
        "push": {"1": 0.0},
        "step": 2,
        "rule": json.loads((FILES / "rule.json").read_text()),
        "missing": [],
    }
    state = {"iteration": 2, "pending": [], "progress": progress, "sha256": hashlib.sha256(data).hexdigest()}
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(data)
    (folder / "checkpoint.json").write_text(json.dumps(state))


def write_log(root: str) -> None:
    """The alias log with the one entry of the registration, and MLflow's note of it."""
    entry = {
        "number": 1,
        "time": "2026-11-28T12:59:35+00:00",
        "action": "register",
        "alias": "candidate",
        "came_from": None,
        "version": 1,
        "by": "operator@host",
        "previous": "",
        "details": {},
    }
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    entry["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    Path(root, "registry", MODEL, "log", "000001.json").write_text(json.dumps(entry, indent=1) + "\n")
    client(Tracking(), root).set_registered_model_tag(MODEL, "alias_log", f"1:{entry['digest']}")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    root = str(tmp_path_factory.mktemp("before") / "root")
    fill(root)
    config = today(root)
    with pytest.MonkeyPatch.context() as patch:
        tell(patch)
        outcome, saved = carry_out(config, None)
    rule, stored = saved[0].progress["rule"], json.loads((FILES / "rule.json").read_text())
    assert all(stored[key] == value for key, value in rule.items() if key in stored)
    run = Path(root, "runs", RUN)
    write_checkpoint(run / "checkpoints" / "00000002", saved[0])
    (run / "config.yaml").write_text(file("config.yaml", root))
    prepared = preflight.check(config)
    state = {**prepared.base.state, **outcome.trained}
    digest = model_folder.write(
        str(run / "model"), prepared.base.config, state, {"base_digest": prepared.base.digest, "run_id": RUN}
    )
    result = json.loads(file("result.json", root)) | {
        "base_digest": prepared.base.digest,
        "weights_digest": digest,
        "lake_digest": prepared.lake.digest,
    }
    with Tracker(tracking=config.tracking, storage_root=root, run_id=RUN) as tracker:
        register(tracker, folder=str(run / "model"), image_shape=(8, 8, 1), result=result)
    (run / "result.json").write_text(json.dumps(result, indent=2))
    write_log(root)
    return Before(storage=root, outcome=outcome, saved=saved, digest=digest)


def evaluated(root: str, version: str, checkpoint: str | None = None) -> resolve_weights.Target:
    values = {
        "storage": root,
        "version": version,
        "checkpoint": checkpoint,
        "tracking": {"model_name": MODEL},
    }
    return resolve_weights.find(parse(EvaluateConfig, values))


def test_its_runs_settings_are_read_without_the_keys_that_are_gone(before: Before) -> None:
    stored = yaml.safe_load(file("config.yaml", before.storage))
    assert set(GONE) <= stored.keys(), "the file is of before"
    run = resolve_weights.of_run(before.run)
    assert run is not None and (run.storage, run.run_id, run.lake) == (before.storage, RUN, "digits")
    assert run.request.classes == [1] and run.request.exchange_classes == {1: (7,)}
    optim = run.optim.model_dump()
    assert {key: optim[key] for key in with_new_keys(stored)["optim"]} == with_new_keys(stored)["optim"]
    assert run.partition.model_dump() == stored["partition"]


def test_its_weights_are_found_by_run_version_alias_and_checkpoint(before: Before) -> None:
    for version in (RUN, "1", "candidate", before.run + "/model"):
        target = evaluated(before.storage, version)
        assert (target.digest, target.run_id) == (before.digest, RUN), version
    checkpoint = evaluated(before.storage, RUN, "last")
    averaged = before.saved[0].average
    assert all(torch.equal(checkpoint.state[name], averaged[name]) for name in averaged)
    assert evaluated(before.storage, before.run + "/checkpoints/00000002").digest == checkpoint.digest


def test_its_run_goes_on_from_its_checkpoint_to_the_same_end(
    before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch)
    start = latest(storage.join(before.run, "checkpoints"))
    assert start is not None and start.progress["step"] == 2
    names = {RULE_BEFORE.get(name, name) for name in start.progress["rule"]}
    assert names <= {item.name for item in fields(SettleRule)}, "a rule forgets nothing"
    outcome, saved = carry_out(today(before.storage), start)
    whole = before.outcome
    assert weights_digest(outcome.trained) == weights_digest(whole.trained)
    for group in ("trained", "average", "moments", "best_weights"):
        assert weights_digest(getattr(saved[-1], group)) == weights_digest(getattr(before.saved[-1], group))
    for name in ("steps", "best_step", "stopped", "first_crossing_step", "settled_step", "before", "after"):
        assert getattr(outcome, name) == getattr(whole, name), name
    assert (outcome.best_step, outcome.first_crossing_step, outcome.settled_step) == (2, 2, 2)


def test_its_run_is_not_continued_with_other_settings(before: Before) -> None:
    with pytest.raises(InputError, match=r"was started with other settings \(seed 0 -> 1\)"):
        preflight.check(today(before.storage, seed=1))


def test_its_versions_are_listed_promoted_and_verified(
    before: Before, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs = runpy.run_path(str(ROOT / "jobs" / "registry.py"))["VERBS"]

    def call(verb: str) -> str:
        arguments = [
            verb,
            "--config",
            "jobs/configs/registry_digits.yaml",
            "--set",
            f"storage={before.storage}",
        ]
        code = command_line.main(RegistryConfig, verbs, "", arguments)
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    assert "1        candidate  passed  uno_s" in call("list") and before.digest in call("show")
    assert "version 1 is champion now; before: none" in call("promote")
    lines = call("verify").splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"certificate of {MODEL} version 1",
        "alias log",
        "certificate.html",
        "result.json",
        "config.yaml",
        "version",
    ]
    assert "2 entries, the chain is unbroken" in call("history")


CONTINUED = f"""
import sys
from pipeline.config import Tracking
from pipeline.tracking.mlflow_runs import Tracker
for run_id, experiment in (({RUN!r}, "unlearning"), ("new", "unlearning"), ("other", "of its own")):
    tracking = Tracking(experiment=experiment)
    with Tracker(tracking=tracking, storage_root=sys.argv[1], run_id=run_id) as tracker:
        tracker.log_artifacts({{"later.txt": b"later"}})
    print(tracker.client.get_run(tracker.mlflow_run_id).info.artifact_uri)
"""


@pytest.fixture
def moved(before: Before, tmp_path: Path) -> Iterator[str]:
    """The root at another place, and nothing where it was."""
    place, gone = tmp_path / "moved", tmp_path / "gone"
    shutil.copytree(before.storage, place)
    Path(before.storage).rename(gone)
    yield str(place)
    shutil.rmtree(before.storage, ignore_errors=True)
    gone.rename(before.storage)


def test_it_can_be_moved(before: Before, moved: str) -> None:
    for version in (RUN, "1", f"{moved}/runs/{RUN}/model"):
        target = evaluated(moved, version)
        assert target.digest == before.digest and target.run is not None and target.run.storage == moved
    assert evaluated(moved, RUN, "last").run_id == RUN, "on the base that lies beside it"
    assert preflight.check(today(moved)).run_uri == f"{moved}/runs/{RUN}"
    registry_config = parse(RegistryConfig, {"storage": moved, "tracking": {"model_name": MODEL}})
    promotion.promote(registry_config)
    assert [line.partition(":")[0] for line in verification.verify(registry_config)][-1] == "version"
    said = subprocess.run(  # a process of its own, as after a move: MLflow remembers where runs were
        [sys.executable, "-c", CONTINUED, moved], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    for place in said.stdout.splitlines():
        assert place.startswith(f"{moved}/mlartifacts/") and Path(place, "later.txt").is_file()
    assert not Path(before.storage).exists(), "nothing is written where it was"


def test_a_key_that_came_since_does_not_make_it_another_run(before: Before) -> None:
    """A file of a time when some keys were not there yet."""
    uri = storage.join(before.run, "config.yaml")
    kept = storage.read_bytes(uri)
    values = yaml.safe_load(kept)
    del values["evaluate"]["membership_draws"], values["gate"]["max_share_drift"], values["attacks"]
    storage.write_text(uri, yaml.safe_dump(values))
    try:
        assert preflight.check(today(before.storage)).run_id == RUN
    finally:
        storage.write_bytes(uri, kept)
