from dataclasses import replace
from typing import Any

import pytest

from seq2seq.batching import Position
from seq2seq.config import OptimConfig, RunConfig, TrainConfig
from seq2seq.limits import Outlook, dropout_factor, due_cooldown, is_over, rate_factor, reached
from seq2seq.progress import Cooldown, Progress


@pytest.mark.parametrize(
    ("train", "progress", "elapsed", "reason"),
    [
        (TrainConfig(max_steps=9), Progress(step=8), 0.0, ""),
        (TrainConfig(max_steps=9), Progress(step=9), 0.0, "max_steps 9 reached"),
        (TrainConfig(max_epochs=2), Progress(position=Position(1, 4, 3)), 0.0, ""),
        (TrainConfig(max_epochs=2), Progress(position=Position(2)), 0.0, "max_epochs 2 reached"),
        (TrainConfig(max_time="1m"), Progress(step=5), 59.9, ""),
        (TrainConfig(max_time="1m"), Progress(step=5), 60.0, "max_time 1m reached"),
        (TrainConfig(patience=3), Progress(n_worse=2), 0.0, ""),
        (TrainConfig(patience=3), Progress(n_worse=3), 0.0, "no better bleu in 3 validations"),
        (TrainConfig(patience=0), Progress(n_worse=3), 0.0, ""),
    ],
)
def test_a_run_ends_at_its_limits(
    train: TrainConfig, progress: Progress, elapsed: float, reason: str
) -> None:
    assert reached(train, progress, elapsed) == reason


def test_a_run_that_gets_no_better_cools_down_before_it_ends() -> None:
    train = TrainConfig(patience=3, cooldown=100)
    worse = Progress(step=80, n_worse=3)
    assert reached(train, worse, 0.0) == ""
    cooldown = due_cooldown(train, worse, Outlook())
    assert cooldown == Cooldown(80, 20, "patience", 3.0, 0)  # a fifth of 100 in all
    cooling = replace(worse, step=99, cooldown=cooldown)
    assert due_cooldown(train, cooling, Outlook()) is None
    assert reached(train, cooling, 0.0) == ""
    assert reached(train, replace(cooling, step=100), 0.0) == "no better bleu in 3 validations"


def test_a_run_that_has_cooled_down_before_its_time_ends() -> None:
    train = TrainConfig(max_time="100s", cooldown=50)
    cooldown = due_cooldown(train, Progress(step=450), Outlook(elapsed=90.0, pace=5.0))
    cooling = Progress(step=499, cooldown=cooldown)
    assert reached(train, cooling, 95.0) == ""
    assert reached(train, cooling, 100.0) == "max_time 100s reached"
    cooled = replace(cooling, step=500)
    assert reached(train, cooled, 95.0) == "cooled down for max_time 100s"
    assert not is_over(replace(train, max_time="1m40s"), cooled, 95.0)
    longer = replace(train, max_time="2m")
    assert reached(longer, cooled, 95.0) == ""
    assert is_over(longer, cooled, 95.0)


@pytest.mark.parametrize(
    ("train", "step", "epochs", "elapsed", "n"),
    [
        (TrainConfig(max_steps=1000, cooldown=100), 899, 0.0, 0.0, 0),
        (TrainConfig(max_steps=1000, cooldown=100), 900, 0.0, 0.0, 100),
        (TrainConfig(max_steps=1000, cooldown=900), 799, 0.0, 0.0, 0),
        (TrainConfig(max_steps=1000, cooldown=900), 800, 0.0, 0.0, 200),
        (TrainConfig(max_steps=1000, cooldown=0), 999, 0.0, 0.0, 0),
        (TrainConfig(max_steps=1000), 999, 0.0, 0.0, 0),
        (TrainConfig(max_epochs=10, cooldown=50), 80, 8.0, 0.0, 20),
        (TrainConfig(max_epochs=10, cooldown=50), 70, 7.0, 0.0, 0),
        (TrainConfig(max_epochs=2, cooldown=50), 16, 1.6, 0.0, 4),
        (TrainConfig(max_epochs=2, cooldown=50), 15, 1.5, 0.0, 0),
        (TrainConfig(max_epochs=2, cooldown=3), 17, 1.75, 0.0, 2),
        (TrainConfig(max_time="100s", cooldown=50), 400, 0.0, 89.0, 0),
        (TrainConfig(max_time="100s", cooldown=50), 450, 0.0, 90.0, 50),
        (TrainConfig(max_steps=10_000, max_time="100s", cooldown=50), 450, 0.0, 90.0, 50),
    ],
)
def test_a_cooldown_begins_so_that_it_ends_with_the_run(
    train: TrainConfig, step: int, epochs: float, elapsed: float, n: int
) -> None:
    cooldown = due_cooldown(train, Progress(step=step), Outlook(epochs, 10.0, elapsed, 5.0))
    assert (cooldown.n if cooldown else 0) == n


def test_rate_and_dropout_fall_in_a_cooldown_and_not_before() -> None:
    cooldown = Cooldown(10, 4, "max_steps", 14.0, 0)
    factors = [rate_factor(RunConfig(), cooldown, step) for step in range(11, 16)]
    assert factors == [1, 0.75, 0.5, 0.25, 0.25]
    assert dropout_factor(cooldown) < 1
    assert rate_factor(RunConfig(), None, 11) == dropout_factor(None) == 1


@pytest.mark.parametrize(("kind", "factor"), [("max_steps", 1.0), ("patience", 0.25)])
def test_a_cosine_falls_to_its_own_end_by_itself(kind: str, factor: float) -> None:
    config = RunConfig(optim=OptimConfig(schedule="cosine"), train=TrainConfig(max_steps=14))
    assert rate_factor(config, Cooldown(10, 4, kind, 14.0, 0), 14) == factor


@pytest.mark.parametrize(
    ("train", "more"),
    [
        (TrainConfig(max_steps=100, cooldown=9), {"max_steps": 101}),
        (TrainConfig(max_time="1m", cooldown=9), {"max_time": "2m"}),
        (TrainConfig(max_epochs=5, cooldown=9), {"max_epochs": None}),
        (TrainConfig(patience=5, cooldown=9), {"patience": 0}),
    ],
)
def test_a_cooldown_is_over_when_its_limit_is_lifted(
    train: TrainConfig, more: dict[str, Any]
) -> None:
    progress = Progress(step=95, n_worse=5)
    cooldown = due_cooldown(train, progress, Outlook(4.9, 20.0, 58.0, 2.0))
    assert cooldown is not None
    cooled = replace(progress, cooldown=cooldown)
    assert not is_over(train, progress, 58.0)
    assert not is_over(train, cooled, 58.0)
    assert not is_over(replace(train, max_epochs=train.max_epochs or 1000), cooled, 58.0)
    assert is_over(replace(train, **more), cooled, 58.0)


@pytest.mark.parametrize(
    "less",
    [{"max_steps": 97}, {"max_steps": 90}, {"max_steps": None, "max_time": "50s"}],
)
def test_a_cooldown_is_not_over_where_its_limit_is_lower_or_another_is_reached(
    less: dict[str, Any],
) -> None:
    train = TrainConfig(max_steps=100, cooldown=9)
    progress = Progress(step=95, cooldown=Cooldown(91, 9, "max_steps", 100.0, 0))
    assert not is_over(replace(train, **less), progress, 58.0)
