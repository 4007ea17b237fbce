"""A trial's weights, and the base model beside them, measured on seeds that no trial saw. No Ray in it."""

from dataclasses import replace
from typing import Any

import torch

from models import weights
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.config.sweep import Verify
from pipeline.data.partition import Partition
from pipeline.seeding import seed_of
from pipeline.sweep.trial import Shared, inputs_of
from pipeline.training.periodic_eval import check
from pipeline.training.sample_grids import draw_grids
from pipeline.training.worker import TRAINED


def fresh(config: UnlearnConfig, verify: Verify, attempt: int) -> UnlearnConfig:
    """`config` with the seed and the numbers of images of the verification."""
    evaluate = config.evaluate.model_copy(
        update={
            "final_samples": verify.samples or config.evaluate.final_samples,
            "final_retain_samples": verify.retain_samples or config.evaluate.final_retain_samples,
        }
    )
    seed = seed_of(config.seed, "verification", attempt) % 2**31
    return config.model_copy(update={"seed": seed, "evaluate": evaluate})


def measure_again(
    config: UnlearnConfig,
    partition: Partition,
    shared: Shared,
    *,
    uri: str,
    verify: Verify,
    attempt: int,
    device: torch.device,
) -> dict[str, Any]:
    """{"before", "after"} on fresh noise, the same for both, of the trial under `uri`; its sample grids are
    drawn there too."""
    inputs = inputs_of(config, partition, shared, device)
    again = replace(inputs, config=fresh(config, verify, attempt))
    inputs.model.net.eval()
    measured: dict[str, Any] = {"seed": again.config.seed}
    trained = weights.from_bytes(storage.read_bytes(storage.join(uri, TRAINED)), TRAINED)
    for moment in ("before", "after"):
        if moment == "after":
            with torch.no_grad():
                for name, value in trained.items():
                    inputs.model.net.get_parameter(name).copy_(value)
        measured[moment] = check(again, 0, final=True).to_result()
        draw_grids(
            inputs.model, config, inputs.subject, storage.join(uri, "samples", f"{moment}.safetensors")
        )
    return measured
