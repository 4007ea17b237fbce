"""Exit codes of the command line that all jobs share, and the seeds that everything random comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import JobConfig, RegistryConfig
from pipeline.errors import InputError
from pipeline.runtime import command_line
from pipeline.seeding import generator, seed_of


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text("seed: 3\n")
    return str(path)


def raising(error: BaseException) -> Callable[[JobConfig, bool], None]:
    def run(config: JobConfig, dry_run: bool) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (InputError("got 1,\n  expected 2"), 2, "error: got 1, expected 2"),
        (RuntimeError("the disk is on fire"), 1, "failed: RuntimeError: the disk is on fire"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes_say_what_happened(
    config: str, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, last: str
) -> None:
    assert command_line.main(JobConfig, raising(error), "", ["--config", config]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == last
    assert ("Traceback (most recent call last):" in lines) == (code == 1) and (code == 1 or len(lines) == 1)


def test_a_job_gets_its_settings_and_whether_to_write(config: str) -> None:
    seen: list[Any] = []

    def run(settings: JobConfig, dry_run: bool) -> None:
        seen.append((settings.seed, dry_run))

    assert command_line.main(JobConfig, run, "", ["--config", config]) == 0
    assert (
        command_line.main(
            JobConfig, run, "", ["--config", config, "--set", "seed=4", "--set", "seed=5", "--dry-run"]
        )
        == 0
    )
    assert seen == [(3, False), (5, True)]


def test_verbs_choose_the_function(config: str) -> None:
    seen: list[str] = []
    verbs: dict[str, Callable[[JobConfig, bool], None]] = {
        name: lambda settings, dry_run, name=name: seen.append(name) for name in ("list", "show")
    }
    assert command_line.main(JobConfig, verbs, "", ["show", "--config", config]) == 0
    assert seen == ["show"]
    with pytest.raises(SystemExit) as caught:
        command_line.main(JobConfig, verbs, "", ["sing", "--config", config])
    assert caught.value.code == 2


def test_shorthands_and_flags_are_settings(config: str) -> None:
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
