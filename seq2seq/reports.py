"""What a training has to say: how far it is, how fast, how good.

The loop (`trainer.py`) tells a `Reporter`; who shows it, and how, is the business of the command.
"""

from dataclasses import asdict, dataclass, replace
from typing import Protocol

from seq2seq.batching import POOL, START, Position
from tokenizer.errors import UserError

LIMITS = ("max_steps", "max_epochs", "max_time", "patience")  # of `TrainConfig`: what may end a run


@dataclass(frozen=True, slots=True)
class Cooldown:
    """The last updates of a run, see `limits.py`.

    Attributes:
        start: It began after this update.
        n: How many updates it has.
        kind: The limit that it precedes, one of `LIMITS`.
        value: Of that limit when it began; a time in seconds.
        best_step: The best checkpoint when it began.
    """

    start: int
    n: int
    kind: str
    value: float
    best_step: int

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

        Args:
            score: Of `train.metric`.
            is_usual: Whether such a validation comes every so many updates, before a cooldown; others may
                find the best model and cost no patience.
        """
        is_best = score > self.best_score
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
        cooldown = Cooldown(**saved["cooldown"]) if saved.get("cooldown") else None
        n_pairs = position.epoch * n_places + position.pool * POOL  # where none were counted yet
        fields = {"n_pairs": n_pairs, **saved, "position": position, "cooldown": cooldown}
        progress = Progress(**fields)
        scores = [progress.best_score, progress.usual_score]
        counts = [*asdict(position).values(), progress.step, progress.n_pairs]
        counts += [progress.n_tokens, progress.best_step, progress.n_worse]
        if cooldown is not None:
            counts += [cooldown.start, cooldown.n - 1, cooldown.best_step]
            scores.append(cooldown.value)
            if cooldown.kind not in LIMITS:
                raise TypeError(saved)
        if not all(type(score) is float for score in scores):
            raise TypeError(saved)
        if not all(type(n) is int and n >= 0 for n in counts):
            raise TypeError(saved)
        if type(progress.awaits_validation) is not bool:
            raise TypeError(saved)
        if position.pool * POOL >= n_places:
            raise TypeError(saved)
    except (TypeError, KeyError):
        raise UserError(f"{where}: 'progress' is damaged") from None
    return progress


@dataclass(frozen=True, slots=True)
class StepReport:
    """One update, or the mean over the updates since the last report.

    Attributes:
        step: The last update.
        epoch: Counted from 1.
        loss: Nats per target token, as minimised.
        nll: Nats per target token, without smoothing.
        lr: Learning rate.
        norm: Gradient norm before clipping.
        tokens_per_second: Source and target, without padding, in wall time.
        wait: Share of the time spent waiting for data.
        padding: Share of padding in the batches.
        seconds: Of the run so far.
    """

    step: int
    epoch: int
    loss: float
    nll: float
    lr: float
    norm: float
    tokens_per_second: float
    wait: float
    padding: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """One validation.

    Attributes:
        step: After this update.
        nll: Nats per target token.
        bleu: sacreBLEU of greedy translations, tokenized by `tokenize`.
        chrf: chrF of the same.
        is_best: Whether it is the best so far.
        samples: Source, reference and translation of a few sentences.
        collapsed: The model gives the same output for many inputs.
        seconds: Of the run so far.
        tokenize: sacreBLEU's tokenization for BLEU.
    """

    step: int
    nll: float
    bleu: float
    chrf: float
    is_best: bool
    samples: tuple[tuple[str, str, str], ...]
    collapsed: bool
    seconds: float
    tokenize: str = "13a"

    @property
    def bleu_name(self) -> str:
        """What people read beside `bleu`: that of characters must not be taken for that of words."""
        return "BLEU" if self.tokenize == "13a" else f"BLEU ({self.tokenize})"


class Reporter(Protocol):
    """Whoever wants to know how training goes."""

    def started(self, progress: Progress, seconds: float) -> None:
        """The loop begins, at this point of the run."""

    def stepped(self, report: StepReport) -> None:
        """`train.log_every` updates are done."""

    def validating(self, done: int, total: int) -> None:
        """This many of the validation sentences are translated."""

    def validated(self, report: ValidationReport) -> None:
        """A validation is done."""

    def saved(self, step: int) -> None:
        """A checkpoint has its name."""

    def said(self, message: str) -> None:
        """Something that the user may want to know."""

    def warned(self, message: str) -> None:
        """Something that the user should know."""
