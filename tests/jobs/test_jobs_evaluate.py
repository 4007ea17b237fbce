"""jobs/evaluate.py: every way to name weights, what it refuses, and what it leaves; untrained weights, so
only the flow is tested."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FEW = [
    "metrics=[forget_fraction, leakage, retain_accuracy, fid, kid, membership]",
    "measuring.samples=20",
    "measuring.retain_samples=3",
    "measuring.null_samples=4",
    "measuring.cfg_scales=[]",
    "measuring.sampler_steps=1",
    "measuring.block=10",
    "measuring.reference_rows=30",
    "measuring.membership_noises=1",
    "measuring.membership_rows=12",
    "train.cpus_per_worker=0.5",
]


@pytest.fixture(scope="module")
def root(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage root with a run of an untrained model: its settings, its weights, and two checkpoints."""
    import torch

    from models.generative import build
    from pipeline import config as configuration
    from pipeline import storage
    from pipeline.config import UnlearnConfig
    from pipeline.training.checkpoint import Checkpoint
    from pipeline.unlearning.parameters import select
    from pipeline.weights import model_folder

    made = str(tmp_path_factory.mktemp("evaluated") / "root")
    shutil.copytree(untrained, made)
    run = configuration.load(
        UnlearnConfig, str(ROOT / "jobs/configs/quickstart.yaml"), [f"storage={made}", "run_id=run-a"]
    )
    folder = storage.join(made, "runs", "run-a")
    storage.write_text(storage.join(folder, "config.yaml"), configuration.dump(run))
    base = model_folder.read(model_folder.model_uri(made, "DiT-tiny", "digits"), "base")
    model_folder.write(
        storage.join(folder, "model"), base.config, {k: v + 0.01 for k, v in base.state.items()}, {}
    )
    model = build(base.config)
    model.net.load_state_dict(base.state)
    trained = {name: p.detach() for name, p in select(model, run.trainable).items()}
    for iteration in (2, 10):
        average = {name: p + 0.01 * iteration * torch.ones_like(p) for name, p in trained.items()}
        files = Checkpoint(iteration=iteration, trained=trained, average=average, moments={}).to_files()
        for name, data in files.items():
            storage.write_bytes(storage.join(folder, "checkpoints", f"checkpoint_{iteration}", name), data)
    unfinished = storage.join(made, "runs", "run-b", "config.yaml")
    storage.write_text(unfinished, configuration.dump(run.model_copy(update={"run_id": "run-b"})))
    return made


def config_of(root: str, *overrides: str) -> Any:
    from pipeline import config as configuration
    from pipeline.config.evaluate import EvaluateConfig

    return configuration.load(
        EvaluateConfig, str(ROOT / "jobs/configs/evaluate_digits.yaml"), [f"storage={root}", *FEW, *overrides]
    )


def test_weights_are_found_by_run_checkpoint_and_folder(root: str) -> None:
    from pipeline.runs import resolve_weights
    from pipeline.weights import model_folder

    base = model_folder.read(model_folder.model_uri(root, "DiT-tiny", "digits"), "base").digest
    ways = [
        (["version=run-a"], "run run-a"),
        (["version=run-a", "checkpoint=last"], "checkpoint checkpoint_10 of run run-a, step 10"),
        (["version=run-a", "checkpoint=checkpoint_2"], "checkpoint checkpoint_2 of run run-a, step 2"),
        (
            [f"version={root}/runs/run-a/checkpoints/checkpoint_2"],
            "checkpoint checkpoint_2 of run run-a, step 2",
        ),
        ([f"version={root}/runs/run-a/model"], f"{root}/runs/run-a/model"),
        ([f"version={root}/models/dit-tiny-digits"], f"{root}/models/dit-tiny-digits"),
    ]
    found = [resolve_weights.find(config_of(root, *overrides)) for overrides, _ in ways]
    assert [one.title for one in found] == [what for _, what in ways]
    assert [one.run_id for one in found] == ["run-a"] * 5 + [None]
    digests = [one.digest for one in found]
    assert (
        digests[0] == digests[4]
        and digests[2] == digests[3]
        and digests[5] == base
        and len(set(digests)) == 4
    )


def test_the_question_comes_from_the_run(root: str) -> None:
    from pipeline.runs import version_evaluation

    evaluation = version_evaluation.check(config_of(root, "version=run-a"))
    spec = evaluation.spec
    assert (spec.forgotten, spec.exchange) == ((1,), {1: (7,)}) and len(spec.neighbours) == 5
    assert set(evaluation.models) == {"after", "before"} and evaluation.facts["run_id"] == "run-a"
    assert evaluation.warnings and "right on 10.0% of held-out images" in evaluation.warnings[0]
    earlier = version_evaluation.check(config_of(root, "version=run-a", "metrics=[membership_auc]"))
    assert earlier.metrics == ("membership",)
    alone = version_evaluation.check(
        config_of(root, f"version={root}/models/dit-tiny-digits", "lake=digits", "request.classes=[3]")
    )
    assert (
        set(alone.models) == {"after"}
        and alone.spec.forgotten == (3,)
        and alone.spec.retained == (0, 1, 2, 4, 5, 6, 7, 8, 9)
    )


REFUSED = [
    (
        ["version=run-a", "metrics=[forget]"],
        "metrics: got 'forget', expected some of forget_fraction, earlier_fraction, exchange_fraction",
    ),
    (
        ["version=run-a", "metrics=[]"],
        "expected at least one, attack_suite=true, reference=<model> or evaluate.protocol=adm",
    ),
    (["version=run-a", "measuring.samples=0"], "measuring.samples: got 0"),
    (["version=run-a", "measuring.sample=9"], "did you mean samples"),
    (["version=run-a", "measuring.kid.blocks=9"], "unknown key 'measuring.kid': valid keys of measuring are"),
    (
        ["version=run-a", "attack_suite=true", "attacks.hammer.blows=9"],
        "unknown key 'attacks.hammer': valid keys of attacks are",
    ),
    (["version=run-b"], "is not finished; measure a checkpoint of it with --set checkpoint=last"),
    (["version=run-b", "checkpoint=last"], "expected last or one of those under"),
    (["version=run-a", "checkpoint=checkpoint_3"], "got 'checkpoint_3', expected last or one of those"),
    (["version=/nowhere/model"], "version: no weights at /nowhere/model"),
    (["version=/nowhere/model", "checkpoint=last"], "give a run id as version"),
    (["version=champion"], "nothing is registered yet"),
    (["version=99"], "a run's id or a folder of weights will do as well"),
    (["version=run-a", "reference=dit-tiny-digits-without-1"], "reference: no weights at"),
    (["version=run-a", "base=nothing"], "base: no weights at"),
    (
        ["version=run-a", "attack_suite=true", "second_judge=judge-digits"],
        "is the judge that measures the run; expected one that took no part in it, or svm",
    ),
    (
        ["version=run-a", "attack_suite=true", "second_judge=dit-tiny-digits"],
        "holds a dit, expected a judge: small_cnn, mlp, resnet, transformers, or svm",
    ),
    (["version=run-a", "attack_suite=true", "second_judge=nobody"], "second_judge: no weights at"),
    (["version=run-a", "judge.weights=/nowhere/judge"], "judge.weights: no weights at /nowhere/judge"),
    (["version={root}/models/dit-tiny-digits"], "is no run's: say which images it was trained on"),
    (
        ["version={root}/models/dit-tiny-digits", "lake=digits", "attack_suite=true"],
        "it asks about forgotten classes, and there are none",
    ),
    (
        ["version={root}/models/dit-tiny-digits", "lake=digits", "request.classes=[12]"],
        "class 12 is not in lake 'digits'",
    ),
    (
        ["version={root}/models/dit-tiny-digits", "lake=digits", "request.classes=[0,1,2,3,4,5,6,7,8,9]"],
        "got every class",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    root: str, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    import ray

    from pipeline.config.evaluate import EvaluateConfig
    from pipeline.runtime import command_line

    spec = importlib.util.spec_from_file_location("jobs_evaluate", ROOT / "jobs" / "evaluate.py")
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    before = sorted(str(path) for path in Path(root).rglob("*"))
    argv = ["--config", str(ROOT / "jobs/configs/evaluate_digits.yaml"), "--set", f"storage={root}"]
    for override in overrides:
        argv += ["--set", override.replace("{root}", root)]
    assert command_line.main(EvaluateConfig, job.run, "", argv) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == "", said.err
    assert sorted(str(path) for path in Path(root).rglob("*")) == before and not ray.is_initialized()


def test_a_damaged_checkpoint_is_refused(root: str, tmp_path: Path) -> None:
    from pipeline.errors import InputError
    from pipeline.runs import resolve_weights

    run = tmp_path / "runs" / "run-a"
    shutil.copytree(Path(root) / "runs" / "run-a", run)
    tensors = run / "checkpoints" / "checkpoint_10" / "checkpoint.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    with pytest.raises(InputError, match="checkpoint"):
        resolve_weights.find(config_of(root, f"version={tensors.parent}"))
    tensors.unlink()
    with pytest.raises(InputError, match=r"lacks checkpoint\.safetensors"):
        resolve_weights.find(config_of(root, f"version={tensors.parent}"))


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    from pipeline.runtime import cluster_ray

    cluster_ray.connect(cpus=2)
    yield
    cluster_ray.disconnect()


@pytest.mark.ray
def test_tasks_side_by_side_give_the_same_figures_as_one(root: str, ray_session: None) -> None:
    from pipeline.evaluation import evaluate_ray
    from pipeline.reports.evaluation_table import table
    from pipeline.runs import version_evaluation
    from pipeline.weights import model_folder

    weights = model_folder.read(f"{root}/models/dit-tiny-digits", "base")
    folder = f"{root}/models/never-saw-it"  # which is the base itself
    model_folder.write(folder, weights.config, weights.state, {"made_with": {"without": [1]}})
    reference = f"reference={folder}"
    attack_suite = [
        "attack_suite=true",
        "attacks.samples=20",
        "attacks.retain_samples=1",
        "attacks.embedding_steps=1",
        "attacks.embedding_starts=[mean]",
        "attacks.embedding_lr=0.1",
        "attacks.only=[none, quantise, embedding]",
    ]
    one = evaluate_ray.evaluate(
        version_evaluation.check(config_of(root, "version=run-a", "train.workers=1", reference))
    )
    config = config_of(root, "version=run-a", "train.workers=3", reference, *attack_suite)
    three = evaluate_ray.evaluate(version_evaluation.check(config))
    for side in ("before", "after", "reference"):
        same(three[side], one[side])
    assert one["attack_suite"] is None and {line["error"] for line in three["attack_suite"]["attacks"]} == {
        None
    }
    assert (
        one["before"]["retrained_reference"]["agreement"]["value"] == 1.0
    )  # the reference is the base itself here
    assert json.loads(json.dumps(three, allow_nan=False)) == three
    text = table(three)
    for said in (
        "Forgotten class still sampled (forget_fraction)",
        "null label",
        "in the judge's features",
        "attacks (bound 0.05)",
        "embedding from mean",
        "judged like it",
    ):
        assert said in text, said
    assert version_evaluation.output_uri(config, three).startswith(
        f"{root}/runs/run-a/evaluations/{three['weights_digest'][:12]}-"
    )


@pytest.mark.ray
def test_an_attack_that_breaks_does_not_hold(root: str, ray_session: None) -> None:
    from pipeline.evaluation import evaluate_ray
    from pipeline.runs import version_evaluation

    few = [
        "attack_suite=true",
        "metrics=[]",
        "attacks.samples=20",
        "attacks.retain_samples=1",
        "attacks.finetune_steps=3",
    ]
    few += [
        "attacks.finetune_lr=1.0e+30",
        "attacks.only=[finetune, quantise]",
    ]
    found = evaluate_ray.evaluate(version_evaluation.check(config_of(root, "version=run-a", *few)))
    lines = {line["name"]: line for line in found["attack_suite"]["attacks"]}
    assert found["after"] is None and found["attack_suite"]["held"] is False
    assert lines["finetune"]["state"] == "failed" and "not finite" in lines["finetune"]["error"]
    assert lines["bf16"]["error"] is None


def same(got: Any, wanted: Any, path: str = "") -> None:
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys(), path
        for key in wanted:
            same(got[key], wanted[key], f"{path}/{key}")
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-10, abs=1e-10), path
    else:
        assert got == wanted, path


def test_a_main_job_that_cannot_be_proven_is_refused_before_it_starts(root: str) -> None:
    from pipeline import config as configuration
    from pipeline.config import UnlearnConfig
    from pipeline.errors import InputError
    from pipeline.runs import preflight

    for override, said in (
        ("evaluate.metrics=[forget]", r"evaluate\.metrics: got 'forget'"),
        ("evaluate.reference=nothing", r"evaluate\.reference: no model at .*--set 'without=\[1\]"),
    ):
        with pytest.raises(InputError, match=said):
            preflight.check(
                configuration.load(
                    UnlearnConfig, "jobs/configs/quickstart.yaml", [f"storage={root}", override]
                )
            )


def test_classes_that_cannot_be_left_out_of_pretraining(root: str, tmp_path: Path) -> None:
    from pipeline import config as configuration
    from pipeline.config import PretrainConfig
    from pipeline.data.lake import read_lake
    from pipeline.errors import InputError
    from pipeline.training import pretrain_run

    def load(*overrides: str) -> Any:
        return configuration.load(PretrainConfig, "jobs/configs/pretrain_digits.yaml", list(overrides))

    assert pretrain_run.model_uri_of(load(f"storage={root}", "without=[7, 1]")).endswith(
        "/models/dit-tiny-digits-without-1-7"
    )
    shutil.copytree(Path(root) / "lakes", tmp_path / "lakes")
    lake = read_lake(f"{root}/lakes/digits")
    rows = lake.read()
    (tmp_path / "ids.txt").write_text("\n".join([rows.sample_id[3], rows.sample_id[0], rows.sample_id[3]]))
    named = load(f"storage={root}", f"without_samples={tmp_path}/ids.txt")
    seen = pretrain_run.seen_rows(named, lake)
    assert len(seen) == len(rows) - 2 and not {rows.sample_id[0], rows.sample_id[3]} & set(seen.sample_id)
    (tmp_path / "same.txt").write_text("\n".join([rows.sample_id[0], rows.sample_id[3]]))
    same_rows = load(f"storage={root}", f"without_samples={tmp_path}/same.txt")
    assert "-without-samples-" in pretrain_run.model_uri_of(named) and pretrain_run.model_uri_of(
        named
    ) == pretrain_run.model_uri_of(same_rows)
    (tmp_path / "unknown.txt").write_text(f"{rows.sample_id[0]}\nnobody")
    (tmp_path / "all.txt").write_text("\n".join(rows.sample_id))
    for overrides, said in (
        ([f"storage={root}", "without=[11]"], "class 11 is not in lake"),
        ([f"storage={root}", "without=[0,1,2,3,4,5,6,7,8,9]"], "got every class"),
        ([f"storage={tmp_path}", "without=[1]"], "no judge is there yet"),
        ([f"storage={tmp_path}", f"without_samples={tmp_path}/ids.txt"], "no judge is there yet"),
        (
            [f"storage={root}", f"without_samples={tmp_path}/unknown.txt"],
            "1 of 2 ids are not in lake 'digits', the first is 'nobody'",
        ),
        ([f"storage={root}", f"without_samples={tmp_path}/all.txt"], "got every row"),
        (
            [f"storage={root}", f"without_samples={tmp_path}/none.txt"],
            "without_samples: got '.*none.txt', which is missing",
        ),
    ):
        with pytest.raises(InputError, match=said):
            pretrain_run.pretrain(load(*overrides))
