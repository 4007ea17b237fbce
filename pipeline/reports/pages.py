"""What a run shows people: its sample grids as pictures and its report, made from what lies in its folder."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.reports.png import grid_png
from pipeline.reports.run_report import render_report

SETTINGS, RESULT, REPORT, METRICS, SAMPLES = (
    "config.yaml",
    "result.json",
    "report.html",
    "metrics.jsonl",
    "samples",
)
GRIDS = ("before", "after")


def grid_uri(run_uri: str, moment: str) -> str:
    """The tensors of the images sampled before or after: uint8 (n, H, W, C), named by label."""
    return storage.join(run_uri, SAMPLES, f"{moment}.safetensors")


def read_grids(run_uri: str) -> dict[str, dict[int, np.ndarray]]:
    """The run's sample grids by moment and label; a moment without a file is left out."""
    from models.weights import from_bytes

    by_moment = {}
    for moment in GRIDS:
        uri = grid_uri(run_uri, moment)
        if storage.exists(uri):
            by_moment[moment] = {
                int(label): images.numpy()
                for label, images in from_bytes(storage.read_bytes(uri), uri).items()
            }
    return by_moment


def pages(
    result: Mapping[str, Any],
    recorded: Sequence[Mapping[str, Any]],
    grids: Mapping[str, Mapping[int, np.ndarray]],
    config_yaml: str,
    *,
    class_names: Sequence[str] | None,
    note: str | None = None,
) -> dict[str, bytes]:
    """The files to leave, by name: a picture for each grid, and report.html with `note` above its samples."""
    files = {
        picture(moment, label): grid_png(images, columns=len(images), smallest=64)
        for moment, by_label in grids.items()
        for label, images in by_label.items()
    }
    return files | {
        REPORT: (
            render_report(result, recorded, grids, config_yaml, class_names=class_names, note=note).encode()
        )
    }


def picture(moment: str, label: int) -> str:
    """The picture's name under the run's folder."""
    return f"{SAMPLES}/{moment}-{label:05d}.png"
