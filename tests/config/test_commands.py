"""Commands in messages: pasted into a shell they call a job with the caller's storage root."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from pipeline import config, storage
from pipeline.config import commands

ROOT = Path(__file__).resolve().parents[2]
JOBS = re.compile(r"(?<!`)(?<!\{CHECKOUT\}/)jobs/\w+\.py")


def test_a_command_is_what_a_shell_takes(tmp_path: Path) -> None:
    root = str(tmp_path / "a root; rm -rf $HOME #1")
    text = commands.registry_command(
        "promote", config.Registry(uri="http://h:5000"), root, "override=a good reason"
    )
    script, verb, *options = shlex.split(text)[1:]
    assert (ROOT / script).is_file() and verb == "promote"
    loaded = config.load(config.RegistryConfig, options[1], options[3::2])
    assert (loaded.storage, loaded.tracking.uri, loaded.override) == (root, "http://h:5000", "a good reason")
    assert options[2::2] == ["--set"] * len(options[3::2])


def test_a_lake_without_a_configuration_of_its_own_says_what_to_fill_in() -> None:
    assert commands.config_for("prepare", "digits") == "jobs/configs/prepare_digits.yaml"
    assert commands.config_for("prepare", "flowers") == "jobs/configs/prepare_<lake>.yaml"


def test_a_run_is_continued_from_its_own_settings_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "require_root", lambda uri: None)  # it ends with the process
    storage.write_text("memory://b/runs/r-1/config.yaml", "storage: memory://b\nrun_id: r-1\n")
    command = shlex.split(commands.continue_command("memory://b", "r-1"))
    assert command[:2] == ["python", "jobs/unlearn_imagenet.py"]
    assert config.load(config.UnlearnConfig, command[3], command[5::2]).run_id == "r-1"


def test_messages_name_no_job_without_a_storage_root() -> None:
    """Texts of the program that name a script of jobs/ are made by `commands`, or are no commands."""
    texts = set()
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and JOBS.search(str(part.value)):
                        texts.add(f"{path.relative_to(ROOT)}: {part.value}")
    assert texts == set()
