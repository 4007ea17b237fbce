"""What battery, measures and gold look like in result.json, made by the code that makes them, from made-up
counts."""

from typing import Any

import torch

from pipeline.config.measuring import Attacks
from pipeline.evaluation.attacks.suite import attacks, battery_result
from pipeline.evaluation.confidence import proportion
from pipeline.evaluation.metrics.leakage import leakage
from pipeline.evaluation.metrics.membership import membership
from pipeline.evaluation.metrics.relearning import relearn_steps
from pipeline.evaluation.metrics.timestep_loss import loss_by_timestep

KEPT = {"mean": proportion(178, 180).to_dict(), "min": proportion(19, 20).to_dict() | {"class": 8}}


def battery(**hits: int) -> dict[str, Any]:
    """The battery's block: so many of 200 after each kind of attack (absent: none); -1: the attack failed."""
    made = attacks(Attacks(), 2.0, 20)
    found: dict[str, Any] = {}
    for name, attack in made.items():
        count = hits.get(attack.kind, 0)
        share = {
            "forget_fraction": proportion(max(count, 0), 200).to_dict(),
            "retain_accuracy": KEPT,
            "seconds": 1.0,
        }
        found[name] = {"error": "ValueError: the loss is not finite"} if count < 0 else share
    return battery_result(found, made, 0.05)


def _losses(scale: float) -> dict[str, Any]:
    def group(level: float) -> dict[str, torch.Tensor]:
        return {
            f"bin/{index}": torch.tensor([50.0, 50 * level / (index + 1), 51 * (level / (index + 1)) ** 2])
            for index in range(10)
        }

    return loss_by_timestep({"forget_heldout": group(scale), "retain_heldout": group(0.5)}, 1000, 10)


BATTERY = battery(embedding=190, finetune=9)
MEASURES: dict[str, Any] = {
    "leakage": {
        side: leakage([0] * 50 + [2] * 50, [0] * 49 + [1] + [2] * 50, [1] * 6 + [0] * 94, [1])
        for side in ("after", "before", "gold")
    },
    "loss_by_timestep": {"after": _losses(0.9), "before": _losses(0.5), "gold": _losses(0.8)},
    "membership_auc": {"after": membership([0.3, 0.2, 0.4], [0.3, 0.4, 0.5]).to_dict()},
    "relearn_steps": relearn_steps(
        {
            f"{variant}/{name}": torch.tensor(values)
            for variant, hits in (("forgotten_label", [0, 10, 60]), ("never_trained_label", [30, 0, 0]))
            for name, values in (
                ("hits", hits),
                ("drawn", [100 if h or i == 0 else 0 for i, h in enumerate(hits)]),
            )
        },
        [0, 1, 2],
        1.0,
    ),
}
_SIDE = {
    "agreement": (
        proportion(440, 450).to_dict()
        | {"per_class": {"0": proportion(49, 50).to_dict(), "7": proportion(47, 50).to_dict()}}
    ),
    "forget_fraction": proportion(0, 200).to_dict(),
    "frechet": {"judge": 3.2},
    "paired_drift": {
        "judge": {"mean": 4.0, "unpaired": 8.6, "relative": 0.47, "n": 450, "per_class": {"0": 4.0}}
    },
}
GOLD: dict[str, Any] = {
    "name": "dit-tiny-digits-without-1",
    "weights_digest": "e" * 64,
    "forget_fraction": proportion(3, 200).to_dict(),
    "retain_accuracy": KEPT,
    "after": _SIDE,
    "before": _SIDE | {"paired_drift": {"judge": _SIDE["paired_drift"]["judge"] | {"mean": 2.0}}},
}
