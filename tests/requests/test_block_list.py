"""From the moment a request is accepted, every version that does not honour it refuses its classes."""

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from tracking_samples import result_json, write_model

from models import block_list as reader
from pipeline import storage
from pipeline.config import GenerateConfig, Registry, Tracking
from pipeline.data.keyed_ids import KEY_VARIABLE
from pipeline.errors import InputError
from pipeline.requests import ledger, submit
from pipeline.requests.ledger import Move
from pipeline.runtime import command_line
from pipeline.tracking import alias_log, pyfunc_model, registry
from pipeline.tracking.mlflow_runs import Tracker

NAME = "dit-digits-unlearned"


def fetched(root: str) -> Callable[[str], str | None]:
    return lambda name: pyfunc_model.read_text(f"{root}/requests/{name}")


def blocked(
    root: str,
    request_ids: list[str],
    registered: str = "2030-01-01",
    name: str = NAME,
    forgotten: Sequence[int] = (),
) -> dict[int, str]:
    """As a program that serves reads it."""
    return reader.blocked_classes(
        reader.read(fetched(root), name, expected=False),
        request_ids=request_ids,
        forgotten_classes=forgotten,
        registered=registered,
    )


def test_a_class_is_blocked_from_acceptance_on(
    root: str, configured: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    assert blocked(root, []) == {}
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    submit.submit(configured("r2", classes=[3], exchange={3: 5}))
    assert blocked(root, []) == {1: "r1", 3: "r2"} and blocked(root, ["r1"]) == {3: "r2"}
    assert blocked(root, [], name="another-model") == {}
    submit.withdraw(configured("r2", reason="came twice"))
    assert blocked(root, []) == {1: "r1"}
    answer("r1", 2, Move(name="audited", request="r1", details={"version": 2, "passed": False}))
    assert blocked(root, ["r1"]) == {} and blocked(root, []) == {1: "r1"}, "earlier versions go on refusing"
    failed = [Move(name="reopened", request="r1", details={"reason": "an audit failed"})]
    before = len(ledger.read(root).entries)
    ledger.append(root, lambda known: failed[len(known.entries) - before :])
    assert blocked(root, [], forgotten=[1]) == {}, "forgotten under another request"
    assert blocked(root, ["r1"], "2020-01-01") == {1: "r1"}, "what an audit refuted does not honour it"
    answer("r1", 5)
    assert blocked(root, ["r1"]) == {} and blocked(root, ["r1"], "2020-01-01") == {1: "r1"}


def test_a_list_that_is_not_the_ledgers_is_no_list(
    root: str, configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PAUSE_S", 0)
    with pytest.raises(reader.UnreadableError, match=r"there is no blocked\.json"):
        reader.read(fetched(root), NAME, expected=True)
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    uri = f"{root}/requests/blocked.json"
    first = storage.read_bytes(uri)
    storage.write_bytes(uri, first.replace(b"1", b"2", 1))
    with pytest.raises(reader.UnreadableError, match="does not match its seal"):
        reader.read(fetched(root), NAME, expected=False)
    submit.submit(configured("r2", classes=[3], exchange={3: 5}))
    assert blocked(root, []) == {1: "r1", 3: "r2"}
    storage.write_bytes(uri, first)
    with pytest.raises(reader.UnreadableError, match="is not of the ledger's last entry"):
        reader.read(fetched(root), NAME, expected=False)
    storage.remove(uri)
    submit.submit(configured("r2", classes=[3], exchange={3: 5}))
    assert blocked(root, []) == {1: "r1", 3: "r2"}, "a list that is gone comes back with the next command"


def test_a_list_that_was_edited_and_sealed_again_is_seen(
    root: str, configured: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    uri = f"{root}/requests/blocked.json"
    listed = storage.read_json(uri)
    values = {name: value for name, value in listed.items() if name != "seal"}
    storage.write_json(uri, reader.sealed({**values, "models": {}}))
    assert blocked(root, []) == {}, "whoever has the list alone cannot tell"
    with pytest.raises(InputError, match=r"blocked\.json: not the block list of the ledger's entries, so"):
        ledger.read_whole(root)
    storage.remove(uri)
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    assert ledger.read_whole(root).head["entries"] == 2 and storage.read_json(uri) == listed

    # With the operator's key whoever has the list alone can tell as well.
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    with pytest.raises(InputError, match="entries sealed with the key in UNLEARN_ID_KEY_FILE"):
        ledger.read_whole(root)
    storage.remove(uri)
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    read = reader.read(fetched(root), NAME, expected=True, key=reader.operators_key())
    assert [one["id"] for one in read] == ["r1"] and ledger.read_whole(root)
    assert blocked(root, []) == {1: "r1"}, "a program without the key reads it too"
    storage.write_json(uri, reader.sealed({**values, "models": {}}))
    with pytest.raises(reader.UnreadableError, match="not sealed with the operator's key"):
        reader.read(fetched(root), NAME, expected=True, key=reader.operators_key())
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(reader.UnreadableError, match="cannot be read"):
        reader.operators_key()


@pytest.fixture
def register(root: str) -> Callable[..., Any]:
    """Registers a version that honours `request_ids`; its number."""

    def make(run_id: str, request_ids: list[str]) -> int:
        folder, asked = storage.join(root, "weights", run_id), [1] * bool(request_ids)
        result = result_json(run_id, write_model(folder, seed=1)) | {
            "request": {"id": run_id, "classes": asked, "forgotten_earlier": []},
            "requests": [{"id": name, "classes": asked, "closed": True} for name in request_ids],
        }
        with Tracker(tracking=Tracking(model_name=NAME), storage_root=root, run_id=run_id) as tracker:
            return registry.register(tracker, folder=folder, image_shape=(8, 8, 1), result=result)

    return make


def draw(root: str, version: int, *labels: int, audit: str | None = None) -> Any:
    found = registry.resolve(Registry(model_name=NAME), root, str(version))
    model = registry.load_version(Registry(model_name=NAME), root, found)
    model.unwrap_python_model().audit = audit
    rows = pd.DataFrame({"label": list(labels), "seed": [0] * len(labels)})
    return model.predict(rows, params={"steps": 1})


def generate(root: str, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    path = Path(__file__).resolve().parents[2] / "jobs" / "generate.py"
    spec = importlib.util.spec_from_file_location("jobs_generate", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = Path(root) / "generate.yaml"
    settings.write_text(f"storage: {root}\ntracking: {{model_name: {NAME}}}\nseeds: [0]\nsteps: 1\n")
    argv = ["--config", str(settings), *(part for text in overrides for part in ("--set", text))]
    code = command_line.main(GenerateConfig, module.run, "", argv)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_an_id_that_was_given_twice_honours_the_scope_that_was_answered(root: str) -> None:
    """A run of the main job and a request of the ledger may be called the same and ask for something else."""
    listed = [{"id": "r1", "classes": [1, 9], "reopened": ""}]
    version = {"request_ids": ["r1"], "forgotten_classes": [], "registered": "2030-01-01"}
    assert reader.blocked_classes(listed, **version, asked_classes=[1]) == {9: "r1"}
    assert reader.blocked_classes(listed, **version) == {}, "a version of a time that noted no classes"


def test_versions_refuse_blocked_classes_at_once(
    root: str,
    configured: Callable[..., Any],
    register: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = register("run-1", [])
    assert len(draw(root, first, 1, 7)) == 2, "without a ledger nothing is blocked"
    submit.submit(configured("r1", classes=[1], exchange={1: 7}))
    with pytest.raises(ValueError, match=r"class 1 is blocked: deletion request r1 names it"):
        draw(root, first, 7, 1)
    assert len(draw(root, first, 7)) == 1 and len(draw(root, first, 1, audit="checking")) == 1
    second = register("run-2", ["r1"])
    assert len(draw(root, second, 1)) == 1

    # The job says so too, unless it is told why not, which it records.
    code, said = generate(root, capsys, "labels=[1]", f"version={first}")
    assert code == 2 and said.count("\n") == 1 and "class 1 is blocked: deletion request r1" in said
    assert not Path(root, "generated").exists()
    for again in (False, True):
        code, said = generate(root, capsys, f"version={second}")
        assert code == 0 and ("is there already and is replaced" in said) == again
    code, said = generate(root, capsys, "labels=[1]", f"version={first}", "audit=audit of May")
    entry = alias_log.read(root, NAME)[-1]
    assert code == 0 and (entry.action, entry.version, entry.alias) == ("audit", first, "")
    assert (entry.details["reason"], entry.details["blocked"]) == ("audit of May", [1])

    # A root that was moved is found by where the model lies; a model that was taken away has to be told.
    moved = str(tmp_path / "moved")
    shutil.move(root, moved)
    with pytest.raises(ValueError, match="deletion request r1"):
        draw(moved, first, 1)
    found = registry.resolve(Registry(model_name=NAME), moved, str(second))
    away = tmp_path / "away"
    shutil.copytree(registry.local_copy(Registry(model_name=NAME), moved, found), away)
    rows = pd.DataFrame({"label": [1], "seed": [0]})
    monkeypatch.setattr(reader, "PAUSE_S", 0)
    model = mlflow.pyfunc.load_model(str(away))
    with pytest.raises(ValueError, match=r"is not known: the ledger .* cannot be read .*UNLEARN_LEDGER"):
        model.predict(rows, params={"steps": 1})
    monkeypatch.setenv(pyfunc_model.LEDGER_VARIABLE, f"{moved}/requests")
    assert len(mlflow.pyfunc.load_model(str(away)).predict(rows, params={"steps": 1})) == 1
