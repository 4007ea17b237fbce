"""What is used of torch beyond its public interface; tests/models/test_torch_internals.py says what is lost
when it moves.

The memory of a computation on a GPU, by running it on the meta device: tensors with shapes and no values. And
an optimiser that leaves torch's compiler alone.
"""

import inspect
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# under autocast the first take bfloat16, the second float32
LOWERED = (F.linear, torch.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
WIDENED = (F.layer_norm, torch.softmax, F.softmax, Tensor.softmax)


class LiveBytes(TorchDispatchMode):
    """`peak`: the most bytes that storages made within it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self._count, func(*args, **(kwargs or {})))

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._alive and tensor.device.type == "meta":
            self._alive.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, id(storage), storage.nbytes()).atexit = False
        return tensor

    def _release(self, address: int, released_bytes: int) -> None:
        self._alive.discard(address)
        self.now -= released_bytes


class OnMeta(TorchFunctionMode):
    """Lets code run that asks tensors for numbers: each is 1, and no condition holds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item:
            return 1.0
        if func is Tensor.__bool__:
            return False
        if func is Tensor.cpu:  # where the schedule's tables may be looked up
            return args[0]
        return func(*tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args), **(kwargs or {}))


class AsOnGpu(TorchFunctionMode):
    """Autocast and fused attention as on a CUDA device; casts of trained parameters last as long as the
    context."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._bf16 = precision == "bf16"
        self._casts: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*map(self._lower, args))[0]
        if self._bf16 and func in LOWERED:
            args, kwargs = tree_map_only(Tensor, self._lower, (args, kwargs))
        elif self._bf16 and func in WIDENED:
            args = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, args)
        return func(*args, **kwargs)

    def _lower(self, x: Tensor) -> Tensor:
        if not self._bf16 or x.dtype != torch.float32:
            return x
        if x.is_leaf and x.requires_grad:
            return self._casts[id(x)] if id(x) in self._casts else self._casts.setdefault(id(x), x.bfloat16())
        return x.bfloat16()


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` without the decorators that import torch's compiler, a second of every worker's
    start, to keep it from compiling what is not compiled here."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
