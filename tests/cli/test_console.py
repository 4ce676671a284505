import io

import pytest
from rich.console import Console

from cli.console import LiveTraining, duration, sparkline, step_line, summary
from seq2seq.config import TrainConfig
from seq2seq.reports import Progress, StepReport, ValidationReport
from seq2seq.trainer import Interrupt

STEP = StepReport(
    step=50,
    epoch=2,
    loss=4.25,
    nll=4.0,
    lr=1e-3,
    norm=1.5,
    tokens_per_second=12_345.6,
    wait=0.01,
    padding=0.05,
    seconds=100.0,
)
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (60, "1m 00s"), (3725, "1h 02m"), (90_000, "1d 01h")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_a_sparkline_goes_from_its_lowest_to_its_highest_value():
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([]) == ""


def test_a_step_is_one_line():
    line = step_line(STEP, remaining=200.0)
    assert "step 50 | epoch 2 | loss 4.250 | ppl 54.6" in line
    assert "12,346 tokens/s" in line
    assert line.endswith("left 3m 20s")


def test_a_summary_is_aligned(capfd):
    summary([("a", "1"), ("longer", "2")])
    assert capfd.readouterr().err == "  a       1\n  longer  2\n"


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


def test_the_display_shows_how_far_a_run_has_come(shown):
    display, _, show = shown
    display.stepped(STEP)
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
