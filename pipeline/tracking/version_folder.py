"""The folder of a registered version as MLflow loads it: weights, the code to sample from them, what it
honours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
from models import version_files
from pipeline import storage
from pipeline.weights import model_folder

FILES = {"config": model_folder.CONFIG, "weights": model_folder.WEIGHTS}
HONOURED = "honoured.json"  # in a version's folder: which requests it honours, and where the ledger is


def save_pyfunc(
    folder: str,
    target: Path,
    *,
    image_shape: tuple[int, int, int],
    serving: Mapping[str, Any] | None = None,
) -> str:
    """Write the MLflow model folder `target`: both files of `folder` at its top, the code to draw from them,
    signature, example and, where they are given, the requests it honours. The digest of all its files."""
    import mlflow.pyfunc
    import numpy as np
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    described = storage.read_json(storage.join(folder, FILES["config"]))
    sampler = described["sampler"]
    packages = [
        "mlflow",
        "torch",
        "safetensors",
        "numpy",
        "pandas",
        *(["diffusers"] if "autoencoder" in described else []),
    ]
    signature = ModelSignature(
        inputs=Schema([ColSpec("long", "label"), ColSpec("long", "seed")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *image_shape))]),
        params=ParamSchema(
            [
                ParamSpec("cfg_scale", DataType.double, float(sampler["cfg_scale"])),
                ParamSpec("steps", DataType.long, int(sampler["steps"])),
                ParamSpec("batch", DataType.long, 8),
            ]
        ),
    )
    mlflow.pyfunc.save_model(
        path=str(target),
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        code_paths=[str(Path(models.__file__).parent)],
        signature=signature,
        input_example=pd.DataFrame({"label": [0, 1], "seed": [0, 1]}),
        pip_requirements=[f"{package}=={_installed(package)}" for package in packages],
    )
    description = Model.load(str(target))
    for file in [*FILES.values(), model_folder.MANIFEST, model_folder.AUTOENCODER]:
        if file in FILES.values() or storage.exists(storage.join(folder, file)):
            storage.download(storage.join(folder, file), target / file)
    if serving is not None:
        (target / HONOURED).write_text(json.dumps(serving, indent=2) + "\n")
    flavor = description.flavors["python_function"]
    # at the top and not in artifacts/, so that the model's folder is itself a folder of weights
    flavor["artifacts"] = {key: {"path": file, "uri": file} for key, file in FILES.items()}
    # all that loading looks at; without a path of this machine
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    description.save(str(target / "MLmodel"))
    return version_files.write_list(target)


def _installed(package: str) -> str:
    from importlib.metadata import version

    return version(package).split("+")[0]
