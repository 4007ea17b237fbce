"""An evaluation context of the smallest parts: an untrained DiT before and after, a judge, rows in memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tiny import CLASSES, tiny_batch, tiny_dit, tiny_judge

from models.families.transformer import Transformer
from pipeline.config.measuring import Measuring
from pipeline.data.batch import Batch
from pipeline.evaluation.context import EvalContext, EvalSpec

FEW = Measuring(
    samples=20,
    retain_samples=7,
    null_samples=5,
    cfg_scales=[1.0],
    sampler_steps=2,
    block=8,
    reference_rows=30,
    manifold_samples=15,
    loss_rows=11,
    timestep_bins=3,
    membership_noises=2,
    relearn_images=3,
    relearn_checks=[0, 1, 2],
    relearn_samples=20,
    relearn_batch=4,
)


def tiny_model(seed: int = 0, family: str = "dit") -> Transformer:
    import torch

    return tiny_dit(dtype=torch.float32, seed=seed, family=family)


def rows(labels: Sequence[int], split: str) -> Batch:
    batch = tiny_batch(labels, each=12 if split == "train" else 5, seed=0 if split == "train" else 1)
    return replace(batch, sample_id=tuple(f"{split}-{name}" for name in batch.sample_id))


def tiny_context(*, base: bool = True, family: str = "dit", **spec: Any) -> EvalContext:
    """Class 1 forgotten, 2 sampled in its place; two models that differ."""
    values: dict[str, Any] = {
        "forgotten": (1,),
        "exchange": {1: (2,)},
        "retained": (0, 2, 3),
        "neighbours": (2,),
        "null_label": CLASSES,
        "timesteps": 1000,
        "num_classes": CLASSES,
        "seed": 0,
        "settings": FEW,
    }
    return EvalContext(
        model=tiny_model(0, family),
        base=tiny_model(1, family) if base else None,
        judge=tiny_judge(),
        spec=EvalSpec(**(values | spec)),
        rows=rows,
    )
