"""What a training has to say: how far it is, how fast, how good.

The loop (`trainer.py`) tells a `Reporter`; who shows it, and how, is the business of the command.
"""

from dataclasses import dataclass
from typing import Protocol

from seq2seq.progress import Progress


@dataclass(frozen=True, slots=True)
class StepReport:
    """One update, or the mean over the updates since the last report.

    Attributes:
        step: The last update.
        epoch: Counted from 1.
        epochs: Passes over the data done, the present one as far as it is.
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
    epochs: float
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
