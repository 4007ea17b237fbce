"""What goes into a diffusion loss and what comes out of a network. Shapes: N rows, C channels, H x W."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Net = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # (x_t, t, y) -> (N, C, H, W), or (N, 2C, H, W) with variances


@dataclass(frozen=True, kw_only=True)
class Noise:
    """All that is random in one evaluation of the loss on N rows; sampled outside, from named seeds."""

    t: Tensor  # (N,) int64 in [0, timesteps), or float32 in [0, 1]: the model's `time` says which
    eps: Tensor  # (N, C, H, W) standard normal
    posterior: Tensor | None = None  # (N, C, H, W) standard normal, for latents stored as mean and std


@dataclass(frozen=True)
class Prediction:
    """What a network says of noised rows, in the quantity that its family predicts (noise or velocity; a
    VAE's reconstruction): `value` (N, C, H, W) and, where the variance is learned, its interpolation."""

    value: Tensor
    variance: Tensor | None


class Anchor:
    """Holds the first value it is given. The variational term takes eps as a constant: where finite
    differences move the parameters within a step, that constant must stay the base point's."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def hold(self, value: Tensor) -> Tensor:
        if self._value is None:
            self._value = value.detach()
        return self._value
