"""Latents that were extracted before, as LightningDiT publishes those of its VA-VAE: safetensors shards with
`latents` and `latents_flip` (N, C, H, W) and `labels` (N,), and `latents_stats.pt` with the mean and std of
each channel."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open

from pipeline import storage
from pipeline.data.sources.base import FileSettings, ImageFiles, Item, Raw, Unreadable, hold_out
from pipeline.data.sources.class_index import class_names, read_index
from pipeline.data.sources.listing import PassedOver, find_files
from pipeline.errors import InputError

STATISTICS = "latents_stats.pt"
LATENTS, MIRRORED, LABELS = "latents", "latents_flip", "labels"
DTYPES = ("F32", "F16")


class LatentSettings(FileSettings):
    statistics: str | None = Field(
        None,
        description=(
            "mean and std of each channel, .pt or .safetensors; absent: latents_stats.pt beside the shards"
        ),
    )


class Latents(ImageFiles):
    """Sample ids are `<file>-<row>`. A latent is what the encoder gave, before its channels are normalised:
    `read` gives float16 (2, C, H, W), the image's and its mirror image's, or (1, C, H, W) without mirrors."""

    scattered = False

    def __init__(
        self, uri: str, classes: list[str] | str | None, held_out: float, statistics: str | None
    ) -> None:
        super().__init__(uri, classes, held_out)
        self.statistics = statistics or storage.join(self.uri, STATISTICS)
        if not storage.is_local(self.uri):
            raise InputError(
                f"source.uri: got {uri!r}, expected a folder that every worker sees: rows are read one by one"
                " out of large files; copy it there"
            )

    def shape(self, *, mirrored: bool) -> tuple[int, int, int]:
        """(C, H, W) of a latent. Raises `InputError` where files differ, or lack mirror images that are asked
        for."""
        shapes = {}
        for file in self._files():
            with _opened(file) as tensors:
                shapes[file] = _shape(tensors, file)
                if mirrored and MIRRORED not in tensors.keys():  # noqa: SIM118
                    raise InputError(
                        f"prepare.flip: got true, but {file} has no {MIRRORED}; expected prepare.flip=false"
                    )
        first, shape = next(iter(shapes.items()))
        for file, other in shapes.items():
            if other != shape:
                raise InputError(
                    f"source: {file} has latents of {other}, {first} of {shape}; expected one shape"
                )
        return shape

    def items(self) -> list[Item]:
        rows: list[tuple[str, int, int]] = []  # file, row, label
        for file in self._files():
            with _opened(file) as tensors:
                _shape(tensors, file)
                labels = tensors.get_tensor(LABELS)
            rows += [(file, row, int(label)) for row, label in enumerate(labels)]
        if not rows:
            raise InputError(f"source.uri: the files of {self.uri!r} have no rows, expected latents")
        index = read_index(self.given) if self.given is not None else None
        self.classes = class_names(index, [label for *_, label in rows])
        return hold_out(
            [
                Item(
                    sample_id=f"{PurePosixPath(file).stem}-{row:06d}",
                    label=label,
                    split="train",
                    ref=f"{file}#{row}",
                )
                for file, row, label in rows
            ],
            self.held_out,
        )

    def read(self, items: Sequence[Item]) -> Iterator[Raw]:
        for file, group in groupby(items, key=lambda item: item.ref.rpartition("#")[0]):
            with _opened(file) as tensors:
                names = [name for name in (LATENTS, MIRRORED) if name in tensors.keys()]  # noqa: SIM118
                parts = [tensors.get_slice(name) for name in names]
                for item in group:
                    row = int(item.ref.rpartition("#")[2])
                    values = np.concatenate([part[row : row + 1] for part in parts]).astype(np.float16)
                    finite = bool(np.isfinite(values).all())
                    yield values if finite else Unreadable("not finite as 16-bit numbers")

    def _files(self) -> list[str]:
        files = list(find_files(self.uri, ".safetensors", PassedOver()))
        if not files:
            raise InputError(
                f"source.uri: {self.uri!r} has no .safetensors files, expected shards of {LATENTS},"
                f" {MIRRORED} and {LABELS}"
            )
        return files


def _opened(file: str) -> Any:
    try:
        return safe_open(file.removeprefix("file://"), "numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"source: {file} is no safetensors file or a damaged one ({error})") from error


def _shape(tensors: Any, file: str) -> tuple[int, int, int]:
    """(C, H, W) of one latent of an opened file. Raises `InputError` for a file of something else."""
    names = set(tensors.keys())
    parts = {name: tensors.get_slice(name) for name in (LATENTS, MIRRORED, LABELS) if name in names}
    if not {LATENTS, LABELS} <= parts.keys():
        raise InputError(
            f"source: {file} holds {', '.join(sorted(names)[:6]) or 'nothing'}; expected {LATENTS},"
            f" {MIRRORED} and {LABELS}"
        )
    shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    latents = shapes[LATENTS]
    if (
        len(latents) != 4
        or shapes.get(MIRRORED, latents) != latents
        or shapes[LABELS] != latents[:1]
        or any(parts[name].get_dtype() not in DTYPES for name in parts if name != LABELS)
        or parts[LABELS].get_dtype() not in ("I64", "I32")
    ):
        text = ", ".join(f"{name} {shape} {parts[name].get_dtype()}" for name, shape in shapes.items())
        raise InputError(
            f"source: {file} holds {text}; expected {LATENTS} (N, C, H, W) of {' or '.join(DTYPES)}, as many"
            f" {MIRRORED} and N whole {LABELS}"
        )
    return latents[1:]
