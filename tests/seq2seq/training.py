"""What the tests of training share."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from seq2seq.config import Value
from seq2seq.progress import Progress
from seq2seq.reports import StepReport, ValidationReport
from seq2seq.run import Run
from seq2seq.trainer import Interrupt, Outcome, Setup, Trainer

MakeSetup = Callable[[Path, Mapping[str, Value]], Setup]
DROPOUT: dict[str, Value] = {
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.activation_dropout": 0.1,
}
STUCK: dict[str, Value] = {  # nothing gets better
    "optim.lr": 1e-12,
    "train.metric": "loss",
    "train.validate_every": 2,
    "train.patience": 3,
    "train.ema": 0.0,
}
COOLED: dict[str, Value] = {
    "data.bpe_dropout": 0.3,
    "data.batch_tokens": 1024,
    "train.cooldown": 100,  # the last 4 of 20
    "train.log_every": 1,
}
TIMES = {"seconds", "tokens_per_second", "wait"}


class Killed(Exception):
    """Stands for a process that ended without a word."""


@dataclasses.dataclass
class Recorder:
    """A reporter that remembers, and may kill the training or send it a signal after a step."""

    kill_at: int = 0
    signal_after: int = -1
    losses: list[float] = dataclasses.field(default_factory=list)
    validations: list[ValidationReport] = dataclasses.field(default_factory=list)
    saves: list[int] = dataclasses.field(default_factory=list)
    messages: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    interrupt: Interrupt = dataclasses.field(default_factory=Interrupt)

    def started(self, progress: Progress, seconds: float) -> None:
        assert seconds >= 0
        self.interrupt.stop = 15 if progress.step == self.signal_after else 0

    def stepped(self, report: StepReport) -> None:
        self.losses.append(report.loss)
        self.interrupt.stop = 15 if report.step == self.signal_after else 0
        if report.step == self.kill_at:
            raise Killed

    def validating(self, done: int, total: int) -> None:
        assert done <= total

    def validated(self, report: ValidationReport) -> None:
        self.validations.append(report)

    def saved(self, step: int) -> None:
        self.saves.append(step)

    def said(self, message: str) -> None:
        self.messages.append(message)

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def train(setup: Setup, recorder: Recorder | None = None) -> Outcome:
    recorder = recorder or Recorder()
    return Trainer(setup, recorder).run(recorder.interrupt)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def timeless_log(run: Run) -> list[dict[str, object]]:
    entries = [json.loads(line) for line in run.log.read_bytes().split(b"\n")[:-1]]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in entries]
