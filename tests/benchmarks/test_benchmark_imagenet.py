"""The ImageNet benchmark's CPU side on a tiny model: every kind of step, the plan beside the peak, and what
is not claimed."""

from typing import Any

import torch

from pipeline.benchmarks import imagenet
from pipeline.config import BenchmarkConfig, parse


def test_every_kind_of_step_is_measured_and_the_plan_is_near() -> None:
    small = {
        "size": "DiT-nano",
        "batches": [16],
        "precision": "fp32",
        "repeats": 1,
        "sampler_batch": 2,
        "sampler_steps": 2,
    }
    found = imagenet.run(
        parse(BenchmarkConfig, {"imagenet": {"trainable": "labels_and_adaln:1", "cpu": small}})
    )
    rows: dict[str, Any] = {row["step"]: row for row in found["steps"]}
    assert rows.keys() == {*imagenet.STEPS, *imagenet.NAIVE, "uno_s", "naive_uno_s"}
    assert all(row["batch"] == 16 and row["seconds"] > 0 for row in rows.values())
    assert (
        rows["uno_exact"]["over_naive_uno"] > 0
        and rows["surgery"]["over_naive_surgery"] > 0
        and rows["uno_s"]["over_naive_uno_s"] > 0
    )
    assert rows["uno_recompute"]["micro_batch"] == 8
    assert all(
        row["planned_gib"] > 0 and row["peak_gib"] > 0 for name, row in rows.items() if name in imagenet.STEPS
    )
    assert found["sampler"]["images_a_second"] > 0
    if not torch.cuda.is_available():
        assert found["device"] == "cpu" and any("DiT-XL/2 on a GPU" in line for line in found["not_measured"])


def test_a_step_that_cannot_fit_is_not_tried() -> None:
    config = parse(BenchmarkConfig, {})
    scale = config.imagenet.cpu.model_copy(update={"size": "DiT-nano"})
    model = imagenet.model_of("DiT-nano", 0, torch.device("cpu"))
    made = imagenet.config_of(model, scale, 8, "labels_and_adaln:1", 0.02, "uno", "recompute")
    plan = imagenet.MemoryPlan(made, model.config)
    roomy = imagenet._in_pieces(made, plan, 10 * plan.need("recompute", 8).total)
    tight = imagenet._in_pieces(made, plan, int(plan.need("recompute", 2).total / imagenet.USABLE) + 1)
    assert roomy.optim.micro_batch == 8 and tight.optim.micro_batch == 2
