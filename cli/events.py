"""Event files for TensorBoard: what a training reports, written into RUN/tensorboard."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cli.history import perplexity
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from seq2seq.progress import Progress
    from seq2seq.reports import Reporter, StepReport, ValidationReport


def check_tensorboard() -> None:
    """Refuse to begin where event files cannot be written.

    Raises:
        UserError: Naming what to install.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "--tensorboard: TensorBoard is not installed; pip install 'tfm[tensorboard]'"
        ) from None


@contextlib.contextmanager
def event_files(folder: Path, reporter: "Reporter") -> "Iterator[Reporter]":
    """Write event files besides what another reporter does; they are complete at the end.

    Args:
        folder: Where they go; `tensorboard --logdir` takes it.
        reporter: Is told everything first.
    """
    both = EventFiles(folder, reporter)
    try:
        yield both
    finally:
        both.close()


class EventFiles:
    """Passes reports on, and writes them into event files; a `seq2seq.reports.Reporter`.

    A run that resumes begins a new file, which says that later steps of the older ones do not count:
    TensorBoard shows each step once. When they cannot be written, training goes on without them.
    """

    def __init__(self, folder: Path, reporter: "Reporter") -> None:
        """Prepare; the first file is made when training starts."""
        self._folder = folder
        self._reporter = reporter
        self._writer: SummaryWriter | None = None

    def started(self, progress: "Progress", seconds: float) -> None:
        """See `Reporter`."""
        from torch.utils.tensorboard import SummaryWriter

        self._reporter.started(progress, seconds)
        with self._surviving():
            self._writer = SummaryWriter(str(self._folder), purge_step=progress.step + 1)

    def stepped(self, report: "StepReport") -> None:
        """See `Reporter`."""
        self._reporter.stepped(report)
        self._add(
            report.step,
            {
                "train/loss": report.loss,
                "train/perplexity": perplexity(report.nll),
                "train/learning_rate": report.lr,
                "train/gradient_norm": report.norm,
                "train/tokens_per_second": report.tokens_per_second,
                "train/epoch": report.epoch,
            },
        )

    def validating(self, done: int, total: int) -> None:
        """See `Reporter`."""
        self._reporter.validating(done, total)

    def validated(self, report: "ValidationReport") -> None:
        """See `Reporter`."""
        self._reporter.validated(report)
        kind = "" if report.tokenize == "13a" else f"_{report.tokenize}"
        self._add(
            report.step,
            {
                "validation/perplexity": perplexity(report.nll),
                f"validation/BLEU{kind}": report.bleu,
                "validation/chrF": report.chrf,
            },
        )

    def saved(self, step: int) -> None:
        """See `Reporter`."""
        self._reporter.saved(step)
        with self._surviving():
            if self._writer is not None:
                self._writer.flush()

    def said(self, message: str) -> None:
        """See `Reporter`."""
        self._reporter.said(message)

    def warned(self, message: str) -> None:
        """See `Reporter`."""
        self._reporter.warned(message)

    def close(self) -> None:
        """Write what is not written yet."""
        with self._surviving():
            if self._writer is not None:
                self._writer.close()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        with self._surviving():
            if self._writer is not None:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Curves are not worth a training: say why there will be no more, once."""
        try:
            yield
        except OSError as error:
            self._writer = None
            self._reporter.warned(
                f"{self._folder}: event files could not be written ({error.strerror or error}); "
                "training goes on without them"
            )
