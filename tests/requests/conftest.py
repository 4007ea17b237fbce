"""A storage root with the digits lake, and requests to it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pretended import PretendedModel

from pipeline.config import parse
from pipeline.config.ledger import LedgerConfig
from pipeline.config.process import ProcessConfig
from pipeline.requests import ledger, process, submit
from pipeline.requests.ledger import Move, Request
from pipeline.requests.process import Summary


@pytest.fixture(scope="session")
def lake_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.config import PrepareConfig
    from pipeline.data import ingest, ingest_ray

    root = tmp_path_factory.mktemp("lake")
    config = parse(PrepareConfig, {"storage": str(root), "prepare": {"size": 8, "channels": 1}})
    ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks))
    return root


@pytest.fixture
def root(lake_root: Path, tmp_path: Path) -> str:
    """A storage root of its own with the lake and no ledger."""
    shutil.copytree(lake_root / "lakes", tmp_path / "runs" / "lakes")
    return str(tmp_path / "runs")


@pytest.fixture
def configured(root: str) -> Callable[..., LedgerConfig]:
    """The configuration of one call: `configured("r1", classes=[1], exchange={1: 7}, due="2026-12-31")`."""

    def make(request_id: str | None = None, **values: Any) -> LedgerConfig:
        inside = {
            key: values.pop(key)
            for key in ("classes", "exchange", "sample_ids", "without_exchange")
            if key in values
        }
        request = {"id": request_id, **inside} if request_id else inside
        return parse(LedgerConfig, {"storage": root, "request": request, **values})

    return make


@pytest.fixture
def answer(root: str) -> Callable[..., Request]:
    """What a processor writes when version `version` answered a request."""

    def write(request_id: str, version: int, *moves: Move) -> Request:
        wanted = [
            Move(
                name="answered", request=request_id, details={"version": version, "run_id": f"run-{version}"}
            ),
            Move(name="closed", request=request_id, details={"version": version}),
            *moves,
        ]

        def decide(known: ledger.Ledger) -> Sequence[Move]:
            done = len(known.requests[request_id].history) - start
            return wanted[done:]

        start = len(ledger.read(root).requests[request_id].history)
        return ledger.append(root, decide).requests[request_id]

    return write


@pytest.fixture
def settings(root: str) -> Callable[..., ProcessConfig]:
    def make(**values: Any) -> ProcessConfig:
        return parse(ProcessConfig, {"storage": root, "promote": "automatic", **values})

    return make


@pytest.fixture
def run(root: str, settings: Callable[..., ProcessConfig]) -> Callable[..., Summary]:
    """`run(model, start="champion")`: one pass of the processor."""

    def call(model: PretendedModel, **values: Any) -> Summary:
        return process.process(settings(**values), model, say=lambda line: None)

    return call


@pytest.fixture
def asked(configured: Callable[..., LedgerConfig]) -> Callable[..., None]:
    def make(name: str, label: int, exchange: int, **values: Any) -> None:
        submit.submit(configured(name, classes=[label], exchange={label: exchange}, **values))

    return make
