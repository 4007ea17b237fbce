"""What a run needs to go on exactly where it stopped: safetensors for numbers, JSON for the rest, nothing pickled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models import weights

TENSORS, STATE = "checkpoint.safetensors", "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """After `iteration` optimiser calls (priming included): the trained subset, its average, the optimiser's moments.

    `progress` is plain data (settling rule, timings, the measures before): it rides along and comes back as it was.
    """

    iteration: int
    trained: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    progress: dict[str, Any] = field(default_factory=dict)

    def to_files(self) -> dict[str, bytes]:
        groups = {"trained": self.trained, "average": self.average, "moments": self.moments}
        tensors = {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
        state = {"iteration": self.iteration, "progress": self.progress}
        return {TENSORS: weights.to_bytes(tensors), STATE: json.dumps(state).encode()}

    @staticmethod
    def from_files(files: Mapping[str, bytes]) -> "Checkpoint":
        tensors = weights.from_bytes(files[TENSORS], TENSORS)
        state = json.loads(files[STATE])

        def group(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}

        return Checkpoint(
            iteration=state["iteration"],
            trained=group("trained"),
            average=group("average"),
            moments=group("moments"),
            progress=state["progress"],
        )


def optimiser_moments(optimiser: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as named tensors."""
    state = optimiser.state_dict()["state"]
    return {
        f"{name}/{key}": torch.as_tensor(value).clone() for index, name in enumerate(names) for key, value in state.get(index, {}).items()
    }


def restore_moments(optimiser: torch.optim.Optimizer, names: Sequence[str], moments: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_moments`."""
    described = optimiser.state_dict()
    described["state"] = {
        index: {key.rsplit("/", 1)[1]: tensor for key, tensor in moments.items() if key.rsplit("/", 1)[0] == name}
        for index, name in enumerate(names)
    }
    optimiser.load_state_dict(described)
