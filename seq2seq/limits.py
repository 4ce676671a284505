"""How a training ends: the limits it may reach, and the cooldown that comes before one.

In a cooldown the learning rate falls to nothing (Hägele et al. 2024, arXiv 2405.18392), dropout is half
as strong and sentences are cut into the tokenizer's own pieces, without BPE-dropout: the model has
learnt from the noise by then, and gets used to the text and to itself as they will be.

Pure functions of the settings and of how far a run has come; who reads the clock is `trainer.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from seq2seq.config import RunConfig, TrainConfig, seconds
from seq2seq.progress import Cooldown, Progress

_SHARE = 0.2  # a cooldown takes at most this share of a run
_DROPOUT = 0.5  # dropout in a cooldown, as a share of what it was (ablation in examples/multi30k)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run can foresee of its limits.

    Attributes:
        epochs: Passes over the data done.
        epoch_updates: Updates that a pass has from here on; 0 when not known yet.
        elapsed: Seconds of training.
        pace: Updates a second, of late; 0 when not known yet.
    """

    epochs: float = 0.0
    epoch_updates: float = 0.0
    elapsed: float = 0.0
    pace: float = 0.0


def reached(train: TrainConfig, progress: Progress, elapsed: float) -> str:
    """Which limit a run has reached, in words, or "".

    Args:
        train: The limits.
        progress: How far it has come.
        elapsed: Seconds of training.
    """
    p, cooldown = progress, progress.cooldown
    is_cool = cooldown is not None and p.step >= cooldown.start + cooldown.n
    kind, value = (cooldown.kind, cooldown.value) if cooldown is not None else ("", 0.0)
    if train.max_steps is not None and p.step >= train.max_steps:
        return f"max_steps {train.max_steps} reached"
    if train.max_epochs is not None:
        # A cooldown for it counts updates, since without BPE-dropout batches are cut otherwise.
        is_aim = (kind, value) == ("max_epochs", train.max_epochs)
        if is_cool if is_aim else p.position.epoch >= train.max_epochs:
            return f"max_epochs {train.max_epochs} reached"
    if train.max_time is not None:
        if elapsed >= seconds(train.max_time):
            return f"max_time {train.max_time} reached"
        # The machine may be faster than foreseen, and nothing is learnt at a rate of nothing.
        if is_cool and kind == "max_time" and value >= seconds(train.max_time):
            return f"cooled down for max_time {train.max_time}"
    if _is_patience_over(train, p) and (is_cool or not train.cooldown):
        return f"no better {train.metric} in {p.n_worse} validations"
    return ""


def due_cooldown(train: TrainConfig, progress: Progress, outlook: Outlook) -> Cooldown | None:
    """The cooldown that should begin now, if one should.

    It begins its updates before a limit, as far as that can be foreseen, or when patience is
    over, and takes at most a fifth of the run.

    Args:
        train: The limits, and how long a cooldown is at most.
        progress: How far the run has come.
        outlook: On its limits.
    """
    p = progress
    if p.cooldown or not train.cooldown:
        return None
    if _is_patience_over(train, p):
        longest = max(round(p.step * _SHARE / (1 - _SHARE)), 1)
        n = min(train.cooldown, longest)
        return _cooldown(p, n, "patience", float(train.patience))
    for kind, left in _updates_left(train, p.step, outlook):
        if 1 <= left <= min(train.cooldown, (p.step + left) * _SHARE):
            return _cooldown(p, round(left), kind, _limits(train)[kind])
    return None


def _cooldown(progress: Progress, n: int, kind: str, value: float) -> Cooldown:
    """One of `n` updates that begins now."""
    p = progress
    return Cooldown(p.step, n, kind, value, p.best_step, p.position)


def is_over(train: TrainConfig, progress: Progress, elapsed: float) -> bool:
    """Whether the limit that the cooldown of a run was for is further off now, and none is reached.

    A lower one ends the cooldown early, as it ends any run.

    Args:
        train: The limits as they are now.
        progress: How far the run has come.
        elapsed: Seconds of training.
    """
    cooldown = progress.cooldown
    if cooldown is None or reached(train, replace(progress, cooldown=None), elapsed):
        return False
    return _limits(train).get(cooldown.kind, math.inf) > cooldown.value


def rate_factor(config: RunConfig, cooldown: Cooldown | None, step: int) -> float:
    """What the learning rate of an update is multiplied by: 1, and falling in a cooldown.

    A cosine falls by itself to the end that it was made for.

    >>> cooldown = Cooldown(start=10, n=4, kind="max_steps", value=14.0, best_step=5)
    >>> [rate_factor(RunConfig(), cooldown, step) for step in (11, 12, 14)]
    [1.0, 0.75, 0.25]
    """
    if cooldown is None:
        return 1.0
    if config.optim.has_end and cooldown.kind == "max_steps":
        return 1.0
    return max(cooldown.start + cooldown.n - step + 1, 1) / cooldown.n


def dropout_factor(cooldown: Cooldown | None) -> float:
    """What dropout is multiplied by: 1, and less in a cooldown."""
    return 1.0 if cooldown is None else _DROPOUT


def _is_patience_over(train: TrainConfig, progress: Progress) -> bool:
    return 0 < train.patience <= progress.n_worse


def _limits(train: TrainConfig) -> dict[str, float]:
    """The limits that are set, as numbers; a time in seconds."""
    found = {
        "max_steps": train.max_steps,
        "max_epochs": train.max_epochs,
        "max_time": None if train.max_time is None else seconds(train.max_time),
        "patience": train.patience or None,
    }
    return {kind: float(value) for kind, value in found.items() if value is not None}


def _updates_left(train: TrainConfig, step: int, outlook: Outlook) -> Iterator[tuple[str, float]]:
    """Limits, and the updates to each, as far as they can be foreseen."""
    limits = _limits(train)
    if "max_steps" in limits:
        yield "max_steps", limits["max_steps"] - step
    if "max_epochs" in limits and outlook.epoch_updates > 0:
        yield "max_epochs", (limits["max_epochs"] - outlook.epochs) * outlook.epoch_updates
    if "max_time" in limits and outlook.pace > 0:
        yield "max_time", (limits["max_time"] - outlook.elapsed) * outlook.pace
