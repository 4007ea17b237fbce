"""How much memory a computation would take, by running it on the meta device: tensors with shapes and no
values."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# bfloat16 under autocast
LOWERED = (F.linear, torch.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
WIDENED = (F.layer_norm, torch.softmax, F.softmax, Tensor.softmax)  # float32 under autocast


class LiveBytes(TorchDispatchMode):
    """Within it, `peak` is the most bytes that storages held at once, each from its first tensor to its last;
    `there` do not count."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._there = [tensor.untyped_storage() for tensor in there]
        # addresses of the living storages' Python objects
        self._known = {id(storage) for storage in self._there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(out, Tensor):
            self._count(out)
        elif isinstance(out, tuple | list):
            for part in out:
                if isinstance(part, Tensor):
                    self._count(part)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._known or tensor.device.type != "meta":
            return
        self._known.add(id(storage))
        held = storage.nbytes()
        self.now += held
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, id(storage), held).atexit = False

    def _release(self, address: int, held: int) -> None:
        self._known.discard(address)
        self.now -= held


class AsOnGpu(TorchFunctionMode):
    """What autocast and fused attention do on a CUDA device, where the meta device knows of neither.

    Matrix products take bfloat16, layer norm and softmax float32; casts of trained parameters are kept until
    the context ends.
    """

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._lowered = precision == "bf16"
        self._casts: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(self._to_bfloat16(tensor) for tensor in args)
            )[0]
        if func is torch.where:  # its condition comes from timesteps, which are on the CPU
            args = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args)
        if self._lowered and func in LOWERED:
            args, kwargs = tree_map_only(Tensor, self._to_bfloat16, (args, kwargs))
        elif self._lowered and func in WIDENED:
            args = tree_map_only(
                Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, args
            )
        return func(*args, **kwargs)

    def _to_bfloat16(self, tensor: Tensor) -> Tensor:
        if not self._lowered or tensor.dtype != torch.float32:
            return tensor
        if tensor.is_leaf and tensor.requires_grad:
            if id(tensor) not in self._casts:
                self._casts[id(tensor)] = tensor.bfloat16()
            return self._casts[id(tensor)]
        return tensor.bfloat16()
