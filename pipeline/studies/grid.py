"""The runs of a comparison: every row of its grid on every request, a pair of classes or named samples, and
seed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.generative import is_conditional
from pipeline import config as configuration
from pipeline import storage
from pipeline.config import CompareConfig, UnlearnConfig
from pipeline.data.selection import forget_selection, read_sample_ids
from pipeline.data.tombstones import open_lake
from pipeline.errors import InputError
from pipeline.runs.request_checks import resolve, with_own_settings
from pipeline.weights import model_folder


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a row of the grid, a pair forgotten -> exchange, a seed; with a request for named samples no
    pair, but the name of the request."""

    row: str
    pair: tuple[int, ...]
    config: UnlearnConfig
    named: str | None = None

    @property
    def key(self) -> str:
        settings = self.config.model_dump(mode="json", exclude={"storage"})
        if ids := read_sample_ids(self.config.request):  # wherever the list lies
            settings["request"]["sample_ids"] = storage.digest_of(sorted(set(ids)))
        return storage.digest_of([self.row, settings])


def cells(config: CompareConfig) -> list[Cell]:
    """Every run of the comparison; raises `InputError` for a setting that no job knows."""
    grid = []
    requests: list[tuple[tuple[int, ...], str | None, dict[str, Any]]] = [
        *(((c, e), None, {"classes": [c], "exchange": {c: e}}) for c, e in config.pairs),
        *(((), named.name, {"sample_ids": named.sample_ids}) for named in config.requests),
    ]
    for seed in config.seeds:
        for pair, name, scope in requests:
            for row, settings in config.rows.items():
                values: dict[str, Any] = {
                    **config.unlearn,
                    "storage": config.storage,
                    "seed": seed,
                    "lake": config.lake,
                }
                values["request"] = {**values.get("request", {}), **scope}
                budget = {}
                if config.cpu_seconds:
                    budget = {"optim.max_cpu_seconds": config.cpu_seconds, "evaluate.to_the_end": True}
                overrides = [f"{key}={json.dumps(value)}" for key, value in {**budget, **settings}.items()]
                run = with_own_settings(configuration.parse_given(UnlearnConfig, values, overrides))
                grid.append(Cell(row=row, pair=pair, named=name, config=run))
    return grid


def require_served(config: CompareConfig) -> None:
    """Raise `InputError` for a request of the grid that a row's method, or the lake, has no answer to."""
    lake = open_lake(config.storage, config.lake)
    names = {item.label: item.name for item in lake.manifest.classes}
    for cell in (cell for cell in cells(config) if cell.config.seed == config.seeds[0]):
        try:
            run = resolve(cell.config, names, conditional=is_conditional(cell.config.model.size))
            if cell.named:
                forget_selection(run.request, lake, read_sample_ids(run.request))
        except InputError as error:
            raise InputError(f"rows.{cell.row}: {error}") from error


def request_of(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """The request of a run: its pair, or the name of its list of samples alone."""
    return tuple(result["pair"]) or (result["named"],)


def label_of(result: Mapping[str, Any]) -> int:
    """The label that something of is forgotten: the first, where the named samples are of several."""
    return int((result["pair"] or result["labels"])[0])


def model_uri_of(cell: Cell) -> str:
    """Where the weights lie that the run begins with."""
    model = cell.config.model
    return model.weights or model_folder.model_uri(cell.config.storage, model.size, cell.config.lake)
