"""Exit codes of the command line that all jobs share, and the seeds that everything random comes from."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.base import SeededConfig
from pipeline.config.registry import RegistryConfig
from pipeline.errors import InputError
from pipeline.runtime import command_line
from pipeline.seeding import generator, seed_of


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text("seed: 3\n")
    return str(path)


def raising(error: BaseException) -> Callable[[SeededConfig, bool], None]:
    def run(config: SeededConfig, dry_run: bool) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (InputError("got 1,\n  expected 2"), 2, "error: got 1, expected 2"),
        (
            OSError(errno.EROFS, "Read-only file system", "/x/requests/1.json"),
            2,
            "error: /x/requests/1.json: Read-only file system; expected files that can be read and written:"
            " mend their permissions, make room, or pass --set storage=<uri>",
        ),
        (
            OSError(errno.EIO, "Input/output error", "/x/1.json"),
            1,
            "failed: OSError: [Errno 5] Input/output error: '/x/1.json'",
        ),
        (RuntimeError("the disk is on fire"), 1, "failed: RuntimeError: the disk is on fire"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes_say_what_happened(
    config: str, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, last: str
) -> None:
    assert command_line.main(SeededConfig, raising(error), "", ["--config", config]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == last
    assert ("Traceback (most recent call last):" in lines) == (code == 1) and (code == 1 or len(lines) == 1)


def test_a_job_gets_its_settings_and_whether_to_write(config: str) -> None:
    seen: list[Any] = []

    def run(settings: SeededConfig, dry_run: bool) -> None:
        seen.append((settings.seed, dry_run))

    assert command_line.main(SeededConfig, run, "", ["--config", config]) == 0
    assert (
        command_line.main(
            SeededConfig, run, "", ["--config", config, "--set", "seed=4", "--set", "seed=5", "--dry-run"]
        )
        == 0
    )
    assert seen == [(3, False), (5, True)]


def test_verbs_choose_the_function(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    verbs: dict[str, Callable[[SeededConfig, bool], None]] = {
        name: lambda settings, dry_run, name=name: seen.append(name) for name in ("list", "show")
    }
    assert command_line.main(SeededConfig, verbs, "", ["show", "--config", config]) == 0
    assert seen == ["show"]
    with pytest.raises(SystemExit) as caught:
        command_line.main(SeededConfig, verbs, "", ["sing", "--config", config])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("error: argument verb: invalid choice: 'sing'")
    assert said.count("\n") == 1


def test_shorthands_and_flags_are_settings(tmp_path: Path) -> None:
    config = str(tmp_path / "registry.yaml")
    Path(config).write_text("tracking: {model_name: digits}\n")
    seen: list[Any] = []

    def run(settings: RegistryConfig, dry_run: bool) -> None:
        seen.append((settings.request, settings.replay))

    for argv in ([], ["--request", "case-1"], ["--replay"], ["--set", "replay=true", "--request=7"]):
        assert (
            command_line.main(
                RegistryConfig, run, "", ["--config", config, *argv], shorthands=["request"], flags=["replay"]
            )
            == 0
        )
    assert seen == [(None, False), ("case-1", False), (None, True), ("7", True)]


def test_seeds_are_the_same_on_every_machine() -> None:
    assert seed_of(0, "retain", 7) == 8560280220459930553
    assert 0 <= seed_of("x") < 2**63
    assert torch.equal(
        torch.randn(3, generator=generator(1, "a")), torch.randn(3, generator=generator(1, "a"))
    )


def test_seeds_tell_all_keys_apart() -> None:
    keys: list[tuple[int | str, ...]] = [
        (1, 2),
        (12,),
        (2, 1),
        ("1", 2),
        (1, "2"),
        (1, 2, ""),
        ("1 2",),
        (1,),
        (),
    ]
    assert len({seed_of(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("verb", "given", "message"),
    [
        (
            "rollback",
            "version=3",
            "version: got '3', which rollback does nothing with (show, promote, verify, replay",
        ),
        ("list", "request=forget-1", "request: got 'forget-1', which list does nothing with (purge would)"),
        ("promote", "public_key=a.pem", "expected version or override or key"),
        ("purge", "replay=true", "replay: got True, which purge does nothing with (verify would)"),
    ],
)
def test_a_key_that_the_verb_does_not_read_is_refused(
    capsys: pytest.CaptureFixture[str], verb: str, given: str, message: str
) -> None:
    def run(settings: RegistryConfig, dry_run: bool) -> None:
        raise AssertionError("it must not get this far")

    verbs = dict.fromkeys(RegistryConfig.keys_of_verb, run)
    argv = [verb, "--config", "jobs/configs/registry_digits.yaml", "--set", given]
    assert command_line.main(RegistryConfig, verbs, "", argv) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_the_environment_gives_the_storage_root_where_no_set_does(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def run(settings: SeededConfig, dry_run: bool) -> None:
        seen.append(settings.storage)

    monkeypatch.setenv("UNLEARN_STORAGE", str(tmp_path / "of: environment"))
    given = ["--config", config, "--set", f"storage={tmp_path}/given"]
    assert command_line.main(SeededConfig, run, "", ["--config", config]) == 0
    assert command_line.main(SeededConfig, run, "", given) == 0
    assert command_line.main(SeededConfig, run, "", [], default_config=config) == 0
    assert seen == [f"{tmp_path}/of: environment", f"{tmp_path}/given", f"{tmp_path}/of: environment"]
