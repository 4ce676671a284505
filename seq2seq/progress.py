"""How far a run has come: with the weights and the optimizer, all that resuming needs.

progress = progress.judged(score, is_usual=True)
saved = asdict(progress)                          read again by `read_progress`, trusting nothing
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from seq2seq.batching import POOL, START, Position
from tokenizer.errors import UserError

LIMITS = ("max_steps", "max_epochs", "max_time", "patience")  # of `TrainConfig`: what may end a run

_MOST = 1 << 53  # of anything that is counted: sums over processes are float64


@dataclass(frozen=True, slots=True)
class Cooldown:
    """The last updates of a run, see `limits.py`.

    Attributes:
        start: It began after this update.
        n: How many updates it has.
        kind: The limit that it precedes, one of `LIMITS`.
        value: Of that limit when it began; a time in seconds.
        best_step: The best checkpoint when it began.
        position: Of its first micro-batch.
    """

    start: int
    n: int
    kind: str
    value: float
    best_step: int
    position: Position = START

    @property
    def limit(self) -> str:
        """The limit that it precedes, in words.

        >>> Cooldown(80, 20, "max_time", 90.0, 50).limit
        'max_time 90 s'
        """
        return f"{self.kind} {self.value:.12g}" + " s" * (self.kind == "max_time")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come; with the weights and the optimizer, all that resuming needs.

    Attributes:
        step: Updates done.
        position: The next micro-batch.
        n_pairs: Sentence pairs seen.
        n_tokens: Source and target tokens seen, without padding.
        best_score: Of `train.metric`, the higher the better (a loss is negated).
        best_step: Where it was reached; 0 before the first validation.
        usual_score: The best of the validations that come every so many updates, before a cooldown.
        n_worse: Such validations since then.
        cooldown: The one that the run is in.
        awaits_validation: A signal came before this step was validated.
    """

    step: int = 0
    position: Position = START
    n_pairs: int = 0
    n_tokens: int = 0
    best_score: float = -1e30
    best_step: int = 0
    usual_score: float = -1e30
    n_worse: int = 0
    cooldown: Cooldown | None = None
    awaits_validation: bool = False

    def judged(self, score: float, is_usual: bool) -> "Progress":
        """The same after a validation of this step.

        A score of 0 again is that of a model which cannot translate yet: the later one is the best then.

        Args:
            score: Of `train.metric`.
            is_usual: Whether such a validation comes every so many updates, before a cooldown; others may
                find the best model and cost no patience.
        """
        is_best = score > self.best_score or score == self.best_score == 0.0
        now = replace(self, best_score=score, best_step=self.step) if is_best else self
        if not is_usual:
            return now
        if score > self.usual_score:
            return replace(now, usual_score=score, n_worse=0)
        return replace(now, n_worse=self.n_worse + 1)


def read_progress(saved: object, n_places: int, where: str) -> Progress:
    """Rebuild a `Progress` that was saved as JSON.

    Args:
        saved: What was read.
        n_places: Pairs in an epoch.
        where: The file, for messages.

    Raises:
        UserError: When it cannot be one of a run on such data.
    """
    try:
        if not isinstance(saved, dict):
            raise TypeError(saved)
        position = Position(**saved["position"])
        cooldown = _read_cooldown(saved["cooldown"]) if saved.get("cooldown") else None
        n_pairs = position.epoch * n_places + position.pool * POOL  # where none were counted yet
        fields = {"n_pairs": n_pairs, **saved, "position": position, "cooldown": cooldown}
        progress = Progress(**fields)
        scores = [progress.best_score, progress.usual_score]
        counts = [*asdict(position).values(), progress.step, progress.n_pairs]
        counts += [progress.n_tokens, progress.best_step, progress.n_worse]
        if cooldown is not None:
            counts += [cooldown.start, cooldown.n - 1, cooldown.best_step]
            counts += asdict(cooldown.position).values()
            scores.append(cooldown.value)
            if cooldown.kind not in LIMITS or cooldown.position > position:
                raise TypeError(saved)
        if not all(type(score) is float for score in scores):
            raise TypeError(saved)
        if not all(type(n) is int and 0 <= n < _MOST for n in counts):
            raise TypeError(saved)
        if type(progress.awaits_validation) is not bool:
            raise TypeError(saved)
        if position.pool * POOL >= n_places:
            raise TypeError(saved)
    except (TypeError, KeyError):
        raise UserError(f"{where}: 'progress' is damaged") from None
    return progress


def _read_cooldown(saved: Mapping[str, Any]) -> Cooldown:
    """The same of a `Cooldown`; one of before does not know where its data began."""
    return Cooldown(**{**saved, "position": Position(**saved.get("position", {}))})
