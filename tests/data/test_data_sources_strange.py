"""Sources as people have them: what is taken for a class, a split, an image, and what is passed over or
refused."""

import io
import json
import os
import socket
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import Photo, as_tars
from PIL import Image
from test_data_preprocess import encoded

from pipeline import config
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray
from pipeline.data.sources import base, class_index, open_source, regroup, webdataset
from pipeline.data.sources.base import Item, Unreadable
from pipeline.errors import InputError


def png(seed: int = 0) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)), "PNG")


def plant(root: Path, *paths: str) -> str:
    """Image files at `paths` under `root`."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(len(path)))
    return str(root)


def listed(kind: str, uri: str, **options: Any) -> tuple[Any, list[Item]]:
    source = open_source(config.Source(kind=kind, uri=uri, **{"held_out": 0, **options}))
    return source, sorted(source.items(), key=lambda item: item.sample_id)


def counted(kind: str, uri: str, **options: Any) -> dict[str, dict[str, int]]:
    """Class name -> split -> images; every one of them is read."""
    source, items = listed(kind, uri, **options)
    assert len(list(source.read(items))) == len(items)
    by_class: dict[str, Counter[str]] = {}
    for item in items:
        by_class.setdefault(source.classes[item.label], Counter())[item.split] += 1
    return {name: dict(count) for name, count in by_class.items()}


ONE = {"train": 1}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("cat/a.png", "dog/b.png", ".ipynb_checkpoints/a.png"), {"cat": ONE, "dog": ONE}),
        (("cat/a.png", "@eaDir/b.png", "__MACOSX/cat/._a.png", "cat/@eaDir/x.png"), {"cat": ONE}),
        (("cat/a.png", "cat/._a.png", "cat/Thumbs.db", "cat/desktop.ini", "readme.txt"), {"cat": ONE}),
        (
            ("training/0/x.png", "training/1/y.png", "testing/0/z.png"),
            {"0": {"train": 1, "heldout": 1}, "1": ONE},
        ),
        (("train2017/cat/x.png", "val2017/cat/y.png"), {"cat": {"train": 1, "heldout": 1}}),
        (("imagenet-train/cat/x.png", "imagenet-val/cat/y.png"), {"cat": {"train": 1, "heldout": 1}}),
        (("train/cat/x.png", "test/1.png", "test/2.png"), {"cat": ONE}),
        (("train/train/x.png", "test/train/y.png"), {"train": {"train": 1, "heldout": 1}}),
        (("bullet_train/x.png", "tabby/y.png"), {"bullet_train": ONE, "tabby": ONE}),
        (("bullet_train/x.png",), {"bullet_train": ONE}),
        (("cat/a.png", "cat/more/b.png"), {"cat": {"train": 2}}),
        (("train/cat/images/a.png", "train/dog/images/b.png"), {"cat": ONE, "dog": ONE}),
        (("train/cat/a.png", "annotations/a.xml"), {"cat": ONE}),
        (
            ("golden retriever/a.png", "Labrador retriever/b.png"),
            dict.fromkeys(("golden retriever", "Labrador retriever"), ONE),
        ),
    ],
)
def test_what_is_taken_for_a_class(tmp_path: Path, paths: tuple[str, ...], expected: dict) -> None:
    assert counted("imagefolder", plant(tmp_path, *paths)) == expected


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("train/n01440764/t.png", "val/ILSVRC2012_val_1.png"), "val holds 1 files and no folder of a class"),
        (("train/a.png", "train/b.png"), "train holds 2 files and no folder of a class"),
        (
            ("set/train/cat/a.png", "set/val/cat/b.png"),
            "set holds no image of its own but the folders train, val",
        ),
        (("set/cat/a.png", "set/dog/a.png"), "set holds no image of its own but the folders cat, dog"),
        (("train/set/cat/a.png",), "train/set holds no image of its own but the folders cat"),
        (("cat/a.png", "dog/b.png", "test/1.png"), "holds test, which say a split, beside cat, dog"),
        (("train/cat/a.png", "val/cat/b.png", "extra/c.png"), "train, val, which say a split, beside extra"),
        (("train/cat/a.png", "val/images/v.png"), "'images', which is no class of the training images"),
        (("a.png", "b.png"), "got 2 images in no folder, the first is 'a.png'"),
        (("val/cat/a.png", "test/cat/b.png"), "all 2 images of .* are held out"),
        (("test/a.png",), "holds test and no folder of a class"),
    ],
)
def test_folders_that_could_be_anything_are_refused(
    tmp_path: Path, paths: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        listed("imagefolder", plant(tmp_path, *paths))
    assert "\n" not in str(caught.value)


def test_named_classes_are_classes_whatever_they_are_called(tmp_path: Path) -> None:
    uri = plant(tmp_path, "train/a.png", "bus/b.png", "test tube/left/c.png")
    classes = ["bus", "test tube", "train"]
    assert counted("imagefolder", uri, classes=classes) == dict.fromkeys(classes, ONE)
    pairs = tmp_path / "index.txt"
    pairs.write_text("bus a big car\ntrain a long car\ntest a glass\n")
    uri = plant(tmp_path / "b", "bus/a.png", "train/b.png")
    assert counted("imagefolder", uri, classes=str(pairs)) == {"a big car": ONE, "a long car": ONE}


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path, capsys) -> None:
    uri = plant(
        tmp_path / "raw", "train/cat/a.png", "train/cat/.b.png", "train/.c/d.png", "test/1.png", "x.txt"
    )
    values = {"storage": str(tmp_path / "s"), "lake": "x", "source": {"kind": "imagefolder", "uri": uri}}
    parsed = parse(PrepareConfig, {**values, "prepare": {"size": 8}})
    lines = [
        "2 files outside the class folders (first test/1.png)",
        "2 hidden files or those of the system (first train/.c)",
    ]
    assert [line for line in lines if line in ingest_ray.describe(parsed)] == lines
    lake = ingest_ray.prepare(parsed, run=lambda tasks: map(ingest.make_shard, tasks)).lake
    assert lake.manifest.passed_over == lines
    plain = lake.manifest.model_copy(update={"passed_over": []})
    assert plain.digest == lake.manifest.digest, "the rows are the same"


def test_numeric_folders_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    source, _ = listed("imagefolder", plant(tmp_path, *(f"{n}/{n}.png" for n in (0, 1, 2, 10, 11))))
    assert source.classes == ["0", "1", "2", "10", "11"]


def test_links_are_followed_and_loops_refused(tmp_path: Path) -> None:
    plant(tmp_path / "real", "b.png")
    root = Path(plant(tmp_path / "d", "cat/a.png"))
    (root / "dog").symlink_to(tmp_path / "real")
    (root / "cat/again.png").symlink_to(tmp_path / "real/b.png")
    assert counted("imagefolder", str(root)) == {"cat": {"train": 2}, "dog": ONE}
    (tmp_path / "e").mkdir()
    (tmp_path / "e/train").symlink_to(root)
    assert counted("imagefolder", str(tmp_path / "e")) == {"cat": {"train": 2}, "dog": ONE}
    (root / "cat/up").symlink_to(root)
    with pytest.raises(InputError, match="cat/up is a link to a folder that it lies in"):
        listed("imagefolder", str(root))


def test_one_bad_entry_is_one_rejected_row(tmp_path: Path) -> None:
    root = Path(plant(tmp_path / "raw", "cat/a.png", "cat/huge.png"))
    (root / "cat/gone.png").symlink_to("/nowhere")
    (root / "cat/round.png").symlink_to(root / "cat/round.png")
    os.mkfifo(root / "cat/pipe.png")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(root / "cat/s.png"))
    (root / "cat/null.png").symlink_to("/dev/zero")
    Path(os.fsdecode(os.fsencode(root) + b"/cat/caf\xe9.png")).write_bytes(png())
    os.truncate(root / "cat/huge.png", base.LARGEST_FILE + 1)  # sparse: takes no room
    values = {"storage": str(tmp_path / "s"), "lake": "x", "prepare": {"size": 8}}
    source = {"kind": "imagefolder", "uri": str(root), "held_out": 0.3}
    lake = ingest_ray.prepare(
        parse(PrepareConfig, {**values, "source": source}), run=lambda tasks: map(ingest.make_shard, tasks)
    ).lake
    rejected = {
        row["ref"]: row["reason"]
        for row in pq.read_table(tmp_path / "s/lakes/x/rejected.parquet").to_pylist()
    }
    assert lake.manifest.rejected == 7 and sum(shard.rows for shard in lake.manifest.shards) == 1
    expected = {
        "gone": "leads nowhere",
        "round": "leads nowhere",
        "pipe": "no file but a pipe",
        "s": "no file but a pipe",
        "null": "no file but a pipe",
        "caf\\xe9": "its name is not UTF-8",
        "huge": "too large",
    }
    assert rejected.keys() == {f"cat/{name}.png" for name in expected}
    assert all(reason in rejected[f"cat/{name}.png"] for name, reason in expected.items())


def test_a_file_that_may_not_be_read_is_rejected_and_one_that_is_gone_is_named(
    tmp_path: Path, monkeypatch
) -> None:
    source, items = listed("imagefolder", plant(tmp_path, "cat/a.png", "cat/b.png"))
    (tmp_path / "cat/b.png").unlink()
    contents = source.read(items)
    assert next(contents) == (tmp_path / "cat/a.png").read_bytes()
    with pytest.raises(OSError, match=r"could not read .*cat/b\.png \(No such file"):
        next(contents)

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    content = next(source.read(items))
    assert isinstance(content, Unreadable) and str(content) == "cannot be read: Permission denied"


def test_an_error_of_a_decoder_or_library_names_the_image() -> None:
    def contents() -> Any:
        yield b"x"
        raise ArithmeticError("no idea")

    item = Item(sample_id="b", label=0, split="train", ref="cat/b.png")
    generator = contents()
    assert ingest.content(generator, item) == b"x"
    with pytest.raises(OSError, match=r"could not read cat/b\.png: ArithmeticError: no idea"):
        ingest.content(generator, item)
    with pytest.raises(OSError, match=r"cat/b\.png: the source gave no content"):
        ingest.content(iter(()), item)


def test_a_stem_that_is_there_twice_makes_longer_ids_in_every_layout(tmp_path: Path) -> None:
    def ids(kind: str, uri: str) -> list[str]:
        return sorted(item.sample_id for item in listed(kind, uri)[1])

    assert ids("imagefolder", plant(tmp_path / "a", "cat/1.png", "dog/1.png")) == ["cat/1", "dog/1"]
    assert ids("imagefolder", plant(tmp_path / "b", "train/cat/1.png", "val/cat/1.png")) == [
        "train/cat/1",
        "val/cat/1",
    ]
    assert ids("imagefolder", plant(tmp_path / "c", "cat/1.png", "cat/1.jpg")) == ["cat/1.jpg", "cat/1.png"]
    photos = [Photo(name=f"{n}.png", wnid="", label=0, data=png(n)) for n in range(2)]
    uri = as_tars(tmp_path / "d", photos, files=1)
    file = next(Path(uri).iterdir())
    (Path(uri) / "b-train.tar").write_bytes(file.read_bytes())
    assert ids("webdataset", uri) == [f"{stem}/{n}" for stem in ("b-train", file.stem) for n in range(2)]


@pytest.mark.parametrize(
    ("name", "sample_id"),
    [
        ("x~flip", "x%7Eflip"),
        ("x ", "x%20"),
        (" x\n", "%20x%0A"),
        ("a\u2028b", "a%E2%80%A8b"),
        ("a~flip~b", "a~flip~b"),
        ("日本 1", "日本 1"),
    ],
)
def test_every_id_can_be_named_on_a_line(tmp_path: Path, name: str, sample_id: str) -> None:
    from pipeline.data.partition import read_ids

    _, items = listed("imagefolder", plant(tmp_path / "raw", f"cat/{name}.png"))
    assert [item.sample_id for item in items] == [sample_id]
    (tmp_path / "ids.txt").write_text(f"{sample_id}\r\n")
    assert read_ids(str(tmp_path / "ids.txt"), "x") == [sample_id]
    assert base.nameable(sample_id) == sample_id


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_ids_and_indices_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    from pipeline.data.partition import read_ids

    file = tmp_path / "list.txt"
    file.write_bytes("añ\r\nx~flip\r\n".encode(encoding))
    assert read_ids(str(file), "x") == ["añ", "x%7Eflip"]
    assert [line.name for line in class_index.read_index(str(file))] == ["añ", "x~flip"]
    file.write_bytes("añ\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="is no text"):
        read_ids(str(file), "x")


def table(root: Path, name: str, labels: Any, *, column: str = "image", metadata: dict | None = None) -> str:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(n), "path": f"{name}{n}.png"} for n in range(len(labels))]
    content = pa.table({column: pa.array(rows, image), "label": labels})
    if metadata:
        content = content.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, root / name)
    return str(root)


def test_splits_are_read_from_folders_too(tmp_path: Path) -> None:
    both = {name: {"train": 1, "heldout": 1} for name in "01"}
    for split in ("train", "test"):
        table(tmp_path / "a", f"default/{split}/0000.parquet", [0, 1])
    assert counted("parquet", str(tmp_path / "a")) == both
    assert counted("parquet", f"{tmp_path}/a/default/*/*.parquet") == both
    with pytest.raises(InputError, match=r"all 2 images of .* are held out"):
        listed("parquet", table(tmp_path / "c", "test-0.parquet", [0, 1]))
    assert counted("parquet", str(tmp_path / "a/default/test")) == dict.fromkeys("01", ONE), (
        "asked for as it is"
    )
    photos = [Photo(name=f"{n}.png", wnid="", label=n % 2, data=png(n)) for n in range(4)]
    uri = Path(as_tars(tmp_path / "b", photos, files=1))
    (uri / "val").mkdir()
    next(uri.glob("*.tar")).rename(uri / "val/0000.tar")
    as_tars(uri / "more", [Photo(name="x.png", wnid="", label=0, data=png())], files=1)
    next((uri / "more").iterdir()).rename(uri / "more/0000.tar")
    assert counted("webdataset", str(uri)) == {"0": {"heldout": 2, "train": 1}, "1": {"heldout": 2}}


def test_a_folder_as_spark_writes_it_and_other_endings(tmp_path: Path) -> None:
    root = tmp_path / "set.parquet"
    table(root, "part-00000.snappy.parquet", [0, 1])
    table(root, "part-00001.PARQUET", [0])
    for name in ("_SUCCESS", ".part-00000.crc", "_metadata", "notes.md"):
        (root / name).write_bytes(b"")
    source, items = listed("parquet", str(root))
    assert len(items) == 3 and source.passed_over == [
        "1 files that are no .parquet (first notes.md)",
        "3 hidden files or those of the system (first .part-00000.crc)",
    ]


NAMES = {"info": {"features": {"label": {"names": ["golden retriever", "Labrador retriever"]}}}}


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ([0, 1], {"metadata": NAMES}, {"golden retriever": ONE, "Labrador retriever": ONE}),
        ([0, 1], {"column": "img"}, {"0": ONE, "1": ONE}),
        (["dog", "a cat"], {}, {"dog": ONE, "a cat": ONE}),
        (["10", "9"], {}, {"9": ONE, "10": ONE}),
        (pa.array(["b", "a"]).dictionary_encode(), {}, {"a": ONE, "b": ONE}),
        ([1.0, 0.0], {}, {"0": ONE, "1": ONE}),
        ([True, False], {}, {"0": ONE, "1": ONE}),
        (pa.array([1, 0], pa.uint8()), {}, {"0": ONE, "1": ONE}),
        ([0], {"metadata": {"info": [1]}}, {"0": ONE}),
    ],
)
def test_labels_as_tables_have_them(tmp_path: Path, labels: Any, options: dict, expected: dict) -> None:
    assert counted("parquet", table(tmp_path, "train.parquet", labels, **options)) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0], [1]], "labels of type list<.*> such as .*expected one whole number or class name a row"),
        ([0.5, 1], "labels of type double such as '0.5'"),
        ([float("nan"), 1], "labels of type double|no whole numbers"),
        ([0, None], r"has a row without label \(row 1\)"),
        ([0, -1], "got label -1, expected 0 to 99999"),
        ([0, 10**12], "got label 1000000000000, expected 0 to 99999"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        listed("parquet", table(tmp_path, "train.parquet", labels))
    assert "\n" not in str(caught.value)


def test_test_rows_without_labels_are_passed_over_and_counted(tmp_path: Path) -> None:
    table(tmp_path, "data/train-0.parquet", [0, 1])
    table(tmp_path, "data/validation-0.parquet", [0, 1])
    table(tmp_path, "data/test-0.parquet", [-1, -1, -1])
    source, items = listed("parquet", str(tmp_path))
    assert Counter(item.split for item in items) == {"train": 2, "heldout": 2}
    assert source.passed_over == [
        f"3 rows of test files without a label (-1) (first {tmp_path}/data/test-0.parquet)"
    ]


def test_names_in_one_file_and_numbers_in_another(tmp_path: Path) -> None:
    table(tmp_path, "train-0.parquet", [0])
    table(tmp_path, "train-1.parquet", ["cat"])
    with pytest.raises(
        InputError, match="numbers for labels in some files and names such as 'cat' in others"
    ):
        listed("parquet", str(tmp_path))
    uri = table(tmp_path / "b", "train.parquet", ["n01440764", "golden_retriever"])
    assert counted("parquet", uri, classes="imagenet") == {"tench": ONE, "golden_retriever": ONE}


def test_the_other_name_of_the_image_column_is_regrouped_too(tmp_path: Path) -> None:
    uri = table(tmp_path / "a", "train.parquet", [1, 0, 1], column="img")
    source, items = listed("parquet", uri)
    plans, moved = regroup.plan_regrouping(items, str(tmp_path / "copies"))
    assert [regroup.regroup(plan) for plan in plans] == [3]
    assert list(source.read(moved)) == list(source.read(items)) == [png(n) for n in range(3)]


def tar_of(path: Path, members: dict[str, bytes]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.read_bytes()


def test_tars_one_behind_the_other_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [tar_of(tmp_path / f"{n}.tar", {f"{n}.PNG": png(n), f"{n}.cls": b"0"}) for n in range(3)]
    (tmp_path / "raw").mkdir()
    file = tmp_path / "raw/all.tar"
    file.write_bytes(b"".join(parts) + bytes(1 << 21))
    source, items = listed("webdataset", str(file))
    assert [item.sample_id for item in items] == ["0", "1", "2"]
    assert list(source.read(items)) == [png(n) for n in range(3)]
    file.write_bytes(parts[0] + b"something else" * 99)
    with pytest.raises(InputError, match="ends early or is damaged"):
        listed("webdataset", str(file))


def test_members_that_are_neither_image_nor_label(tmp_path: Path) -> None:
    members = {
        "a.jpeg": png(),
        "a.json": b'{"label": 1}',
        "a.seg.png": png(),
        "a.txt": b"a cat",
        "._a.jpeg": b"x",
    }
    tar_of(tmp_path / "x.TAR", members)
    (tmp_path / "more.tar.gz").write_bytes(b"")
    source, items = listed("webdataset", str(tmp_path))
    assert [(item.sample_id, item.label) for item in items] == [("a", 1)]
    assert source.passed_over == [
        "1 files that are no .tar (first more.tar.gz)",
        f"1 hidden files or those of the system (first {tmp_path}/x.TAR#._a.jpeg)",
        f"2 members that are neither image nor label (first {tmp_path}/x.TAR#a.seg)",
    ]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x", "a.json": b'{"caption": "cat"}'}, "only one of image and label for 'a'"),
        ({"a.png": b"x", "a.json": b"[" * 100_000}, r"a\.json in .* expected JSON"),
        ({"a.png": b"x", "a.cls": b"1" * (2 << 20)}, "has 2097152 bytes, expected a label of at most"),
        ({"a.png": b"x", "a.cls": b"cat"}, "holds 'cat', expected a class number"),
    ],
)
def test_labels_of_tars_that_are_none(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    tar_of(tmp_path / "x.tar", members)
    with pytest.raises(InputError, match=message):
        listed("webdataset", str(tmp_path))


def test_a_header_of_a_gigabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))
    with pytest.raises(InputError, match=r"damaged .*a header of 1073741824 bytes"):
        listed("webdataset", str(tmp_path))


def test_an_image_in_a_tar_that_is_too_large_is_rejected(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(webdataset, "LARGEST_FILE", 100)
    tar_of(tmp_path / "x.tar", {"a.png": png(), "a.cls": b"0", "b.png": b"x" * 99, "b.cls": b"0"})
    source, items = listed("webdataset", str(tmp_path))
    contents = list(source.read(items))
    assert isinstance(contents[0], Unreadable) and contents[1] == b"x" * 99
