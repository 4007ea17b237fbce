"""What a method may be told."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    penalty: float = 0.01  # lambda of grad cos^2
    surgery_every: int = 2  # uno_s: every k-th step is a surgery step
    saliency: float = 0.5  # salun: share of parameters that move
