"""What numbers are computed in: bfloat16 autocast, TF32, and what a device without them is told.

Weights, gradients, the optimiser's moments, reductions, Frechet sums and losses are float32 or wider whatever
is set here.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError

if TYPE_CHECKING:
    import torch

    from pipeline.config import PretrainConfig, UnlearnConfig


def autocast(precision: str, device: "torch.device") -> AbstractContextManager[None]:
    """bf16: matrix products and attention in bfloat16, layer norm and softmax in float32. fp32: nothing."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def use_tf32(allowed: bool) -> None:
    """Whether this process's float32 matrix products and convolutions may take TF32, 10 bits of mantissa, on
    GPUs that can."""
    import torch

    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed  # on by default: what is said to be float32 shall be


def require_precision(device: "torch.device", config: "UnlearnConfig | PretrainConfig") -> None:
    """Raise `InputError` where bfloat16 is asked of a GPU without it. CPUs compute it, slowly."""
    import torch

    setting = next(
        (key for key in ("train", "evaluate") if getattr(getattr(config, key), "precision", None) == "bf16"),
        None,
    )
    if setting and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise InputError(
            f"{setting}.precision: got bf16, which {name} does not have; expected fp32, or a GPU of compute"
            " capability 8.0 or newer"
        )


def facts(config: "UnlearnConfig") -> dict[str, Any]:
    """The `precision` block of result.json."""
    return {
        "step": config.train.precision,
        "sampling": config.evaluate.precision,
        "tf32": config.train.tf32,
        "weights": "fp32",
        "compiled": config.train.compile,
    }


def require(config: "UnlearnConfig", description: dict[str, Any]) -> None:
    """Raise `InputError` for what is known before any worker starts: a model that is not compiled, this
    machine's GPU."""
    import torch

    if config.train.compile and description["family"] != "dit":
        raise InputError(
            f"train.compile: got true for a model of family {description['family']!r}, expected false: only"
            " DiTs are compiled"
        )
    if config.train.gpus_per_worker and torch.cuda.is_available():
        require_precision(torch.device("cuda"), config)
