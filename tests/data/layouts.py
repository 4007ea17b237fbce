"""The same images written in the layouts that data sets come in."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True, kw_only=True)
class Photo:
    name: str  # file name with suffix
    wnid: str
    label: int
    data: bytes


def as_folders(root: Path, photos: Sequence[Photo]) -> str:
    for photo in photos:
        (root / photo.wnid).mkdir(parents=True, exist_ok=True)
        (root / photo.wnid / photo.name).write_bytes(photo.data)
    return str(root)


def as_parquet(root: Path, photos: Sequence[Photo], files: int = 2, group_rows: int = 7) -> str:
    root.mkdir(parents=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(files):
        part = photos[number::files]
        images = pa.array([{"bytes": photo.data, "path": photo.name} for photo in part], image)
        table = pa.table({"image": images, "label": pa.array([photo.label for photo in part], pa.int64())})
        pq.write_table(table, root / f"train-{number:05d}-of-{files:05d}.parquet", row_group_size=group_rows)
    return str(root)


def as_tars(root: Path, photos: Sequence[Photo], files: int = 2) -> str:
    root.mkdir(parents=True)
    for number in range(files):
        with tarfile.open(root / f"imagenet-train-{number:06d}.tar", "w") as tar:
            for photo in photos[number::files]:
                stem, _, _ = photo.name.rpartition(".")
                for name, data in ((f"{stem}.jpg", photo.data), (f"{stem}.cls", str(photo.label).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(root)
