"""A finished request is purged: what it kept of the forgotten data goes, what it kept of the rest stays, and
the ids are remembered."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tracking_samples import result_json, write_model

from models.weights import from_bytes, to_bytes
from pipeline import config as configuration
from pipeline import storage
from pipeline.config import PrepareConfig, RegistryConfig, Tracking, UnlearnConfig, parse
from pipeline.data import ingest, ingest_ray
from pipeline.data.lake import Lake, read_lake
from pipeline.data.parquet_shards import read_column
from pipeline.data.partition_ray import build_partition
from pipeline.data.tombstones import buried, find, open_lake
from pipeline.errors import InputError
from pipeline.governance import promotion, purge, purge_plan, verification
from pipeline.reports import pages
from pipeline.requests import ledger
from pipeline.runs.replay import replay
from pipeline.runtime import command_line
from pipeline.tracking import alias_log, registry
from pipeline.tracking.mlflow_runs import Tracker, client

LABELS = (0, 1, 7)
Finish = Callable[..., None]


def prepare(root: Path, lake: str = "digits") -> Lake:
    config = parse(PrepareConfig, {"storage": str(root), "lake": lake, "prepare": {"size": 8, "channels": 1}})
    return ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks)).lake


@pytest.fixture(scope="module")
def database(root: str) -> str:
    """Made once: its first use takes seconds."""
    client(Tracking(), root)
    return f"sqlite:///{root}/mlflow.db"


@pytest.fixture
def finish(tmp_path: Path, database: str) -> Finish:
    """Leaves under tmp_path what a finished run of a request leaves; `finished=False` stops before
    result.json."""
    lake = prepare(tmp_path)

    def make(run_id: str, request: dict, *, finished: bool = True, seed: int = 0) -> None:
        tracking = {"uri": database, "experiment": tmp_path.name, "model_name": tmp_path.name}
        values = {
            "storage": str(tmp_path),
            "run_id": run_id,
            "request": request,
            "tracking": tracking,
            "seed": seed,
        }
        config = parse(UnlearnConfig, {**values, "optim": {"batch_size": 16, "max_steps": 2}})
        uri = f"{tmp_path}/runs/{run_id}"
        storage.write_text(f"{uri}/config.yaml", configuration.dump(config))
        partition = build_partition(config, open_lake(str(tmp_path), "digits"))
        if not finished:
            return
        result = result_json(run_id, write_model(f"{uri}/model", seed=seed))
        result |= {
            "request": config.request.model_dump(mode="json"),
            "lake_digest": lake.digest,
            "partition_digest": partition.digest,
        }
        for moment in pages.GRIDS:
            grids = {
                str(label): torch.full((4, 8, 8, 1), 20 * label + 9, dtype=torch.uint8) for label in LABELS
            }
            storage.write_bytes(pages.grid_uri(uri, moment), to_bytes(grids))
        with Tracker(tracking=config.tracking, storage_root=str(tmp_path), run_id=run_id) as tracker:
            version = registry.register(tracker, folder=f"{uri}/model", image_shape=(8, 8, 1), result=result)
            result["model"] = {"name": tmp_path.name, "version": version, "alias": "candidate"}
            files = pages.pages(
                result, [], pages.read_grids(uri), configuration.dump(config), class_names=None
            )
            for name, data in files.items():
                storage.write_bytes(f"{uri}/{name}", data)
            tracker.log_artifacts(files)
        storage.write_json(f"{uri}/result.json", result)

    return make


def registry_config(root: Path, database: str, request: str) -> RegistryConfig:
    tracking = {"uri": database, "model_name": root.name}
    return parse(RegistryConfig, {"storage": str(root), "request": request, "tracking": tracking})


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def picture(label: int) -> bytes:
    """The pixels of `label`'s grid as the report would embed them."""
    from pipeline.reports.png import grid_address

    return grid_address(np.full((4, 8, 8, 1), 20 * label + 9, np.uint8)).encode()


def test_what_was_kept_of_the_forgotten_data_goes(finish: Finish, tmp_path: Path, database: str) -> None:
    finish("a", {"id": "case-1", "classes": [1], "exchange": {1: 7}})
    finish("b", {"id": "case-1", "classes": [1], "exchange": {1: 7}}, seed=1)
    finish("other", {"id": "case-2", "classes": [3], "exchange": {3: 7}})
    config = registry_config(tmp_path, database, "case-1")
    lake = prepare(tmp_path)
    ids = {*lake.read([1]).sample_id, *lake.read([1], "heldout").sample_id}
    before = snapshot(tmp_path)
    planned = purge.find(config)
    assert len(planned.partitions) == 2 and snapshot(tmp_path) == before, "looking changes nothing"
    digest = storage.read_json(f"{tmp_path}/runs/a/result.json")["base_digest"][:12]
    assert [line.split(" (")[0].split(",")[0] for line in planned.left] == [
        f"the lake {tmp_path}/lakes/digits",
        "the base model",
        f"version 3 of {tmp_path.name}",
        "copies that nothing here knows of: backups and mirrors of this storage",
        "grids of other requests' runs",
    ]
    assert f"{len(ids)} of these rows" in planned.left[0] and digest in planned.left[1]
    assert planned.left[4].endswith("which show these labels: other")
    (retaining,) = planned.others
    assert 0 < planned.others[retaining] < 32
    assert f"{retaining}, another request's, which holds" in "\n".join(planned.lines)

    tombstone = purge.purge(config, planned)
    after = snapshot(tmp_path)
    everything = {*lake.read().sample_id, *lake.read(split="heldout").sample_id}
    assert buried(str(tmp_path)).among(everything).keys() == ids, "those held out as well"
    assert tombstone.count == len(ids) and tombstone.labels == [1] and tombstone.sample_ids == []
    gone = before.keys() - after.keys()
    assert {name for name in gone if name.startswith("runs/")} == {
        f"runs/{r}/samples/{m}-00001.png" for r in "ab" for m in pages.GRIDS
    }
    assert len([name for name in gone if "mlartifacts" in name]) == 4 and all(
        name.endswith("-00001.png") for name in gone if "png" in name
    )
    assert not list((tmp_path / "partitions").iterdir()), "a purged row is in no partition"
    kept = build_partition(
        parse(
            UnlearnConfig,
            {
                "storage": str(tmp_path),
                "request": {"classes": [3], "exchange": {3: 7}},
                "optim": {"batch_size": 16, "max_steps": 2},
            },
        ),
        open_lake(str(tmp_path), "digits"),
    )
    rows = [name for file in kept.manifest.retain for name in read_column(kept.uri, file, "sample_id")]
    assert kept.uri != retaining and len(rows) == 32 and not ids & set(rows), "nor in one that is made later"
    for run in "ab":
        for moment in pages.GRIDS:
            grids = from_bytes(after[f"runs/{run}/samples/{moment}.safetensors"], moment)
            assert sorted(grids) == ["0", "7"] and int(grids["7"][0, 0, 0, 0]) == 149
        page = after[f"runs/{run}/report.html"]
        assert picture(1) in before[f"runs/{run}/report.html"]
        assert picture(1) not in page and picture(7) in page and b"were purged" in page
    reports = [data for name, data in after.items() if "mlartifacts" in name and name.endswith("report.html")]
    assert sorted(picture(1) in page for page in reports) == [
        False,
        False,
        True,
    ], "the other request's run is as it was"
    assert {name: data for name, data in after.items() if "runs/other" in name} == {
        n: d for n, d in before.items() if "runs/other" in n
    }

    last = alias_log.read(str(tmp_path), tmp_path.name)[-1]
    assert (last.action, last.details["request"], last.details["tombstone"]) == (
        "purge",
        "case-1",
        tombstone.digest,
    )
    assert last.details["left"] == planned.left
    history = promotion.history(config)
    assert not history.now and not history.before, "the chain goes on, and no alias has moved"
    finish("later", {"id": "case-3", "classes": [4], "exchange": {4: 7}})
    assert alias_log.read(str(tmp_path), tmp_path.name)[-1].action == "register"
    again = purge.find(config)
    assert again.lines == [] and purge.purge(config, again) == tombstone
    assert (
        len([entry for entry in alias_log.read(str(tmp_path), tmp_path.name) if entry.action == "purge"]) == 1
    )
    storage.remove(f"{tmp_path}/lakes/digits")
    with pytest.raises(InputError, match=rf"{len(ids)} images were purged .*request 'case-1'"):
        prepare(tmp_path)


@pytest.mark.parametrize("point", ["the report", "MLflow's copies", "the pictures", "the tensors", "the log"])
def test_an_interrupted_purge_is_completed(
    finish: Finish, tmp_path: Path, database: str, monkeypatch, point: str
) -> None:
    finish("a", {"id": "case-1", "classes": [1], "exchange": {1: 7}})
    config = registry_config(tmp_path, database, "case-1")
    module, name, when = {
        "the report": (storage, "write_bytes", lambda uri, *_: uri.endswith("report.html")),
        "MLflow's copies": (storage, "remove", lambda uri: uri.endswith("before-00001.png")),
        "the pictures": (storage, "remove", lambda uri: uri.endswith("after-00001.png")),
        "the tensors": (storage, "write_bytes", lambda uri, *_: uri.endswith("after.safetensors")),
        "the log": (alias_log, "follow_log", lambda *_: True),
    }[point]
    original = getattr(module, name)

    def dying(*arguments, **options):
        if when(*arguments):
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(module, name, dying)
        purge.purge(config, purge.find(config))
    ids = set(read_lake(f"{tmp_path}/lakes/digits").read([1]).sample_id)
    assert buried(str(tmp_path)).among(ids).keys() == ids
    left = purge.find(config)
    assert bool(left.lines) == (point != "the log")
    purge.purge(config, left)
    assert purge.find(config).lines == []
    kept = snapshot(tmp_path)
    assert not [name for name in kept if name.endswith("-00001.png") or name.startswith("partitions/")]
    assert not [name for name, data in kept.items() if name.endswith("report.html") and picture(1) in data]
    assert (
        len([entry for entry in alias_log.read(str(tmp_path), tmp_path.name) if entry.action == "purge"]) == 1
    )


def test_named_samples_take_their_classes_pictures_along(
    finish: Finish, tmp_path: Path, database: str
) -> None:
    named = sorted(prepare(tmp_path).read([7]).sample_id)[:3]
    storage.write_text(f"{tmp_path}/ids.txt", "\n".join(named))
    finish("a", {"id": "case-1", "sample_ids": f"{tmp_path}/ids.txt"})
    storage.remove(f"{tmp_path}/ids.txt")
    config = registry_config(tmp_path, database, "case-1")
    found = purge.find(config)
    assert found.labels == [7] and [
        sum(file.rows for file in part.manifest.forget) for part in found.partitions
    ] == [3]
    assert purge.purge(config, found).count == 3
    assert list(buried(str(tmp_path)).among(named)) == named
    assert sorted(from_bytes(storage.read_bytes(f"{tmp_path}/runs/a/samples/after.safetensors"), "")) == [
        "0",
        "1",
    ]


def test_of_a_run_that_answered_several_only_what_is_the_requests_own_is_purged(
    finish: Finish, tmp_path: Path, database: str
) -> None:
    lake = prepare(tmp_path)
    named = sorted(lake.read([4]).sample_id)[:3]
    uri = f"{tmp_path}/ids.txt"
    storage.write_text(uri, "\n".join(named))
    samples = {"uri": uri, "count": 3, "digest": storage.digest_of(named), "classes": {4: 3}}
    terms = {"model_name": tmp_path.name, "lake": "digits", "classes": [], "exchange": {}, "samples": samples}
    terms |= {"received": "2026-01-01", "due": "2026-02-01", "legal_basis": "", "approver": ""}
    moves = [ledger.Move(name="received", request="r2", details=terms)]
    ledger.append(str(tmp_path), lambda known: moves[len(known.entries) :])
    answers = [
        {"id": "r1", "classes": [1]},
        {"id": "r2", "sample_ids_digest": samples["digest"], "sample_count": 3},
        {"id": "r3", "classes": [3]},
    ]
    scope = {"classes": [1, 3], "exchange": {1: 7, 3: 7}, "sample_ids": uri, "sample_classes": [4]}
    finish("union", {"id": "all", **scope, "answers": answers})
    everything = {*lake.read().sample_id, *lake.read(split="heldout").sample_id}

    config = registry_config(tmp_path, database, "r1")
    found = purge.find(config)
    assert found.labels == [1] and len(found.partitions) == 1
    purge.purge(config, found)
    of_class = {*lake.read([1]).sample_id, *lake.read([1], "heldout").sample_id}
    assert buried(str(tmp_path)).among(everything).keys() == of_class
    config = registry_config(tmp_path, database, "r2")
    finish("again", {"id": "rest", **scope, "classes": [3], "exchange": {3: 7}, "answers": answers[1:]})
    storage.write_text(uri, "another")
    with pytest.raises(InputError, match=r"request r2: .* does not list the ids that it was submitted with"):
        purge.find(config)
    storage.write_text(uri, "\n".join(named))
    found = purge.find(config)
    assert found.labels == [4]
    purge.purge(config, found)
    assert buried(str(tmp_path)).among(everything).keys() == {*of_class, *named}


def test_sweeps_and_pictures_drawn_afterwards_are_purged_too(
    finish: Finish, tmp_path: Path, database: str
) -> None:
    finish("a", {"id": "case-1", "classes": [1], "exchange": {1: 7}})
    lake = prepare(tmp_path)
    values = {
        "storage": str(tmp_path),
        "request": {"id": "case-1", "classes": [1], "exchange": {1: 7}},
        "optim": {"batch_size": 32},
    }
    base = parse(UnlearnConfig, {**values, "optim": {"batch_size": 32, "max_steps": 2}})
    build_partition(base, lake)  # which no run used: the sweep chose no winner
    sweep = {
        "base": base.model_dump(mode="json", exclude={"storage", "run_id", "tracking"}),
        "digests": {"lake": lake.digest},
    }
    storage.write_text(f"{tmp_path}/sweeps/s-1/config.yaml", yaml.safe_dump(sweep))
    for trial in ("000", "001"):
        grids = {str(label): torch.full((4, 8, 8, 1), 20 * label + 9, dtype=torch.uint8) for label in LABELS}
        storage.write_bytes(pages.grid_uri(f"{tmp_path}/sweeps/s-1/trials/{trial}", "after"), to_bytes(grids))
    for version in (1, 2):
        storage.write_bytes(f"{tmp_path}/generated/{tmp_path.name}-v{version}.png", b"png")
    config = registry_config(tmp_path, database, "case-1")
    with pytest.raises(InputError, match="its sweep s-1 is unfinished"):
        purge.find(config)
    storage.write_json(f"{tmp_path}/sweeps/s-1/sweep.json", {})
    found = purge.find(config)
    assert len(found.partitions) == 2 and [len(sweep.files) for sweep in found.sweeps] == [2]
    assert f"generated/{tmp_path.name}-v2.png, which may show these labels" in found.left
    assert "v1.png" not in "".join(found.left)
    tombstone = purge.purge(config, found)
    assert (
        tombstone.files["generated"] == [f"{tmp_path.name}-v1.png"]
        and len(tombstone.files["sweeps/s-1"]) == 2
    )
    assert [path.name for path in (tmp_path / "generated").iterdir()] == [f"{tmp_path.name}-v2.png"], (
        "another run's version keeps its own"
    )
    for trial in ("000", "001"):
        assert sorted(pages.read_grids(f"{tmp_path}/sweeps/s-1/trials/{trial}")["after"]) == [0, 7]
    assert purge.find(config).lines == []


def test_verifying_says_that_the_data_was_purged_and_sees_a_changed_tombstone(
    finish: Finish, tmp_path: Path, database: str
) -> None:
    finish("a", {"id": "case-1", "classes": [1], "exchange": {1: 7}})
    config = registry_config(tmp_path, database, "case-1")
    promotion.promote(config)
    assert len(verification.verify(config)) == 6
    purge.purge(config, purge.find(config))
    assert "182 sample ids may not be ingested again" in verification.verify(config)[-1]
    with pytest.raises(InputError, match="version 1: cannot be replayed: the data of request 'case-1' was"):
        replay(config)
    uri = f"{tmp_path}/tombstones/case-1.json"
    tombstone = storage.read_json(uri)
    storage.write_json(uri, {**tombstone, "hashes": tombstone["hashes"][1:]})
    with pytest.raises(InputError, match="tombstone of request case-1: edited"):
        verification.verify(config)
    storage.remove(uri)
    with pytest.raises(InputError, match="tombstone of request case-1: removed"):
        verification.verify(config)


def test_the_command_refuses_what_it_cannot_do(finish: Finish, tmp_path: Path, database: str, capsys) -> None:
    path = Path(__file__).resolve().parents[2] / "jobs" / "registry.py"
    spec = importlib.util.spec_from_file_location("jobs_registry", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = tmp_path / "registry.yaml"
    settings.write_text(
        f"storage: {tmp_path}\ntracking: {{uri: '{database}', model_name: {tmp_path.name}}}\n"
    )

    def call(*arguments: str) -> tuple[int, str, str]:
        argv = ["purge", "--config", str(settings), *arguments]
        code = command_line.main(RegistryConfig, module.VERBS, "", argv, shorthands=["request"])
        said = capsys.readouterr()
        return code, said.out, said.err

    finish("a", {"id": "case-1", "classes": [1], "exchange": {1: 7}})
    finish("begun", {"id": "case-2", "classes": [1], "exchange": {1: 7}}, finished=False)
    before = snapshot(tmp_path)
    for arguments, message in (
        ([], "request: got none, expected the id"),
        (["--request", "case-9"], "got 'case-9', expected one with a run under"),
        (["--request", "case-2"], f"config.yaml --set storage={tmp_path}`, or"),
        (["--request", "case-1"], "request case-2: its run begun is unfinished and needs the data"),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err, err
    storage.remove(f"{tmp_path}/runs/begun")
    code, out, err = call("--request", "case-1", "--dry-run")
    assert (code, err) == (0, "") and "would remove partition" in out and "nothing was written" in out
    assert snapshot(tmp_path) == {name: data for name, data in before.items() if "runs/begun" not in name}
    code, out, err = call("--request", "case-1")
    assert (code, err) == (0, "") and "182 sample ids may not be ingested again" in out
    assert find(str(tmp_path), "case-1") is not None
    code, out, err = call("--request", "case-1")
    assert (code, err) == (0, "") and "removing" not in out


def test_a_default_id_may_be_given_by_what_it_asks(finish: Finish, database: str, tmp_path: Path) -> None:
    finish("a", {"id": "digits-forget-1-0123456789", "classes": [1], "exchange": {1: 7}})
    given = RegistryConfig(storage=str(tmp_path), request="forget-1")
    assert purge_plan.with_full_id(given).request == "digits-forget-1-0123456789"
    for name in ("forget", "forget-3", "0123456789"):
        other = given.model_copy(update={"request": name})
        assert purge_plan.with_full_id(other) == other
