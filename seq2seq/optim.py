"""From summed gradients to new weights: flat parameters, AdamW, schedules, loss scaling, EMA.

All weights of a model live in one flat vector, so that an update, a norm, an average or a sum over
ranks is one pass over memory, whatever the number of layers.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from seq2seq.config import OptimConfig
from seq2seq.distributed import ALONE, World

_ALIGN = 16  # floats: every parameter begins on a 64-byte line


class FlatParameters:
    """The parameters of a module as one vector, with a float32 master copy where they are narrower.

    The module computes in `dtype`. Weights are updated in `master` (float32, or float64), and
    `publish` rounds them into the module. In float32 and float64 both are the same memory.

    Attributes:
        names: Of the parameters, tied ones once: matrices first, then norms and biases.
        n_matrices: Where in the vector the matrices end.
        master: All weights, (P,).
        grad: Summed gradients, (P,), in the dtype of `master`.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, world: World = ALONE) -> None:
        """Move the parameters of a module.

        Args:
            module: In float32 or wider.
            dtype: That it is to compute in.
            world: The processes whose gradients are summed.
        """
        parameters = dict(module.named_parameters())
        device = next(iter(parameters.values())).device
        wide = torch.promote_types(dtype, torch.float32)
        self.names = sorted(parameters, key=lambda name: parameters[name].dim() < 2)
        self._spans: dict[str, tuple[int, int, torch.Size]] = {}
        end = self.n_matrices = 0
        for name in self.names:
            p = parameters[name]
            self._spans[name] = (end, end + p.numel(), p.shape)
            end = -(-(end + p.numel()) // _ALIGN) * _ALIGN
            self.n_matrices = end if p.dim() > 1 else self.n_matrices
        self.master = torch.zeros(end, dtype=wide, device=device)
        self.grad = world.zeros(end, wide, device)
        self._live = self.master if dtype == wide else torch.zeros(end, dtype=dtype, device=device)
        self._is_apart = dtype != wide
        for name, p in parameters.items():
            self.view(self.master, name).copy_(p.data)
            p.data = self.view(self._live, name)
            p.grad = None if self._is_apart else self.view(self.grad, name)
        self._totals = [(self.view(self.grad, name), p) for name, p in parameters.items()]
        self.publish()

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part of a vector (P,) that belongs to a parameter, in its shape."""
        start, end, shape = self._spans[name]
        return flat[start:end].view(shape)

    def views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """All parts of a vector (P,) by name."""
        return ((name, self.view(flat, name)) for name in self.names)

    def collect(self) -> None:
        """Move the gradients of a micro-batch from the module into `grad`, if they are apart."""
        if not self._is_apart:
            return
        for total, p in self._totals:
            if p.grad is not None:
                total.add_(p.grad)
                p.grad = None

    def discard(self) -> None:
        """Forget all gradients."""
        self.grad.zero_()
        if self._is_apart:
            for _, p in self._totals:
                p.grad = None

    def publish(self, flat: Tensor | None = None) -> None:
        """Let the module compute with these weights (P,); with `master` if none are given."""
        source = self.master if flat is None else flat
        if source is not self._live:
            self._live.copy_(source)

    @contextlib.contextmanager
    def using(self, flat: Tensor | None) -> Iterator[None]:
        """Let the module compute with other weights (P,) for a while; None changes nothing."""
        if flat is None:
            yield
            return
        before = self._live.clone()
        try:
            self.publish(flat)
            yield
        finally:
            self._live.copy_(before)


def learning_rate(config: OptimConfig, step: int, max_steps: int | None) -> float:
    """The learning rate of update `step`, counted from 1.

    It rises linearly for `warmup_steps`, then

        inverse_sqrt  falls as 1 / √step                          (Vaswani et al. 2017, eq. 3)
        cosine        falls as a half cosine to `min_lr` at `max_steps`  (Loshchilov and Hutter 2017)
        constant      stays

    >>> config = OptimConfig(lr=1.0, warmup_steps=4)
    >>> [round(learning_rate(config, step, None), 3) for step in (1, 4, 16)]
    [0.25, 1.0, 0.5]
    """
    warmup = max(config.warmup_steps, 1)
    if step < warmup:
        return config.lr * step / warmup
    match config.schedule:
        case "inverse_sqrt":
            return config.lr * math.sqrt(warmup / step)
        case "cosine":
            assert max_steps is not None
            done = min((step - warmup) / max(max_steps - warmup, 1), 1.0)
            fall = 0.5 * (1 + math.cos(math.pi * done))
            return config.min_lr + (config.lr - config.min_lr) * fall
        case "constant":
            return config.lr
    raise AssertionError(f"no such schedule: {config.schedule}")


class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2018, arXiv 1710.03740, §3.2).

    Small gradients would vanish in fp16, so the loss is multiplied before the backward pass and the
    gradients are divided after it. An update whose gradients overflow is left out and the scale
    halved; after `PATIENCE` clean ones in a row it is doubled.

    Attributes:
        state: The scale and the number of clean updates in a row, (2,), float64; saved with the run.
    """

    PATIENCE = 2000
    START = 2.0**15
    LEAST = 2.0**-14

    def __init__(self) -> None:
        self.state = torch.tensor([self.START, 0.0], dtype=torch.float64)

    @property
    def value(self) -> float:
        """What the loss is multiplied by."""
        return float(self.state[0])

    def clean(self) -> None:
        """An update was finite."""
        self.state[1] += 1
        if self.state[1] >= self.PATIENCE:
            self.state[0] *= 2
            self.state[1] = 0

    def overflowed(self) -> bool:
        """An update was not finite; False when no scale will help any more."""
        self.state[0] /= 2
        self.state[1] = 0
        return self.value >= self.LEAST


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) on flat weights, with clipping and an average of weights.

    Attributes:
        step: Updates done; those that overflowed in fp16 were not.
        ema: Exponential moving average of the weights, (P,); None when it is off.
    """

    def __init__(self, flat: FlatParameters, config: OptimConfig, ema: float) -> None:
        self.flat = flat
        self.step = 0
        self.ema_decay = ema
        self.ema = flat.master.clone() if ema else None
        self._config = config
        n = flat.n_matrices
        self._groups = (
            _Group(flat, slice(0, n), config.weight_decay),
            _Group(flat, slice(n, None), 0.0),
        )

    def gradient_norm(self) -> float:
        """Euclidean norm of `flat.grad`."""
        return float(torch.linalg.vector_norm(self.flat.grad))

    def update(self, lr: float, norm: float) -> None:
        """Take one step along the gradients in `flat.grad`, then zero them.

        Args:
            lr: Learning rate of this step.
            norm: Of the gradients; they are scaled down to `clip_norm` if it is larger.
        """
        self.step += 1
        if self._config.clip_norm and norm > self._config.clip_norm:
            self.flat.grad.mul_(self._config.clip_norm / norm)
        for group in self._groups:
            group.update(lr, self._config)
        if self.ema is not None:
            # Early weights are forgotten sooner: the average spans at most about a ninth of the run.
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            self.ema.lerp_(self.flat.master, 1.0 - decay)
        self.flat.grad.zero_()
        self.flat.publish()

    def reload(self) -> None:
        """Go on from what was read into `flat.master` and `tensors()`."""
        self.step = int(self._groups[0].state["step"])
        self.flat.publish()

    def tensors(self) -> dict[str, Tensor]:
        """All state beside the weights, by name, as live tensors."""
        state = {} if self.ema is None else {"ema": self.ema}
        for name, group in zip(("matrices", "vectors"), self._groups, strict=True):
            state.update({f"{name}.{k}": v for k, v in group.state.items()})
        return state


class _Group:
    """A stretch of the flat weights with one weight decay.

    Calls the function behind `torch.optim.AdamW`; the class would import PyTorch's compiler, which
    nothing here uses: a second more to start and 70 MB in each process.

    Attributes:
        state: What AdamW remembers, by its names for it.
    """

    def __init__(self, flat: FlatParameters, span: slice, weight_decay: float) -> None:
        self._weights, self._grad = flat.master[span], flat.grad[span]
        self._weight_decay = weight_decay
        self.state = {
            "step": torch.zeros((), dtype=torch.float32, device=flat.master.device),
            "exp_avg": torch.zeros_like(self._weights),
            "exp_avg_sq": torch.zeros_like(self._weights),
        }

    def update(self, lr: float, config: OptimConfig) -> None:
        """One step of AdamW, in place."""
        adamw(
            [self._weights],
            [self._grad],
            [self.state["exp_avg"]],
            [self.state["exp_avg_sq"]],
            [],
            [self.state["step"]],
            fused=True,
            amsgrad=False,
            beta1=config.beta1,
            beta2=config.beta2,
            lr=lr,
            weight_decay=self._weight_decay,
            eps=config.eps,
            maximize=False,
        )
