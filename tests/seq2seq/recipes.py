"""What the tests of `recipe.py` share."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from seq2seq.presets import Decision
from seq2seq.progress import Progress
from seq2seq.recipe import prepare
from seq2seq.reports import StepReport, ValidationReport
from seq2seq.request import Request
from seq2seq.trainer import Interrupt, Setup, Trainer

MakeRequest = Callable[[Path], Request]


class Quiet:
    """Remembers what is said and decided, and how training went."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.decisions: list[Decision] = []
        self.saves: list[int] = []

    def said(self, message: str) -> None:
        self.messages.append(message)

    def decided(self, decisions: Sequence[Decision]) -> None:
        self.decisions += decisions

    def reading(self, n_pairs: int) -> None:
        assert n_pairs > 0

    def started(self, progress: Progress, seconds: float) -> None:
        assert seconds >= 0

    def stepped(self, report: StepReport) -> None:
        assert report.step

    def validating(self, done: int, total: int) -> None:
        assert done <= total

    def validated(self, report: ValidationReport) -> None:
        assert report.step

    def saved(self, step: int) -> None:
        self.saves.append(step)

    def warned(self, message: str) -> None:
        self.messages.append(message)


def train(request: Request) -> Setup:
    setup = prepare(request, Quiet())
    Trainer(setup, Quiet()).run(Interrupt())
    return setup


def with_settings(request: Request, **settings: str) -> Request:
    """The request with more settings; `__` stands for the dot in a name."""
    more = {name.replace("__", "."): value for name, value in settings.items()}
    return dataclasses.replace(request, settings={**request.settings, **more})


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
