"""A pretended GPU without float64, as Apple's: its tensors say they are on it, are computed on the CPU, and refuse float64.

    with pretended_gpu():
        model.to("mps:0")               its parameters now say device="mps:0"
        torch.zeros(2, device="mps:0") + torch.zeros(2)       error: two devices in one operation
        torch.zeros(2, device="mps:0").double()               error: no float64

So a test sees what a Mac would do with a tensor that is created on, or sent to, the wrong device or in the wrong precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("mps:0")
_MOVES = ("aten::_to_copy", "aten::to", "aten::copy_")


class _OnGpu(Tensor):
    """A tensor that says it is on the GPU; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _OnGpu:
        if held.dtype == torch.float64:
            raise TypeError("this GPU has no float64")
        with torch.inference_mode(False):  # else views of weights cannot be made while acting
            made: _OnGpu = torch.Tensor._make_wrapper_subclass(
                cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device="cpu"
            )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # only Python is told: torch was not built for this GPU
        return GPU

    def cpu(self) -> Tensor:
        return self.held.clone()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self) -> Any:
        raise TypeError(f"a tensor on {GPU} has no NumPy array; copy it to the CPU first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None  # these two let `Module.to` move parameters

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: object) -> _OnGpu:
        return _OnGpu(parts["held"])


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside, `GPU` is a device."""
    with _Constructors(), _Operations():
        yield


class _Operations(TorchDispatchMode):
    """Takes the operations on tensors that are not on the GPU, since some of them move or make a tensor there."""

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """`torch.tensor` and `torch.as_tensor` make no use of operations."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU:
            made = func(*args, **kwargs | {"device": None})
            return made if isinstance(made, _OnGpu) else _OnGpu(made)
        return func(*args, **kwargs)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    on_gpu = any(isinstance(one, _OnGpu) for one in given)
    if on_gpu and name not in _MOVES and not name.startswith("aten::index"):
        strangers = [one for one in given if not isinstance(one, _OnGpu) and one.ndim]
        assert not strangers, f"{name} of tensors on {GPU} and on the CPU, {[tuple(one.shape) for one in strangers]}"
    for device in [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.device)]:
        on_gpu = device.type == GPU.type
    values = func(*tree_map(_value, args), **tree_map(_value, kwargs))
    if func._schema.is_mutable:  # in place
        return args[0] if func._schema.returns else None
    return tree_map(lambda one: _OnGpu(one) if isinstance(one, Tensor) else one, values) if on_gpu else values


def _value(one: Any) -> Any:
    if isinstance(one, torch.device):
        return torch.device("cpu") if one.type == GPU.type else one
    return one.held if isinstance(one, _OnGpu) else one
