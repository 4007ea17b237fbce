"""What a run needs to go on exactly where it stopped: safetensors for numbers, JSON for the rest, nothing
pickled.

A checkpoint is a folder of two files. The JSON is written last and holds the digest of the tensors: where it
lies, the checkpoint is whole, whatever was killed meanwhile. Of a sharded run every rank writes two such
files of its own, and the checkpoint is whole where all of them lie.
"""

import json
import logging
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from models import weights
from pipeline import storage
from pipeline.unlearning.collectives import Collectives

TENSORS, STATE = "checkpoint.safetensors", "checkpoint.json"
KEEP = 2  # checkpoints of a run that stay
KEEP_PARTS = 3  # of a sharded run: the last but one may still be written by another rank

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """After `iteration` optimiser calls (priming included): the trained subset, its average, the optimiser's
    moments.

    `adversary` are the embeddings of depth weights, whose moments are among `moments`.
    `kept` are the weights of the best check so far, `pending` those of checks (by step) whose outcome is not
    known yet.
    `progress` is plain data (settling rule, timings, the metrics before): it rides along and comes back as
    it was.
    """

    iteration: int
    trained: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    adversary: Mapping[str, Tensor] = field(default_factory=dict)
    best_weights: Mapping[str, Tensor] = field(default_factory=dict)
    pending: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)

    def to_files(self) -> dict[str, bytes]:
        groups = {
            "trained": self.trained,
            "average": self.average,
            "moments": self.moments,
            "adversary": self.adversary,
            "kept": self.best_weights,
        }
        groups |= {f"pending-{step}": named for step, named in self.pending.items()}
        tensors = {
            f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()
        }
        state = {"iteration": self.iteration, "pending": sorted(self.pending), "progress": self.progress}
        data = weights.to_bytes(tensors)
        return {TENSORS: data, STATE: json.dumps({**state, "sha256": storage.sha256(data)}).encode()}

    @staticmethod
    def from_files(files: Mapping[str, bytes]) -> "Checkpoint":
        """Raises `ValueError` when the tensors are not those that the JSON was written for."""
        state = json.loads(files[STATE])
        if storage.sha256(files[TENSORS]) != state["sha256"]:
            raise ValueError(
                f"{TENSORS} does not have the digest that {STATE} says; it was changed or cut short"
            )
        tensors = weights.from_bytes(files[TENSORS], TENSORS)

        def group(name: str) -> dict[str, Tensor]:
            return {
                key.removeprefix(f"{name}/"): tensor
                for key, tensor in tensors.items()
                if key.startswith(f"{name}/")
            }

        return Checkpoint(
            iteration=state["iteration"],
            trained=group("trained"),
            average=group("average"),
            moments=group("moments"),
            adversary=group("adversary"),
            best_weights=group("kept"),
            pending={step: group(f"pending-{step}") for step in state["pending"]},
            progress=state["progress"],
        )


@dataclass(frozen=True)
class Part:
    """The part of a checkpoint that `rank` of a sharded run of `ranks` writes: its shards."""

    rank: int
    ranks: int

    def file(self, name: str) -> str:
        """The name of its TENSORS or STATE."""
        stem, _, suffix = name.rpartition(".")
        return f"{stem}-{self.rank}-of-{self.ranks}.{suffix}"

    @property
    def all(self) -> "list[Part]":
        return [Part(rank, self.ranks) for rank in range(self.ranks)]


def parts_of(names: Collection[str]) -> Sequence[Part | None]:
    """The parts of the checkpoint that consists of files `names`: None alone where one rank wrote it, nothing
    where it is not whole."""
    if STATE in names:
        return [None]
    for name in names:
        if match := re.fullmatch(r"checkpoint-0-of-(\d+)\.json", name):
            parts = Part(0, int(match[1])).all
            return parts if {part.file(STATE) for part in parts} <= {*names} else []
    return []


def read(folder: str) -> Checkpoint:
    """The whole checkpoint in `folder`, its parts put together. Raises `ValueError` for one that is not."""
    names = storage.listing(folder)
    parts = parts_of(names)
    tensors = [part.file(TENSORS) if part else TENSORS for part in parts]
    if missing := [name for name in tensors or [STATE] if name not in names]:
        raise ValueError(f"lacks {', '.join(missing)}")
    first, *others = (_read_part(folder, part) for part in parts)

    def whole(group: str) -> dict[str, Tensor]:
        named: Mapping[str, Tensor] = getattr(first, group)
        return {
            # a moment's count of steps is the same on every rank
            name: torch.cat([shard, *(getattr(one, group)[name] for one in others)]) if shard.dim() else shard
            for name, shard in named.items()
        }

    if not others:
        return first
    return replace(
        first,
        trained=whole("trained"),
        average=whole("average"),
        moments=whole("moments"),
        best_weights=whole("best_weights"),
    )


def _read_part(folder: str, part: Part | None) -> Checkpoint:
    file = part.file if part else str
    return Checkpoint.from_files(
        {name: storage.read_bytes(storage.join(folder, file(name))) for name in (STATE, TENSORS)}
    )


def commit(uri: str, checkpoint: Checkpoint, part: Part | None = None) -> str:
    """Write `checkpoint`, or the `part` that it is of one, into a folder of its own under `uri`, all of it or
    nothing that counts; older ones go. Returns the folder."""
    folder = storage.join(uri, f"{checkpoint.iteration:08d}")
    files, file = checkpoint.to_files(), part.file if part else str
    # a checkpoint of the same place that is replaced is none meanwhile
    storage.remove(storage.join(folder, file(STATE)))
    for name in (TENSORS, STATE):
        storage.write_bytes(storage.join(folder, file(name)), files[name])
    if part and part.rank > 0:
        return folder
    own = folder.rsplit("/", 1)[-1]
    up_to_here = [name for name in storage.listing(uri) if name <= own]  # what is newer is none of ours
    for name in up_to_here[: -(KEEP_PARTS if part else KEEP)]:
        storage.remove(storage.join(uri, name))
    return folder


def latest(uri: str, part: Part | None = None, up_to: int = sys.maxsize) -> Checkpoint | None:
    """The last whole checkpoint under `uri` of at most iteration `up_to`, of a sharded one this `part`; None
    when there is none. What is torn or changed is passed over with a warning."""
    states = {one.file(STATE) for one in part.all} if part else set()
    for name in reversed(storage.listing(uri)):
        folder = storage.join(uri, name)
        if part and (int(name) > up_to or not states <= {*storage.listing(folder)}):
            continue
        try:
            return _read_part(folder, part)
        except FileNotFoundError:  # killed before it was whole
            continue
        except ValueError as error:
            log.warning("checkpoint %s is passed over: %s", folder, error)
    return None


def same_start(start: Checkpoint | None, collectives: Collectives) -> Checkpoint | None:
    """`start`, if every rank found the same; `RuntimeError` on all of them when a worker on its way out wrote
    meanwhile."""
    iteration = 0 if start is None else start.iteration
    newest, oldest = collectives.largest(iteration), -collectives.largest(-iteration)
    if newest != oldest:
        raise RuntimeError(
            f"the ranks found checkpoints of different steps ({oldest} to {newest}); starting again finds one"
        )
    return start


def latest_part(uri: str, part: Part, collectives: Collectives) -> Checkpoint | None:
    """This rank's part of the last checkpoint that is whole on every rank. Collective. What this rank wrote
    beyond it is a checkpoint no more: the run takes those steps again."""
    start, up_to = latest(uri, part), sys.maxsize
    while True:
        iteration = 0 if start is None else start.iteration
        oldest = -collectives.largest(-iteration)
        if collectives.largest(iteration) == oldest:
            break
        up_to = min(oldest, up_to)
        start = latest(uri, part, up_to)
    for name in storage.listing(uri):
        if int(name) > iteration:
            storage.remove(storage.join(uri, name, part.file(STATE)))
    return start


def restore(
    start: Checkpoint,
    moving: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    names: Sequence[str],
) -> None:
    """Put the weights `moving`, their `average` and the moments of the optimiser's parameters `names` back,
    in place."""
    with torch.no_grad():
        for now, then in ((moving, start.trained), (average, start.average)):
            for name, tensor in now.items():
                tensor.copy_(then[name])
    restore_moments(optimiser, names, start.moments)


def optimiser_moments(optimiser: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as named tensors."""
    state = optimiser.state_dict()["state"]
    return {
        f"{name}/{key}": torch.as_tensor(value).clone()
        for index, name in enumerate(names)
        for key, value in state.get(index, {}).items()
    }


def restore_moments(
    optimiser: torch.optim.Optimizer, names: Sequence[str], moments: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimiser_moments`."""
    optimiser_state = optimiser.state_dict()
    optimiser_state["state"] = {
        index: {
            key.rsplit("/", 1)[1]: tensor for key, tensor in moments.items() if key.rsplit("/", 1)[0] == name
        }
        for index, name in enumerate(names)
    }
    optimiser.load_state_dict(optimiser_state)
