"""A version that honours fewer requests than the champion does not take its place: what was forgotten would
be back."""

from collections.abc import Callable
from typing import Any

import pytest
from tracking_samples import result_json, write_model

from pipeline import storage
from pipeline.config import RegistryConfig, Tracking, parse
from pipeline.errors import InputError
from pipeline.governance import honours, promotion
from pipeline.requests import ledger
from pipeline.requests.ledger import Move
from pipeline.tracking import alias_log, registry
from pipeline.tracking.mlflow_runs import Tracker

Register = Callable[..., int]
TERMS = {"lake": "digits", "received": "2026-01-01", "due": "2026-02-01", "legal_basis": "", "approver": ""}


@pytest.fixture
def register(root: str) -> Register:
    """Registers a version whose run answered `answers` (id -> classes), or one request of before, with no
    word of several; its number."""

    def make(name: str, run_id: str, answers: dict[str, list[int]] | None = None, **request: Any) -> int:
        folder = storage.join(root, "weights", f"{name}-{run_id}")
        result = result_json(f"{name}-{run_id}", write_model(folder, seed=0))
        result["request"] |= request
        if answers is not None:
            result["request"]["classes"] = sorted({c for classes in answers.values() for c in classes})
            result["requests"] = [
                {"id": key, "classes": classes, "forget_fraction": None, "closed": True}
                for key, classes in answers.items()
            ]
        with Tracker(
            tracking=Tracking(model_name=name), storage_root=root, run_id=result["run_id"]
        ) as tracker:
            version = registry.register(tracker, folder=folder, image_shape=(8, 8, 1), result=result)
        storage.write_json(storage.join(root, "runs", result["run_id"], "result.json"), result)
        return version

    return make


def config(root: str, name: str, **values: Any) -> RegistryConfig:
    return parse(RegistryConfig, {"storage": root, "tracking": {"model_name": name}, **values})


def test_another_request_from_the_base_cannot_take_the_place_of_one_that_honours_more(
    root: str, register: Register
) -> None:
    register("more", "a", {"r1": [1], "r3": [3]})
    register("more", "b", {"r4": [4]})
    register("more", "c", {"r1": [1], "r3": [3], "r4": [4]})
    promotion.promote(config(root, "more", version=1))
    with pytest.raises(InputError) as refused:
        promotion.promote(config(root, "more", version=2))
    said = str(refused.value)
    assert "does not honour request r1 (class 1), honoured by the champion" in said and "r3 (class 3)" in said
    assert alias_log.read(root, "more")[-1].version == 1, "nothing was written"
    promotion.promote(config(root, "more", version=3))
    with pytest.raises(InputError, match=r"version 1: it does not honour request r4 \(class 4\)"):
        promotion.rollback(config(root, "more"))
    reason = "r4 is answered again tomorrow"
    assert promotion.rollback(config(root, "more", override=reason)) == (3, 1)
    entry = alias_log.read(root, "more")[-1]
    assert entry.details["override"] == reason and len(entry.details["not_honoured"]) == 1
    _, promoted = promotion.promote(config(root, "more", version=2, override=reason))
    assert promoted is not None and len(promoted.details["not_honoured"]) == 2


def test_versions_of_before_honour_their_one_request(root: str, register: Register) -> None:
    register("old", "a", id="forget-1", classes=[1])
    register("old", "b", id="forget-3", classes=[3])
    register("old", "c", id="again", classes=[1, 3])
    register("old", "d", id="samples", classes=[1], sample_ids="ids.txt")
    promotion.promote(config(root, "old", version=1))
    with pytest.raises(InputError, match=r"request forget-1 \(class 1\), honoured by the champion"):
        promotion.promote(config(root, "old", version=2))
    promotion.promote(config(root, "old", version=3))
    with pytest.raises(InputError, match=r"request again \(class 1, 3\)"):
        promotion.promote(config(root, "old", version=4))
    storage.remove(f"{root}/runs/old-c/result.json")
    with pytest.raises(InputError, match=r"request again \(class 1, 3\)"):
        promotion.promote(config(root, "old", version=1))


def test_answered_requests_of_the_ledger_are_honoured_too(root: str, register: Register) -> None:
    def moves(request: str, classes: list[int], samples: Any = None) -> list[Move]:
        terms = {**TERMS, "model_name": "known", "classes": classes, "exchange": {}, "samples": samples}
        return [
            Move(name="received", request=request, details=terms),
            Move(name="accepted", request=request),
            Move(name="answered", request=request, details={"version": 1, "run_id": "known-a"}),
        ]

    named = {"uri": "/ids.txt", "count": 2, "digest": "d", "classes": {4: 2}}
    wanted = [*moves("r1", [1]), *moves("r2", [], named)]
    ledger.append(root, lambda known: wanted[len(known.entries) :])
    register("known", "a", {"r2": [], "other": [1]})
    register("known", "b", {"r1": [1]})
    promotion.promote(config(root, "known", version=1))
    with pytest.raises(InputError, match="it does not honour request r2, answered in the ledger"):
        promotion.promote(config(root, "known", version=2))
    found = honours.of_result(storage.read_json(f"{root}/runs/known-a/result.json"))
    assert found.classes == {1} and found.honours("r1", [1], samples=False)
    assert not found.honours("r5", [1], samples=True) and not found.honours("r5", [1, 2], samples=False)
    assert promotion.promote(config(root, "known", version=1)) == (1, None), "it is champion already"
