"""Configurations that are cut, encoded otherwise, or far larger than they look: one line, at once."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig, UnlearnConfig, load
from pipeline.config.reading import apply_overrides
from pipeline.data.ingest_ray import listed
from pipeline.errors import InputError
from pipeline.runs.request_checks import with_own_settings

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "c.yaml").write_bytes("source: {kind: cafés}\n".encode(encoding))
    assert load(PrepareConfig, str(tmp_path / "c.yaml")).source.kind == "cafés"


@pytest.mark.parametrize(
    "content",
    [
        ALIASES.encode(),
        b"[" * 20_000,
        b"lake: &a [*a]\n",
        b"lake: 2026-13-45\n",
        b"lake: \xff\xfe\n",
        b"\0" * 100,
        b"lake: caf\xe9\n",
        "lake: x\n".encode("utf-16-le"),
    ],
)
def test_what_is_no_configuration_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.yaml is not valid YAML") as caught:
        load(PrepareConfig, str(tmp_path / "c.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "lake: digits\nsource: {kind: digits}\nlake: other\n",
            "the key lake is there twice, in lines 1 and 3",
        ),
        ("source: {kind: digits, kind: mnist}\n", "the key kind is there twice, in lines 1 and 1"),
    ],
)
def test_a_key_may_be_there_once(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        load(PrepareConfig, str(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match="the key 1 is there twice"):
        apply_overrides({}, ["request.exchange={1: 7, 1: 8}"])
    (tmp_path / "c.yaml").write_text("x: &x {kind: digits}\nsource: {<<: *x, kind: mnist}\n")
    with pytest.raises(InputError, match="unknown key 'x'"):  # what is merged may be said anew
        load(PrepareConfig, str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("text", ["[" * 20_000, "2026-13-45"])
def test_the_same_of_overrides(text: str) -> None:
    with pytest.raises(InputError, match="which is not valid YAML"):
        apply_overrides({}, [f"lake={text}"])


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("request.classes=[010]", "request.classes", [10]),
        ("seed=1_0", "seed", 10),
        ("optim.lr=1e-3", "optim.lr", 0.001),
        ("optim.lr=1.5e-3", "optim.lr", 0.0015),
        ("optim.lr=.5", "optim.lr", 0.5),
        ("request.id=0x10", "request.id", "0x10"),
        ("request.id=1_000", "request.id", "1_000"),
    ],
)
def test_numbers_are_what_people_write(override: str, key: str, value: Any) -> None:
    """Not octal, sexagesimal or hexadecimal ones, as YAML has them."""
    config: Any = load(UnlearnConfig, "jobs/configs/quickstart.yaml", [override])
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=.inf", "optim.lr: got inf, input should be a finite number"),
        ("optim.lr=1e400", "optim.lr: got '1e400', input should be a finite number"),
        ("gate.max_forget_fraction=.nan", "input should be a finite number"),
        ("method.penalty=.nan", "method.penalty: got nan, input should be a finite number"),
        ("method.penalty=1:30", "method.penalty: got '1:30', input should be a valid number"),
        ("seed=yes", "seed: got True, which YAML reads as a truth value; expected a number"),
        ("request.classes=[1, on]", "request.classes: got .*, which YAML reads as a truth value"),
        ("request.exchange={yes: 7}", "request.exchange: got .*, which YAML reads as a truth value"),
        ("tracking.experiment=' '", "tracking.experiment: got ' '"),
        ("storage=s3:bucket/x", "storage: got 's3:bucket/x', expected a folder or"),
    ],
)
def test_what_is_no_number_or_name_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_own_settings(load(UnlearnConfig, "jobs/configs/quickstart.yaml", [override]))


@pytest.mark.parametrize("override", ["prepare.size=100000", "source.held_out=1", "source.held_out=.nan"])
def test_what_no_lake_could_be_made_with_is_refused(override: str) -> None:
    with pytest.raises(InputError, match=f"^{override.partition('=')[0]}: got "):
        listed(load(PrepareConfig, "jobs/configs/prepare_digits.yaml", [override]))


def test_a_file_that_is_no_configuration_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("root:*:19000:0\n  planted: [x\n")
    with pytest.raises(InputError, match=r"is not valid YAML .* in line 2") as refused:
        load(UnlearnConfig, str(tmp_path / "shadow"), [])
    assert "19000" not in str(refused.value) and "planted" not in str(refused.value)


@pytest.mark.parametrize("root", ["memory://x", "http://127.0.0.1:9/x", "zip://x", "/dev/null"])
def test_what_keeps_nothing_is_no_storage_root(root: str) -> None:
    with pytest.raises(InputError, match=r"storage: got .*(ends with the process|only be read|is no folder)"):
        load(UnlearnConfig, "jobs/configs/quickstart.yaml", [f"storage={root}"])


def test_a_line_end_is_no_part_of_a_lakes_name() -> None:
    with pytest.raises(InputError, match=r"lake: got 'x\\n', expected a name"):
        load(UnlearnConfig, "jobs/configs/quickstart.yaml", ['lake="x\\n"'])
