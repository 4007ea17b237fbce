"""Purged samples leave their ids behind, and do not come back."""

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray
from pipeline.data.lake import Lake
from pipeline.data.partition_ray import build_partition
from pipeline.data.sources.base import Item
from pipeline.data.tombstones import Tombstone, buried, bury, find, require_not_buried
from pipeline.errors import InputError


def prepare(root: Path, lake: str, **prepare: bool) -> Lake:
    values = {"storage": str(root), "lake": lake, "prepare": {"size": 8, "channels": 1, **prepare}}
    config = parse(PrepareConfig, values)
    return ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks)).lake


def test_purged_samples_are_gone_and_stay_out(unlearn_config, digits_lake: Lake, tmp_path: Path) -> None:
    ids = list(digits_lake.read([4]).sample_id[:3])
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    root = tmp_path / "runs"
    request = {"sample_ids": str(tmp_path / "ids.txt"), "exchange": {4: 7}}
    partition = build_partition(unlearn_config(request=request), digits_lake)
    assert buried(str(root)) == {}
    tombstone = bury(str(root), "case-17", [partition])
    assert tombstone.sample_ids == sorted(ids) and tombstone.partitions == [partition.digest]
    assert not storage.exists(partition.uri) and buried(str(root)) == dict.fromkeys(ids, "case-17")
    left = "".join(
        path.read_bytes().decode("latin-1")
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".json"
    )
    assert left == "", "nothing but the tombstone is left"
    assert bury(str(root), "case-17", []) == tombstone, "a repeat keeps what is known"
    with pytest.raises(
        InputError, match=rf"3 images were purged .* the first is '{min(ids)}' \(request 'case-17'\)"
    ):
        prepare(root, "digits-again")
    assert not (root / "lakes").exists()


def test_the_tombstone_comes_before_the_deletion(
    unlearn_config, digits_lake: Lake, tmp_path: Path, monkeypatch
) -> None:
    partition = build_partition(unlearn_config(), digits_lake)

    def fail(uri: str) -> None:
        raise OSError("gone away")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="gone away"):
        broken.setattr(storage, "remove", fail)
        bury(str(tmp_path / "runs"), "case-18", [partition])
    assert set(buried(str(tmp_path / "runs"))) == set(digits_lake.read([1]).sample_id)
    assert len(bury(str(tmp_path / "runs"), "case-18", [partition]).sample_ids) == len(digits_lake.read([1]))
    assert not storage.exists(partition.uri)


def test_mirrored_copies_go_with_their_image(unlearn_config, tmp_path: Path) -> None:
    lake = prepare(tmp_path, "mirrored", flip=True)
    named = list(lake.read([4]).sample_id)
    ids = [name for name in named if not name.endswith("~flip")][:3]
    copies = [name + "~flip" for name in ids]
    assert set(copies) < set(named)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    config = unlearn_config(
        lake=lake.uri, request={"sample_ids": str(tmp_path / "ids.txt"), "exchange": {4: 7}, "retain": "all"}
    )
    partition = build_partition(config, lake)
    assert sorted(partition.forget().sample_id) == sorted(ids + copies)
    assert partition.manifest.retain_rows == len(lake.read()) - 6
    root = str(tmp_path / "runs")
    assert bury(root, "case-19", [partition]).sample_ids == sorted(ids), "an image, not its copies"
    again = [Item(sample_id=ids[1], label=4, split="train", ref="/x")]
    with pytest.raises(InputError, match="1 images were purged"):
        require_not_buried(root, again)
    require_not_buried(
        root, [Item(sample_id=named[-1].removesuffix("~flip"), label=4, split="train", ref="")]
    )


def test_a_second_purge_of_a_request_adds_to_its_tombstone(tmp_path: Path) -> None:
    root = str(tmp_path)
    bury(root, "case-20", [], labels=[7, 1], files={"run-a": ["report.html"], "run-b": ["grid.png"]})
    added = bury(
        root, "case-20", [], labels=[3], files={"run-a": ["samples.png", "report.html"], "run-c": []}
    )
    assert added.labels == [1, 3, 7]
    assert added.files == {"run-a": ["report.html", "samples.png"], "run-b": ["grid.png"], "run-c": []}
    assert find(root, "case-20") == added and find(root, "case-21") is None
    assert added.digest != Tombstone(request="case-20", partitions=[], sample_ids=[]).digest
