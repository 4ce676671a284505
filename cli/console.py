"""What a terminal can show: displays that stay in their place, and colours. The only user of Rich.

On a terminal a training is one display on standard error: progress, tables, samples. Elsewhere it is the
lines of `plain.py`. Text from data files is shown escaped and never read as markup.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.braille import draw, sparkline
from cli.history import Panel, bleu_name, perplexity
from cli.plain import Clock, PlainTraining, duration
from cli.streams import escape
from seq2seq.config import TrainConfig

if TYPE_CHECKING:
    from seq2seq.progress import Progress as RunProgress
    from seq2seq.reports import Reporter, StepReport, ValidationReport
    from seq2seq.trainer import Interrupt

_REFRESH = 4  # times a second that a display is drawn
_N_LOSSES = 60  # points of the small curve
_N_VALIDATIONS = 5  # rows of the table
_CURVES = ("cyan", "yellow", "green", "magenta", "red", "blue")


def on_terminal() -> bool:
    """Whether standard error can show a display that moves."""
    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


def show_curves(panels: Sequence[Panel]) -> None:
    """Draw learning curves on standard output, as wide as the terminal."""
    columns = shutil.get_terminal_size().columns  # 80 for COLUMNS=0, where Rich would show nothing
    console = Console(file=sys.stdout, width=columns, highlight=False, markup=False, emoji=False)
    has_colours = console.color_system is not None and not console.no_color
    with console.capture() as drawn:  # Rich would end the process with 1 where nobody reads
        for row in draw(panels, columns, has_colours):
            text = Text()
            for part, number in row:
                text.append(part, style="" if number is None else _CURVES[number % len(_CURVES)])
            text.rstrip()
            console.print(text, no_wrap=True, overflow="ignore", crop=False)
    sys.stdout.write(drawn.get())


@contextlib.contextmanager
def counting(what: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how far something has come, on a terminal; elsewhere keep silent.

    Args:
        what: What is being done.
        unit: What is counted.
        total: How many there are, if that is known.

    Yields:
        A function to call with the number done so far.
    """
    if not on_terminal():
        yield lambda n_done: None
        return
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn() if total else TextColumn("{task.completed:,.0f}", markup=False),
        TextColumn(unit, markup=False),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, refresh_per_second=_REFRESH) as bar:
        task = bar.add_task(escape(what), total=total)
        yield lambda n_done: bar.update(task, completed=n_done)


@contextlib.contextmanager
def training(train: TrainConfig, interrupt: Interrupt, is_silent: bool) -> Iterator[Reporter]:
    """Show a training: a display on a terminal, plain lines elsewhere, nothing if silent.

    Args:
        train: Tells the limits.
        interrupt: Looked at, to show that a signal was understood.
        is_silent: Another process speaks.
    """
    if is_silent or not on_terminal():
        yield PlainTraining(train, is_silent)
        return
    console = Console(stderr=True, highlight=False)
    display = LiveTraining(train, interrupt, console)
    with Live(
        get_renderable=display.render,
        console=console,
        refresh_per_second=_REFRESH,
        redirect_stdout=False,
    ):
        yield display
        display.ended()


class LiveTraining:
    """Reports a training in one place of the screen; a `seq2seq.reports.Reporter`."""

    def __init__(self, train: TrainConfig, interrupt: Interrupt, console: Console) -> None:
        """Prepare a display; `render` draws it."""
        self._train = train
        self._interrupt = interrupt
        self._console = console
        self._clock = Clock(train)
        self._report: StepReport | None = None
        self._reported_at = time.monotonic()
        self._losses: deque[float] = deque(maxlen=_N_LOSSES)
        self._validations: deque[ValidationReport] = deque(maxlen=_N_VALIDATIONS)
        self._best: ValidationReport | None = None
        self._doing = "first steps"
        self._step = 0

    def started(self, progress: RunProgress, seconds: float) -> None:
        """See `Reporter`."""
        self._clock.started(progress.step, seconds)
        self._step = progress.step
        if progress.step:
            self._print(f"going on after step {progress.step}")

    def stepped(self, report: StepReport) -> None:
        """See `Reporter`."""
        self._report = report
        self._reported_at = time.monotonic()
        self._step = report.step
        self._losses.append(report.nll)
        self._doing = "training"

    def validating(self, done: int, total: int) -> None:
        """See `Reporter`."""
        self._doing = f"validating: {done:,} of {total:,} sentences"

    def validated(self, report: ValidationReport) -> None:
        """See `Reporter`."""
        self._validations.append(report)
        if report.is_best:
            self._best = report
        self._doing = "training"

    def saved(self, step: int) -> None:
        """See `Reporter`."""
        self._doing = "training"

    def said(self, message: str) -> None:
        """See `Reporter`."""
        self._print(message)

    def warned(self, message: str) -> None:
        """See `Reporter`."""
        self._print(f"tfm: warning: {message}")

    def ended(self) -> None:
        """Let the last picture show nothing that goes on."""
        self._doing = ""

    def _print(self, line: str) -> None:
        self._console.print(Text(escape(line)))

    def render(self) -> Group:
        """The display as it stands."""
        parts: list[Table | Text] = [self._headline()]
        if self._report is not None:
            parts.append(self._numbers(self._report))
        if self._validations:
            parts += [Text(), self._scores(), Text(), self._samples(self._validations[-1])]
        return Group(*parts)

    def _headline(self) -> Table:
        """Where the run is, and what it is doing."""
        doing = Text(self._doing, style="dim")
        if self._interrupt.stop:
            doing = Text("saving, then stopping; Ctrl-C again stops at once", style="bold yellow")
        row = Table.grid(padding=(0, 2))
        limit = self._train.max_steps
        total = f" of {limit:,}" if limit is not None else ""
        cells: list[Text | ProgressBar] = [Text(f"step {self._step:,}{total}", style="bold")]
        if limit is not None:
            cells.append(ProgressBar(total=limit, completed=self._step, width=30))
        row.add_row(*cells, *self._times(), doing)
        return row

    def _times(self) -> list[Text]:
        if self._report is None:
            return []
        since = time.monotonic() - self._reported_at
        times = [Text(duration(self._report.seconds + since))]
        remaining = self._clock.remaining(self._report)
        if remaining is not None:
            times.append(Text(f"{duration(max(remaining - since, 0))} left"))
        return times

    def _numbers(self, report: StepReport) -> Table:
        """The last report, with the course of the loss."""
        row = Table.grid(padding=(0, 2))
        row.add_row(
            f"epoch {report.epoch}",
            Text.assemble("loss ", (f"{report.loss:.3f}", "bold")),
            Text(sparkline(tuple(self._losses)), style="cyan"),
            f"ppl {perplexity(report.nll):,.1f}",
            f"{report.tokens_per_second:,.0f} tokens/s",
            f"waiting {report.wait:.0%}",
            f"lr {report.lr:.1e}",
        )
        return row

    def _scores(self) -> Table:
        """The last validations, and the best of all."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        rows = list(self._validations)
        for title in ("validation", bleu_name(rows[-1].tokenize), "chrF", "ppl", ""):
            table.add_column(title, justify="left" if title == "" else "right")
        if self._best is not None and self._best not in rows:
            rows[0] = self._best
        for v in rows:
            is_best = v is self._best
            table.add_row(
                f"step {v.step:,}",
                f"{v.bleu:.2f}",
                f"{v.chrf:.2f}",
                f"{perplexity(v.nll):.2f}",
                "★ best" if is_best else "",
                style="bold green" if is_best else "",
            )
        return table

    def _samples(self, report: ValidationReport) -> Table:
        """A few sentences, each on a line of its own, cut where the screen ends."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True, min_width=len("reference"))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for src, tgt, hypothesis in report.samples:
            table.add_row("source", Text(escape(src), style="dim"))
            table.add_row("reference", Text(escape(tgt)))
            table.add_row("tfm", Text(escape(hypothesis), style="bold"))
        return table
