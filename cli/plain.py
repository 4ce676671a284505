"""What people see of a long computation in plain lines: what is found and decided, how training goes.

All of it goes to standard error, one line for each report, without control characters: a log file can
hold it. The display that takes the place of these lines on a terminal is in `console.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.history import bleu_name, perplexity
from cli.streams import say, warn
from seq2seq.config import TrainConfig
from seq2seq.config import seconds as read_duration

if TYPE_CHECKING:
    from seq2seq.presets import Decision
    from seq2seq.progress import Progress
    from seq2seq.reports import StepReport, ValidationReport

_EVERY = 10.0  # seconds between two lines that only say that something goes on


def duration(seconds: float) -> str:
    """Say how long, in at most two units.

    >>> duration(7.4), duration(192), duration(3725), duration(90000)
    ('7s', '3m 12s', '1h 02m', '1d 01h')
    """
    n = round(seconds)
    if n < 60:
        return f"{n}s"
    if n < 3600:
        return f"{n // 60}m {n % 60:02d}s"
    if n < 86400:
        return f"{n // 3600}h {n // 60 % 60:02d}m"
    return f"{n // 86400}d {n // 3600 % 24:02d}h"


def summary(rows: Sequence[tuple[str, str]]) -> None:
    """Show names and values, one pair a line."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"  {name:{width}}  {value}")


class Notices:
    """Tells what `recipe.prepare` finds and decides."""

    def __init__(self, is_silent: bool) -> None:
        """Speak, or keep silent where another process speaks."""
        self._is_silent = is_silent
        self._last = time.monotonic()

    def said(self, message: str) -> None:
        """Show a message."""
        if not self._is_silent:
            say(message)

    def decided(self, decisions: Sequence[Decision]) -> None:
        """Show settings, each with its reason."""
        if self._is_silent or not decisions:
            return
        say("settings chosen for this data and machine (any of them can be set: --set KEY=VALUE)")
        names = [f"{d.name} = {d.value}" for d in decisions]
        width = max(map(len, names))
        for name, decision in zip(names, decisions, strict=True):
            say(f"  {name:{width}}  {decision.reason}")

    def reading(self, n_pairs: int) -> None:
        """Show, now and then, how far the text has been read."""
        if not self._is_silent and time.monotonic() - self._last > _EVERY:
            say(f"reading: {n_pairs:,} pairs")
            self._last = time.monotonic()


def step_line(report: StepReport, remaining: float | None) -> str:
    """One line for one report of the loop."""
    parts = [
        f"step {report.step}",
        f"epoch {report.epoch}",
        f"loss {report.loss:.3f}",
        f"ppl {perplexity(report.nll):.1f}",
        f"lr {report.lr:.2e}",
        f"norm {report.norm:.2f}",
        f"{report.tokens_per_second:,.0f} tokens/s",
        f"waiting {report.wait:.0%}",
        f"padding {report.padding:.0%}",
        f"time {duration(report.seconds)}",
    ]
    if remaining is not None:
        parts.append(f"left {duration(remaining)}")
    return " | ".join(parts)


def validation_line(report: ValidationReport) -> str:
    """One line for one validation."""
    parts = [
        f"step {report.step}",
        "validation",
        f"{bleu_name(report.tokenize)} {report.bleu:.2f}",
        f"chrF {report.chrf:.2f}",
        f"ppl {perplexity(report.nll):.2f}",
        f"time {duration(report.seconds)}",
    ]
    if report.is_best:
        parts.append("best so far")
    return " | ".join(parts)


class Clock:
    """How long a run will still take, judged by how it went since it was started."""

    def __init__(self, train: TrainConfig) -> None:
        """Look at the limits among these settings."""
        self._train = train
        self._start = (0, 0.0)
        self._first: StepReport | None = None

    def started(self, step: int, seconds: float) -> None:
        """Begin to judge, after this step and this many seconds of the run."""
        self._start = (step, seconds)

    def remaining(self, report: StepReport) -> float | None:
        """Seconds to the nearest limit; None if no limit can be seen."""
        step, seconds = self._start
        first = self._first = self._first or report
        left = []
        if self._train.max_steps is not None and report.step > step:
            pace = (report.seconds - seconds) / (report.step - step)
            left.append(pace * (self._train.max_steps - report.step))
        if self._train.max_epochs is not None and report.epochs > first.epochs:
            pace = (report.seconds - first.seconds) / (report.epochs - first.epochs)
            left.append(pace * (self._train.max_epochs - report.epochs))
        if self._train.max_time is not None:
            left.append(read_duration(self._train.max_time) - report.seconds)
        return max(min(left), 0.0) if left else None


class PlainTraining:
    """Reports a training line by line; a `seq2seq.reports.Reporter`."""

    def __init__(self, train: TrainConfig, is_silent: bool) -> None:
        """Report a training with these limits, or keep silent."""
        self._clock = Clock(train)
        self._is_silent = is_silent

    def started(self, progress: Progress, seconds: float) -> None:
        """See `Reporter`."""
        self._clock.started(progress.step, seconds)
        if progress.step:
            self._say(f"going on after step {progress.step}")

    def stepped(self, report: StepReport) -> None:
        """See `Reporter`."""
        self._say(step_line(report, self._clock.remaining(report)))

    def validating(self, done: int, total: int) -> None:
        """See `Reporter`."""

    def validated(self, report: ValidationReport) -> None:
        """See `Reporter`."""
        self._say(validation_line(report))
        for src, _, hypothesis in report.samples:
            self._say(f"  {src} → {hypothesis}")

    def saved(self, step: int) -> None:
        """See `Reporter`."""

    def said(self, message: str) -> None:
        """See `Reporter`."""
        self._say(message)

    def warned(self, message: str) -> None:
        """See `Reporter`."""
        if not self._is_silent:
            warn(message)

    def _say(self, line: str) -> None:
        if not self._is_silent:
            say(line)
