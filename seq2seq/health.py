"""Signs that a training goes wrong, each named with what to do about it.

    health = Health(word_entropy(corpus), warmup_steps)
    for message in health.step(report): warn(message)

Numbers that are not finite stop a run (`learner.NonFiniteError`); what is watched for here is the run
that goes on and learns nothing.
"""

import math
from collections.abc import Sequence

import numpy as np

from seq2seq.corpus import Corpus
from seq2seq.reports import StepReport, ValidationReport

_MOST_PAIRS = 32_768  # to count words in
_RISE = 1.0  # nats per token above the best: no noise of a batch is as large
_STEEP = 20.0  # times the usual gradient norm
_MEMORY = 0.9  # share of the usual norm that the next report leaves
_MANY = 20  # different sentences; fewer may well have one translation


class Health:
    """Watches the reports of one training."""

    def __init__(self, word_entropy: float, warmup_steps: int) -> None:
        """Begin to watch.

        Args:
            word_entropy: What a model that ignores source and context can reach, nats per token.
            warmup_steps: Before their end no loss is judged.
        """
        self._word_entropy = word_entropy
        self._warmup_steps = warmup_steps
        self._best_train = self._best_valid = math.inf
        self._last_train = math.inf
        self._usual_norm: float | None = None
        self._is_rising = False

    def step(self, report: StepReport) -> list[str]:
        """What is wrong with the last updates; a rise of the loss is told once."""
        found = []
        usual = report.norm if self._usual_norm is None else self._usual_norm
        if report.norm > _STEEP * usual and report.step > self._warmup_steps:
            found.append(
                f"step {report.step}: the gradient norm is {report.norm:.3g}, usually {usual:.3g}; "
                "if this goes on, lower optim.lr"
            )
        self._usual_norm = _MEMORY * usual + (1 - _MEMORY) * min(report.norm, _STEEP * usual)
        was_rising, self._is_rising = self._is_rising, report.nll > self._best_train + _RISE
        if self._is_rising and not was_rising:
            found.append(
                f"step {report.step}: the training loss rose from {self._best_train:.2f} to "
                f"{report.nll:.2f} nats a token: training diverges; lower optim.lr, lengthen "
                "optim.warmup_steps, or go on from the best checkpoint with --init-from"
            )
        self._best_train = min(self._best_train, report.nll)
        self._last_train = report.nll
        return found

    def validation(self, report: ValidationReport) -> list[str]:
        """What is wrong with a model that was just validated."""
        found = []
        is_judged = report.step > self._warmup_steps
        if is_judged and report.collapsed:
            found.append(
                f"step {report.step}: the model gives the same translation for many sentences; if "
                "this stays so, lower optim.lr or check that the lines of the files belong together"
            )
        if is_judged and report.nll > self._word_entropy:
            found.append(
                f"step {report.step}: {report.nll:.2f} nats a token are no better than guessing by "
                f"the frequency of words ({self._word_entropy:.2f}): nothing is learnt from the "
                "source; lower optim.lr or check that the lines of the files belong together"
            )
        elif report.nll > self._best_valid + _RISE and not self._is_rising:
            found.append(
                f"step {report.step}: the validation loss rose from {self._best_valid:.2f} to "
                f"{report.nll:.2f} nats a token while that of training is {self._last_train:.2f}: "
                "the model is overfitting; raise model.dropout or choose a smaller model"
            )
        self._best_valid = min(self._best_valid, report.nll)
        return found


def has_collapsed(sources: Sequence[str], translations: Sequence[str]) -> bool:
    """Whether many different sentences have few translations, less than one for ten of them.

    >>> has_collapsed([f"sentence {i}" for i in range(100)], ["yes"] * 100)
    True
    >>> has_collapsed(["good morning"] * 100, ["guten Morgen"] * 100)
    False
    """
    n = len(set(sources))
    return n >= _MANY and len(set(translations)) < n / 10


def word_entropy(corpus: Corpus) -> float:
    """Entropy of the target tokens by their frequency alone, EOS included, in nats.

    No model that ignores its input is better. Counted in the first pairs of a large corpus.
    """
    n = min(len(corpus), _MOST_PAIRS)
    targets = [example.tgt for example in corpus.examples(np.arange(n))]
    ids = np.concatenate([np.asarray(t, dtype=np.int64) for t in targets if t is not None])
    counts = np.append(np.bincount(ids), n)  # every sentence ends
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
