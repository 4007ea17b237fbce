"""Bad input: exit code 2, one line that says what to do, nothing written."""

import importlib.util
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import UnlearnConfig
from pipeline.runtime import command_line

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "jobs" / "configs" / "quickstart.yaml"


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def call(name: str, config: str, *overrides: str) -> int:
    """The job's own entry, in this process; its exit code."""
    from pipeline import config as configuration

    kinds = {
        "prepare_data": configuration.PrepareConfig,
        "pretrain": configuration.PretrainConfig,
        "unlearn_imagenet": configuration.UnlearnConfig,
        "generate": configuration.GenerateConfig,
    }
    argv = ["--config", str(ROOT / "jobs" / "configs" / f"{config}.yaml")]
    for override in overrides:
        argv += ["--set", override]
    return command_line.main(kinds[name], module(name).run, "", argv)


def files(root: str | Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], untrained: str) -> Callable[..., str]:
    """Runs a job that has to refuse; returns its one line. Ray is never started for it, and the storage root
    stays as it was."""

    def check(name: str, config: str, *overrides: str, storage: str | None = None) -> str:
        import ray

        root = storage or untrained
        before = files(root)
        code = call(name, config, f"storage={root}", *overrides)
        said = capsys.readouterr()
        assert (code, said.err.count("\n"), said.out) == (2, 1, ""), said.err
        assert said.err.startswith("error: ") and "Traceback" not in said.err
        assert files(root) == before and not ray.is_initialized()
        return said.err

    return check


UNLEARN = [
    (["evaluate.sampler.name=heun"], "evaluate.sampler.name: got 'heun' for a diffusion, expected one of"),
    (["optim.learning_rate=1"], "unknown key 'optim.learning_rate'"),
    (["request.clases=[3]"], "did you mean classes"),
    (["request.classes=[12]"], "class 12 is not in lake 'digits', expected one of 0 to 9"),
    (["request.exchange={1: 10}"], "class 10 is not in lake 'digits', expected one of 0 to 9"),
    (["request.classes=[-1]", "request.exchange={-1: 7}"], "class -1 is not in lake"),
    (["request.exchange={1: 1}"], "class 1 would give class 1, which is itself to be forgotten"),
    (
        ["request.classes=[1, 7]", "request.exchange={1: 7, 7: 2}"],
        "class 1 would give class 7, which is itself to be forgotten",
    ),
    (["request.exchange={2: 7}"], "2 is not among request.classes [1]"),
    (
        ["request.exchange={}"],
        "give one (--set 'request.exchange={1: <class>}') or insist with --set request.without_exchange=true",
    ),
    (
        ["request.classes=[1, 3, 5]", "request.exchange={3: 8}"],
        "--set 'request.exchange={1: <class>, 3: 8, 5: <class>}'",
    ),
    (
        ["request.exchange={}", "request.without_exchange=true"],
        "nothing would move, the base model being its own teacher",
    ),
    (["request.sample_ids=/some/ids.txt"], "request.sample_ids: got '/some/ids.txt', which is missing"),
    (["request.sample_classes=[1]"], "request.sample_ids is absent, so it does nothing"),
    (
        ["request.forgotten_earlier=[1]"],
        "request.forgotten_earlier: class 1 is among request.classes too",
    ),
    (["request.forgotten_earlier=[7]"], "class 1 would give class 7, which was forgotten earlier"),
    (["request.forgotten_earlier=[10]"], "request.forgotten_earlier: class 10 is not in lake"),
    (["request.answers=[{id: r1, classes: [2]}]"], "request.answers: r1 asks for class 2, which is neither"),
    (["request.answers=[{id: r1}, {id: r1}]"], "expected each once"),
    (["request.id=1.10"], "expected a text, in quotes"),
    (
        ["request.sample_ids=/nowhere/ids.txt", "request.exchange={}", "method.targets=data"],
        "to forget no more than the named samples of class 1, name it in request.sample_classes instead",
    ),
    (
        [
            "request.retain=exchange",
            "request.exchange={}",
            "request.without_exchange=true",
            "method.targets=data",
        ],
        "leaves no class to retain",
    ),
    (
        ["optim.batch_size=2000", "request.retain=exchange"],
        "optim.batch_size: got 2000, but retain policy 'exchange' leaves",
    ),
    (["request.classes=[]", "request.exchange={}"], "got neither classes nor sample_ids"),
    (["request.classes=[1, 1]"], "expected each class once"),
    (["request.classes=[0,1,2,3,4,5,6,7,8,9]", "request.exchange={}"], "got every class of the lake"),
    (["lake=nothing"], "python jobs/prepare_data.py --config"),
    (
        ["model.weights=/nowhere/model"],
        "model.weights: no weights at /nowhere/model; make them with `python jobs/pretrain.py",
    ),
    (["judge.weights=/nowhere/judge"], "judge.weights: no weights at /nowhere/judge"),
    (["model.size=DiT-mini"], "no weights at"),
    (["optim.batch_size=63"], "expected a multiple of partition.lanes (8)"),
    (["train.workers=3"], "expected a divisor of partition.lanes (8)"),
    (["optim.micro_batch=7"], "expected a divisor of a worker's share of the batch"),
    (["method.name=forget"], "expected one of finetune, exchange,"),
    (["method.penalty=-0.1"], "method.penalty: got -0.1"),
    (
        ["method.label_init=exchange", "trainable=adaln:2"],
        "method.label_init: exchange moves rows of the label table, which trainable adaln:2",
    ),
    (
        ["method.label_init=exchange", "request.exchange={1: [7, 9]}"],
        "a forgotten class has none or several; expected label_init base and label_extrapolation 0",
    ),
    (
        ["method.label_extrapolation=auto"],
        "method.label_extrapolation: got auto, which is tried out at the start; expected a number",
    ),
    (["trainable=pos_embed"], "expected one of labels_and_adaln:K, adaln:K, labels, all"),
    (["trainable=adaln:9"], "expected 1 to 3"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), UNLEARN, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_main_job_refuses(refused: Callable[..., str], overrides: list[str], message: str) -> None:
    assert message in refused("unlearn_imagenet", "quickstart", *overrides)


@pytest.mark.parametrize(
    ("name", "config", "overrides", "message"),
    [
        ("prepare_data", "prepare_digits", ["source.kind=folders"], "source.kind: got 'folders'"),
        ("prepare_data", "prepare_digits", ["prepare.sizes=8"], "did you mean size"),
        (
            "prepare_data",
            "prepare_digits",
            ["prepare.size=16"],
            "was made with preprocessing.size = 8, got 16",
        ),
        ("pretrain", "pretrain_digits", ["lake=nothing"], "python jobs/prepare_data.py --config"),
        ("pretrain", "pretrain_digits", ["model.size=DiT-huge"], "expected one of DiT-tiny"),
        ("pretrain", "pretrain_digits", ["optim.max_steps=0"], "optim.max_steps: got 0"),
    ],
)
def test_other_jobs_refuse(
    refused: Callable[..., str], name: str, config: str, overrides: list[str], message: str
) -> None:
    assert message in refused(name, config, *overrides)


def test_a_file_that_is_no_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken, listed = tmp_path / "broken.yaml", tmp_path / "list.yaml"
    broken.write_text("a: [1\nb: 2")
    listed.write_text("- 1")
    for path, message in (
        (tmp_path / "none.yaml", "which is no file"),
        (broken, "not valid YAML"),
        (listed, "expected a mapping"),
    ):
        assert (
            command_line.main(UnlearnConfig, module("unlearn_imagenet").run, "", ["--config", str(path)]) == 2
        )
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_weights_that_were_damaged_are_refused(
    refused: Callable[..., str], untrained: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(Path(untrained) / "models" / "dit-tiny-digits", folder)
    stored = bytearray((folder / "model.safetensors").read_bytes())
    stored[-1] ^= 1
    (folder / "model.safetensors").write_bytes(stored)
    assert "the folder is damaged" in refused("unlearn_imagenet", "quickstart", f"model.weights={folder}")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{}", "config.json: names no family of models; restore it"),
        ("config.json", '{"family": "small_cnn"}', "config.json: describes no model (KeyError: "),
        ("config.json", '{"family": "toaster"}', "got family 'toaster', expected one of"),
        ("config.json", '{"family": "small_cnn", "architecture": [1]}', "config.json: describes no model"),
        ("manifest.json", '{"weights_digest": 3}', "manifest.json: names no weights_digest; restore it"),
    ],
)
def test_a_description_of_no_model_is_named(
    refused: Callable[..., str], untrained: str, tmp_path: Path, file: str, content: str, message: str
) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(Path(untrained) / "models" / "judge-digits", folder)
    (folder / file).write_text(content)
    assert message in refused("unlearn_imagenet", "quickstart", f"judge.weights={folder}")


def test_named_samples_that_the_lake_does_not_have_are_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    named = [f"request.sample_ids={tmp_path}/ids.txt", "request.sample_classes=[2]"]
    (tmp_path / "ids.txt").write_text("nobody\n")
    assert "1 of 1 ids are no training rows of classes [2]" in refused(
        "unlearn_imagenet", "quickstart", *named
    )
    (tmp_path / "ids.txt").write_text("\n")
    assert "is empty, expected one sample id a line" in refused("unlearn_imagenet", "quickstart", *named)


def test_weights_that_are_cut_short_are_refused(
    refused: Callable[..., str], untrained: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(Path(untrained) / "models" / "dit-tiny-digits", folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    assert "not a readable safetensors file" in refused(
        "unlearn_imagenet", "quickstart", f"model.weights={folder}"
    )


def test_weights_of_another_class_count_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    from models.generative import build, dit_description
    from pipeline.weights import model_folder

    config = dit_description("DiT-tiny", shape=(1, 8, 8), num_classes=3, class_names=["a", "b", "c"])
    model_folder.write(str(tmp_path / "three"), config, build(config).net.state_dict(), {})
    assert "knows 3 classes, but lake 'digits' has 10" in refused(
        "unlearn_imagenet", "quickstart", f"model.weights={tmp_path / 'three'}"
    )


def test_storage_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], untrained: str, tmp_path: Path
) -> None:
    """A root below a file: nobody, not even root, can make a folder there."""
    (tmp_path / "file").write_text("occupied")
    storage = str(tmp_path / "file" / "runs")
    reads = [
        f"lake={untrained}/lakes/digits",
        f"model.weights={untrained}/models/dit-tiny-digits",
        f"judge.weights={untrained}/models/judge-digits",
    ]
    for name, config, overrides in (
        ("unlearn_imagenet", "quickstart", reads),
        ("pretrain", "pretrain_digits", reads[:1]),
        ("prepare_data", "prepare_digits", []),
    ):
        code = call(name, config, f"storage={storage}", *overrides)
        said = capsys.readouterr()
        assert code == 2, said.err
        assert (
            "cannot be written" in said.err and storage in said.err and "--set storage=<uri>" in said.err
        ), said.err
        assert said.err.count("\n") == 1
    assert files(tmp_path) == {"file": b"occupied"}


def test_dry_run_checks_and_writes_nothing(capsys: pytest.CaptureFixture[str], untrained: str) -> None:
    before = files(untrained)
    argv = ["--config", str(QUICKSTART), "--dry-run", "--set", f"storage={untrained}"]
    assert command_line.main(UnlearnConfig, module("unlearn_imagenet").run, "", argv) == 0
    assert "nothing was written" in capsys.readouterr().out and files(untrained) == before
    assert (
        command_line.main(
            UnlearnConfig, module("unlearn_imagenet").run, "", [*argv, "--set", "request.classes=[12]"]
        )
        == 2
    )


def test_a_dry_run_without_data_prints_the_plan_and_what_makes_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = str(tmp_path / "a root")
    argv = ["--config", str(QUICKSTART), "--set", f"storage={root}"]
    for dry_run in ([], ["--dry-run"]):
        assert command_line.main(UnlearnConfig, module("unlearn_imagenet").run, "", [*argv, *dry_run]) == 2
        said = capsys.readouterr()
        assert said.out.startswith("memory plan: DiT-tiny") == bool(dry_run) and said.err.count("\n") == 1
        commands = [line.split("`")[1] for line in said.err.split("; ")[:3] if "`" in line]
        assert [shlex.split(line)[1:] for line in dict.fromkeys(commands)] == [
            [
                "jobs/prepare_data.py",
                "--config",
                "jobs/configs/prepare_digits.yaml",
                "--set",
                f"storage={root}",
            ],
            ["jobs/pretrain.py", "--config", "jobs/configs/pretrain_digits.yaml", "--set", f"storage={root}"],
        ]
    assert not any(tmp_path.iterdir())


def test_a_dry_run_refuses_what_the_run_would(
    capsys: pytest.CaptureFixture[str], untrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for override, line in (
        ("train.gpus_per_worker=1000", "but this machine has"),
        ("tracking.uri=http://127.0.0.1:1", "does not answer as an MLflow store"),
    ):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        argv = ["--config", str(QUICKSTART), "--dry-run", "--set", f"storage={untrained}", "--set", override]
        assert command_line.main(UnlearnConfig, module("unlearn_imagenet").run, "", argv) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1


def test_a_failed_gate_is_an_exit_code_where_it_is_asked_for(
    untrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.runs import unlearn

    job, gates = module("unlearn_imagenet"), iter((False, False, True))
    monkeypatch.setattr(unlearn, "run", lambda prepared: {"gate": {"passed": next(gates)}})
    monkeypatch.setattr("pipeline.reports.terminal.summary", lambda result, report: "")
    argv = ["--config", str(QUICKSTART), "--set", f"storage={untrained}"]

    def code(*more: str) -> int:
        return command_line.main(UnlearnConfig, job.run, "", [*argv, *more], flags=("require_gate",))

    assert (code(), code("--require-gate"), code("--require-gate")) == (0, command_line.GATE_FAILED, 0)


def test_a_refusal_in_a_process_of_its_own(job: Callable[..., Any], untrained: str) -> None:
    said = job("unlearn_imagenet", "quickstart", f"storage={untrained}", "request.classes=[12]")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "class 12 is not in lake" in said.err
