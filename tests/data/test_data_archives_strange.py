"""Object stores, archives and published sets as people have them, and errors that name the file."""

import gzip
import pickle
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3_servers
from test_data_sources import idx
from test_data_sources_strange import ONE, counted, listed, plant, png

from pipeline import storage
from pipeline.config import PrepareConfig, parse
from pipeline.data import ingest, ingest_ray
from pipeline.data.sources import celeba
from pipeline.data.sources.base import Unreadable
from pipeline.data.sources.mnist import Mnist
from pipeline.data.vae_encoder import plan_encoding
from pipeline.errors import InputError


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket that holds the objects which consoles, syncs and Hadoop make of folders; rclone makes none."""
    pytest.importorskip("moto")
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with s3_servers.environment(port):
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.mkdir("marked")
        for key in ("i/train/cat/a.png", "i/train/dog/b.png", "i/val/cat/c.png"):
            fs.pipe_file(f"marked/{key}", png())
        for key in (
            "i/",
            "i/train/",
            "i/train/cat/",
            "i/train/cat/sub/",
            "i/train_$folder$",
            "i/val/cow_$folder$",
        ):
            fs.call_s3("put_object", Bucket="marked", Key=key, Body=b"")
        yield "s3://marked/i"
    server.stop()


def test_markers_of_folders_are_no_files(bucket: str) -> None:
    assert counted("imagefolder", bucket) == {"cat": {"train": 1, "heldout": 1}, "dog": ONE}
    assert storage.walk(bucket) == ["train/cat/a.png", "train/dog/b.png", "val/cat/c.png"]


def test_a_small_gz_that_stands_for_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(9, np.uint8))))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((9, 28, 28), np.uint8)))
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    more = gzip.compress(bytes(64 << 20))  # a gz may be several, one after the other
    sizes = (b"\0\0\x08\x01" + (9).to_bytes(4, "big"), b"\0\0\x08\x01" + (2**32 - 1).to_bytes(4, "big"))
    for header, said in zip(sizes, (r"cannot reshape", r"it is said to hold 4294967295 bytes")):
        labels.write_bytes(gzip.compress(header) + more)
        tracemalloc.start()
        with pytest.raises(InputError, match=rf"train-labels.* is damaged \({said}.*expected MNIST"):
            Mnist(str(tmp_path)).items()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def faces(root: Path, *, table: str, parts: str = "", names: tuple[str, ...] = ("1.jpg", "2.jpg")) -> str:
    plant(root, *(f"img/{name}" for name in names))
    (root / "list_attr_celeba.csv").write_text(table)
    if parts:
        (root / "list_eval_partition.txt").write_text(parts)
    return str(root)


TABLE = "id,Bald\n1.jpg,1\n2.jpg,-1\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": ""}, "got 'Bald', expected one of "),
        ({"table": "id,Bald\n"}, "0 of 0 images of .* are not under"),
        ({"table": TABLE + "2.jpg,1\n"}, r"has two rows for 2\.jpg, expected one"),
        ({"table": "id,Bald\n1.jpg,yes\n"}, r"has 'yes' for 1\.jpg, expected one with -1 or 0 or 1"),
        ({"table": "id,Bald\n1.jpg\n"}, r"has 'nothing' for 1\.jpg"),
        ({"table": TABLE + "3.jpg,1\n"}, r"1 of 3 images of .* are not under .*, the first is 3\.jpg"),
        ({"table": TABLE, "parts": "1.jpg 0\n"}, r"lacks 1 images, the first is 2\.jpg"),
        (
            {"table": TABLE, "parts": "1.jpg 0\n2.jpg 3\n"},
            r"has '3' for 2\.jpg, expected one with 0 or 1 or 2",
        ),
        ({"table": TABLE, "parts": "1.jpg 1\n2.jpg 2\n"}, "all 2 images are held out"),
        ({"table": TABLE, "names": ("1.jpg", "2.jpg", "a/2.jpg")}, r"the image 2\.jpg is there 2 times"),
    ],
)
def test_attributes_that_do_not_fit_the_images_are_refused(
    tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        listed("celeba", faces(tmp_path, **options), attribute="Bald")
    assert "\n" not in str(caught.value)


def test_zips_that_are_damaged_or_stand_for_gigabytes(tmp_path: Path, monkeypatch) -> None:
    uri = faces(tmp_path, table=TABLE, names=("1.jpg",))
    archive = tmp_path / "img.zip"
    archive.write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"img\.zip is no zip or a damaged one"):
        listed("celeba", uri, attribute="Bald")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../2.jpg", bytes(1 << 20))
    monkeypatch.setattr(celeba, "LARGEST_FILE", 1 << 16)
    source, items = listed("celeba", uri, attribute="Bald")
    contents = list(source.read(items))
    assert contents[0] == png(len("img/1.jpg")) and isinstance(contents[1], Unreadable)
    assert str(contents[1]).startswith("too large: 1048576 bytes")


def test_what_a_worker_of_ray_could_not_read_is_named(tmp_path: Path) -> None:
    """In the type that becomes one line."""
    uri = plant(tmp_path / "raw", "cat/a.png", "cat/b.png")
    values = {
        "storage": str(tmp_path),
        "lake": "x",
        "source": {"kind": "imagefolder", "uri": uri, "held_out": 0},
    }
    settings = parse(PrepareConfig, {**values, "prepare": {"size": 8}})
    source, items = ingest_ray.listed(settings)
    tasks = ingest.plan(items, source, str(tmp_path / "lake"), settings, plan_encoding(settings))
    (tmp_path / "raw/cat/b.png").unlink()
    with pytest.raises(storage.StorageError, match=r"could not read .*/cat/b.png \(No such file") as raised:
        ingest_ray._make(tasks)
    pixels = pickle.loads(ingest_ray._decode({"task": pickle.dumps(tasks[0])})["pixels"])
    assert isinstance(pixels, storage.StorageError) and str(pixels) == str(raised.value)
