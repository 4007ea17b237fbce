"""Weights are read and hashed once in a process, and a class count is read from config.json."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from models import generative, judge, weights
from pipeline.config.reading import parse
from pipeline.config.unlearn import UnlearnConfig
from pipeline.errors import InputError
from pipeline.studies.comparison import assembled
from pipeline.weights import model_folder
from tests import untrained


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("root"))
    untrained.fill(place)
    return place


def test_base_and_judge_are_read_and_hashed_once_a_process(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, hashes = Counter[str](), 0
    mapped, digest = weights.mapped, weights.weights_digest

    def counted(path: Path, where: str) -> Any:
        reads[path.parent.name] += path.name == model_folder.WEIGHTS
        return mapped(path, where)

    def hashed(state: Any) -> str:
        nonlocal hashes
        hashes += 1
        return digest(state)

    monkeypatch.setattr(weights, "mapped", counted)
    monkeypatch.setattr(weights, "weights_digest", hashed)
    request = {"classes": [1], "exchange": {1: 7}}
    config = parse(UnlearnConfig, {"storage": root, "request": request, "train": {"workers": 1}})
    prepared, _, inputs = assembled(config)
    assert +reads == {"dit-tiny-digits": 1, "judge-digits": 1} and hashes == 2
    model = dict(inputs.model.net.state_dict())
    assert all((model[name] == value).all() for name, value in prepared.base.state.items())
    shared = prepared.model.net.state_dict()
    assert all(shared[name].data_ptr() == value.data_ptr() for name, value in prepared.base.state.items())
    with torch.no_grad():
        next(iter(model.values())).add_(1.0)  # the worker's own, as training moves it
    assert weights.weights_digest(prepared.base.state) == prepared.base.digest


def test_weights_are_mapped_where_they_lie_and_remote_ones_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    folder = str(tmp_path / "here")
    digest = model_folder.write(folder, {"family": "small_cnn"}, state, {})
    place = tmp_path / "here" / model_folder.WEIGHTS
    tensors = weights.mapped(place, "here")
    place.unlink()
    assert weights.weights_digest(tensors) == digest, "what is mapped outlives the file's name"
    tensors["a"].zero_()  # pages of this process's own
    with pytest.raises(weights.WeightsError, match="not a readable safetensors file"):
        place.write_bytes(b"{" * 40)
        weights.mapped(place, "here")
    storage_uri = "memory://mapped/model"
    assert model_folder.write(storage_uri, {"family": "small_cnn"}, state, {}) == digest
    assert model_folder.read(storage_uri, "judge.weights").digest == digest


def test_weights_that_nobody_holds_are_read_and_checked_again(root: str) -> None:
    uri = model_folder.judge_uri(root, "digits")
    stored = model_folder.read(uri, "judge.weights")
    assert model_folder.read(uri, "judge.weights") is stored
    del stored
    path = Path(uri) / model_folder.WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    try:
        with pytest.raises(InputError, match="not a readable safetensors file"):
            model_folder.read(uri, "judge.weights")
    finally:
        path.write_bytes(content)


def test_a_class_count_comes_from_the_description() -> None:
    names = ["a", "b", "c"]
    described = [
        generative.describe("DiT-tiny", shape=(1, 8, 8), class_names=names),
        generative.describe("vae-mnist", shape=(1, 28, 28), class_names=names),
    ]
    for config in described:
        assert model_folder.class_count(config) == generative.build(config).num_classes == 3
    config = judge.small_cnn_description(shape=(1, 8, 8), num_classes=3, class_names=names)
    assert model_folder.class_count(config) == judge.build_judge(config).num_classes == 3


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("dit-tiny-digits", "pretrain_digits.yaml"),
        ("sit-tiny-digits", "pretrain_digits_sit.yaml"),
        ("dit-lite-cifar10", "pretrain_cifar10_cpu.yaml"),
        ("vae-celeba-celeba", "pretrain_celeba_vae.yaml"),
        ("judge-digits", "pretrain_digits.yaml"),
        ("judge-celeba", "pretrain_celeba_vae.yaml"),
        ("dit-tiny-flowers", "'jobs/configs/pretrain_<lake>.yaml'"),
    ],
)
def test_missing_weights_name_the_configuration_that_makes_them(name: str, config: str) -> None:
    assert f"{config} --set storage=/root`" in model_folder.no_weights(
        f"/root/models/{name}", "model.weights"
    )
