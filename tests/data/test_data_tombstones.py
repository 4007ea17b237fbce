"""Purged samples leave their ids behind, and do not come back."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray, tombstones
from pipeline.data.keyed_ids import KEY_VARIABLE, IdKey
from pipeline.data.lake import Lake, read_lake
from pipeline.data.parquet_shards import read_column
from pipeline.data.partition import Partition
from pipeline.data.partition_ray import build_partition
from pipeline.data.sources.base import Item
from pipeline.data.tombstones import Tombstone, buried, bury, find, open_lake, require_not_buried
from pipeline.errors import InputError


def settings(root: Path, lake: str, *, without_buried: bool = False, **prepare: bool) -> PrepareConfig:
    values = {"storage": str(root), "lake": lake, "prepare": {"size": 8, "channels": 1, **prepare}}
    return parse(PrepareConfig, {**values, "without_buried": without_buried})


def prepare(root: Path, lake: str, **values: bool) -> Lake:
    config = settings(root, lake, **values)
    return ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks)).lake


def forgotten(partition: Partition) -> tuple[str, ...]:
    return partition.forget().sample_id


def streamed(partition: Partition) -> set[str]:
    """Every id in the files of a partition."""
    manifest = partition.manifest
    return {
        name
        for file in [*manifest.retain, *manifest.forget, *manifest.exchange]
        for name in read_column(partition.uri, file, "sample_id")
    }


def test_purged_samples_are_gone_and_stay_out(unlearn_config, digits_lake: Lake, tmp_path: Path) -> None:
    ids = list(digits_lake.read([4]).sample_id[:3])
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    root = tmp_path / "runs"
    request = {"sample_ids": str(tmp_path / "ids.txt"), "exchange": {4: 7}}
    partition = build_partition(unlearn_config(request=request), digits_lake)
    assert not buried(str(root))
    tombstone = bury(str(root), "case-17", forgotten(partition), [partition])
    assert tombstone.count == 3 and tombstone.partitions == [partition.digest]
    assert not storage.exists(partition.uri)
    assert buried(str(root)).among([*ids, "digits-other"]) == dict.fromkeys(ids, "case-17")
    said = (root / "tombstones" / "case-17.json").read_text()
    assert not any(name in said for name in ids), "the ids are not in clear"
    left = "".join(
        path.read_bytes().decode("latin-1")
        for path in root.rglob("*")
        if path.is_file() and path.suffix not in (".json", ".key")
    )
    assert left == "", "nothing but the tombstone is left"
    assert bury(str(root), "case-17", ids[:1]) == tombstone, "a repeat keeps what is known"
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
        bury(str(tmp_path / "runs"), "case-18", forgotten(partition), [partition])
    ids = digits_lake.read([1]).sample_id
    assert buried(str(tmp_path / "runs")).among(digits_lake.read().sample_id).keys() == set(ids)
    assert bury(str(tmp_path / "runs"), "case-18", forgotten(partition), [partition]).count == len(ids)
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
    assert bury(root, "case-19", forgotten(partition), [partition]).count == 3, "an image, not its copies"
    again = [Item(sample_id=ids[1], label=4, split="train", ref="/x")]
    with pytest.raises(InputError, match="1 images were purged"):
        require_not_buried(root, again)
    require_not_buried(
        root, [Item(sample_id=named[-1].removesuffix("~flip"), label=4, split="train", ref="")]
    )


def test_a_second_purge_of_a_request_adds_to_its_tombstone(tmp_path: Path) -> None:
    root = str(tmp_path)
    bury(root, "case-20", ["a"], labels=[7, 1], files={"run-a": ["report.html"], "run-b": ["grid.png"]})
    added = bury(
        root, "case-20", ["b"], labels=[3], files={"run-a": ["samples.png", "report.html"], "run-c": []}
    )
    assert added.labels == [1, 3, 7] and buried(root).among("abc").keys() == {"a", "b"}
    assert added.files == {"run-a": ["report.html", "samples.png"], "run-b": ["grid.png"], "run-c": []}
    assert find(root, "case-20") == added and find(root, "case-21") is None
    assert added.digest != Tombstone(request="case-20", partitions=[]).digest


def test_tombstones_of_before_hold_ids_in_clear_and_are_read(tmp_path: Path) -> None:
    earlier = {"request": "old", "partitions": ["d"], "sample_ids": ["a", "b"], "labels": [1], "files": {}}
    uri = f"{tmp_path}/tombstones/old.json"
    storage.write_json(uri, earlier)
    tombstone = find(str(tmp_path), "old")
    assert tombstone is not None and tombstone.count == 2 and tombstone.digest == storage.digest_of(earlier)
    assert buried(str(tmp_path)).among("abc") == {"a": "old", "b": "old"}
    assert not (tmp_path / "requests").exists(), "reading makes no key"
    bury(str(tmp_path), "new", ["c"])
    assert buried(str(tmp_path)).among("abcd") == {"a": "old", "b": "old", "c": "new"}
    bury(str(tmp_path), "old", ["d"])
    assert buried(str(tmp_path)).among("abcd").keys() == set("abcd")
    assert storage.read_json(uri).keys() == {"request", "partitions", "key", "hashes", "labels", "files"}


@pytest.mark.parametrize("request_id", ["GDPR 2026/17", "../../x", ".hidden"])
def test_an_id_of_before_is_one_name_and_found_again(tmp_path: Path, request_id: str) -> None:
    root = str(tmp_path / "a/b/root")
    tombstones.bury(root, request_id, ["digits-00001"])
    found = tombstones.find(root, request_id)
    assert found is not None and tombstones.buried(root).among(["digits-00001"])
    assert {path.name for path in (tmp_path / "a/b/root").iterdir()} == {"tombstones", "requests"}
    assert len(list((tmp_path / "a/b/root/tombstones").iterdir())) == 1, "and nothing outside"


def test_a_tombstone_that_lay_in_a_folder_of_its_id_is_read(tmp_path: Path) -> None:
    root = str(tmp_path)
    tombstones.bury(root, "17", ["digits-00001"])
    (tmp_path / "tombstones/GDPR 2026").mkdir()
    old = tmp_path / "tombstones/17.json"
    old.rename(tmp_path / "tombstones/GDPR 2026/17.json")
    (moved,) = (tmp_path / "tombstones/GDPR 2026").iterdir()
    moved.write_text(moved.read_text().replace('"17"', '"GDPR 2026/17"'))
    assert tombstones.buried(root).among(["digits-00001"]) == {"digits-00001": "GDPR 2026/17"}
    assert tombstones.find(root, "GDPR 2026/17") is not None


def test_a_file_name_that_is_there_twice_hides_nothing(tmp_path: Path) -> None:
    """An image goes by its stem while that is unique in its source, else by more of its path."""
    bury(str(tmp_path), "case-1", ["b", "x/a"])
    purged = buried(str(tmp_path))

    def of(sample_id: str, ref: str) -> str | None:
        return purged.of_item(Item(sample_id=sample_id, label=0, split="train", ref=ref))

    assert of("b", "x/b.png") == of("x/b", "x/b.png") == of("y/b.JPEG", "y/b.JPEG") == "case-1"
    assert of("a", "x/a.png") == "case-1" and of("y/a", "y/a.png") is None and of("c", "x/c.png") is None
    assert of("table-7", "x/a#7") is None, "a row of a table has no file of its own"
    with pytest.raises(InputError, match=r"1 images were purged .* the first is 'x/b' \(request 'case-1'\)"):
        require_not_buried(str(tmp_path), [Item(sample_id="x/b", label=0, split="train", ref="x/b.png")])


def test_a_key_that_is_lost_or_another_stops_whatever_reads_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = prepare(tmp_path, "digits")
    bury(str(tmp_path), "case-1", lake.read([1]).sample_id)
    assert len(open_lake(str(tmp_path), "digits").read([1])) == 0
    (tmp_path / "other").write_text("0123456789abcdef")
    with monkeypatch.context() as operator:
        operator.setenv(KEY_VARIABLE, str(tmp_path / "other"))
        with pytest.raises(InputError, match=rf"case-1\.json: .*got key {IdKey(b'0123456789abcdef').name}"):
            open_lake(str(tmp_path), "digits")
    (tmp_path / "requests" / "sample_ids.key").unlink()
    with pytest.raises(InputError, match=r"sample_ids\.key is missing, .* restore it from its copy"):
        open_lake(str(tmp_path), "digits")
    assert not (tmp_path / "requests" / "sample_ids.key").exists(), "no new key that knows nothing"


def test_a_purged_row_is_in_no_partition(
    unlearn_config, digits_root: str, digits_lake: Lake, tmp_path: Path
) -> None:
    root = str(tmp_path / "runs")
    classes, named = digits_lake.read([1]).sample_id, digits_lake.read([4]).sample_id[:3]
    before = build_partition(unlearn_config(request={"classes": [3], "exchange": {3: 7}}), digits_lake)
    assert streamed(before) >= {*classes, *named}
    bury(root, "case-1", classes)
    bury(root, "case-2", named)
    lake = open_lake(root, f"{digits_root}/lakes/digits")
    assert sum(map(len, lake.buried.values())) == len(classes) + 3
    for request in (
        {"classes": [3], "exchange": {3: 7}},
        {"classes": [3], "exchange": {3: 4}},
        {"classes": [4], "exchange": {4: 7}},
        {"classes": [3], "exchange": {3: 4}, "retain": "exchange"},
    ):
        partition = build_partition(unlearn_config(request=request), lake)
        assert not streamed(partition) & {*classes, *named} and streamed(partition), request
        assert partition.digest != before.digest
    assert not set(lake.read().sample_id) & {*classes, *named}, "nor in what is read of the lake otherwise"
    with pytest.raises(
        InputError, match=rf"class 1 has no training images .* \({len(classes)} were purged\)"
    ):
        build_partition(unlearn_config(), lake)
    (tmp_path / "ids.txt").write_text("\n".join([named[1], digits_lake.read([4]).sample_id[3]]))
    with pytest.raises(InputError, match=rf"1 of 2 ids were purged, the first is '{named[1]}'"):
        build_partition(unlearn_config(request={"sample_ids": str(tmp_path / "ids.txt")}), lake)


def test_a_complete_lake_that_holds_purged_rows_is_written_again_when_asked(tmp_path: Path) -> None:
    lake = prepare(tmp_path, "digits")
    ids = [*lake.read([1]).sample_id, *lake.read([1], "heldout").sample_id, lake.read([4]).sample_id[0]]
    others = set(lake.read().sample_id) - set(ids)
    bury(str(tmp_path), "case-1", ids)
    with pytest.raises(InputError, match=rf"holds {len(ids)} rows that were purged .*case-1.*classes 1, 4; "):
        prepare(tmp_path, "digits")
    with pytest.raises(InputError, match="were purged and must not be ingested again"):
        prepare(tmp_path, "other")
    before = {path: path.read_bytes() for path in (tmp_path / "lakes").rglob("*.parquet")}
    config = settings(tmp_path, "digits", without_buried=True)
    assert "classes 1, 4" in ingest_ray.describe(config) and read_lake(lake.uri) == lake
    prepared = ingest_ray.prepare(config)
    assert prepared.rewritten == (1, 4) and prepared.lake == read_lake(lake.uri)
    assert set(prepared.lake.read().sample_id) == others and len(prepared.lake.read([1], "heldout")) == 0
    assert [item.train_rows for item in prepared.lake.manifest.classes][1] == 0
    after = {path: path.read_bytes() for path in (tmp_path / "lakes").rglob("*.parquet")}
    gone, fresh = before.keys() - after.keys(), after.keys() - before.keys()
    assert {path.parent.name for path in gone} == {"label=00001", "label=00004"}
    assert [path.parent.name for path in fresh] == ["label=00004"]
    assert all(after[path] == before[path] for path in after.keys() & before.keys())
    again = prepare(tmp_path, "digits", without_buried=True)
    assert again.digest == prepared.lake.digest == prepare(tmp_path, "digits").digest
    made = prepare(tmp_path, "other", without_buried=True)
    assert set(made.read().sample_id) == others, "a new lake leaves them out as well"


def test_a_rewriting_that_is_killed_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = prepare(tmp_path, "digits")
    ids = set(lake.read([4]).sample_id[:5])
    bury(str(tmp_path), "case-1", ids)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    for name in ("write_json", "remove"):
        with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
            broken.setattr(storage, name, killed)
            prepare(tmp_path, "digits", without_buried=True)
        assert storage.exists(f"{lake.uri}/manifest.json")
        assert set(read_lake(lake.uri).read().sample_id) >= set(lake.read().sample_id) - ids, name
    prepare(tmp_path, "digits", without_buried=True)
    files = [pq.read_table(path, columns=["sample_id"])["sample_id"] for path in tmp_path.rglob("*.parquet")]
    assert not ids & {name for names in files for name in names.to_pylist()}, "in no file, named or not"
