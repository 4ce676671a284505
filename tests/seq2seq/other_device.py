"""A second device for PyTorch, where there is no GPU: what mixes it with the CPU is an error, as on a GPU.

    register()
    with OtherDevice():
        x = torch.zeros(3, device=DEVICE)

Its tensors are not on the CPU for whoever asks; behind them are tensors that are, and compute.
A process registers a device before its first backward pass, or never.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "other:0"
_MOVES = ("aten::_to_copy", "aten::copy_")  # from one device to another


class OtherTensor(Tensor):
    """A tensor on the other device.

    Attributes:
        inner: Its numbers.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OtherTensor":
        """A tensor like this one, but for the device."""
        self: OtherTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(DEVICE),
        )
        self.inner = inner
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """What does not go through operators: lists, and other numbers under the same name."""
        if func == Tensor.tolist:
            return args[0].inner.tolist()
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].inner = args[1].inner
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """All operators."""
        return _compute(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on the other device and moved there.

    Attributes:
        used: Names of the operators that computed there, with the dtypes of their first operands.
    """

    used: ClassVar[set[tuple[str, torch.dtype]]] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; so it takes less time."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """All operators."""
        return _compute(func, args, kwargs or {})


def register() -> None:
    """Make the device known to PyTorch, once in a process."""
    backend_registration._setup_privateuseone_for_python_backend("other")  # type: ignore[no-untyped-call]
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in (
        ("empty_strided", _empty_strided),
        ("empty.memory_format", _empty),
        ("_copy_from", _copy_from),
    ):
        library.impl(name, kernel, "PrivateUse1")
    _libraries.append(library)


_libraries: list[torch.library.Library] = []  # what they hold is gone with them


def _compute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Compute with the numbers behind the tensors; results are where the operands or `device` say."""
    name = func._schema.name
    if name == "aten::_conj":  # the flag of such a view would not be seen behind the tensor
        func = torch.ops.aten.conj_physical.default
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    is_other = any(isinstance(x, OtherTensor) for x in tensors)
    if is_other and name not in _MOVES:
        for x in tensors:
            if not isinstance(x, OtherTensor) and x.dim():  # single numbers may come from the CPU
                raise RuntimeError(f"{name}: tensors of two devices")
    inputs = is_other
    if is_other:
        OtherDevice.used.add((name, tensors[0].dtype))
    if (device := kwargs.get("device")) is not None:
        is_other = torch.device(device).type == "other"
        kwargs = {**kwargs, "device": "cpu"}
    elif name == "aten::copy_":
        is_other = isinstance(args[0], OtherTensor)
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not is_other or name == "aten::_local_scalar_dense":
        return args[0] if name == "aten::copy_" else result
    result = tree_map(lambda x: OtherTensor(x) if isinstance(x, Tensor) else x, result)
    if not inputs or name == "aten::_to_copy":
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OtherTensor) else x


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return OtherTensor(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, dtype: Any = None, **_: Any) -> Tensor:
    return OtherTensor(torch.empty(size, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _inner(target).copy_(_inner(source))
    return target
