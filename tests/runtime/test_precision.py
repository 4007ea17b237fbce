"""The precision policy: bf16 and TF32 only where they were asked for, refused where the device lacks them."""

from collections.abc import Iterator

import pytest
import torch

from pipeline.config import UnlearnConfig, parse
from pipeline.errors import InputError
from pipeline.runtime import precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def config(**values: object) -> UnlearnConfig:
    return parse(UnlearnConfig, dict(values))


@pytest.mark.parametrize("key", ["train", "evaluate"])
def test_bfloat16_is_asked_only_of_a_device_that_has_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(**{key: {"precision": "bf16"}})
    precision.require_precision(CPU, asked)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    precision.require_precision(GPU, config())
    with pytest.raises(
        InputError, match=rf"{key}\.precision: got bf16, which Tesla T4 does not have; expected fp32"
    ):
        precision.require_precision(GPU, asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu = config(
        **{
            "train": {"gpus_per_worker": 1},
            key: {"precision": "bf16", **({"gpus_per_worker": 1} if key == "train" else {})},
        }
    )
    # before any worker starts, where the driver has the GPU
    with pytest.raises(InputError, match="Tesla T4"):
        precision.require(on_gpu, {"family": "dit"})


def test_autocast_is_around_products_only_when_asked() -> None:
    a = torch.ones(2, 2)
    with precision.autocast("fp32", CPU):
        assert (a @ a).dtype == torch.float32
    with precision.autocast("bf16", CPU):
        assert (a @ a).dtype == torch.bfloat16 and torch.nn.functional.layer_norm(a @ a, (2,)).dtype in (
            torch.float32,
            torch.bfloat16,
        )
    assert (a @ a).dtype == torch.float32


@pytest.fixture
def as_it_was() -> Iterator[None]:
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.usefixtures("as_it_was")
def test_tf32_is_off_unless_asked_for_in_convolutions_too() -> None:
    precision.use_tf32(True)
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    precision.use_tf32(False)
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32


def test_only_dits_are_compiled_and_the_result_says_what_ran() -> None:
    compiled = config(train={"compile": True}, evaluate={"precision": "bf16"})
    precision.require(compiled, {"family": "dit"})
    with pytest.raises(
        InputError, match=r"train\.compile: got true for a model of family 'vae', expected false"
    ):
        precision.require(compiled, {"family": "vae"})
    assert precision.facts(compiled) == {
        "step": "fp32",
        "sampling": "bf16",
        "tf32": False,
        "weights": "fp32",
        "compiled": True,
    }
