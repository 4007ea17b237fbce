"""The registered model as MLflow loads it: (label, seed) rows in, uint8 images out.

This file is saved inside the model (models-from-code) and runs without this project: it may import nothing
but torch, safetensors, numpy, pandas, MLflow and the `models` package that is saved beside it.
"""

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

# what is compiled into a version's folder would be run in place of its scripts, and no digest covers it
sys.dont_write_bytecode = True

HONOURED, ARTIFACTS, LEDGER = "honoured.json", "mlartifacts", "requests"
LEDGER_VARIABLE = "UNLEARN_LEDGER"  # URI of the ledger's folder, for a version that was taken elsewhere
KNOWN_S = 10  # for how long the block list is not read again


class Sampler(PythonModel):
    """Draws images from the weights and config.json in the model's folder.

    Classes that a deletion request names and that this version does not honour are refused from the moment
    the request is accepted. `audit` (a text that says why) lifts that for this object; whoever sets it
    records it.
    """

    def load_context(self, context: PythonModelContext) -> None:
        import safetensors.torch
        import torch

        from models import generative, latents, version_files

        folder = Path(context.artifacts["config"]).resolve().parent
        version_files.require_as_listed(folder)
        shutil.rmtree(
            folder / version_files.BYTECODE, ignore_errors=True
        )  # MLflow compiled this file into it
        honoured = folder / HONOURED
        self.honoured = json.loads(honoured.read_text()) if honoured.is_file() else None
        self.ledger = ledger_of(folder, self.honoured["storage"]) if self.honoured else None
        self.audit: str | None = None
        self._blocked: tuple[float, dict[int, str]] | None = None
        self.config: dict[str, Any] = json.loads(Path(context.artifacts["config"]).read_text())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = generative.build(self.config)
        state, beside = (
            safetensors.torch.load_file(context.artifacts["weights"]),
            Path(context.artifacts["weights"]).parent,
        )
        if "delta" in self.config:
            base, beside = base_of(self.config["delta"], folder)
            state = {**base, **state}
        self.model.net.load_state_dict(state)
        self.model.net.to(self.device).eval()
        self.to_pixels: Callable[[Any], Any] = lambda x: x
        if "autoencoder" in self.config:
            autoencoder = safetensors.torch.load_file(beside / "autoencoder.safetensors")
            self.to_pixels = latents.decoder(self.config["autoencoder"], autoencoder, self.device)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """`model_input`: DataFrame with `label` (a class) and `seed` (int >= 0). Returns uint8 (N, H, W, C).

        `params`: cfg_scale and steps of the sampler (absent: those of config.json), batch: images sampled at
        once. Every batch is filled up to that size, since the last bit of a matrix product may depend on how
        many rows it has: so an image depends on its label and seed alone, whatever else is asked for.
        """
        import torch

        from models.pixels import unit_to_pixels

        options = {
            **self.config["sampler"],
            **{key: value for key, value in (params or {}).items() if value is not None},
        }
        labels, seeds = (
            [int(label) for label in model_input["label"]],
            [int(seed) for seed in model_input["seed"]],
        )
        classes = int(self.model.num_classes)
        for name, values, bound in (("label", labels, classes), ("seed", seeds, 2**63)):
            wrong = [value for value in values if not 0 <= value < bound]
            if wrong:
                raise ValueError(f"{name}: got {wrong[0]}, expected 0 to {bound - 1}")
        self._require_not_blocked(labels)
        batch = int(options.get("batch", 8))
        images = []
        for start in range(0, len(labels), batch):
            label, seed = labels[start : start + batch], seeds[start : start + batch]
            filled = batch - len(label)
            with torch.no_grad():
                x = self.to_pixels(
                    self.model.sample(
                        labels=torch.tensor(label + label[:1] * filled, device=self.device),
                        seeds=seed + seed[:1] * filled,
                        cfg_scale=float(options["cfg_scale"]),
                        steps=int(options["steps"]),
                    )
                )[: len(label)]  # (n, C, H, W) float32 in [-1, 1]
            images.append(unit_to_pixels(x))
        return np.concatenate(images)  # (N, H, W, C)

    def _require_not_blocked(self, labels: list[int]) -> None:
        if self.audit is not None or not self.model.conditional:
            return
        blocked = self.blocked()
        for label in labels:
            if label in blocked:
                raise ValueError(
                    f"label: class {label} is blocked: deletion request {blocked[label]} names it and this"
                    " version does not honour it; load the version that answers the request, or leave the"
                    " class out"
                )

    def blocked(self) -> dict[int, str]:
        """Class -> the deletion request that blocks it for this version, as the ledger says now."""
        from models.block_list import UnreadableError, blocked_classes, operators_key, read

        if self.honoured is None or self.ledger is None:
            return {}
        if self._blocked is None or time.monotonic() - self._blocked[0] > KNOWN_S:
            ledger, own = self.ledger, self.honoured
            try:
                requests = read(
                    lambda name: read_text(f"{ledger}/{name}"),
                    own["model_name"],
                    expected=own["ledger"],
                    key=operators_key(),
                )
            except UnreadableError as error:
                unknown = (
                    f"label: whether a class is blocked is not known: the ledger of deletion requests at"
                    f" {ledger} cannot be read ({error}); make it readable, or name its folder in"
                    f" {LEDGER_VARIABLE}"
                )
                if own["ledger"]:
                    raise UnreadableError(unknown) from error
                warnings.warn(unknown, stacklevel=2)  # there was none when the version was registered
                requests = []
            classes = blocked_classes(
                requests,
                request_ids=own["request_ids"],
                forgotten_classes=own["forgotten_classes"],
                registered=own["registered"],
                asked_classes=own.get("asked_classes"),
            )
            self._blocked = (time.monotonic(), classes)
        return self._blocked[1]


def ledger_of(folder: Path, storage: str) -> str:
    """Where the ledger is: as the environment says, beside the artifacts that hold the model (a storage root
    may have been moved), or under the storage root as it was at registration."""
    if named := os.environ.get(LEDGER_VARIABLE):
        return named.rstrip("/")
    for parent in folder.parents:
        if parent.name == ARTIFACTS:
            return str(parent.parent / LEDGER)
    return f"{storage}/{LEDGER}"


def read_text(uri: str) -> str | None:
    """The text at a local path, or at any URI that MLflow reads; None where there is no such file."""
    if "://" not in uri:
        return Path(uri).read_text() if Path(uri).is_file() else None
    import mlflow.artifacts

    try:
        return str(mlflow.artifacts.load_text(uri))
    except Exception as error:
        if getattr(error, "response", {}).get("Error", {}).get("Code") in ("404", "NoSuchKey"):
            return None
        raise


def base_of(delta: dict[str, Any], version: Path) -> tuple[dict[str, Any], Path]:
    """The weights that a delta belongs to, and their folder: `UNLEARN_BASE_WEIGHTS`, or under the storage
    root that holds the folder `version`, or where they were when it was made."""
    import mlflow.artifacts
    import safetensors.torch

    from models import version_files
    from models.weights import weights_digest

    own = version_files.in_same_root(str(version), delta["base"])
    uri = os.environ.get("UNLEARN_BASE_WEIGHTS", own if own and Path(own).is_dir() else delta["base"])
    folder = Path(uri) if Path(uri).is_dir() else Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    base = safetensors.torch.load_file(folder / "model.safetensors")
    digest = weights_digest(base)
    if digest != delta["base_digest"]:
        raise ValueError(
            f"this version is a delta on a base of digest {delta['base_digest'][:12]}, but {uri} has"
            f" {digest[:12]}; expected that base: name its folder in UNLEARN_BASE_WEIGHTS"
        )
    return base, folder


mlflow.models.set_model(Sampler())
