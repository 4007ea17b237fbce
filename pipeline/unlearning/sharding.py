"""A network shared out over the ranks by torch's `fully_shard` (FSDP2), and with it everything of a run that
is as long as its parameters: gradients, moments, averages.

W ranks. Every parameter is cut along its first dimension into W parts, the last of which may be shorter or
empty; a rank holds one of them, its shard. P trained parameters, of which a rank has P_r; a vector (P,) lies
on the ranks as one (P_r,) each. A block's parameters are whole only while the block computes.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from models.diffusion import Prediction
from models.generative import GenerativeModel
from pipeline.unlearning.collectives import Collectives
from pipeline.unlearning.gradients import LocalGradients
from pipeline.unlearning.noising import Rows
from pipeline.unlearning.penalty import dot
from pipeline.unlearning.teacher import Teacher


class Sharded:
    """The student of a run, and what it has of the whole network.

    `model` is trained: its network is a sharded copy. The network it was copied from lies whole on every rank
    until `release`, and again where weights `stand_in` for a check, which samples as many images as fall to a
    rank: no rank may have to wait for another there.
    """

    def __init__(
        self, model: GenerativeModel, trained: Sequence[str], collectives: Collectives, device: torch.device
    ) -> None:
        """Of `model` with whole weights, the same on every rank; `trained` names its trained parameters."""
        assert dist.group.WORLD is not None
        self._whole, self._collectives = model.net, collectives
        self._mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)
        self.model = copy.copy(model)
        self.model.net = self.copy()
        self._parameters = {
            name: cast(DTensor, parameter) for name, parameter in self.model.net.named_parameters()
        }
        # the same memory as the network's own shards: what moves these moves the network
        self.named = {name: nn.Parameter(self._parameters[name].to_local().detach()) for name in trained}

    def copy(self) -> nn.Module:
        """A sharded copy of the whole network as it is now."""
        net = copy.deepcopy(self._whole)
        blocks = cast(Sequence[nn.Module], net.get_submodule("blocks"))
        for part in (*blocks, net):
            # the rest of the network too is let go of after its forward: its shards may move before the next
            fully_shard(part, mesh=self._mesh, reshard_after_forward=True)
        return net

    def gradients(self, local: LocalGradients) -> "ShardedGradients":
        """`local`, differentiated by the sharded network's own backward."""
        return ShardedGradients(
            params=local.params,
            terms=local.terms,
            hvp=local.hvp,
            fd_radius=local.fd_radius,
            sharded=[self._parameters[name] for name in self.named],
            total=self._collectives.sum,
        )

    @torch.no_grad()
    def release(self) -> None:
        """Take the trained parameters over from the whole network, where a run's begin may have moved them,
        and let go of it."""
        rank, world_size = self._collectives.rank, self._collectives.world_size
        for name, shard in self.named.items():
            parts = self._whole.get_parameter(name).chunk(world_size)
            if rank < len(parts):
                shard.copy_(parts[rank])
        self._let_go()

    @contextmanager
    def standing_in(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Context: the whole network has `values`, shards of the trained parameters. Collective."""
        self.gather(values)
        try:
            yield
        finally:
            self._let_go()

    @torch.no_grad()
    def gather(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put the whole network back, tensor by tensor, with `values` (shards) as trained parameters; returns
        these, whole. Collective."""
        for name, parameter in self._parameters.items():
            local = values.get(name)
            shard = parameter if local is None else self._global(local, parameter)
            self._whole.get_parameter(name).data = shard.full_tensor()
        return {name: self._whole.get_parameter(name).detach() for name in self.named}

    def _global(self, local: Tensor, like: DTensor) -> DTensor:
        return DTensor.from_local(
            local, self._mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride()
        )

    def _let_go(self) -> None:
        for parameter in self._whole.parameters():
            parameter.data = parameter.data.new_empty(0)


@dataclass(kw_only=True)
class ShardedGradients(LocalGradients):
    """Gradients of a sharded network: `params` are this rank's shards, `sharded` the network's parameters
    that they are of. What is returned is the mean over all ranks already: its part (P_r,) on each rank.

    Second-order products by differences alone: the network's backward makes no graph.
    """

    sharded: Sequence[DTensor]
    total: Callable[[Tensor], Tensor] = field(repr=False)

    def _length(self, direction: Tensor) -> Tensor:
        return dot(direction, direction, self.total).sqrt().to(direction.dtype)

    def _grads(self, loss: Tensor, *, create_graph: bool) -> Sequence[Tensor]:
        assert not create_graph, "the configuration refuses exact products of sharded parameters"
        loss.backward()
        grads = []
        for parameter, shard in zip(self.sharded, self.params, strict=True):
            gradient, parameter.grad = cast(DTensor | None, parameter.grad), None
            grads.append(torch.zeros_like(shard) if gradient is None else gradient.to_local())
        return grads


class ShardedTeacher(Teacher):
    """The frozen base as a sharded network of its own: one that is sharded takes no other weights."""

    def __init__(self, model: GenerativeModel, net: nn.Module) -> None:
        self._model, self.net = model, net.requires_grad_(False)
        self._frozen: dict[str, Tensor] = {}
        self._aimed, self._labels = self._frozen, None  # the configuration refuses to aim it elsewhere
        self._pushed = torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def _predict(self, weights: Mapping[str, Tensor], rows: Rows, y: Tensor, **options: Any) -> Prediction:
        def call(*inputs: Tensor) -> Any:
            return self.net(*inputs, **options)

        return self._model.predict(call, rows.seen_by_teacher, y, rows.noise)
