"""All jobs in order, on the smallest settings: what they leave behind and what they say. Those of
the quickstart run in processes of their own.

The weights are hardly trained, so nothing is forgotten here: what is tested is the flow. `make quickstart`
shows the effect.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = "dit-digits-unlearned"
UNLEARN = [
    "optim.batch_size=16",
    "optim.max_steps=4",
    "partition.lanes=4",
    "partition.segment_steps=2",
    "train.cpus_per_worker=0.4",
    "evaluate.every=2",
    "evaluate.samples=20",
    "evaluate.retain_samples=2",
    "evaluate.final_samples=100",
    "evaluate.final_retain_samples=4",
    "evaluate.sampler_steps=2",
    "evaluate.final_sampler_steps=3",
]
PROVEN = [
    "evaluate.attack_suite=true",
    "evaluate.reference=never-saw-it",  # the base under another name: the flow is tested, not the distance
    "evaluate.second_judge=svm",
    "attacks.only=[none, quantise, embedding, relearn]",
    "attacks.embedding_starts=[mean]",
    "attacks.embedding_lr=0.1",
    "attacks.relearn={lr: 1.0e-4, checks: [0, 1], samples: 20}",
    "evaluate.metrics=[leakage, loss_by_timestep]",
    "measuring.samples=20",
    "measuring.retain_samples=2",
    "measuring.null_samples=2",
    "measuring.cfg_scales=[]",
    "measuring.sampler_steps=2",
    "measuring.loss_rows=4",
    "measuring.timestep_bins=2",
    "attacks.samples=20",
    "attacks.retain_samples=1",
    "attacks.embedding_steps=1",
]

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def pretrained(root: str, job: Callable[..., Any], here: Callable[..., Any]) -> str:
    """The storage root after prepare and pretrain."""
    prepared = job("prepare_data", "prepare_digits", f"storage={root}")
    assert prepared.code == 0, prepared.err
    assert "lake digits: " in prepared.out and "10 classes" in prepared.out
    small = [
        "judge.max_steps=40",
        "train.workers=1",
        "evaluate.retain_samples=2",
        "evaluate.final_sampler_steps=3",
    ]
    judge, model = (
        Path(root) / "models" / name / "manifest.json" for name in ("judge-digits", "dit-tiny-digits")
    )
    made: list[tuple[str, str]] = []
    for call, steps in ((here, 2), (job, 10)):
        trained = call("pretrain", "pretrain_digits", f"storage={root}", f"optim.max_steps={steps}", *small)
        assert trained.code == 0, trained.err
        assert "parameters: " in trained.out and "judged right" in trained.out
        made.append((judge.read_text(), model.read_text()))
    (judge_first, model_first), (judge_then, model_then) = made
    assert judge_first == judge_then and model_first != model_then, (
        "a judge does not depend on the model's settings"
    )
    assert "training DiT-tiny 10/10" in trained.err and "held-out images" in trained.out
    return root


@pytest.fixture(scope="module")
def unlearned(pretrained: str, job: Callable[..., Any]) -> dict[str, Any]:
    """result.json of the main job on two workers."""
    models = Path(pretrained) / "models"
    shutil.copytree(models / "dit-tiny-digits", models / "never-saw-it")
    manifest = json.loads((models / "never-saw-it" / "manifest.json").read_text())
    manifest["made_with"]["without"] = [1]
    (models / "never-saw-it" / "manifest.json").write_text(json.dumps(manifest))
    done = job("unlearn_imagenet", "quickstart", f"storage={pretrained}", "run_id=first", *UNLEARN, *PROVEN)
    assert done.code == 0, done.err
    assert len((done.out + done.err).splitlines()) < 60, "a normal run does not drown what it says"
    for said in (
        "forget_fraction",
        "Retained classes predicted right",
        "gate ",
        "under attack: ",
        f"registered {MODEL} version 1 @candidate",
        "report.html",
    ):
        assert said in done.out
    return json.loads((Path(pretrained) / "runs" / "first" / "result.json").read_text())


def keys(value: dict[str, Any], *names: str) -> None:
    assert set(names) <= value.keys(), set(names) - value.keys()


def test_result_holds_the_whole_contract(unlearned: dict[str, Any]) -> None:
    r = unlearned
    keys(
        r,
        "run_id",
        "request",
        "method",
        "method_config",
        "model",
        "base_digest",
        "weights_digest",
        "lake_digest",
        "partition_digest",
    )
    keys(
        r,
        "code_version",
        "seed",
        "world_size",
        "steps",
        "first_crossing_step",
        "settled_step",
        "before",
        "after",
        "gate",
        "timing",
    )
    keys(r["model"], "name", "version", "alias")
    for moment in ("before", "after"):
        keys(r[moment], "forget_fraction", "retain_accuracy", "fid")
        keys(r[moment]["forget_fraction"], "value", "n", "low", "high")
        keys(r[moment]["retain_accuracy"], "mean", "min", "neighbours", "per_class")
        keys(r[moment]["exchange_density"], "forgotten", "own")
        assert r[moment]["exchange_density"]["forgotten"]["n"] == 100
        assert r[moment]["forget_fraction"]["n"] == 100 and r[moment]["fid"]["judge"] > 0
        assert sorted(r[moment]["retain_accuracy"]["per_class"]) == [
            str(label) for label in range(10) if label != 1
        ]
    keys(r["gate"], "passed", "checks")
    assert all(set(check) >= {"name", "value", "bound", "passed"} for check in r["gate"]["checks"])
    keys(
        r["timing"],
        "seconds_to_first_batch",
        "seconds_per_step",
        "seconds_to_forget",
        "gpu_seconds",
        "total_seconds",
    )
    assert (r["run_id"], r["method"], r["seed"], r["world_size"], r["steps"]) == ("first", "uno_s", 0, 2, 4)
    assert (r["request"]["classes"], r["request"]["exchange"]) == ([1], {"1": 7})
    assert (r["model"]["name"], int(r["model"]["version"]), r["model"]["alias"]) == (MODEL, 1, "candidate")
    assert r["timing"]["gpu_seconds"] is None and r["timing"]["seconds_per_step"] > 0
    digests = [r[name] for name in ("base_digest", "weights_digest", "lake_digest", "partition_digest")]
    assert all(len(digest) == 64 for digest in digests) and len(set(digests)) == 4


def test_the_proof_is_in_result_and_report(unlearned: dict[str, Any], pretrained: str) -> None:
    attack_suite, reference = unlearned["attack_suite"], unlearned["reference"]
    lines = {line["name"]: line for line in attack_suite["attacks"]}
    assert list(lines) == [
        *("none", "int8", "bf16", "embedding from mean"),
        *("relearn under its label", "relearn under a new label"),
    ]
    assert all(line["error"] is None for line in lines.values())
    recalled = lines["embedding from mean"]
    assert recalled["forget_fraction"]["n"] == recalled["second"]["forget_fraction"]["n"] == 20
    assert recalled["budget"]["images"] == 36 and recalled["excess"] and recalled["second"]["excess"]
    assert lines["relearn under its label"]["relearned_in_reference"]["budget"] == 1
    assert attack_suite["second_judge"]["name"] == "svm"
    assert attack_suite["second_judge"]["heldout_accuracy"] > 0.9
    assert reference["name"] == "never-saw-it" and reference["weights_digest"] == unlearned["base_digest"]
    sides = unlearned["metrics"] | {"reference": reference}
    assert sides["before"]["retrained_reference"]["agreement"]["value"] == 1.0
    assert set(sides) == {"before", "after", "reference"} and all(
        "leakage" in side for side in sides.values()
    )
    page = (Path(pretrained) / "runs" / "first" / "report.html").read_text()
    assert all(f'<section id="{name}">' in page for name in ("attack_suite", "further", "reference"))


def test_the_run_leaves_its_folder(unlearned: dict[str, Any], pretrained: str) -> None:
    folder = Path(pretrained) / "runs" / "first"
    for name in (
        "config.yaml",
        "request.yaml",
        "metrics.jsonl",
        "result.json",
        "report.html",
        "checkpoints",
        "samples",
    ):
        assert (folder / name).exists(), name
    assert {path.name for path in (folder / "samples").glob("*.png")} >= {
        f"{m}-00001.png" for m in ("before", "after")
    }
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4]
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == [0, 2, 4]
    page = (folder / "report.html").read_text()
    assert unlearned["weights_digest"][:12] in page and 'src="http' not in page and 'href="http' not in page
    assert (Path(pretrained) / "mlflow.db").is_file()


def test_only_the_trained_subset_was_changed(unlearned: dict[str, Any], pretrained: str) -> None:
    from models.weights import weights_digest
    from pipeline.weights import model_folder

    base = model_folder.read(f"{pretrained}/models/dit-tiny-digits", "base")
    after = model_folder.read(f"{pretrained}/runs/first/model", "after")
    assert (
        (base.digest, after.digest)
        == (unlearned["base_digest"], unlearned["weights_digest"])
        == (base.digest, weights_digest(after.state))
    )
    changed = {name for name, tensor in after.state.items() if not tensor.equal(base.state[name])}
    assert changed == {"y_embedder.embedding_table.weight"} | {
        f"blocks.{block}.adaLN_modulation.1.{kind}" for block in (1, 2) for kind in ("weight", "bias")
    }


def test_the_candidate_loads_and_samples(
    unlearned: dict[str, Any], pretrained: str, job: Callable[..., Any]
) -> None:
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(f"sqlite:///{pretrained}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@candidate")
    images = model.predict(pd.DataFrame([{"label": 1, "seed": 5}, {"label": 7, "seed": 5}]))
    assert images.shape == (2, 8, 8, 1) and images.dtype == "uint8"

    drawn = job(
        "generate", "generate_digits", f"storage={pretrained}", "labels=[1, 7, 0]", "seeds=[5]", "steps=2"
    )
    assert drawn.code == 0, drawn.err
    (png,) = (Path(pretrained) / "generated").glob("*.png")
    assert png.read_bytes().startswith(b"\x89PNG") and str(png) in drawn.out


def test_a_finished_run_is_returned_at_once(
    unlearned: dict[str, Any], pretrained: str, here: Callable[..., Any]
) -> None:
    folder = Path(pretrained) / "runs" / "first"
    before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
    again = here("unlearn_imagenet", "quickstart", f"storage={pretrained}", "run_id=first", *UNLEARN, *PROVEN)
    assert again.code == 0, again.err
    assert f"registered {MODEL} version 1 @candidate" in again.out
    assert {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))} == before


def test_an_unfinished_run_with_other_settings_is_refused(
    unlearned: dict[str, Any], pretrained: str, here: Callable[..., Any]
) -> None:
    begun = Path(pretrained) / "runs" / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_bytes(
        (Path(pretrained) / "runs" / "first" / "config.yaml").read_bytes().replace(b"first", b"begun")
    )
    said = here("unlearn_imagenet", "quickstart", f"storage={pretrained}", "run_id=begun", "seed=3", *UNLEARN)
    assert (said.code, said.err.count("\n")) == (2, 1) and "seed 0 -> 3" in said.err
    assert sorted(path.name for path in begun.iterdir()) == ["config.yaml"]


def test_one_worker_gives_the_weights_of_two(
    unlearned: dict[str, Any], pretrained: str, here: Callable[..., Any]
) -> None:
    """On the same global batches, and the partition made before: float32 summation noise apart."""
    from models import weights
    from pipeline import config as configuration
    from pipeline import storage
    from pipeline.data.partition_ray import build_partition
    from pipeline.runs import preflight
    from pipeline.training import run_folder, worker

    def read(folder: str, name: str) -> dict[str, Any]:
        return weights.from_bytes(storage.read_bytes(storage.join(pretrained, folder, name)), name)

    overrides = [f"storage={pretrained}", "run_id=alone", *UNLEARN, "train.workers=1"]
    path = str(ROOT / "jobs/configs/quickstart.yaml")
    prepared = preflight.check(configuration.load(configuration.UnlearnConfig, path, overrides))
    partition = build_partition(prepared.config, prepared.lake, prepared.subject["neighbours"])
    assert partition.reused and partition.digest == unlearned["partition_digest"]
    outcome = worker.train(
        prepared.config, partition_uri=partition.uri, run_uri=prepared.run_uri, **prepared.sources
    )
    assert outcome["world_size"] == 1
    alone, first = (read(f"runs/{name}", run_folder.TRAINED) for name in ("alone", "first"))
    base = read("models/dit-tiny-digits", "model.safetensors")
    apart = sum((alone[name] - first[name]).square().sum() for name in first).sqrt()
    moved = sum((first[name] - base[name]).square().sum() for name in first).sqrt()
    assert moved > 0 and apart < 1e-3 * moved
