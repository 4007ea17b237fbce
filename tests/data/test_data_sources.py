"""Every raw layout into a lake: the same images give the same rows, and what is wrong with a source is said
in one line."""

import gzip
import json
import os
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import Photo, as_folders, as_parquet, as_tars
from PIL import Image
from test_data_preprocess import encoded, picture, reference

from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray, parquet_shards
from pipeline.data.lake import Lake
from pipeline.data.sources import regroup
from pipeline.data.sources.base import Item, hold_out
from pipeline.data.sources.parquet import ParquetImages
from pipeline.errors import InputError

WNIDS = {"n01440764": 0, "n02099601": 207, "n02099712": 208}


def make(root: Path, **source) -> Lake:
    prepare = source.pop("prepare", {"size": 32})
    config = parse(PrepareConfig, {"storage": str(root), "lake": "x", "source": source, "prepare": prepare})
    return ingest_ray.prepare(config, run=lambda tasks: map(ingest.make_shard, tasks)).lake


@pytest.fixture
def photos() -> list[Photo]:
    result = []
    for number in range(24):
        wnid = list(WNIDS)[number % 3]
        data = encoded(Image.fromarray(picture(50 + number, 70 - number, number)), "JPEG", quality=90)
        result.append(Photo(name=f"{wnid}_{number}.JPEG", wnid=wnid, label=WNIDS[wnid], data=data))
    return result


@pytest.fixture
def real_photos() -> list[Photo]:
    """The sample of ImageNet JPEGs under UNLEARN_TEST_DATA."""
    root = os.environ.get("UNLEARN_TEST_DATA")
    if not root:
        pytest.skip("UNLEARN_TEST_DATA is not set")
    folder = Path(root) / "imagenet-sample"
    index = json.loads((folder / "imagenet_class_index.json").read_text())
    label_of = {wnid: int(label) for label, (wnid, _) in index.items()}
    files = sorted(folder.glob("*/*.JPEG"))
    assert len(files) >= 200
    return [
        Photo(name=file.name, wnid=file.parent.name, label=label_of[file.parent.name], data=file.read_bytes())
        for file in files
    ]


@pytest.mark.parametrize(("which", "size"), [("photos", 32), ("real_photos", 256)])
def test_three_layouts_of_the_same_images_give_the_same_lake(
    request, tmp_path: Path, which: str, size: int
) -> None:
    photos: list[Photo] = request.getfixturevalue(which)
    prepare = {"size": size, "shard_rows": 5}
    lakes = [
        make(
            tmp_path / "a", kind="imagefolder", uri=as_folders(tmp_path / "folders", photos), prepare=prepare
        ),
        make(
            tmp_path / "b",
            kind="parquet",
            uri=as_parquet(tmp_path / "pq", photos),
            classes="imagenet",
            prepare=prepare,
        ),
        make(
            tmp_path / "c",
            kind="webdataset",
            uri=as_tars(tmp_path / "tars", photos),
            classes="imagenet",
            prepare=prepare,
        ),
    ]
    assert len({lake.digest for lake in lakes}) == 1
    assert lakes[0].manifest.shards == lakes[1].manifest.shards == lakes[2].manifest.shards
    lake, rejected = lakes[0], lakes[0].manifest.rejected
    assert rejected == 0 and sum(
        item.train_rows + item.heldout_rows for item in lake.manifest.classes
    ) == len(photos)
    assert lake.manifest.classes[207].name == "golden_retriever" and lake.manifest.classes[0].name == "tench"
    by_id = {photo.name.rpartition(".")[0]: photo for photo in photos}
    for shard in lake.manifest.shards:
        table = parquet_shards.read(lake.uri, shard)
        images = parquet_shards.tensor_values(table["image"], "image", (size, size, 3))
        for name, label, pixels in zip(table["sample_id"].to_pylist(), table["label"].to_pylist(), images):
            assert label == by_id[name].label
            (tmp_path / "one").write_bytes(by_id[name].data)
            with Image.open(tmp_path / "one") as image:
                assert np.array_equal(pixels, reference(image.convert("RGB"), size)), name


def test_scattered_classes_are_regrouped_first_with_the_same_result(
    tmp_path: Path, photos: list[Photo], monkeypatch
) -> None:
    uri = as_parquet(tmp_path / "pq", photos, group_rows=2)
    prepare = {"size": 32, "shard_rows": 3}
    direct = make(tmp_path / "direct", kind="parquet", uri=uri, classes="imagenet", prepare=prepare)
    monkeypatch.setattr(regroup, "REREAD_BYTES", 0)
    copied: list[int] = []
    once = regroup.regroup
    monkeypatch.setattr(regroup, "regroup", lambda plan: copied.append(len(plan.sizes)) or once(plan))
    regrouped = make(tmp_path / "regrouped", kind="parquet", uri=uri, classes="imagenet", prepare=prepare)
    assert copied == [3, 3] and regrouped.manifest.shards == direct.manifest.shards
    assert sorted(path.name for path in (tmp_path / "regrouped/lakes/x").iterdir()) == [
        "data",
        "manifest.json",
    ]
    items = ParquetImages(uri, "imagenet", 0.2).items()
    one_class = [item for item in items if item.label == 207]
    sizes = [
        pq.read_metadata(file).row_group(i).total_byte_size for file in Path(uri).iterdir() for i in range(6)
    ]
    assert (
        regroup.reread_bytes([one_class, one_class])
        == 2 * regroup.reread_bytes([one_class])
        <= 2 * sum(sizes)
    )
    assert regroup.reread_bytes([items]) == sum(sizes)


def test_class_folders_that_are_no_wnids_go_by_name_and_splits_by_folder(
    tmp_path: Path, photos: list[Photo]
) -> None:
    renamed = [
        Photo(name=p.name, wnid={0: "cat", 207: "ant", 208: "bee"}[p.label], label=p.label, data=p.data)
        for p in photos
    ]
    as_folders(tmp_path / "raw/train", renamed[:20])
    as_folders(tmp_path / "raw/val", renamed[20:])
    (tmp_path / "raw/train/ant/.DS_Store").write_bytes(b"x")
    lake = make(tmp_path / "runs", kind="imagefolder", uri=str(tmp_path / "raw"))
    assert [item.name for item in lake.manifest.classes] == ["ant", "bee", "cat"]
    assert (
        sum(item.train_rows for item in lake.manifest.classes) == 20
        and sum(item.heldout_rows for item in lake.manifest.classes) == 4
    )


def test_unusable_files_are_named_and_do_not_stop_the_run(tmp_path: Path, photos: list[Photo]) -> None:
    uri = as_folders(tmp_path / "raw", photos)
    (tmp_path / "raw/n01440764/broken.JPEG").write_bytes(photos[0].data[:500])
    (tmp_path / "raw/n02099601/notes.txt").write_bytes(b"remember the milk")
    lake = make(tmp_path / "runs", kind="imagefolder", uri=uri)
    rejected = pq.read_table(tmp_path / "runs/lakes/x/rejected.parquet").to_pylist()
    assert lake.manifest.rejected == 2 and [row["sample_id"] for row in rejected] == ["broken", "notes.txt"]
    assert "damaged" in rejected[0]["reason"] and "not an image" in rejected[1]["reason"]
    assert {row["ref"] for row in rejected} == {"n01440764/broken.JPEG", "n02099601/notes.txt"}
    clean = make(tmp_path / "clean", kind="imagefolder", uri=as_folders(tmp_path / "raw2", photos))
    assert set(lake.read().sample_id) | set(lake.read(split="heldout").sample_id) == set(
        clean.read().sample_id
    ) | set(clean.read(split="heldout").sample_id)
    with pytest.raises(
        InputError,
        match=r"2 of 26 images cannot be used, expected at most 1; the first is n01440764/broken.JPEG",
    ):
        make(tmp_path / "strict", kind="imagefolder", uri=uri, prepare={"size": 32, "max_rejected": 1})
    assert not (tmp_path / "strict/lakes/x/manifest.json").exists()


def test_of_no_usable_image_nothing_is_left_and_mended_ones_are_read_again(
    tmp_path: Path, photos: list[Photo]
) -> None:
    broken = [replace(photo, data=photo.data[:99] if photo.label else photo.data) for photo in photos]
    uri = as_folders(tmp_path / "raw", [photo for photo in broken if photo.label])
    for _ in range(2):
        with pytest.raises(InputError, match="16 of 16 images cannot be used, expected some to train on"):
            make(tmp_path / "runs", kind="imagefolder", uri=uri)
        assert not (tmp_path / "runs").exists()
    as_folders(tmp_path / "raw", broken)
    prepare = {"size": 32, "max_rejected": 3}
    with pytest.raises(InputError, match="16 of 24 images cannot be used, expected at most 3"):
        make(tmp_path / "runs", kind="imagefolder", uri=uri, prepare=prepare)
    as_folders(tmp_path / "raw", photos)
    assert make(tmp_path / "runs", kind="imagefolder", uri=uri, prepare=prepare).manifest.rejected == 0


def test_mirrored_rows_are_marked(tmp_path: Path, photos: list[Photo]) -> None:
    lake = make(
        tmp_path / "runs",
        kind="imagefolder",
        uri=as_folders(tmp_path / "raw", photos),
        prepare={"size": 32, "flip": True},
    )
    train, heldout = lake.read(), lake.read(split="heldout")
    assert not any(name.endswith("~flip") for name in heldout.sample_id) and len(train) == 2 * (
        len(photos) - len(heldout)
    )
    row_of = {name: i for i, name in enumerate(train.sample_id)}
    for name, row in row_of.items():
        if not name.endswith("~flip"):
            assert np.array_equal(
                train.mean[row_of[name + "~flip"]].numpy(), train.mean[row].numpy()[:, :, ::-1]
            )


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.mark.parametrize("gz", [True, False])
def test_mnist(tmp_path: Path, gz: bool) -> None:
    random = np.random.default_rng(1)
    content = {}
    (tmp_path / "raw").mkdir()
    for part, n in (("train", 30), ("t10k", 11)):
        content[part] = (
            random.integers(0, 256, (n, 28, 28), dtype=np.uint8),
            random.integers(0, 10, n, dtype=np.uint8),
        )
        for what, array in zip(("images-idx3", "labels-idx1"), content[part]):
            data = idx(array)
            (tmp_path / f"raw/{part}-{what}-ubyte{'.gz' if gz else ''}").write_bytes(
                gzip.compress(data) if gz else data
            )
    lake = make(
        tmp_path / "runs", kind="mnist", uri=str(tmp_path / "raw"), prepare={"size": 28, "channels": 1}
    )
    for part, batch in (("train", lake.read()), ("t10k", lake.read(split="heldout"))):
        images, labels = content[part]
        rows = [int(name.rsplit("-", 1)[1]) for name in batch.sample_id]
        assert sorted(rows) == list(range(len(images))) and batch.y.tolist() == labels[rows].tolist()
        assert np.allclose(batch.mean[:, 0].numpy(), images[rows] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:3] + bytes([1]) + data[4:], r"begins with 00 00 08 01, not 00 00 08 03"),
        (lambda data: bytes([0, 0, 9]) + data[3:], r"begins with 00 00 09 03, not 00 00 08 03"),
        (lambda data: data[:-1], r"is damaged \(cannot reshape"),
        (lambda data: data + b"0", r"is damaged \(cannot reshape"),
        (
            lambda data: data[: -28 * 28].replace((9).to_bytes(4, "big"), (8).to_bytes(4, "big"), 1),
            r"has 8 train images and 9 labels",
        ),
    ],
)
def test_idx_files_of_another_kind_or_length_are_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes], message: str
) -> None:
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8)))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((9, 28, 28), np.uint8)))
    images = tmp_path / "train-images-idx3-ubyte"
    images.write_bytes(spoil(images.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        make(tmp_path / "runs", kind="mnist", uri=str(tmp_path), prepare={"size": 28, "channels": 1})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["txt", "csv"])
@pytest.mark.parametrize("packed", ["zip", "folder"])
def test_celeba(tmp_path: Path, photos: list[Photo], form: str, packed: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    names = [f"{i + 1:06d}.jpg" for i in range(len(photos))]
    if packed == "zip":
        with zipfile.ZipFile(raw / "img_align_celeba.zip", "w") as archive:
            for name, photo in zip(names, photos):
                archive.writestr(f"img_align_celeba/{name}", photo.data)
    else:
        (raw / "img_align_celeba").mkdir()
        for name, photo in zip(names, photos):
            (raw / "img_align_celeba" / name).write_bytes(photo.data)
    rows = [[name, "1" if i % 3 else "-1", "1" if i % 4 == 0 else "-1"] for i, name in enumerate(names)]
    if form == "csv":
        lines = ["image_id,Smiling,Eyeglasses", *(",".join(row) for row in rows)]
        parts = ["image_id,partition", *(f"{name},{i % 3}" for i, name in enumerate(names))]
    else:
        lines = [str(len(names)), "Smiling Eyeglasses", *("  ".join(row) for row in rows)]
        parts = [f"{name} {i % 3}" for i, name in enumerate(names)]
    (raw / f"list_attr_celeba.{form}").write_text("\n".join(lines) + "\n")
    (raw / f"list_eval_partition.{form}").write_text("\n".join(parts) + "\n")
    lake = make(tmp_path / "runs", kind="celeba", uri=str(raw), attribute="Eyeglasses")
    assert [item.name for item in lake.manifest.classes] == ["not Eyeglasses", "Eyeglasses"]
    for split, batch in (("train", lake.read()), ("heldout", lake.read(split="heldout"))):
        index = [int(name) - 1 for name in batch.sample_id]
        assert all((i % 3 == 0) == (split == "train") for i in index)
        assert batch.y.tolist() == [int(i % 4 == 0) for i in index]
    assert len(lake.read()) == 8
    with pytest.raises(
        InputError, match=r"source\.attribute: got 'Hat', expected one of Smiling, Eyeglasses"
    ):
        make(tmp_path / "bad", kind="celeba", uri=str(raw), attribute="Hat")
    with pytest.raises(
        InputError, match=r"got 'Eyeglass', did you mean Eyeglasses\? expected one of Smiling, Eyeglasses"
    ):
        make(tmp_path / "bad", kind="celeba", uri=str(raw), attribute="Eyeglass")


def test_cifar10_counts(tmp_path: Path) -> None:
    root = os.environ.get("UNLEARN_TEST_DATA")
    if not root:
        pytest.skip("UNLEARN_TEST_DATA is not set")
    source = ParquetImages(f"{root}/cifar10", None, 0.2)
    items = source.items()
    assert len({item.sample_id for item in items}) == 60_000
    counts = np.zeros((2, 10), int)
    for item in items:
        counts[int(item.split == "heldout"), item.label] += 1
    assert counts.tolist() == [[5000] * 10, [1000] * 10]


def celeba_list(text: str) -> Callable[[Path, list[Photo]], dict]:
    def build(root: Path, photos: list[Photo]) -> dict:
        root.mkdir()
        (root / "list_attr_celeba.txt").write_text(text)
        return {"kind": "celeba", "uri": str(root)}

    return build


def mnist_of(images: int) -> Callable[[Path, list[Photo]], dict]:
    """So many training images, and one held out."""

    def build(root: Path, photos: list[Photo]) -> dict:
        root.mkdir()
        for part, count in (("train", images), ("t10k", 1)):
            (root / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.zeros(count, np.uint8)))
            (root / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((count, 28, 28), np.uint8)))
        return {"kind": "mnist", "uri": str(root)}

    return build


def mnist_with(make: Callable[[Path], None]) -> Callable[[Path, list[Photo]], dict]:
    """Something else in the place of an idx file."""

    def build(root: Path, photos: list[Photo]) -> dict:
        root.mkdir()
        make(root / "train-labels-idx1-ubyte")
        return {"kind": "mnist", "uri": str(root)}

    return build


def folders(root: Path, photos: list[Photo]) -> dict:
    return {"kind": "imagefolder", "uri": as_folders(root, photos)}


def missing(root: Path, photos: list[Photo]) -> dict:
    return {"kind": "imagefolder", "uri": str(root / "nowhere")}


def empty(kind: str) -> Callable[[Path, list[Photo]], dict]:
    def build(root: Path, photos: list[Photo]) -> dict:
        root.mkdir()
        if kind == "parquet":
            as_parquet(root / "a", [], files=1)
        if kind == "webdataset":
            as_tars(root / "a", [], files=1)
        return {"kind": kind, "uri": str(root)}

    return build


def missing_tars(root: Path, photos: list[Photo]) -> dict:
    return {"kind": "webdataset", "uri": str(root / "nowhere")}


def missing_index(root: Path, photos: list[Photo]) -> dict:
    return {**folders(root, photos), "classes": str(root / "nowhere.json")}


def outside_the_index(root: Path, photos: list[Photo]) -> dict:
    return {**folders(root, photos), "classes": ["n01440764", "n02099601"]}


def label_outside(root: Path, photos: list[Photo]) -> dict:
    return {"kind": "parquet", "uri": as_parquet(root, photos), "classes": ["a", "b"]}


def other_columns(root: Path, photos: list[Photo]) -> dict:
    root.mkdir()
    pq.write_table(pa.table({"picture": [b""], "label": [1]}), root / "x.parquet")
    return {"kind": "parquet", "uri": str(root)}


def no_parquet(root: Path, photos: list[Photo]) -> dict:
    return {"kind": "parquet", "uri": as_folders(root, photos)}


def cut_tar(share: float) -> Callable[[Path, list[Photo]], dict]:
    def build(root: Path, photos: list[Photo]) -> dict:
        as_tars(root, photos, files=1)
        file = next(root.iterdir())
        data = file.read_bytes()
        end = len(data.rstrip(b"\0")) // 512 * 512 + 512  # between the last member and the end mark
        file.write_bytes(data[: end if share == 1 else int(len(data) * share)])
        return {"kind": "webdataset", "uri": str(root)}

    return build


def tar_without_labels(root: Path, photos: list[Photo]) -> dict:
    return {"kind": "webdataset", "uri": as_tars(root, [Photo(name="a.b.JPEG", wnid="", label=0, data=b"x")])}


def cut_idx(root: Path, photos: list[Photo]) -> dict:
    root.mkdir()
    (root / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8))[:-2])
    return {"kind": "mnist", "uri": str(root)}


def empty_mnist(root: Path, photos: list[Photo]) -> dict:
    root.mkdir()
    return {"kind": "mnist", "uri": str(root)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (missing, "no images under .*nowhere"),
        (empty("imagefolder"), "no images under"),
        (empty("parquet"), "have no rows"),
        (empty("webdataset"), "hold no image"),
        (empty("celeba"), "has no list_attr_celeba.txt or .csv"),
        (missing_tars, "holds no .tar file"),
        (missing_index, "source.classes: got .*nowhere.json', which is missing"),
        (outside_the_index, "the folder 'n02099712' is no class of the index, expected one of 2"),
        (label_outside, "got label 207, expected 0..1"),
        (other_columns, "does not have the columns image.bytes, image.path and label"),
        (no_parquet, "holds no .parquet file"),
        (cut_tar(0.6), "ends early or is damaged"),
        (cut_tar(1), "ends early or is damaged .no end mark"),
        (cut_idx, "is damaged .*expected MNIST's idx format"),
        (empty_mnist, "has no train-labels-idx1-ubyte"),
        (mnist_of(0), "all 1 images are held out"),
        (mnist_with(Path.mkdir), "ubyte: is a folder, expected a file"),
        (mnist_with(os.mkfifo), "ubyte: is a pipe or a device, expected a file"),
        (celeba_list("3\nEyeglasses\n1.jpg 1\n2.jpg 1\n"), "has 2 rows, its first line says 3; it was cut"),
        (celeba_list("1\nEyeglasses Eyeglasses\n1.jpg 1 -1\n"), "has the column 'Eyeglasses' 2 times"),
    ],
)
def test_bad_sources_say_what_is_wrong_and_write_nothing(
    tmp_path: Path, photos: list[Photo], build, message: str
) -> None:
    source = build(tmp_path / "raw", photos)
    with pytest.raises(InputError, match=message) as caught:
        make(
            tmp_path / "runs", **({"attribute": "Eyeglasses"} if source["kind"] == "celeba" else {}), **source
        )
    assert "\n" not in re.sub(r"\s+", " ", str(caught.value)) and not (tmp_path / "runs").exists()


def test_a_source_needs_its_uri() -> None:
    config = parse(PrepareConfig, {"source": {"kind": "mnist"}})
    with pytest.raises(InputError, match=r"source.uri: got none, expected where the images are"):
        ingest_ray.describe(config)


def test_what_is_held_out_goes_by_the_sample_ids_alone() -> None:
    """Whatever order a store lists images in, and whichever others there are of another class."""
    items = [
        Item(sample_id=f"{label}-{number}", label=label, split="train", ref=f"/{label}/{number}")
        for label, count in ((0, 10), (3, 25))
        for number in range(count)
    ]

    def held_out(listed: list[Item], share: float = 0.2) -> set[str]:
        marked = hold_out(listed, share)
        assert sorted(item.sample_id for item in marked) == sorted(item.sample_id for item in listed)
        assert all(item.ref == f"/{item.label}/{item.sample_id.partition('-')[2]}" for item in marked)
        return {item.sample_id for item in marked if item.split == "heldout"}

    chosen = held_out(items)
    assert Counter(name[0] for name in chosen) == {"0": 2, "3": 5}
    assert chosen != {"0-0", "0-1", *(f"3-{number}" for number in range(5))}, "not the first ones"
    for seed in range(5):
        assert held_out(random.Random(seed).sample(items, len(items))) == chosen
    assert held_out(items[10:]) == {name for name in chosen if name[0] == "3"}
    assert held_out(items, 0.4) > chosen and held_out(items, 0.0) == set()
    again = [replace(item, split="heldout") for item in items]
    assert held_out(again) == chosen, "what the source said before does not count"
