"""A model that will only be used, its linear layers laid out as this CPU multiplies them fastest.

    pack(model, "int8")      in place; PackedLinear or Int8Linear for each nn.Linear

`nn.Linear` leaves float32 to MKL, which on AMD with AVX-512 reaches less than half of oneDNN's speed, and
lays bf16 weights out anew at every call. What is called here are the operators that `torch.compile`
puts in the place of a linear layer with constant weights.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.hardware import has_onednn, multiplies_bf16

_USUAL_ROWS = 320  # 64 sentences, 5 beams each
_LARGEST = 127  # of an int8, in both directions
_MIDDLE = 128  # what stands for 0 where numbers are unsigned
_TINY = 1e-30


class PackedLinear(nn.Module):
    """A linear layer in the precision of its weight, float32 or bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _USUAL_ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D'), as the layer it replaces up to rounding."""
        rows = _padded(x)
        y = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return _shaped(y, x)


class Int8Linear(nn.Module):
    """A linear layer that multiplies integers of 8 bits, between activations in float32.

    Each output has a scale of its own for its weights, and each row of the input one for its
    numbers, found as it comes (dynamic quantization): the largest magnitude becomes 127. Products
    are added up exactly, and no row sees another, so that a row gives the same whatever is beside
    it. An output is off by about 1 % of the largest one (measured with random weights).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        unit = weight.abs().amax(1).clamp_min(_TINY) / _LARGEST
        levels = (weight / unit[:, None]).round_().to(torch.int8)
        shape = [_USUAL_ROWS, weight.size(1)]
        self._weight = torch.ops.onednn.qlinear_prepack(levels, shape)
        self._units = unit / _LARGEST  # of the weight, and what is left of the input's
        self._zeros = torch.zeros(len(unit), dtype=torch.int32)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D'), about as the layer it replaces."""
        rows = _padded(x)
        highest, lowest = rows.amax(1, keepdim=True), rows.amin(1, keepdim=True)
        largest = torch.maximum(highest, -lowest).clamp_min_(_TINY)
        levels = (rows * (_LARGEST / largest)).round_().to(torch.int8)
        # The kernels want the activations unsigned: flipping the first bit adds 128.
        unsigned = levels.view(torch.uint8).bitwise_xor_(_MIDDLE)
        weight, float32 = (self._weight, self._units, self._zeros), (1.0, 0, torch.float32)
        y = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, _MIDDLE, *weight, None, *float32, "none", [], ""
        )
        y.mul_(largest)
        return _shaped(y if self._bias is None else y.add_(self._bias), x)


def _padded(x: Tensor) -> Tensor:
    """(…, D) as rows, with rows of zeros up to a usual number of them."""
    rows = x.flatten(0, -2)
    n = len(rows)
    usual = usual_rows(n)
    return rows if n == usual else F.pad(rows, (0, 0, 0, usual - n))


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    """The rows of `y` that belong to `x` (…, D), in its shape."""
    return y[: x.shape[:-1].numel()].view(*x.shape[:-1], y.size(-1))


def usual_rows(n: int) -> int:
    """The number of rows to compute when n are needed: one of a few sizes, less than a quarter more.

    oneDNN compiles a product for each number of rows that it meets. While sentences are done one by
    one, it would meet them all: that takes longer than the rows to spare, and memory without end.

    >>> [usual_rows(n) for n in (1, 7, 9, 17, 31, 33, 320, 1000)]
    [1, 7, 10, 20, 32, 40, 320, 1024]
    """
    step = 1 << max(n.bit_length() - 3, 0)
    return -(-n // step) * step


def pack(model: nn.Module, precision: str) -> bool:
    """Replace the linear layers of a model that will only be used by packed ones, in place.

    Args:
        model: On the device and in the dtype to use; float32 for int8.
        precision: int8, or that of the model.

    Returns:
        Whether it could: on a CPU, in a precision for which oneDNN has products there. Else the
        model is as before.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or not _can_pack(precision):
        return False
    kind = Int8Linear if precision == "int8" else PackedLinear
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child))
    return True


def _can_pack(precision: str) -> bool:
    """Whether oneDNN multiplies in this precision on this CPU."""
    if precision == "bf16":
        return multiplies_bf16()
    return precision in ("fp32", "int8") and has_onednn()
