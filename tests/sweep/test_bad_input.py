"""Bad input to the sweep's job: exit code 2, one line that says what to do, nothing written, no Ray."""

import importlib.util
from pathlib import Path

import pytest
from sweeps import ROOT

from pipeline.config import SweepConfig, UnlearnConfig
from pipeline.runtime import command_line


def called(
    root: str,
    capsys: pytest.CaptureFixture[str],
    *overrides: str,
    job: str = "sweep_imagenet",
    config: str = "sweep_quickstart",
) -> tuple[int, str, str]:
    spec = importlib.util.spec_from_file_location(f"jobs_{job}", ROOT / "jobs" / f"{job}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    argv = ["--config", str(ROOT / "jobs" / "configs" / f"{config}.yaml"), "--set", f"storage={root}"]
    for override in overrides:
        argv += ["--set", override] if not override.startswith("--") else [override]
    kind = SweepConfig if job == "sweep_imagenet" else UnlearnConfig
    code = command_line.main(kind, module.run, "", argv)  # type: ignore[type-var]
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space={method.penaltie: {loguniform: [0.1, 1]}}", r"unknown key 'method.penaltie': did you mean"),
        ("space={method.penalty: {loguniform: [1, 0.1]}}", "low 1 >= high 0.1"),
        ("space={trainable: {choice: [everything]}}", "everything"),
        ("search.objectives=[settled_stepp]", "no trial reports 'settled_stepp'; did you mean settled_step"),
        ("search.objectives=[gpu_seconds]", "train.gpus_per_worker is 0"),
        ("budget.steps=39", "budget.steps: got 39, less than one trial takes (optim.max_steps 40)"),
        ("budget={trials: 12, seconds: 5, trial_seconds: 6}", "less than one trial's budget.trial_seconds"),
        ("set.optim.lrr=1", "unknown key 'optim.lrr'"),
        ("base=nowhere.yaml", "nowhere.yaml"),
        ("search.algorithm=grid", "search.algorithm: got 'grid'"),
        ("run_id=a/b", "run_id: got 'a/b'"),
    ],
)
def test_it_is_refused(root: str, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    import ray

    before = sorted(str(path) for path in Path(root).rglob("*"))
    code, out, err = called(root, capsys, override)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert sorted(str(path) for path in Path(root).rglob("*")) == before and not ray.is_initialized()


def test_a_dry_run_writes_nothing(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(str(path) for path in Path(root).rglob("*"))
    code, out, err = called(root, capsys, "--dry-run")
    assert (
        code == 0
        and "12 trials over method.penalty, method.surgery_every" in out
        and "nothing was written" in out
    ), err
    assert sorted(str(path) for path in Path(root).rglob("*")) == before
