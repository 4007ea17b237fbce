"""The one run that answers what is open: from which weights it starts, what it forgets, what it is called."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline import config as configuration
from pipeline import storage
from pipeline.config import Evaluate, UnlearnConfig, parse
from pipeline.config.conditions import has, pop
from pipeline.config.process import ProcessConfig
from pipeline.config.weights import Model
from pipeline.data import tombstones
from pipeline.data.lake import Lake
from pipeline.errors import InputError
from pipeline.requests import merge, samples
from pipeline.requests.ledger import Request
from pipeline.requests.merge import Union
from pipeline.runs.preflight import HOW
from pipeline.weights import model_folder

LIST = "sample_ids.txt"  # in the run's folder, where several requests name samples
ID_DIGITS = 16  # of what decides a run, in its id
# at least, of each forgotten class at the end: with none of 100 the upper 95 % bound is 3.7 %
FINAL_SAMPLES = 100


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version, and the requests it honours."""

    number: int
    request_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the lake still holds of what requests name. `ids`: by request, the class of each named sample
    that is there. `gone`: by request, why its rows are not there as they were: all of them, or some.
    `lists`: by request, the file that lists its `ids` and no others."""

    ids: Mapping[str, Mapping[str, int]]
    gone: Mapping[str, str]
    lists: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Start:
    weights: Literal["base", "champion"]
    why: str
    version: int | None = None  # of the champion, where it starts from that


@dataclass(frozen=True, kw_only=True)
class Plan:
    run_id: str
    start: Start
    union: Union
    config: UnlearnConfig
    list_uri: str | None  # where `union.sample_ids` go first, None where a file has them already

    @property
    def request_ids(self) -> list[str]:
        return sorted(self.union.request_ids)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to forget that the champion has not forgotten."""
        return not self.config.request.classes and not self.union.sample_ids

    @property
    def lines(self) -> list[str]:
        """What is about to be done, for people."""
        request = self.config.request
        parts = [f"classes {', '.join(map(str, request.classes))}"] if request.classes else []
        parts += [f"{len(self.union.sample_ids)} named samples"] if self.union.sample_ids else []
        earlier = request.forgotten_earlier
        held = f"; {', '.join(map(str, earlier))} were forgotten earlier" if earlier else ""
        return [
            f"open: {', '.join(r.id for r in self.union.open)}; answered before:"
            f" {', '.join(r.id for r in self.union.answered) or 'none'}",
            f"run {self.run_id} forgets {' and '.join(parts)}{held}",
            *(
                [
                    f"the purged rows of classes {', '.join(map(str, request.stood_in))} are stood in for by"
                    f" {request.stand_in_samples} samples each of the base under its old label"
                ]
                if request.stood_in
                else []
            ),
            f"from {self.start.weights}{f' (version {self.start.version})' if self.start.version else ''}:"
            f" {self.start.why}",
        ]


def rows_of(requests: Sequence[Request], lake: Lake, storage_root: str) -> Rows:
    """What is left in `lake` of the rows that `requests` name: purged ones are not.

    Raises `InputError` for an answered request of which nobody knows any more which samples it named: a run
    could read them as rows to keep.
    """
    rows_by_class = {item.label: item.train_rows for item in lake.manifest.classes}
    ids: dict[str, Mapping[str, int]] = {}
    gone: dict[str, str] = {}
    lists: dict[str, str] = {}
    buried = tombstones.buried(storage_root)
    for request in requests:
        if tombstones.find(storage_root, request.id) is not None:
            gone[request.id] = "its data was purged"
            continue
        if empty := [label for label in request.terms.classes if not rows_by_class.get(label)]:
            gone[request.id] = f"lake {lake.manifest.name!r} holds no rows of class {empty[0]}"
            continue
        try:
            named = samples.of_request(request, lake, storage_root)
        except InputError as error:
            if request.is_answered:
                raise
            gone[request.id] = str(error)
            continue
        purged = buried.among(named.classes)
        ids[request.id] = {name: label for name, label in named.classes.items() if name not in purged}
        count = request.terms.samples.count if request.terms.samples else 0
        if absent := count - len(ids[request.id]):
            why = "were purged" if purged else f"are no training rows of lake {lake.manifest.name!r}"
            gone[request.id] = f"{absent} of its {count} samples {why}"
        elif named.uri is not None:
            lists[request.id] = named.uri
    return Rows(ids=ids, gone=gone, lists=lists)


def stood_in(config: ProcessConfig, requests: Sequence[Request], rows: Rows) -> dict[str, list[int]]:
    """By request, the classes for whose purged rows samples of the base may stand in. Nothing stands in for
    named samples: what a class looks like says nothing of them."""
    if config.rehearse == "none":
        return {}
    return {
        request.id: request.terms.classes
        for request in requests
        if request.id in rows.gone and request.terms.samples is None
    }


def hopeless(config: ProcessConfig, requests: Sequence[Request], rows: Rows) -> dict[str, str]:
    """Open requests that no run can answer, each with the reason: the rows to forget are not there, nothing
    stands in for them, and what they are of was not forgotten before."""
    sampled = stood_in(config, requests, rows)
    forgotten = {label for request in requests if request.is_answered for label in request.terms.classes}
    return {
        request.id: rows.gone[request.id]
        for request in requests
        if request.is_open
        and request.id in rows.gone
        and request.id not in sampled
        and (request.terms.samples is not None or not forgotten.issuperset(request.terms.classes))
    }


def choose_start(
    config: ProcessConfig, answered: Sequence[Request], rows: Rows, champion: Version | None
) -> Start:
    """The weights to start from. Raises `InputError` where what was answered can be honoured from none."""
    sampled = stood_in(config, answered, rows)
    gone = [request.id for request in answered if request.id in rows.gone and request.id not in sampled]
    of_gone = f"the rows of {_requests(gone)} are not there ({rows.gone[gone[0]]})" if gone else ""
    if config.start != "champion" and not gone:
        why = "asked for" if config.start == "base" else "the rows of everything answered before are there"
        if sampled:
            why = f"its own samples stand in for the purged rows of {', '.join(sampled)}"
        return Start(weights="base", why=why)
    if config.start == "base":
        raise InputError(
            f"start: got base, but {of_gone}, so a run from the base would bring it back; expected auto"
        )
    if champion is None:
        if gone:
            raise InputError(
                f"start: {of_gone}, and no version serves that a run could start from; promote one"
            )
        return Start(weights="base", why="asked for champion, and no version serves yet")
    if lost := [name for name in gone if name not in champion.request_ids]:
        raise InputError(
            f"start: the rows of {_requests(lost)} are not there ({rows.gone[lost[0]]}), and version"
            f" {champion.number}, which serves, does not honour it; promote a version that does"
        )
    return Start(weights="champion", why=of_gone or "asked for", version=champion.number)


def _requests(names: Sequence[str]) -> str:
    return f"request {names[0]}" if len(names) == 1 else f"requests {', '.join(names)}"


def make(config: ProcessConfig, requests: Sequence[Request], rows: Rows, champion: Version | None) -> Plan:
    """The plan of the run that answers `requests`, the open and the answered ones together.

    Its id is a digest of all that its weights depend on, so that the same plan is the same run. A request
    that was reopened moves the seed: the weights that failed would come again otherwise.
    """
    union = merge.union(requests, rows.ids)
    sampled = stood_in(config, requests, rows)
    if config.rehearse != "none" and not sampled:
        raise InputError(
            "rehearse: got samples, but no rows of a whole class were purged, so there is nothing to stand in"
            " for; expected none"
        )
    start = choose_start(config, union.answered, rows, champion)
    honoured = champion.request_ids if champion is not None and start.weights == "champion" else ()
    earlier = {
        label for request in union.answered if request.id in honoured for label in request.terms.classes
    }
    # a label that gives what is forgotten now has to give something else from now on
    now = sorted((set(union.classes) - earlier) | _given_now(union, earlier))
    values = _values(config, union, rows, now, sorted(earlier - set(now)))
    if labels := sorted({label for classes in sampled.values() for label in classes}):
        values["request"] |= {"stood_in": labels, "stand_in_samples": config.rehearse_samples}
        if start.version is not None:
            values["request"]["stand_in_weights"] = _base_of(config)
    if start.version is not None:
        values.setdefault("model", {})["weights"] = f"models:/{config.tracking.model_name}/{start.version}"
        values["model"].pop("sha256", None)
    if union.sample_ids and not any(label in union.exchange for label in now):
        # samples alone: the start's own predictions as targets would leave everything as it is
        values["method"] = {**values.get("method", {}), "targets": "data"}
    reopenings = sum(entry.move == "reopened" for request in requests for entry in request.history)
    values["seed"] = int(values.get("seed", 0)) + reopenings
    lists = {rows.lists.get(name) for name in union.request_ids if rows.ids.get(name)}
    named_at = lists.pop() if len(lists) == 1 and not _is_cut(union, rows) else None
    values["request"] |= {"sample_ids": named_at or LIST} if union.sample_ids else {}
    run_id = f"requests-{_digest(parse(UnlearnConfig, values), union)}"
    list_uri = None
    if union.sample_ids and named_at is None:
        list_uri = storage.join(config.storage, "runs", run_id, LIST)
        values["request"]["sample_ids"] = list_uri
    values["run_id"] = run_id
    values["request"]["id"] = union.request_ids[0] if len(union.request_ids) == 1 else run_id
    return Plan(
        run_id=run_id,
        start=start,
        union=union,
        config=parse(UnlearnConfig, values),
        list_uri=list_uri,
    )


def _base_of(config: ProcessConfig) -> str:
    """Where the base lies that runs start from before there is a champion."""
    model = Model.model_validate(config.unlearn.get("model", {}))
    return model.weights or model_folder.model_uri(config.storage, model.size, config.lake)


def _given_now(union: Union, earlier: set[int]) -> set[int]:
    """Classes forgotten earlier whose exchange class is forgotten now."""
    return {
        label
        for label, given in union.redirected.items()
        if label in earlier and any(other in union.classes and other not in earlier for other in given)
    }


def _is_cut(union: Union, rows: Rows) -> bool:
    """Whether some named samples are left out, being of classes that are forgotten whole."""
    named = {name for request in union.request_ids for name in rows.ids.get(request, {})}
    return named != set(union.sample_ids)


def _values(
    config: ProcessConfig, union: Union, rows: Rows, now: list[int], earlier: list[int]
) -> dict[str, Any]:
    """The main job's configuration, but for what its id and its start decide."""
    values = deepcopy(config.unlearn)
    bare = [label for label in now if label not in union.exchange]
    values["storage"], values["lake"] = config.storage, config.lake
    evaluate = values.setdefault("evaluate", {})
    counted = evaluate.get("final_samples", Evaluate.model_fields["final_samples"].default)
    evaluate["final_samples"] = max(counted, FINAL_SAMPLES * max(len(now), len(earlier)))
    values["tracking"] = {**values.get("tracking", {}), **config.tracking.model_dump(mode="json")}
    values["request"] = {
        **values.get("request", {}),
        "classes": now,
        "forgotten_earlier": earlier,
        "exchange": {label: list(given) for label, given in union.exchange.items()},
        "without_exchange": bool(bare),
        "sample_classes": list(union.sample_classes),
        "answers": [
            answer(request, union, rows)
            for request in sorted((*union.answered, *union.open), key=lambda request: request.id)
        ],
    }
    return values


def answer(request: Request, union: Union, rows: Rows) -> dict[str, Any]:
    """What has to be measured of `request`. Samples of a class that another request forgets whole are no
    longer told apart: that class is measured in their stead."""
    ids = rows.ids.get(request.id, {})
    return {
        "id": request.id,
        "classes": sorted({*request.terms.classes, *(set(ids.values()) & set(union.classes))}),
        "sample_ids_digest": request.terms.samples and request.terms.samples.digest,
        "sample_count": len(ids.keys() & set(union.sample_ids)),
        "purged": request.terms.samples is not None and request.id in rows.gone and not ids,
    }


def _digest(config: UnlearnConfig, union: Union) -> str:
    """Of the settings, but for those of how a run is placed, and of the samples' ids."""
    settings = configuration.plain(config)
    # a key that came later does not rename the runs that have nothing of it
    later = {
        "request.stood_in": config.request.stood_in,
        "evaluate.rotation": config.evaluate.rotation,
        "evaluate.first_look": config.evaluate.first_look,
    }
    unused = [key for key, value in later.items() if not value]
    for key in ("storage", "run_id", *unused, *HOW):
        if has(settings, key):
            pop(settings, *key.split("."))
    return storage.digest_of([settings, list(union.sample_ids)])[:ID_DIGITS]
