"""Kernel distance (KID): the unbiased squared MMD with a cubic kernel, averaged over blocks (Binkowski et al.
2018, section 4)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import mean_and_half
from pipeline.evaluation.context import RETAINED, EvalContext, EvalSpec
from pipeline.evaluation.metrics.fid import spaces_of
from pipeline.evaluation.partials import Partials, moments_of_values
from pipeline.evaluation.rows import feature_reader, reference_rows
from pipeline.evaluation.sampling import Collector, Images


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / F + 1)^3 between rows (N, F) and (M, F), float64 (N, M)."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def block_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared MMD of two blocks of n rows (n, F), n >= 2: a float64 scalar that may be below 0."""
    n = len(x)
    if n != len(y) or n < 2:
        raise ValueError(f"kid: got blocks of {n} and {len(y)} rows, expected two of one size, at least 2")
    within = sum((k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y)))
    return within - 2 * kernel(x, y).mean()


def collect_mmd(context: EvalContext) -> Collector:
    """<space>/<side>/kid (3,): count, sum and sum of squares of the MMD of a block of images against as
    many real rows, going round them in order; a short last block is left out."""
    rows = reference_rows(context)
    real, n, least = feature_reader(context, rows), len(rows), max(2, context.spec.settings.block // 2)

    def add(group: str, images: Mapping[str, Images]) -> Partials:
        if group != RETAINED:
            return {}
        return {
            f"{space}/{side}/kid": moments_of_values(
                block_mmd(own.features(space), real(at)[space]).reshape(1)
            )
            for side, own in images.items()
            if least <= len(own.labels) <= n
            for at in [tuple(position % n for position in own.positions)]
            for space in context.feature_spaces
        }

    return Collector(add=add)


def kid(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any]:
    """By space the mean over blocks with its 95 % interval; None without a whole block."""
    blocks = {space: partials.get(f"{space}/{side}/kid") for space in spaces_of(partials, side)}
    return {space: None if sums is None else mean_mmd(sums) for space, sums in blocks.items()}


def mean_mmd(sums: Tensor) -> dict[str, float | None]:
    """Mean over blocks with its 95 % interval (None for a single block)."""
    mean, half = mean_and_half(sums)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"value": mean, "blocks": int(sums[0].item()), "low": low, "high": high}
