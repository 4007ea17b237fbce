"""A preparation that is killed continues, and ends with the same lake; one on S3 rides out faults."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_servers
import torch

from pipeline import storage
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray, retain_stream_local
from pipeline.data.lake import Lake, lake_uri, read_lake
from pipeline.data.partition_ray import build_partition
from pipeline.data.stored_rows import StoredRows
from pipeline.data.vae_encoder import plan_encoding

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray
small = {"size": 8, "channels": 1, "shard_rows": 30}
config = parse(PrepareConfig, {"storage": sys.argv[1], "prepare": small})
ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks))
"""


def config(root: str) -> PrepareConfig:
    return parse(PrepareConfig, {"storage": root, "prepare": {"size": 8, "channels": 1, "shard_rows": 30}})


def in_process(tasks):
    return map(ingest.make_shard, tasks)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return ingest_ray.prepare(config(str(tmp_path_factory.mktemp("undisturbed"))), run=in_process).lake


def test_killed_three_times_then_completed(undisturbed: Lake, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    notes = tmp_path / "lakes/digits/progress"
    done = 0
    for _ in range(3):
        wanted = done + chance.randint(1, 12)
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT)
        while (done := len(list(notes.glob("*.json")))) < wanted:
            assert process.poll() is None, "killed before it was complete"
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert not (tmp_path / "lakes/digits/manifest.json").exists()
    (tmp_path / "lakes/digits/data/label=00000/.part-00000.parquet.0a1b.tmp").write_bytes(b"half a file")
    made: list[str] = []

    def counting(tasks):
        made.extend(task.path for task in tasks)
        return in_process(tasks)

    result = ingest_ray.prepare(config(str(tmp_path)), run=counting)
    assert result.continued >= done and len(made) + result.continued == len(undisturbed.manifest.shards)
    assert (
        result.lake.digest == undisturbed.digest
        and result.lake.manifest.shards == undisturbed.manifest.shards
    )
    files = {
        str(path.relative_to(result.lake.uri)) for path in Path(result.lake.uri).rglob("*") if path.is_file()
    }
    assert files == {"manifest.json", *(shard.path for shard in undisturbed.manifest.shards)}


def test_notes_of_other_images_are_not_believed(undisturbed: Lake, tmp_path: Path) -> None:
    def stop_after_five(tasks):
        for number, task in enumerate(tasks):
            if number == 5:
                raise KeyboardInterrupt
            yield ingest.make_shard(task)

    other = parse(
        PrepareConfig, {**config(str(tmp_path)).model_dump(), "source": {"kind": "digits", "held_out": 0.5}}
    )
    with pytest.raises(KeyboardInterrupt):
        ingest_ray.prepare(other, run=stop_after_five)
    result = ingest_ray.prepare(config(str(tmp_path)), run=in_process)
    assert result.continued == 0 and result.lake.digest == undisturbed.digest


def test_a_shard_that_does_not_arrive_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match="the shards just made: found 1767 rows where its manifest says 1797"
    ):
        ingest_ray.prepare(config(str(tmp_path)), run=lambda tasks: map(ingest.make_shard, tasks[1:]))
    assert not (tmp_path / "lakes/digits/manifest.json").exists()


def test_a_group_of_shards_ends_with_the_first_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, tried = config(str(tmp_path)), []
    source, items = ingest_ray.listed(settings)
    tasks = ingest.plan(items, source, lake_uri(str(tmp_path), "digits"), settings, plan_encoding(settings))

    def gone(uri: str, fill: object) -> None:
        tried.append(uri)
        raise storage.StorageError(f"could not write {uri}: gave up")

    monkeypatch.setattr(storage, "write_through", gone)
    with pytest.raises(storage.StorageError, match="gave up"):
        ingest_ray._make(tasks[:5])
    assert len(tried) == 1
    assert not (tmp_path / "lakes/digits/progress").exists(), "nothing is noted as done"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[s3_servers.Proxy, s3_servers.Rclone]]:
    with s3_servers.serving(tmp_path_factory.mktemp("s3")) as server, s3_servers.proxied(server) as proxy:
        yield proxy, server


def test_lake_and_partition_on_s3_through_faults(s3, undisturbed: Lake, unlearn_config) -> None:
    proxy, _ = s3

    def faulty(tasks):
        for number, task in enumerate(tasks):
            if number in (3, 20, 50):
                proxy.misbehave("reset", "503")
            yield ingest.make_shard(task)

    lake = ingest_ray.prepare(config("s3://bucket/runs"), run=faulty).lake
    assert (
        lake.digest == undisturbed.digest
        and read_lake(lake_uri("s3://bucket/runs", "digits")).manifest == lake.manifest
    )
    assert storage.listing(lake.uri) == ["data", "manifest.json"]
    proxy.misbehave("truncate", "503")
    partition = build_partition(unlearn_config(storage="s3://bucket/runs"), lake)
    proxy.misbehave("truncate", "truncate")
    streamed = [
        name for batch in retain_stream_local.retain_stream(partition, 0, 1) for name in batch.sample_id
    ]
    local = build_partition(unlearn_config(), undisturbed)
    assert streamed == [
        name for batch in retain_stream_local.retain_stream(local, 0, 1) for name in batch.sample_id
    ]
    assert partition.digest == local.digest and [f.sha256 for f in partition.manifest.retain] == [
        f.sha256 for f in local.manifest.retain
    ]
    proxy.misbehave("503", "truncate")
    stored, held, some = partition.side("forget", 0), local.forget(), [5, 0, 77, 5]
    assert isinstance(stored, StoredRows) and stored.sample_id == held.sample_id
    assert torch.equal(stored.take(some).mean, held.take(some).mean)
    assert not proxy.faults and proxy.served.count("truncate") == 4


@pytest.mark.ray
def test_a_server_that_dies_and_returns_while_workers_write(
    s3, ray_after_environment, undisturbed: Lake
) -> None:
    proxy, server = s3
    notes, away = server.folder / "bucket/outage/lakes/digits/progress", threading.Event()

    def outage() -> None:
        while len(list(notes.glob("*.json"))) < 5:
            time.sleep(0.01)
        server.stop()
        away.set()
        time.sleep(4)
        server.start()
        proxy.misbehave("503", "reset", "truncate")

    happening = threading.Thread(target=outage, daemon=True)
    happening.start()
    lake = ingest_ray.prepare(config("s3://bucket/outage")).lake
    happening.join(60)
    assert away.is_set() and len(undisturbed.manifest.shards) > 10, "it went away before the end"
    assert lake.digest == undisturbed.digest and lake.manifest.shards == undisturbed.manifest.shards
    assert len(lake.read()) == len(undisturbed.read())


@pytest.mark.ray
def test_ray_workers_write_to_and_read_from_s3(
    s3, ray_after_environment, undisturbed: Lake, unlearn_config
) -> None:
    from pipeline.data import retain_stream_ray

    small = parse(
        PrepareConfig,
        {"storage": "s3://bucket/ray", "prepare": {"size": 8, "channels": 1, "shard_rows": 150}},
    )
    lake = ingest_ray.prepare(small).lake
    assert (
        lake.read().sample_id == undisturbed.read().sample_id
        and lake.manifest.classes == undisturbed.manifest.classes
    )
    partition = build_partition(unlearn_config(storage="s3://bucket/ray"), lake)
    by_ray = [batch.sample_id for batch in retain_stream_ray.retain_stream(partition, 1, 2)]
    assert (
        by_ray == [batch.sample_id for batch in retain_stream_local.retain_stream(partition, 1, 2)]
        and len(by_ray) == 44
    )


@pytest.fixture(scope="module")
def ray_after_environment(s3) -> Iterator[None]:
    """Ray started while AWS_* point at the server, so that its workers inherit them."""
    from pipeline.runtime import cluster_ray

    cluster_ray.disconnect()
    cluster_ray.connect(cpus=2)
    yield
    cluster_ray.disconnect()
