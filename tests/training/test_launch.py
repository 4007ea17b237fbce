"""What a person is told when the retries are spent, without a cluster."""

from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.config import Train, UnlearnConfig, parse
from pipeline.errors import InputError
from pipeline.runtime import cluster_ray, compat_ray
from pipeline.training.launch_ray import _final, launch


class Wrapped(Exception):
    """As Ray Train wraps what a worker raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a long traceback")
        self._base_exc = cause


def failed(**failures: Any) -> Exception:
    error = Exception("Training failed due to worker errors:\n many\nlines")
    error.worker_failures = {int(rank[1:]): Wrapped(cause) for rank, cause in failures.items()}  # type: ignore[attr-defined]
    return error


def test_the_failure_that_the_others_followed_from_is_named() -> None:
    said = _final(
        failed(
            r0=RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"),
            r1=MemoryError("no room\nat all"),
        ),
        Train(),
    )
    assert str(said).startswith(
        "the workers failed 4 times (train.max_failures 3), at last rank 1 by MemoryError: no room at all. "
    )
    assert "submitted again" in str(said) and "\n" not in str(said)


def test_bad_input_met_by_a_worker_stays_bad_input() -> None:
    assert isinstance(
        _final(failed(r0=RuntimeError("gloo"), r1=InputError("storage s3://b: no credentials")), Train()),
        InputError,
    )


def test_a_controller_that_gave_up_says_why() -> None:
    error = Exception("…")
    error.controller_failure = TimeoutError("60 s\nwithout workers")  # type: ignore[attr-defined]
    assert "Ray Train gave up (TimeoutError): 60 s without workers" in str(_final(error, Train()))


@pytest.mark.parametrize(("workers", "range_"), [(2, (2, 2)), ([1, 4], (1, 4))])
def test_workers_are_a_number_or_a_range(workers: Any, range_: tuple[int, int]) -> None:
    train = Train(workers=workers)
    assert (train.fewest, train.most) == range_


@pytest.mark.parametrize("workers", [0, [3, 1], [1, 2, 3], [0, 2], "two", 1.5, None])
def test_anything_else_is_no_number_of_workers(workers: Any) -> None:
    with pytest.raises(
        InputError, match=r"^train\.workers: got .*, expected a positive number or \[fewest, most\]$"
    ):
        parse(UnlearnConfig, {"train": {"workers": workers}})


def test_a_range_needs_a_number_that_deals_out_the_lanes() -> None:
    with pytest.raises(
        InputError,
        match=r"^train\.workers: got \[5, 7\], expected a divisor of partition.lanes \(8\) among them$",
    ):
        parse(UnlearnConfig, {"train": {"workers": [5, 7]}})


NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0}, "Labels": {"zone": zone, "market": market}}
    for zone, market in (("a", "spot"), ("b", "spot"), ("b", "demand"))
]


@pytest.mark.parametrize(
    ("selector", "nodes"),
    [
        ({}, 3),
        ({"zone": "b"}, 2),
        ({"zone": "!b"}, 1),
        ({"zone": "in(a, b)", "market": "demand"}, 1),
        ({"zone": "!in(a,b)"}, 0),
        ({"rack": "1"}, 0),
        ({"rack": "!1"}, 3),
    ],
)
def test_workers_have_room_on_the_nodes_that_are_selected(
    monkeypatch: pytest.MonkeyPatch, selector: dict[str, str], nodes: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    cluster_ray.wait_for({"CPU": 4}, nodes, nodes, wait_s=0, labels=selector)
    with pytest.raises(InputError, match=rf"its {nodes} nodes{' with labels' if selector else ''}"):
        cluster_ray.wait_for({"CPU": 4}, nodes + 1, nodes + 1, wait_s=0, labels=selector)


def test_the_selector_goes_to_ray_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipeline.runtime import compat_train_ray

    class Trainer:
        def __init__(self, worker: Any, **options: Any) -> None:
            self.return_value = options["scaling_config"].label_selector

        def fit(self) -> "Trainer":
            return self

    monkeypatch.setattr(compat_train_ray, "Trainer", Trainer)
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    monkeypatch.setattr(compat_ray, "set_up_train", lambda **options: None)
    for selector in ({"market": "spot"}, {}):
        train = parse(UnlearnConfig, {"train": {"label_selector": selector}}).train
        sent = launch(lambda arguments: None, {}, train, storage_uri=str(tmp_path), name="n")
        assert sent == (selector or None)
    with pytest.raises(InputError, match=r"train\.label_selector\.market: got 'in\(', string should match"):
        parse(UnlearnConfig, {"train": {"label_selector": {"market": "in("}}})
