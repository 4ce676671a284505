import dataclasses

import pytest

from cli.plain import Clock, duration, step_line, summary
from seq2seq.config import TrainConfig


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (60, "1m 00s"), (3725, "1h 02m"), (90_000, "1d 01h")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_a_step_is_one_line(step_report):
    line = step_line(step_report, remaining=200.0)
    assert "step 50 | epoch 2 | loss 4.250 | ppl 54.6" in line
    assert "12,346 tokens/s" in line
    assert line.endswith("left 3m 20s")


def test_a_summary_is_aligned(capfd):
    summary([("a", "1"), ("longer", "2")])
    assert capfd.readouterr().err == "  a       1\n  longer  2\n"


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({}, None),
        ({"max_steps": 150}, 200.0),  # 30 steps took 60 s, and 100 are left
        ({"max_time": "5m"}, 200.0),
        ({"max_steps": 150, "max_time": "2m"}, 20.0),
        ({"max_time": "1m"}, 0.0),
    ],
)
def test_the_nearest_limit_counts_and_the_pace_since_the_start(step_report, limits, seconds):
    clock = Clock(TrainConfig(**limits))
    clock.started(20, 40.0)
    assert clock.remaining(step_report) == seconds


def test_the_pace_of_epochs_is_that_since_the_first_report(step_report):
    clock = Clock(TrainConfig(max_epochs=3, max_time="1h"))
    assert clock.remaining(step_report) == 3500.0
    later = dataclasses.replace(step_report, step=60, epochs=2.0, seconds=150.0)
    assert clock.remaining(later) == 100.0


def test_no_pace_is_known_before_the_first_step(step_report):
    clock = Clock(TrainConfig(max_steps=100))
    clock.started(step_report.step, step_report.seconds)
    assert clock.remaining(step_report) is None
