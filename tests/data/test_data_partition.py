"""Partitions and streams: the same global batches at every world size and from both readers."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data import parquet_shards, retain_stream_local, retain_stream_ray
from pipeline.data import partition as partition_module
from pipeline.data.cycle import Cycle
from pipeline.data.lake import Lake
from pipeline.data.partition import Partition, partition_key
from pipeline.data.partition_ray import build_partition
from pipeline.data.retain_stream import ahead, assemble, files_to_read, lanes_of
from pipeline.data.selection import selections
from pipeline.data.stream_order import computed_order, sorted_order
from pipeline.errors import InputError

STEPS, BATCH, LANES = 44, 64, 4


@pytest.fixture
def partition(unlearn_config, digits_lake: Lake) -> Partition:
    return build_partition(unlearn_config(), digits_lake)


def global_batches(partition: Partition, world_size: int, start_step: int = 0) -> list[list[tuple[str, int]]]:
    """Per step, the rows of all ranks, sorted."""
    ranks = [
        list(retain_stream_local.retain_stream(partition, rank, world_size, start_step))
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    return [
        sorted(pair for batch in step for pair in zip(batch.sample_id, batch.occurrence))
        for step in zip(*ranks)
    ]


def test_every_world_size_sees_the_same_global_batches(partition: Partition) -> None:
    one = global_batches(partition, 1)
    assert len(one) == STEPS and all(len(step) == BATCH == len(set(step)) for step in one)
    assert global_batches(partition, 2) == one and global_batches(partition, 4) == one


def test_passes_take_every_retained_row_once_and_evenly(partition: Partition, digits_lake: Lake) -> None:
    batches = list(retain_stream_local.retain_stream(partition, 0, 1))
    expected = set(digits_lake.read([0, 2, 3, 4, 5, 6, 7, 8, 9]).sample_id)
    drawn = [pair for batch in batches for pair in zip(batch.sample_id, batch.occurrence)]
    n = partition.manifest.retain_rows
    assert n == len(expected) and len(drawn) == STEPS * BATCH == len(set(drawn))
    counts = Counter(draw for _, draw in drawn)
    assert counts[0] == counts[1] == n and counts[2] == STEPS * BATCH - 2 * n
    assert {name for name, draw in drawn if draw == 0} == expected
    for batch in batches:  # nine classes of nearly the same size: about 7 of each in 64
        assert max(Counter(batch.y.tolist()).values()) <= 11 and len(set(batch.y.tolist())) == 9


def test_rows_carry_their_own_pixels_and_labels(partition: Partition, digits_lake: Lake) -> None:
    lake = digits_lake.read()
    row_of = {name: i for i, name in enumerate(lake.sample_id)}
    for batch in [
        *retain_stream_local.retain_stream(partition, 1, 2, 40),
        partition.forget(),
        partition.exchange(),
    ]:
        same = lake.take([row_of[name] for name in batch.sample_id])
        assert torch.equal(same.mean, batch.mean) and torch.equal(same.y, batch.y)


def test_rows_are_widened_where_they_are_looked_at(partition: Partition) -> None:
    batch = next(retain_stream_local.retain_stream(partition, 0, 2))
    taken = batch.take([3, 1])
    assert [tensor.dtype for tensor in (*batch.stored, *taken.stored)] == [torch.uint8] * 2
    assert torch.equal(batch.mean, batch.stored[0].float() / 127.5 - 1) and batch.std is None
    assert torch.equal(taken.mean, batch.mean[[3, 1]]) and batch.stored_on(torch.device("cpu")) is batch
    assert batch.stored_on(torch.device("meta")).mean.device.type == "meta"


@pytest.mark.parametrize("start", [1, 8, 13, 43, 44])
def test_resuming_gives_the_rest_of_the_stream(partition: Partition, start: int) -> None:
    assert global_batches(partition, 2, start) == global_batches(partition, 2)[start:]


@pytest.mark.ray
def test_ray_and_local_readers_give_the_same_rows(partition: Partition, ray_session: None) -> None:
    for rank, world_size, start in ((0, 2, 0), (1, 2, 11), (2, 4, 43)):
        local = list(retain_stream_local.retain_stream(partition, rank, world_size, start))
        by_ray = list(retain_stream_ray.retain_stream(partition, rank, world_size, start))
        assert len(local) == len(by_ray) == STEPS - start
        for a, b in zip(local, by_ray):
            assert (
                a.sample_id == b.sample_id
                and a.occurrence == b.occurrence
                and torch.equal(a.mean, b.mean)
                and torch.equal(a.y, b.y)
            )


@pytest.mark.ray
def test_the_stream_flows_while_training_holds_every_cpu(partition: Partition, ray_session: None) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    held = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(held.ready(), timeout=60)
    try:
        assert ray.available_resources().get("CPU", 0) == 0
        assert (
            sum(len(batch) for batch in retain_stream_ray.retain_stream(partition, 0, 2, 40))
            == (STEPS - 40) * BATCH // 2
        )
    finally:
        remove_placement_group(held)


@pytest.mark.ray
def test_many_tasks_write_the_same_partition_as_one(
    partition: Partition, unlearn_config, digits_lake: Lake, ray_session, tmp_path
) -> None:
    config = unlearn_config(storage=str(tmp_path / "other"))
    split = build_partition(config, digits_lake, task_bytes=30_000)  # several gather tasks, several buckets
    assert split.uri != partition.uri and split.manifest == partition.manifest


def test_repeat_is_free_and_any_change_is_another_partition(
    unlearn_config, digits_lake: Lake, partition: Partition
) -> None:
    again = build_partition(
        unlearn_config(request={"id": "other-id", "classes": [1], "exchange": {1: 7}, "reason": "x"}),
        digits_lake,
    )
    assert again.reused and again.uri == partition.uri
    others = [
        build_partition(unlearn_config(seed=1), digits_lake),
        build_partition(unlearn_config(request={"classes": [2], "exchange": {2: 7}}), digits_lake),
        build_partition(unlearn_config(request={"classes": [1], "exchange": {1: 8}}), digits_lake),
        build_partition(
            unlearn_config(request={"classes": [1], "exchange": {1: 7}, "retain": "exchange"}), digits_lake
        ),
        build_partition(
            unlearn_config(optim={"batch_size": 64, "max_steps": 43, "moment_warmup_steps": 2}), digits_lake
        ),
    ]
    shard = digits_lake.manifest.shards[0].model_copy(update={"sha256": "0" * 64})
    changed = digits_lake.manifest.model_copy(update={"shards": [shard, *digits_lake.manifest.shards[1:]]})
    others.append(build_partition(unlearn_config(), Lake(uri=digits_lake.uri, manifest=changed)))
    assert not any(other.reused for other in others)
    assert len({other.digest for other in [partition, *others]}) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"classes": [1, 2]},
        {"exchange": {1: 8}},
        {"exchange": {1: [7, 8]}},
        {"retain": "all"},
        {"near": [7, 9]},
        {"ids": ["a", "b"]},
        {"ids": ["a", "c"]},
        {"ids": None},
        {"lanes": 8},
        {"segment_steps": 4},
        {"batch_size": 32},
        {"max_steps": 43},
        {"moment_warmup_steps": 1},
    ],
    ids=str,
)
def test_whatever_decides_what_a_partition_holds_is_in_its_address(
    unlearn_config, digits_lake: Lake, change: dict[str, Any]
) -> None:
    plain = {"ids": ["a"]} if "ids" in change else {}
    assert address(unlearn_config, digits_lake, **plain) != address(
        unlearn_config, digits_lake, **plain | change
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"classes": [1, 2]}, {"classes": [2, 1]}),
        ({"ids": ["a", "b"]}, {"ids": ["b", "a", "a"]}),
        ({"near": [7, 8]}, {"near": [8, 7]}),
        ({"retain": "all"}, {"retain": "all", "near": [2, 3]}),
        ({}, {"reason": "asked twice", "id": "again"}),
        ({"max_steps": 40, "moment_warmup_steps": 2}, {"max_steps": 42}),
    ],
    ids=str,
)
def test_the_same_rows_in_the_same_order_have_one_address(
    unlearn_config, digits_lake: Lake, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert address(unlearn_config, digits_lake, **one) == address(unlearn_config, digits_lake, **other)


def address(
    unlearn_config: Callable[..., UnlearnConfig],
    lake: Lake,
    *,
    seed: int = 0,
    ids: list[str] | None = None,
    near: Sequence[int] = (7, 8),
    lanes: int = 4,
    segment_steps: int = 8,
    batch_size: int = 64,
    max_steps: int = 44,
    moment_warmup_steps: int = 0,
    **request: Any,
) -> str:
    config = unlearn_config(
        seed=seed,
        request={"classes": [1], "exchange": {1: 7}, "retain": "neighbours", **request},
        partition={"lanes": lanes, "segment_steps": segment_steps},
        optim={"batch_size": batch_size, "max_steps": max_steps, "moment_warmup_steps": moment_warmup_steps},
    )
    return storage.digest_of(partition_key(config, lake, ids, near))


def test_forget_side_opens_only_the_forgotten_classes_files(
    unlearn_config, digits_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    fs, _ = storage.filesystem(digits_lake.uri)
    original = type(fs).open

    def counting(self, path, mode="rb", *args, **kwargs):
        if "label=" in path and "/lakes/" in path:
            opened.append(path.rsplit("/data/", 1)[1])
        return original(self, path, mode, *args, **kwargs)

    whole = parquet_shards.copy

    def copying(root: str, shard: parquet_shards.Shard, *to: str) -> tuple[parquet_shards.Shard, int]:
        opened.append(shard.path.removeprefix("data/"))
        return whole(root, shard, *to)

    monkeypatch.setattr(type(fs), "open", counting)
    monkeypatch.setattr(parquet_shards, "copy", copying)
    config = unlearn_config(
        request={"classes": [1, 4], "exchange": {1: 7, 4: 7}, "retain": "exchange"},
        optim={"batch_size": 8, "max_steps": 2},
    )
    partition = build_partition(config, digits_lake)
    sides = partition.manifest.opened
    assert set(sides["forget"]) == {f"data/label={label:05d}/part-00000.parquet" for label in (1, 4)}
    assert set(sides["retain"]) == set(sides["exchange"]) == {"data/label=00007/part-00000.parquet"}
    assert Counter(opened) == Counter(path.removeprefix("data/") for side in sides.values() for path in side)
    assert sorted(set(partition.forget().y.tolist())) == [1, 4] and set(partition.exchange().y.tolist()) == {
        7
    }


def test_only_the_sampled_row_groups_are_read(tmp_path: Path) -> None:
    values = np.arange(400, dtype=np.uint8).repeat(64).reshape(400, 8, 8, 1)
    table = pa.table(
        {
            "sample_id": [str(i) for i in range(400)],
            "label": [0] * 400,
            "image": parquet_shards.tensor_array(values, "image"),
        }
    )
    storage.write_bytes(
        str(tmp_path / "x"), parquet_shards.encode([table], parquet_shards.schema("image", (8, 8, 1)), 100)
    )
    file = parquet_shards.File(path="x", rows=400, bytes=0, sha256="")
    rows, groups = parquet_shards.read_rows(str(tmp_path), file, np.array([3, 99, 301]))
    assert groups == 2 and rows["sample_id"].to_pylist() == ["3", "99", "301"]
    assert parquet_shards.tensor_values(rows["image"], "image", (8, 8, 1))[:, 0, 0, 0].tolist() == [
        3,
        99,
        301 - 256,
    ]


def test_sample_ids_request(unlearn_config, digits_lake: Lake, tmp_path: Path) -> None:
    ids = list(digits_lake.read([3]).sample_id[:5] + digits_lake.read([5]).sample_id[-2:])
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n\n")
    partition = build_partition(
        unlearn_config(request={"sample_ids": str(tmp_path / "ids.txt"), "exchange": {3: 5}}), digits_lake
    )
    assert sorted(partition.forget().sample_id) == sorted(ids)
    assert len(partition.exchange()) == len(digits_lake.read([5])) - 2
    assert partition.manifest.retain_rows == len(digits_lake.read()) - 7
    streamed = {
        name for batch in retain_stream_local.retain_stream(partition, 0, 1) for name in batch.sample_id
    }
    assert not streamed & set(ids) and len(streamed) == partition.manifest.retain_rows
    elsewhere = {"sample_classes": [3], "sample_ids": str(tmp_path / "ids.txt")}
    with pytest.raises(InputError, match=r"2 of 7 ids are no training rows of classes \[3\] of lake"):
        build_partition(unlearn_config(request=elsewhere), digits_lake)


def test_whole_classes_and_named_samples_in_one_request(
    unlearn_config, digits_lake: Lake, tmp_path: Path
) -> None:
    ids = list(digits_lake.read([3]).sample_id[:5])
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    request = {
        "classes": [1],
        "exchange": {1: 7},
        "sample_ids": str(tmp_path / "ids.txt"),
        "sample_classes": [3],
    }
    partition = build_partition(unlearn_config(request=request), digits_lake)
    assert set(partition.forget().sample_id) == {*digits_lake.read([1]).sample_id, *ids}
    assert partition.manifest.retain_labels == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert partition.manifest.retain_rows == len(digits_lake.read()) - len(digits_lake.read([1])) - 5


def test_ids_of_a_class_that_is_named_whole_are_refused(
    unlearn_config, digits_lake: Lake, tmp_path: Path
) -> None:
    """An old command, whose `classes` said where the samples are, forgets no more than it did: nothing."""
    (tmp_path / "ids.txt").write_text("\n".join(digits_lake.read([2]).sample_id[:4]))
    request = {"classes": [2], "exchange": {2: 3}, "sample_ids": str(tmp_path / "ids.txt")}
    with pytest.raises(
        InputError,
        match=r"name class 2 in request\.sample_classes to forget only these samples, or drop the ids",
    ):
        build_partition(unlearn_config(request=request), digits_lake)
    assert not (tmp_path / "runs").exists()


def test_a_class_that_was_forgotten_earlier_is_in_no_stream(unlearn_config, digits_lake: Lake) -> None:
    request = {"classes": [3], "exchange": {3: 5}, "forgotten_earlier": [1]}
    partition = build_partition(unlearn_config(request=request), digits_lake)
    streamed = {
        label for batch in retain_stream_local.retain_stream(partition, 0, 1) for label in batch.y.tolist()
    }
    assert streamed == {0, 2, 4, 5, 6, 7, 8, 9} == set(partition.manifest.retain_labels)
    assert set(partition.forget().y.tolist()) == {3} and set(partition.exchange().y.tolist()) == {5}
    with pytest.raises(InputError, match="class 1 is both forgotten and retained"):
        build_partition(
            unlearn_config(request={**request, "exchange": {3: 1}, "retain": "exchange"}), digits_lake
        )


def test_the_keys_of_earlier_partitions_stay(unlearn_config, digits_lake: Lake) -> None:
    """A run that was begun before finds its partition again: classes, or the classes of the named samples."""
    plain = partition_key(unlearn_config(), digits_lake, None, None)
    assert plain["classes"] == [1] and plain["sample_ids"] is None
    assert not {"whole_classes", "forgotten_earlier", "sample_classes"} & plain.keys()
    of_samples = {"sample_ids": "ids.txt", "sample_classes": [2]}
    named = partition_key(unlearn_config(request=of_samples), digits_lake, ["a"], None)
    assert named == plain | {
        "classes": [2],
        "sample_ids": storage.digest_of(["a"]),
        "exchange": {},
    }
    both = partition_key(unlearn_config(request=of_samples | {"classes": [1]}), digits_lake, ["a"], None)
    earlier = partition_key(
        unlearn_config(request=of_samples | {"forgotten_earlier": [1]}), digits_lake, ["a"], None
    )
    assert len({storage.digest_of(key) for key in (plain, named, both, earlier)}) == 4


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "neither classes nor sample_ids"),
        ({"classes": [12]}, "class 12 is not in the lake"),
        (
            {"classes": [1], "exchange": {1: 1}, "retain": "exchange"},
            "class 1 is both forgotten and retained",
        ),
        ({"classes": [1], "retain": "exchange"}, "leaves no class to retain; expected request.exchange"),
        ({"classes": [1], "retain": "neighbours"}, "leaves no class to retain; expected neighbours"),
        ({"sample_ids": "/nowhere/ids.txt"}, "which is missing; expected a text file"),
    ],
)
def test_requests_the_lake_cannot_serve(
    unlearn_config, digits_lake: Lake, tmp_path: Path, request_: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_partition(unlearn_config(request=request_), digits_lake)
    assert not (tmp_path / "runs").exists()


def test_fewer_retain_rows_than_a_batch(unlearn_config, digits_lake: Lake) -> None:
    config = unlearn_config(
        request={"classes": [1], "exchange": {1: 7}, "retain": "exchange"},
        optim={"batch_size": 512, "max_steps": 2},
    )
    with pytest.raises(
        InputError, match=r"batch_size: got 512, but retain policy 'exchange' leaves 143 rows"
    ):
        build_partition(config, digits_lake)


def test_neighbours_are_what_the_caller_says(unlearn_config, digits_lake: Lake) -> None:
    config = unlearn_config(request={"classes": [1], "exchange": {1: 7}, "retain": "neighbours"})
    partition = build_partition(config, digits_lake, neighbours=[7, 8])
    assert {
        label for batch in retain_stream_local.retain_stream(partition, 0, 1) for label in batch.y.tolist()
    } == {7, 8}


def test_a_row_out_of_place_is_refused(partition: Partition) -> None:
    file = partition.manifest.retain[5]
    uri = storage.join(partition.uri, file.path)
    table = parquet_shards.read(partition.uri, file)
    data = parquet_shards.encode([table.take([1, 0, *range(2, file.rows)])], table.schema, 64)
    storage.write_bytes(uri, data)
    file = file.model_copy(update={"bytes": len(data)})
    retain = [file if other.path == file.path else other for other in partition.manifest.retain]
    partition = Partition(
        uri=partition.uri, manifest=partition.manifest.model_copy(update={"retain": retain})
    )
    with pytest.raises(RuntimeError, match="out of place"):
        list(retain_stream_local.retain_stream(partition, 0, 1))


def test_rows_that_were_lost_or_are_too_many_on_the_way_are_noticed(partition: Partition) -> None:
    files = files_to_read(partition, 0, 2)

    def tables() -> list[pa.Table]:
        return [parquet_shards.read(partition.uri, file) for file in files]

    def streamed(changed: list[pa.Table]) -> list[tuple[str, ...]]:
        return [batch.sample_id for batch in assemble(partition, files, iter(changed))]

    one = pa.concat_tables(tables())
    whole = streamed([one])
    assert len(whole) == STEPS and whole == streamed(tables())
    cut = [one.slice(start, 37) for start in range(0, one.num_rows, 37)]
    assert streamed(cut) == whole, "wherever the tables are cut"
    with pytest.raises(RuntimeError, match="the stream ended 1 rows early; rows were lost on the way"):
        streamed([one.slice(0, one.num_rows - 1)])
    with pytest.raises(RuntimeError, match="the stream holds more rows than the manifest says"):
        streamed([one, one.slice(0, 1)])
    assert streamed([*tables(), one.slice(0, 0)]) == whole, "an empty table is no row"


def test_ranks_take_every_so_manieth_lane() -> None:
    assert [list(lanes_of(8, rank, 4)) for rank in range(4)] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    for lanes, rank, world_size in ((8, 0, 3), (4, 4, 4), (4, -1, 2), (4, 0, 8)):
        with pytest.raises(ValueError, match=f"rank {rank} of {world_size} for {lanes} lanes"):
            lanes_of(lanes, rank, world_size)


def test_batches_are_made_ready_ahead_and_errors_come_in_their_place(partition: Partition) -> None:
    made: list[int] = []

    def source(fail_at: int | None = None):
        for number, batch in enumerate(retain_stream_local.retain_stream(partition, 0, 1)):
            if number == fail_at:
                raise RuntimeError("the stream broke")
            made.append(number)
            yield batch

    plain = [batch.sample_id for batch in retain_stream_local.retain_stream(partition, 0, 1)]
    assert [batch.sample_id for batch in ahead(source())] == plain and made == list(range(STEPS))
    taken = []
    with pytest.raises(RuntimeError, match="the stream broke"):
        for batch in ahead(source(fail_at=5)):
            taken.append(batch.sample_id)
    assert taken == plain[:5]
    made.clear()
    stream = ahead(source(), depth=2)
    next(stream)
    threads = [thread for thread in threading.enumerate() if thread.name == "batches"]
    stream.close()
    for thread in threads:
        thread.join(5)
    assert threads and not any(thread.is_alive() for thread in threads) and len(made) <= 5


def test_named_ids_are_looked_up_once_for_check_and_partition(
    unlearn_config, digits_lake: Lake, tmp_path: Path, monkeypatch
) -> None:
    ids = list(digits_lake.read([2]).sample_id[:4])
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    config = unlearn_config(request={"sample_classes": [2, 3], "sample_ids": str(tmp_path / "ids.txt")})
    read: list[str] = []
    once = parquet_shards.read_column
    monkeypatch.setattr(
        parquet_shards,
        "read_column",
        lambda root, file, column: read.append(file.path) or once(root, file, column),
    )
    forget, _, _ = selections(config, digits_lake, ids, None)
    partition = build_partition(config, digits_lake)
    assert len(read) == len(set(read)) == 2 and sorted(partition.forget().sample_id) == sorted(ids)
    assert sum(item.count for item in forget) == 4
    other, _, _ = selections(config, digits_lake, ids[:3], None)
    assert len(read) == 4 and sum(item.count for item in other) == 3


def test_sorted_order_is_a_permutation_per_pass_and_stratified() -> None:
    labels = np.repeat([0, 1, 2], [10, 100, 1000])
    order = sorted_order(labels, 3000, seed=5)
    for number in range(2):
        assert sorted(order[number * 1110 : (number + 1) * 1110]) == list(range(1110))
    assert not np.array_equal(order[:1110], order[1110:2220])
    for tenth in np.split(labels[order[:1110]], 10):
        assert np.bincount(tenth, minlength=3).tolist()[0] in (0, 1, 2) and 7 <= np.bincount(tenth)[1] <= 13
    assert np.array_equal(order, sorted_order(labels, 3000, seed=5))
    assert not np.array_equal(order, sorted_order(labels, 3000, seed=6))


@pytest.mark.parametrize("class_rows", [[10, 100, 1000], [1], [3, 1, 7, 2], [40] * 30])
def test_computed_order_is_a_permutation_per_pass_and_stratified(class_rows: list[int]) -> None:
    n = sum(class_rows)
    order = computed_order(class_rows, 3 * n, seed=5)
    for number in range(3):
        assert sorted(order[number * n : (number + 1) * n]) == list(range(n))
    assert np.array_equal(order[: 2 * n + 1], computed_order(class_rows, 2 * n + 1, seed=5)), "cut anywhere"
    labels = np.repeat(np.arange(len(class_rows)), class_rows)[order]
    for start in range(0, n - n // 10, max(1, n // 10)):  # a tenth holds a tenth of every class
        tenth = np.bincount(labels[start : start + n // 10], minlength=len(class_rows))
        assert np.abs(tenth - np.array(class_rows) * (n // 10) / n).max() <= 4
    if n > 100:
        assert not np.array_equal(order[:n], order[n : 2 * n])
        assert not np.array_equal(order, computed_order(class_rows, 3 * n, seed=6))
        inside = order[:n][labels[:n] == len(class_rows) - 1]  # rows of the last class, as they come
        assert abs(np.corrcoef(inside[:-1], inside[1:])[0, 1]) < 4 / len(inside) ** 0.5


def test_a_large_lake_has_the_computed_order_and_goes_on_with_a_partition_of_before(
    unlearn_config, digits_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = unlearn_config(partition={"lanes": 2, "segment_steps": 8})
    monkeypatch.setattr(partition_module, "COMPUTED_FROM", 1000)
    large = build_partition(config, digits_lake)
    assert (
        large.manifest.key["order"] == "computed" and len(large_batches := global_batches(large, 1)) == STEPS
    )
    assert global_batches(large, 2) == large_batches
    test_passes_take_every_retained_row_once_and_evenly(large, digits_lake)
    storage.remove(large.uri)
    monkeypatch.setattr(partition_module, "COMPUTED_FROM", 10**7)
    small = build_partition(config, digits_lake)
    assert "order" not in small.manifest.key
    assert global_batches(small, 1) != large_batches
    monkeypatch.setattr(partition_module, "COMPUTED_FROM", 1000)
    again = build_partition(config, digits_lake)
    assert again.reused and again.digest == small.digest != large.digest


def test_cycle_is_the_same_at_every_world_size(digits_lake: Lake) -> None:
    cycle = Cycle(digits_lake.read([1]), seed=3, name="forget")
    n, drawn = len(cycle.side), []
    for step in range(7):
        one = cycle.take(step, BATCH, LANES, 0, 1)
        for world_size in (2, 4):
            parts = [cycle.take(step, BATCH, LANES, rank, world_size) for rank in range(world_size)]
            assert sorted(zip(one.sample_id, one.occurrence)) == sorted(
                pair for part in parts for pair in zip(part.sample_id, part.occurrence)
            )
        drawn += list(zip(one.sample_id, one.occurrence))
    assert len(set(drawn)) == len(drawn) == 7 * BATCH
    assert {name for name, draw in drawn if draw == 0} == set(cycle.side.sample_id) and Counter(
        d for _, d in drawn
    )[0] == n
    assert (
        cycle.take(2, BATCH, LANES, 1, 2).sample_id
        == Cycle(cycle.side, seed=3, name="forget").take(2, BATCH, LANES, 1, 2).sample_id
    )
    assert (
        cycle.take(0, BATCH, LANES, 0, 1).sample_id
        != Cycle(cycle.side, seed=4, name="forget").take(0, BATCH, LANES, 0, 1).sample_id
    )
