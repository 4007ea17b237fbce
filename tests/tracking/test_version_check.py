"""A registered version is loaded, measured, exported, replayed and vouched for only as it was registered."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models import version_files
from pipeline import hash_chain, storage
from pipeline.config import RegistryConfig, Tracking, parse
from pipeline.config.export import ExportConfig
from pipeline.errors import InputError
from pipeline.governance import promotion, verification
from pipeline.governance.signing import CertificateError
from pipeline.runs import registered
from pipeline.runs.replay import replay
from pipeline.tracking import alias_log, export, registry
from pipeline.tracking.known_versions import require_log_known
from pipeline.tracking.mlflow_runs import client
from pipeline.tracking.version_check import VersionError

NAME, RUN = "watched", "run-watched"
TRACKING = Tracking(model_name=NAME)


def config(root: str, **values: object) -> RegistryConfig:
    return parse(RegistryConfig, {"storage": root, "tracking": {"model_name": NAME}, **values})


@pytest.fixture(scope="module")
def promoted(root: str, register_run: Callable[..., int]) -> Path:
    """The folder of a champion."""
    register_run(NAME, RUN)
    promotion.promote(config(root))
    return registry.local_copy(TRACKING, root, registry.resolve(TRACKING, root, "1"))


@pytest.fixture
def folder(promoted: Path, tmp_path: Path) -> Iterator[Path]:
    """The same, put back afterwards."""
    shutil.copytree(promoted, tmp_path / "kept")
    yield promoted
    shutil.rmtree(promoted)
    shutil.copytree(tmp_path / "kept", promoted)


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def listed_too(folder: Path, name: str, text: str) -> None:
    """Changed together with the version's own list, as somebody would who read how it is made."""
    (folder / name).write_text((folder / name).read_text() + text)
    version_files.write_list(folder)


def linked(path: Path) -> None:
    (path.parents[3] / "elsewhere").mkdir(exist_ok=True)
    path.symlink_to(path.parents[3] / "elsewhere")


RUNS = "\nimport os\nos.system('touch {}')\n"
DAMAGES: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "the script runs more": (
        lambda f, run: (f / "pyfunc_model.py").write_text((f / "pyfunc_model.py").read_text() + run),
        r"pyfunc_model\.py was changed",
    ),
    "a module of its code": (
        lambda f, run: (f / "code/models/dit.py").write_text(run),
        r"code/models/dit\.py was changed",
    ),
    "a module that hides another": (
        lambda f, run: (f / "code/yaml.py").write_text(run),
        r"code/yaml\.py was added",
    ),
    "a folder that is a link": (lambda f, run: linked(f / "code/torch"), "code/torch was added"),
    "the script and the list": (
        lambda f, run: listed_too(f, "pyfunc_model.py", run),
        r"its files, files\.json among them, were replaced",
    ),
    "config.json": (
        lambda f, run: edited(f / "config.json", '"steps"', '"step_s"'),
        r"config\.json was changed",
    ),
    "MLmodel": (
        lambda f, run: edited(f / "MLmodel", "pyfunc_model.py", "code/models/dit.py"),
        "MLmodel was changed",
    ),
    "what it honours": (
        lambda f, run: edited(f / "honoured.json", '"forgotten_classes": [', '"forgotten_classes": [3,'),
        r"honoured\.json was changed",
    ),
    "a pipe": (lambda f, run: os.mkfifo(f / "zz"), ".*zz: a pipe, socket or device"),
    "a link to a device": (
        lambda f, run: (f / "zz").symlink_to("/dev/zero"),
        ".*zz: a pipe, socket or device",
    ),
    "a link to nowhere": (
        lambda f, run: (f / "zz").symlink_to(f / "gone"),
        ".*zz: a link that leads nowhere",
    ),
    "its list emptied": (lambda f, run: (f / "files.json").write_text(""), ".*files.json cannot be read"),
    "its list of another kind": (
        lambda f, run: (f / "files.json").write_text("[1]"),
        ".*files.json cannot be read",
    ),
    "a name twice in its list": (
        lambda f, run: edited(f / "files.json", "{", '{"MLmodel": "0",'),
        ".*files.json cannot be read",
    ),
    "one file less": (lambda f, run: (f / "requirements.txt").unlink(), r"requirements\.txt is gone"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_changed_version_is_neither_loaded_nor_vouched_for(
    root: str, folder: Path, tmp_path: Path, damage: str
) -> None:
    change, said = DAMAGES[damage]
    change(folder, RUNS.format(tmp_path / "ran"))
    version = registry.resolve(TRACKING, root, "1")
    for use in (
        lambda: verification.verify(config(root)),
        lambda: registry.load_version(TRACKING, root, version),
        lambda: registered.read(TRACKING, root, version, "version"),
        lambda: export.source(parse(ExportConfig, {"storage": root, "tracking": {"model_name": NAME}})),
        lambda: promotion.promote(config(root, version=1)),
        lambda: replay(config(root)),
    ):
        with pytest.raises(VersionError, match=f"watched version 1: {said}"):
            use()
    assert not (tmp_path / "ran").exists()


def test_what_mlflow_and_python_leave_is_no_change(root: str, folder: Path) -> None:
    (folder / version_files.BY_MLFLOW).write_text("model_name: watched\n")
    assert verification.verify(config(root))[5].startswith("version: every file as it was registered")
    planted = folder / "code/models/__pycache__" / f"dit.{sys.implementation.cache_tag}.pyc"
    planted.parent.mkdir()
    planted.write_bytes(b"run in place of dit.py, and in no digest")
    with pytest.raises(CertificateError, match=r"compiled code .*dit\..*\.pyc: remove it; --allow-missing"):
        verification.verify(config(root))
    assert "compiled code" in verification.verify(config(root, allow_missing=True))[5]
    registry.load_version(TRACKING, root, registry.resolve(TRACKING, root, "1"))
    assert version_files.bytecode(folder) == [], "it is removed, not run"


def test_a_version_refuses_to_load_when_its_own_files_differ(folder: Path) -> None:
    """As a program loads it that has MLflow alone and knows no tags."""
    import mlflow.pyfunc

    edited(folder / "honoured.json", '"forgotten_classes": [', '"forgotten_classes": [3,')
    with pytest.raises(version_files.ChangedError, match=r"honoured\.json was changed since"):
        mlflow.pyfunc.load_model(str(folder))
    (folder / version_files.LIST).unlink()
    with pytest.raises(version_files.ChangedError, match=r"files\.json cannot be read"):
        mlflow.pyfunc.load_model(str(folder))


def test_the_runs_configuration_belongs_to_the_version(root: str, promoted: Path) -> None:
    path = Path(root, "runs", RUN, "config.yaml")
    kept = path.read_text()
    path.write_text(kept + "seed: 9\n")
    for use in (lambda: promotion.promote(config(root)), lambda: replay(config(root))):
        with pytest.raises(VersionError, match=r"config\.yaml was changed since it was registered"):
            use()
    with pytest.raises(CertificateError, match="not the configuration that was certified"):
        verification.verify(config(root))
    path.unlink()
    with pytest.raises(CertificateError, match=r"config\.yaml: not there to check .*--allow-missing accepts"):
        verification.verify(config(root))
    assert len(verification.verify(config(root, allow_missing=True))) == 6
    path.write_text(kept)


def test_mlflows_own_tags_are_compared(root: str, promoted: Path) -> None:
    mlflow = client(TRACKING, root)
    tags = mlflow.get_model_version(NAME, "1").tags
    for tag, said in (("weights_digest", "MLflow's tag weights_digest"), ("version_digest", "its tag says")):
        mlflow.set_model_version_tag(NAME, "1", tag, "0" * 64)
        with pytest.raises((CertificateError, VersionError), match=said):
            verification.verify(config(root))
        mlflow.set_model_version_tag(NAME, "1", tag, tags[tag])
    mlflow.set_registered_model_alias(NAME, "champion", "1")
    mlflow.delete_registered_model_alias(NAME, "champion")
    with pytest.raises(CertificateError, match="in MLflow no version is"):
        verification.verify(config(root))
    mlflow.set_registered_model_alias(NAME, "champion", "1")
    assert len(verification.verify(config(root))) == 6


def test_a_version_that_no_run_registered_is_refused(root: str, promoted: Path, tmp_path: Path) -> None:
    shutil.copytree(promoted, tmp_path / "model")
    mlflow = client(TRACKING, root)
    mlflow.create_model_version(NAME, str(tmp_path / "model"), tags={"gate": "passed"})
    version = registry.resolve(TRACKING, root, "2")
    with pytest.raises(
        VersionError,
        match="version 2: no entry of the alias log names it with a digest of its files, and version 1",
    ):
        registry.load_version(TRACKING, root, version)
    mlflow.delete_model_version(NAME, "2")


def test_whoever_writes_mlflow_alone_gives_no_version_away(root: str, promoted: Path, tmp_path: Path) -> None:
    """Its own digest as a tag, the alias moved: the log names neither."""
    copy = tmp_path / "model"
    shutil.copytree(promoted, copy)
    listed_too(copy, "pyfunc_model.py", RUNS.format(tmp_path / "ran"))
    digest = version_files.digest_of(version_files.digests(copy))
    mlflow = client(TRACKING, root)
    number = str(mlflow.create_model_version(NAME, str(copy), tags={"version_digest": digest}).version)
    with pytest.raises(VersionError, match="no entry of the alias log names it"):
        registry.load_version(TRACKING, root, registry.resolve(TRACKING, root, number))
    mlflow.set_registered_model_alias(NAME, "champion", number)
    with pytest.raises(VersionError, match=f"champion is at version {number} in MLflow, the log says 1"):
        registry.resolve(TRACKING, root, "champion")
    mlflow.set_registered_model_alias(NAME, "champion", "1")
    mlflow.delete_model_version(NAME, number)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_not_where_mlflow_says(root: str, promoted: Path) -> None:
    mlflow = client(TRACKING, root)
    number = str(mlflow.create_model_version(NAME, "http://127.0.0.1:9/x").version)
    with pytest.raises(VersionError, match="its files are not where MLflow says"):
        registry.load_version(TRACKING, root, registry.resolve(TRACKING, root, number))
    mlflow.delete_model_version(NAME, number)


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result["after"]["forget_fraction"].update(value=0.0),
        lambda result: result["gate"]["checks"][0].update(bound=99),
        lambda result: result["request"].update(classes=[1, 2, 3]),
        lambda result: result.update(requests=[{"id": "r9"}]),
    ],
)
def test_a_result_edited_before_the_promotion_becomes_no_certificate(
    root: str, register_run: Callable[..., int], change: Callable[[dict], None]
) -> None:
    name = "edited-result"
    register_run(name, f"run-{name}")
    path = Path(root, "runs", f"run-{name}", "result.json")
    kept = path.read_text()
    result = json.loads(kept)
    change(result)
    path.write_text(json.dumps(result))
    edited = parse(RegistryConfig, {"storage": root, "tracking": {"model_name": name}})
    with pytest.raises(
        VersionError, match=r"the result\.json of its run was changed since it was registered"
    ):
        promotion.promote(edited)
    path.write_text(kept)
    assert promotion.promote(edited, dry_run=True)[1] is None


def test_a_damaged_certificate_is_written_again_from_the_log(root: str, promoted: Path) -> None:
    uri = alias_log.certificate_uri(root, NAME, 1)
    kept = storage.read_bytes(uri)
    storage.write_bytes(uri, kept[:-20])
    assert promotion.promote(config(root)) == (1, None) and storage.read_bytes(uri) == kept


def test_a_version_of_before_is_used_and_said_not_to_be_recorded(
    root: str, register_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking(model_name="older")
    older = parse(RegistryConfig, {"storage": root, "tracking": {"model_name": "older"}})
    with monkeypatch.context() as patch:
        patch.setattr(registry, "digests_of", lambda *_: {})
        register_run("older", "run-older-1")
    mlflow = client(tracking, root)
    for tag in ("version_digest", "config_digest"):
        mlflow.delete_model_version_tag("older", "1", tag)
    with monkeypatch.context() as patch:
        patch.setattr(version_files, "digest_of", lambda files: None)
        promotion.promote(older)
    assert registry.load_version(tracking, root, registry.resolve(tracking, root, "1"))
    with pytest.raises(CertificateError, match=r"its other files .* were not recorded"):
        verification.verify(older)
    assert len(verification.verify(older.model_copy(update={"allow_missing": True}))) == 6


def test_the_log_of_another_model_is_refused(root: str, promoted: Path) -> None:
    theirs = Path(root, "registry", "theirs")
    shutil.copytree(Path(root, "registry", NAME), theirs)
    with pytest.raises(alias_log.LogError, match="entry 1 is about 'watched': the log of another model"):
        alias_log.read(root, "theirs")
    shutil.rmtree(theirs / "log")  # entries of before name no model; the certificate does
    document = json.loads((theirs / "v1" / "certificate.json").read_text())
    values = {"action": "promote", "alias": "champion", "came_from": None, "version": 1}
    uri = storage.join(root, "registry", "theirs", "log", "000001.json")
    assert hash_chain.append(uri, [], alias_log.Entry, **values, details={"certificate": document})
    with pytest.raises(CertificateError, match="it is about watched version 1, expected theirs version 1"):
        verification.verify(parse(RegistryConfig, {"storage": root, "tracking": {"model_name": "theirs"}}))


def test_another_tracking_store_is_noticed(root: str, promoted: Path, tmp_path: Path) -> None:
    require_log_known(TRACKING, root)
    require_log_known(Tracking(model_name="new-one"), root)
    values = {"action": "register", "alias": "candidate", "came_from": None, "version": 4}
    alias_log.append(root, "ghost", [], **values)  # by a store that this one is not
    elsewhere = TRACKING.model_copy(update={"uri": f"sqlite:///{tmp_path}/none.db"})
    for tracking, said in (
        (elsewhere, "does not know version 1 of watched, .*nothing is registered yet"),
        (Tracking(model_name="ghost"), "does not know version 4 of ghost, .*no model 'ghost' is registered"),
    ):
        with pytest.raises(InputError, match=said):
            require_log_known(tracking, root)
