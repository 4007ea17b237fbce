"""What is sampled instead: how often an image under a forgotten label is predicted to be
its exchange class."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.evaluation.confidence import share
from pipeline.evaluation.context import EvalSpec, forgotten_at
from pipeline.evaluation.sampling import predictions


def exchange_fraction(spec: EvalSpec, partials: Mapping[str, Tensor], side: str) -> dict[str, Any] | None:
    """Share of images under a forgotten label that are predicted to be one of its exchange classes, in all
    and `per_class`; with several CFG scales `at_cfg_scale`. None without exchange classes."""

    def at(cfg_scale: float) -> dict[str, Any] | None:
        labels, ranked = predictions(partials, side, forgotten_at(cfg_scale))
        hits = {
            c: [row[0] in spec.exchange[c] for label, row in zip(labels, ranked) if label == c]
            for c in spec.forgotten
            if c in spec.exchange
        }
        whole = share([hit for of_class in hits.values() for hit in of_class])
        return whole and {**whole, "per_class": {str(c): share(of_class) for c, of_class in hits.items()}}

    s, main = spec.settings, at(spec.settings.cfg_scale)
    further = {f"{scale:g}": at(scale) for scale in s.cfg_scales} if not spec.joint else {}
    return main and main | ({"at_cfg_scale": further} if further else {})
