import dataclasses
import io

import pytest
from rich.console import Console

from cli.console import LiveTraining, show_curves
from cli.history import Panel, Series
from cli.plain import validation_line
from seq2seq.config import TrainConfig
from seq2seq.progress import Progress
from seq2seq.reports import ValidationReport
from seq2seq.trainer import Interrupt

EVIL = "[red]not markup[/red] \x1b[31m\n"
VALIDATION = ValidationReport(
    step=50,
    nll=3.0,
    bleu=12.34,
    chrf=45.67,
    is_best=True,
    samples=((EVIL, EVIL, EVIL),),
    collapsed=False,
    seconds=110.0,
)


@pytest.fixture
def shown():
    """A display on a terminal of 100 columns, and what it shows."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    interrupt = Interrupt()
    display = LiveTraining(TrainConfig(max_steps=100), interrupt, console)
    display.started(Progress(), 0.0)

    def show():
        with console.capture() as capture:
            console.print(display.render())
        return capture.get()

    return display, interrupt, show


def test_the_display_shows_how_far_a_run_has_come(shown, step_report):
    display, _, show = shown
    display.stepped(step_report)
    display.validated(VALIDATION)
    text = show()
    for part in (
        "step 50 of 100",
        "1m 40s left",
        "loss 4.250",
        "12,346 tokens/s",
        "12.34",
        "★ best",
    ):
        assert part in text


def test_the_display_shows_text_as_it_is_and_harmless(shown):
    display, _, show = shown
    display.validated(VALIDATION)
    assert show().count(r"[red]not markup[/red] \x1b[31m\n") == 3


def test_the_display_shows_that_a_signal_was_understood(shown):
    _, interrupt, show = shown
    interrupt.stop = 2
    assert "Ctrl-C again stops at once" in show()


def test_the_best_validation_stays_on_the_display(shown):
    display, _, show = shown
    display.validated(VALIDATION)
    for step in range(100, 2000, 100):
        display.validated(
            ValidationReport(step, 3.5, 1.0, 2.0, False, VALIDATION.samples, False, 1.0)
        )
    assert "12.34" in show()
    assert show().count("validation") == 1


def test_bleu_of_characters_is_not_shown_as_bleu_of_words(shown):
    display, _, show = shown
    of_characters = dataclasses.replace(VALIDATION, tokenize="char")
    display.validated(of_characters)
    assert "BLEU (char)" in show()
    assert "| BLEU (char) 12.34 |" in validation_line(of_characters)
    assert "| BLEU 12.34 |" in validation_line(VALIDATION)


def test_curves_on_a_terminal_of_no_width_are_80_wide(capsys, monkeypatch):
    panel = Panel("loss", (Series("run", ((1, 3.0), (2, 2.0))),))
    shown = []
    for columns in ("80", "0"):
        monkeypatch.setenv("COLUMNS", columns)
        show_curves([panel])
        shown.append(capsys.readouterr().out)
    assert "loss" in shown[0]
    assert shown[1] == shown[0]
