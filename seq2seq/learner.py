"""One update after the other: gradients, their sum over the processes, a step of the optimizer.

    learner = Learner(model, config, world, warn)
    learnt = learner.learn(update, step=1, lr=0.001)

All that an update changes is here, and what of it a resumed run needs: `tensors()`.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass

from torch import Tensor

from seq2seq.config import RunConfig
from seq2seq.distributed import World
from seq2seq.gradients import Gradients
from seq2seq.hardware import DTYPES
from seq2seq.loader import Update
from seq2seq.model import Transformer
from seq2seq.optim import FlatParameters, LossScale, Optimizer
from seq2seq.reports import StepReport


class NonFiniteError(Exception):
    """A loss or gradient is infinite or no number; raised before the weights are touched."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What an update consisted of, on all ranks together.

    Attributes:
        total: Nats as minimised, summed over target tokens.
        nll: The same without smoothing.
        n_target: Target tokens.
        n_tokens: Source and target tokens, without padding.
        n_cells: The same with padding.
        n_pairs: Sentence pairs.
        norm: Of the gradient, before clipping.
        has_overflowed: The gradient was too large for fp16, so the weights are as before.
    """

    total: float
    nll: float
    n_target: float
    n_tokens: float
    n_cells: float
    n_pairs: float
    norm: float
    has_overflowed: bool


class Learner:
    """The weights of a model in training, and all that changes them."""

    def __init__(
        self, model: Transformer, config: RunConfig, world: World, warn: Callable[[str], None]
    ) -> None:
        """Prepare for the first update.

        Args:
            model: In float32, on its device; from here on in the precision of the settings.
            config: Of the run.
            world: The processes that share an update.
            warn: Told when memory ran out.
        """
        self._world = world
        self._flat = FlatParameters(model, DTYPES[config.train.precision], world)
        self._optimizer = Optimizer(self._flat, config.optim, config.train.ema)
        self._scale = LossScale() if config.train.precision == "fp16" else None
        self._gradients = Gradients(model, self._flat, config, warn)

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by; 1 but in fp16."""
        return self._scale.value if self._scale else 1.0

    def learn(self, update: Update, step: int, lr: float) -> Learnt:
        """Make one update, alike on all ranks.

        Args:
            update: The data of this rank.
            step: Its number, from 1.
            lr: Learning rate.

        Raises:
            NonFiniteError: When loss or gradient are not finite, and no loss scale would help.
        """
        scale, grad = self.loss_scale, self._flat.grad
        losses = self._gradients.compute(update, step, scale)
        self._world.sum(grad)
        counts = (update.n_tokens, update.n_cells, update.n_pairs)
        total, nll, n_target, n_tokens, n_cells, n_pairs = self._world.sum_numbers(
            *astuple(losses), *counts
        )
        grad.mul_(1.0 / (n_target * scale))
        norm = self._optimizer.gradient_norm()
        is_finite = math.isfinite(norm) and math.isfinite(total)
        if is_finite:
            self._optimizer.update(lr, norm)
            if self._scale:
                self._scale.clean()
        elif self._scale and self._scale.overflowed():
            self._flat.discard()
        else:
            rows = update.rows
            raise NonFiniteError(
                f"step {step}: loss {total / n_target}, gradient norm {norm}, learning rate {lr:g}; "
                f"sentence pairs (from 0) {rows[:20]}{' …' if len(rows) > 20 else ''}. "
                "Lower optim.lr or lengthen optim.warmup_steps; what was saved is unharmed"
            )
        return Learnt(
            total=total,
            nll=nll,
            n_target=n_target,
            n_tokens=n_tokens,
            n_cells=n_cells,
            n_pairs=n_pairs,
            norm=norm,
            has_overflowed=not is_finite,
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Let the model compute with the averaged weights for a while, if there are any."""
        return self._flat.using(self._optimizer.ema)

    def weights(self) -> dict[str, Tensor]:
        """The model as it is saved: averaged weights if there are any, in float32."""
        flat = self._flat.master if self._optimizer.ema is None else self._optimizer.ema
        return {name: weights.float() for name, weights in self._flat.views(flat)}

    def tensors(self) -> dict[str, Tensor]:
        """All that the next update depends on, by name, as live tensors."""
        scale = {"loss_scale": self._scale.state} if self._scale else {}
        return {"weights": self._flat.master, **self._optimizer.tensors(), **scale}

    def reload(self) -> None:
        """Go on from what was read into `tensors()`."""
        self._optimizer.reload()


class Meter:
    """Sums over the updates since the last report, for the next one."""

    def __init__(self) -> None:
        """Begin at this moment."""
        self._start = time.monotonic()
        self._sums = [0.0] * 6
        self._norm = self._lr = 0.0

    def add(self, learnt: Learnt, lr: float, waited: float) -> None:
        """Count an update, made at this learning rate after so many seconds of waiting for data."""
        more = (
            learnt.total,
            learnt.nll,
            learnt.n_target,
            learnt.n_tokens,
            learnt.n_cells,
            waited,
        )
        self._sums = [a + b for a, b in zip(self._sums, more, strict=True)]
        self._norm, self._lr = learnt.norm, lr

    def leave_out(self, seconds: float) -> None:
        """Do not count these seconds: the speed is that of training."""
        self._start += seconds

    @property
    def has_updates(self) -> bool:
        """Whether there is anything to report."""
        return self._sums[2] > 0

    def report(self, step: int, epoch: int, epochs: float, elapsed: float) -> StepReport:
        """Means of what was added.

        Args:
            step: The last update.
            epoch: Counted from 1.
            epochs: Passes over the data done.
            elapsed: Seconds of the run so far.
        """
        total, nll, n_target, n_tokens, n_cells, waited = self._sums
        spent = max(time.monotonic() - self._start, 1e-9)
        return StepReport(
            step=step,
            epoch=epoch,
            epochs=epochs,
            loss=total / max(n_target, 1),
            nll=nll / max(n_target, 1),
            lr=self._lr,
            norm=self._norm,
            tokens_per_second=n_tokens / spent,
            wait=waited / spent,
            padding=1 - n_tokens / max(n_cells, 1),
            seconds=elapsed,
        )
