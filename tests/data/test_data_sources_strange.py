"""Sources as people have them: what is taken for a class, a split, an image, and what is passed over or
refused."""

import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from layouts import Photo, as_tars
from PIL import Image
from test_data_preprocess import encoded

from pipeline import config
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray
from pipeline.data.sources import base, class_index, open_source
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
    items = source.items()
    base.require_training_images(items)
    return source, sorted(items, key=lambda item: item.sample_id)


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
        (("cat/boxes.txt", "cat/images/a.png", "dog/b.png"), {"cat": {"train": 2}, "dog": ONE}),
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
        (("val/cat/a.png", "test/cat/b.png"), "all 2 images are held out"),
        (("set/images/a/1.png", "set/images/b/1.png"), "set holds .* but the folders images/a, images/b"),
        (("set/README", "set/images/a/1.png"), "set holds no image of its own but the folders images/a"),
        (("up/set/images/a/1.png",), "up holds no image of its own but the folders set"),
        (("set/readme.txt", "set/cat/a.png", "set/dog/a.png"), "set holds .* but the folders cat, dog"),
        (("train/set/images/a/1.png",), "train/set holds .* but the folders images/a"),
        (("test/a.png",), "holds test and no folder of a class"),
    ],
)
def test_folders_that_could_be_anything_are_refused(
    tmp_path: Path, paths: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        listed("imagefolder", plant(tmp_path, *paths))
    assert "\n" not in str(caught.value)


def test_one_name_in_two_spellings_is_one_class(tmp_path: Path) -> None:
    """As Macs write it, and as all others do."""
    one, two = "caf\u00e9", "cafe\u0301"
    uri = plant(tmp_path / "a", f"train/{two}/a.png", f"val/{one}/b.png")
    assert list(counted("imagefolder", uri).values()) == [{"train": 1, "heldout": 1}]
    uri = plant(tmp_path / "b", f"{two}/a.png", "x/b.png")
    assert counted("imagefolder", uri, classes=[one, "x"]) == {one: ONE, "x": ONE}


def test_nothing_left_to_train_on_is_refused_whatever_the_source(tmp_path: Path) -> None:
    """By the share that is held out, too: of few images, all of a class."""
    uri = plant(tmp_path / "raw", "cat/a.png", "dog/b.png", "dog/c.png")
    for source in ({"kind": "imagefolder", "uri": uri}, {"kind": "digits"}):
        values = {"storage": str(tmp_path / "s"), "lake": "x", "source": {**source, "held_out": 0.9999}}
        with pytest.raises(InputError, match=r"all \d+ images are held out, .* by source\.held_out"):
            ingest_ray.describe(parse(PrepareConfig, values))
        with pytest.raises(InputError, match="expected some to train on"):
            ingest_ray.prepare(parse(PrepareConfig, values))
    assert not (tmp_path / "s").exists()


def test_classes_that_are_none_and_an_index_that_is_no_file(tmp_path: Path) -> None:
    uri = plant(tmp_path / "raw", "cat/a.png")
    with pytest.raises(InputError, match=r"source\.classes: names no class"):
        listed("imagefolder", uri, classes=[])
    with pytest.raises(InputError, match=r"has the name 'a.ud800', which is no text"):
        class_index.read_index(["a\ud800"])
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match=r"pipe\.json: is a pipe or a device, expected a file"):
        listed("imagefolder", uri, classes=str(tmp_path / "pipe.json"))
    os.mkfifo(tmp_path / "raw/imagenet_class_index.json")
    with pytest.raises(InputError, match=r"imagenet_class_index\.json: is a pipe or a device"):
        listed("imagefolder", uri)
    for kind, suffix in (("parquet", "parquet"), ("webdataset", "tar")):
        os.mkfifo(tmp_path / f"x.{suffix}")
        with pytest.raises(InputError, match=rf"x\.{suffix}: is a pipe or a device, expected a file"):
            listed(kind, str(tmp_path / f"x.{suffix}"))


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
    from pipeline.data.selection import read_ids

    _, items = listed("imagefolder", plant(tmp_path / "raw", f"cat/{name}.png"))
    assert [item.sample_id for item in items] == [sample_id]
    (tmp_path / "ids.txt").write_text(f"{sample_id}\r\n")
    assert read_ids(str(tmp_path / "ids.txt"), "x") == [sample_id]
    assert base.nameable(sample_id) == sample_id


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_ids_and_indices_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    from pipeline.data.selection import read_ids

    file = tmp_path / "list.txt"
    file.write_bytes("añ\r\nx~flip\r\n".encode(encoding))
    assert read_ids(str(file), "x") == ["añ", "x%7Eflip"]
    assert [line.name for line in class_index.read_index(str(file))] == ["añ", "x~flip"]
    file.write_bytes("añ\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="is no text"):
        read_ids(str(file), "x")
