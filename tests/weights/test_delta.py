"""Deltas: the trained subset alone, which is of use on its own base and on no other."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from models import weights
from models.generative import build, dit_description
from models.version_files import in_same_root
from pipeline.errors import InputError
from pipeline.seeding import generator
from pipeline.weights import model_folder


@pytest.fixture
def base(tmp_path: Path) -> model_folder.Stored:
    described = dit_description(
        "DiT-tiny", shape=(1, 8, 8), num_classes=10, class_names=[str(label) for label in range(10)]
    )
    net = build(described).net
    net.initialise(generator(0, "base"))  # type: ignore[operator]
    model_folder.write(str(tmp_path / "base"), described, net.state_dict(), {})
    return model_folder.read(str(tmp_path / "base"), "model.weights")


@pytest.fixture
def trained(base: model_folder.Stored) -> dict[str, torch.Tensor]:
    return {
        name: tensor + 0.1
        for name, tensor in base.state.items()
        if name.startswith(("y_embedder.", "blocks.2.adaLN"))
    }


def delta(tmp_path: Path, base: model_folder.Stored, trained: dict[str, torch.Tensor]) -> str:
    full = weights.weights_digest({**base.state, **trained})
    model_folder.write_delta(str(tmp_path / "delta"), base, trained, full, {"run_id": "r"})
    return str(tmp_path / "delta")


def other_base(tmp_path: Path, base: model_folder.Stored) -> str:
    model_folder.write(
        str(tmp_path / "other"), base.config, {name: value + 1 for name, value in base.state.items()}, {}
    )
    return str(tmp_path / "other")


def test_a_delta_on_its_base_is_the_whole(tmp_path: Path, base: model_folder.Stored, trained: Any) -> None:
    uri = delta(tmp_path, base, trained)
    size, whole = ((Path(folder) / "model.safetensors").stat().st_size for folder in (uri, base.uri))
    assert size < 0.3 * whole
    found = model_folder.read(uri, "version")
    wanted = {**base.state, **trained}
    assert found.state.keys() == wanted.keys() and all(
        torch.equal(found.state[name], wanted[name]) for name in wanted
    )
    assert (
        found.digest == weights.weights_digest(wanted)
        and "delta" not in found.config
        and found.manifest["run_id"] == "r"
    )


def test_another_base_is_refused(
    tmp_path: Path, base: model_folder.Stored, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = delta(tmp_path, base, trained)
    monkeypatch.setenv(model_folder.BASE_VARIABLE, other_base(tmp_path, base))
    with pytest.raises(
        InputError,
        match=rf"is a delta on a base of digest {base.digest[:12]}, but .*/other has .*expected that base",
    ):
        model_folder.read(uri, "version")
    monkeypatch.setenv(model_folder.BASE_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"the base of the delta .*/delta: no weights at .*/gone"):
        model_folder.read(uri, "version")


@pytest.mark.parametrize(
    ("version", "made_on", "own"),
    [
        ("/new/mlartifacts/1/r/artifacts/model", "/old/models/dit-digits", "/new/models/dit-digits"),
        ("/new/runs/forget-1/delta", "/old/root/models/dit", "/new/models/dit"),
        ("/x/runs/mlartifacts/1/r/model", "/old/runs/mlartifacts/2/s/model", "/x/runs/mlartifacts/2/s/model"),
        ("s3://b/new/mlartifacts/1/r/model", "s3://b/old/models/dit", "s3://b/new/models/dit"),
        ("/elsewhere/model", "/old/models/dit", None),
        ("/new/mlartifacts/1/r/model", "/some/folder", None),
    ],
)
def test_the_base_of_a_delta_under_a_root_that_was_moved(version: str, made_on: str, own: str | None) -> None:
    assert in_same_root(version, made_on) == own


def test_a_copied_root_reads_its_own_base(tmp_path: Path, base: model_folder.Stored, trained: Any) -> None:
    """The base of the root that it was copied from may be another one by now."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    model_folder.write(str(original / "models" / "dit"), base.config, base.state, {})
    stored = model_folder.read(str(original / "models" / "dit"), "model.weights")
    full = weights.weights_digest({**base.state, **trained})
    model_folder.write_delta(str(original / "runs" / "r" / "delta"), stored, trained, full, {})
    shutil.copytree(original, copy)
    other = {name: value + 1 for name, value in base.state.items()}
    model_folder.write(str(original / "models" / "dit"), base.config, other, {})
    assert model_folder.read(str(copy / "runs" / "r" / "delta"), "version").digest == full


def test_a_registered_delta_samples_what_the_whole_samples(
    tmp_path: Path, base: model_folder.Stored, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    from pipeline.tracking.version_folder import save_pyfunc

    model_folder.write(str(tmp_path / "full"), base.config, {**base.state, **trained}, {})
    rows = pd.DataFrame({"label": [1, 7], "seed": [0, 3]})
    drawn = []
    for name, folder in (("whole", str(tmp_path / "full")), ("part", delta(tmp_path, base, trained))):
        save_pyfunc(folder, tmp_path / name, image_shape=(8, 8, 1))
        drawn.append(mlflow.pyfunc.load_model(str(tmp_path / name)).predict(rows, params={"steps": 2}))
    assert (drawn[0] == drawn[1]).all() and drawn[0].std() > 0
    monkeypatch.setenv("UNLEARN_BASE_WEIGHTS", other_base(tmp_path, base))
    with pytest.raises(Exception, match=r"is a delta on a base of digest .*expected that base"):
        mlflow.pyfunc.load_model(str(tmp_path / "part"))
