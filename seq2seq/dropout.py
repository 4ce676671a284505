"""Dropout (Srivastava et al. 2014), with masks that are cheap to draw on a CPU.

PyTorch draws one Bernoulli variate per element, one after the other: on a CPU that is a sixth of
the time of training a small model. Here sixteen random bits decide an element, and `random_` of an
int64 tensor draws four such decisions at once (about five times faster, `examples/bench`). The
probability is therefore a multiple of 1/65536; the scale uses that exact value, so the expectation
is kept. bf16 and fp16 have few numbers between 1 and 2: there the probability is that whose scale is
one of them (0.1 becomes 0.0986 in bf16), as a rounded scale would be wrong in every layer. Below 0.004
in bf16, where that would be none at all, it stays, and what is kept is not scaled.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 1 << 16


def keep_mask(shape: torch.Size, p: float, like: Tensor) -> Tensor:
    """Draw what dropout multiplies by: 0 with probability `p`, else 1 / (1 - p).

    Args:
        shape: Of the mask.
        p: Probability of a zero, rounded as said above.
        like: Gives the dtype and the (CPU) device.

    Returns:
        A tensor of `shape`; its mean is 1 in expectation.
    """
    n, dropped = shape.numel(), _levels_dropped(p, like.dtype)
    words = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)  # all 64 bits
    bits = words.view(torch.int16)[:n].view(shape)
    scale = _LEVELS / (_LEVELS - dropped)
    return (bits >= dropped - _LEVELS // 2).to(like.dtype).mul_(scale)


@functools.cache
def _levels_dropped(p: float, dtype: torch.dtype) -> int:
    """How many of `_LEVELS` equally probable numbers drop an element.

    >>> _levels_dropped(0.1, torch.float32) / _LEVELS, _levels_dropped(0.1, torch.bfloat16) / _LEVELS
    (0.100006103515625, 0.0985870361328125)
    """
    if torch.finfo(dtype).bits < 32:
        step = torch.finfo(dtype).eps * 2 ** math.floor(-math.log2(1 - p))  # to the next scale
        scale = round(1 / (1 - p) / step) * step
        p = 1 - 1 / scale if scale > 1 else p
    return round(p * _LEVELS)


class Dropout(nn.Module):
    """Zero elements at random in training, scale the rest so that the mean stays.

    Attributes:
        rate: Probability of a zero, as the settings have it.
        p: The same at present; see `scale_dropout`.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.p = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x`, any shape; the identity in evaluation."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * keep_mask(x.shape, self.p, x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + dropout(y)`, the residual connection, in one pass over memory where possible."""
        if not self.training or self.p == 0:
            return x + y
        if x.device.type != "cpu":
            return x + F.dropout(y, self.p)
        return torch.addcmul(x, y, keep_mask(y.shape, self.p, y))


def scale_dropout(model: nn.Module, factor: float) -> None:
    """From now on drop elements `factor` times as often as the settings of a model say."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = factor * module.rate
