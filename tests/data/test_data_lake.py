"""Digits into a lake: the values, the split, the manifest, reuse, determinism."""

import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pipeline import storage
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest_ray, parquet_shards
from pipeline.data.lake import Lake, lake_uri, read_lake
from pipeline.errors import InputError


def digits_config(root: str | Path, **more) -> PrepareConfig:
    return parse(PrepareConfig, {"storage": str(root), "prepare": {"size": 8, "channels": 1}, **more})


def test_rows_are_the_sets_own_digits(digits_lake: Lake) -> None:
    raw = load_digits()
    train, heldout = digits_lake.read(), digits_lake.read(split="heldout")
    assert len(train) + len(heldout) == 1797 and not set(train.sample_id) & set(heldout.sample_id)
    for batch in (train, heldout):
        index = [int(name.removeprefix("digits-")) for name in batch.sample_id]
        expected = np.round(raw.images[index] * 255 / 16) / 127.5 - 1
        assert torch.allclose(batch.mean[:, 0], torch.from_numpy(expected).float(), atol=1e-6)
        assert batch.y.tolist() == raw.target[index].tolist()
        assert batch.std is None and set(batch.occurrence) == {0}
        assert list(zip(batch.y.tolist(), batch.sample_id)) == sorted(zip(batch.y.tolist(), batch.sample_id))


def test_a_fifth_of_each_class_is_held_out(digits_lake: Lake) -> None:
    for item in digits_lake.manifest.classes:
        assert item.heldout_rows == round(0.2 * (item.train_rows + item.heldout_rows))
        assert item.train_rows == len(digits_lake.read([item.label]))


def test_manifest_describes_the_files(digits_lake: Lake) -> None:
    for shard in digits_lake.manifest.shards:
        data = storage.read_bytes(storage.join(digits_lake.uri, shard.path))
        assert storage.sha256(data) == shard.sha256 and len(data) == shard.bytes


@pytest.mark.ray
def test_nobody_else_reads_what_a_local_cluster_leaves(ray_session: None) -> None:
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert stat.S_IMODE(session.stat().st_mode) == 0o700 and (session / "logs").is_dir()


@pytest.mark.ray
def test_ray_makes_the_same_lake_and_a_repeat_starts_no_ray(
    digits_lake: Lake, ray_session: None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(ingest_ray, "GROUP_BYTES", 20 << 10)  # several tasks, of two shards each
    made = ingest_ray.prepare(digits_config(tmp_path))
    assert (
        not made.reused
        and made.lake.digest == digits_lake.digest
        and made.lake.manifest.shards == digits_lake.manifest.shards
    )

    def forbidden(tasks):
        raise AssertionError("a complete lake was made again")

    again = ingest_ray.prepare(digits_config(tmp_path), run=forbidden)
    assert again.reused and again.lake == made.lake


def test_other_settings_do_not_pass_for_the_same_lake(digits_root: str) -> None:
    with pytest.raises(InputError, match=r"source.held_out = 0.2, got 0.3.*--set lake="):
        ingest_ray.prepare(digits_config(digits_root, source={"held_out": 0.3}))


def test_missing_and_outdated_lakes_say_what_to_run(digits_root: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no lake at .*prepare_data.py --config"):
        read_lake(lake_uri(str(tmp_path), "digits"))
    manifest = storage.read_json(storage.join(digits_root, "lakes/digits/manifest.json"))
    storage.write_json(str(tmp_path / "old" / "manifest.json"), {**manifest, "schema_version": 0})
    with pytest.raises(InputError, match=r"schema version 0, expected 2: .*make it again"):
        read_lake(str(tmp_path / "old"))


def test_a_class_the_lake_lacks(digits_lake: Lake) -> None:
    with pytest.raises(InputError, match=r"class 10 is not in the lake 'digits', expected one of 0..9"):
        digits_lake.read([10])


def test_a_lost_row_is_noticed(digits_lake: Lake, tmp_path: Path) -> None:
    shard = digits_lake.shards([3])[0]
    source = parquet_shards.read(digits_lake.uri, shard)
    made = parquet_shards.write(
        str(tmp_path), shard.path, [source.slice(1)], "image", (8, 8, 1), label=3, split="train"
    )
    lake = Lake(uri=str(tmp_path), manifest=digits_lake.manifest)
    with pytest.raises(
        RuntimeError,
        match=rf"{shard.path}: its {made.bytes} bytes are not the {shard.bytes} its manifest describes",
    ):
        lake.read([3])
    lying = shard.model_copy(update={"bytes": made.bytes, "sha256": made.sha256})
    with pytest.raises(
        RuntimeError, match=rf"{shard.path}: found {shard.rows - 1} rows where its manifest says {shard.rows}"
    ):
        parquet_shards.read(str(tmp_path), lying)


def test_a_changed_pixel_is_noticed(digits_lake: Lake, tmp_path: Path) -> None:
    shard = digits_lake.shards([3])[0]
    data = bytearray(storage.read_bytes(storage.join(digits_lake.uri, shard.path)))
    data[len(data) // 2] ^= 1
    storage.write_bytes(storage.join(str(tmp_path), shard.path), bytes(data))
    with pytest.raises(RuntimeError, match="the file is damaged"):
        parquet_shards.read(str(tmp_path), shard)


def test_digest_is_of_the_rows_not_of_the_name(digits_lake: Lake) -> None:
    manifest = digits_lake.manifest
    assert manifest.model_copy(update={"name": "other", "source": {}}).digest == manifest.digest
    shard = manifest.shards[0].model_copy(update={"sha256": "0" * 64})
    assert manifest.model_copy(update={"shards": [shard, *manifest.shards[1:]]}).digest != manifest.digest


def test_the_job_writes_nothing_on_a_dry_run(tmp_path: Path) -> None:
    job = Path(__file__).resolve().parents[2] / "jobs" / "prepare_data.py"
    command = [
        sys.executable,
        str(job),
        "--config",
        "jobs/configs/prepare_digits.yaml",
        "--set",
        f"storage={tmp_path / 'runs'}",
        "--dry-run",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 0 and "1797 images of 10 classes" in result.stdout
    assert list(tmp_path.iterdir()) == []
