import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training import (
    COOLED,
    DROPOUT,
    STUCK,
    Killed,
    MakeSetup,
    Recorder,
    digests,
    timeless_log,
    train,
)

from seq2seq.checkpoint import resolve
from seq2seq.config import Value
from seq2seq.dropout import Dropout
from seq2seq.progress import Cooldown, Progress
from seq2seq.reports import StepReport
from seq2seq.run import Run
from seq2seq.trainer import Setup, Trainer
from tokenizer.errors import UserError
from tokenizer.special import EOS


def rates(run: Run) -> list[float]:
    return [float(str(e["lr"])) for e in timeless_log(run) if e["kind"] == "step"]


@pytest.mark.parametrize("stop", [15, 16, 18])
def test_a_run_that_stops_around_its_cooldown_goes_on_as_if_it_had_not(
    stop: int, make_setup: MakeSetup, tmp_path: Path
) -> None:
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    train(make_setup(whole.folder, COOLED))
    outcome = train(make_setup(cut.folder, COOLED), Recorder(signal_after=stop - 1))
    assert outcome.step == stop
    train(make_setup(cut.folder, COOLED))
    assert digests(cut.state(20)) == digests(whole.state(20))
    assert rates(cut) == rates(whole)
    plain = make_setup(tmp_path / "plain", {**COOLED, "train.cooldown": 0})
    train(plain)
    usual = rates(plain.run)
    falling = [*usual[:17], usual[17] * 0.75, usual[18] / 2, usual[19] / 4]
    assert rates(whole) == pytest.approx(falling, rel=1e-3)  # the log rounds


def test_the_wait_for_the_first_data_does_not_count_for_the_pace(
    make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(Recorder):
        """Moves 100 seconds before the first update, and one after each."""

        now = 0.0

        def started(self, progress: Progress, seconds: float) -> None:
            self.now += 100

        def stepped(self, report: StepReport) -> None:
            self.now += 1

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("seq2seq.trainer.time", clock)
    limits: dict[str, Value] = {"train.max_steps": "none", "train.max_time": "200s"}
    often = {"train.cooldown": 20, "train.validate_every": 1000, "train.save_every": 1000}
    outcome = train(make_setup(tmp_path / "run", {**COOLED, **limits, **often}), clock)
    assert clock.messages == [
        "cooling down before max_time 200 s: 20 more updates, at a falling rate, "
        "with half of the dropout and no BPE-dropout"
    ]
    assert outcome.step == pytest.approx(100, abs=2)


@pytest.mark.parametrize("n", [2, 3])
def test_a_run_cools_down_before_its_last_pass_ends(
    n: int, make_setup: MakeSetup, tmp_path: Path
) -> None:
    few = {**COOLED, "data.batch_tokens": 128, "train.max_steps": "none", "train.max_epochs": n}
    recorder = Recorder()
    setup = make_setup(tmp_path / "run", few)
    outcome = train(setup, recorder)
    assert outcome.reason == f"max_epochs {n} reached"
    (message,) = (m for m in recorder.messages if "cooling down" in m)
    assert message.startswith(f"cooling down before max_epochs {n}: ")
    n_cool = int(message.split(": ")[1].split()[0])
    assert rates(setup.run)[-1] * n_cool == pytest.approx(
        0.01 * (5 / outcome.step) ** 0.5, rel=0.01
    )
    seen = Trainer(setup, Recorder()).progress.n_pairs
    assert seen == pytest.approx(n * len(setup.corpus), rel=0.1)


def test_in_its_cooldown_a_model_sees_the_pieces_of_the_tokenizer(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    setup = make_setup(tmp_path / "run", COOLED)
    trainer = Trainer(setup, Recorder())
    examples = setup.corpus.examples(np.arange(len(setup.corpus)))
    own = {tuple(e.sides()[1]) for e in examples}

    def first_targets() -> set[tuple[int, ...]]:
        with contextlib.closing(trainer._updates()) as updates:
            ((_, batch),) = next(updates).batches
        return {tuple(row[row > EOS].tolist()) for row in batch.tgt_in}

    assert not first_targets() <= own
    trainer.progress = replace(trainer.progress, cooldown=Cooldown(0, 4, "max_steps", 4.0, 0))
    assert first_targets() <= own


def test_in_its_cooldown_a_model_has_half_of_the_dropout(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    def dropout(setup: Setup) -> set[float]:
        return {m.p for m in setup.model.modules() if isinstance(m, Dropout)}

    setup = make_setup(tmp_path / "run", {**COOLED, **DROPOUT})
    train(setup, Recorder(signal_after=15))
    assert dropout(setup) == {0.1}
    setup = make_setup(tmp_path / "run", {**COOLED, **DROPOUT})
    train(setup)
    assert dropout(setup) == {0.05}


def test_a_run_that_gets_no_better_ends_after_a_cooldown(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    long: dict[str, Value] = {**STUCK, "train.max_steps": 1000}
    recorder = Recorder()
    begun = train(make_setup(tmp_path / "without", long)).step
    outcome = train(make_setup(tmp_path / "run", {**long, "train.cooldown": 2}), recorder)
    assert (outcome.step, outcome.reason) == (begun + 2, "no better loss in 3 validations")
    (message,) = recorder.messages
    assert message.startswith("cooling down before patience 3: 2 more updates")


def test_where_a_cooldown_begins_is_in_the_state_that_it_begins_with(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    """The clock decides on one that comes before a limit of time, and tells another time next time."""
    run = Run(tmp_path / "run")
    with pytest.raises(Killed):
        train(make_setup(run.folder, COOLED), Recorder(kill_at=17))
    trainer = Trainer(make_setup(run.folder, COOLED), Recorder())
    assert trainer.progress.step == 16
    position = trainer.progress.position
    assert position.batch > 0
    assert trainer.progress.cooldown == Cooldown(16, 4, "max_steps", 20.0, 10, position)


def test_a_lower_limit_ends_a_cooldown_and_does_not_take_it_back(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    train(make_setup(whole.folder, COOLED))
    train(make_setup(cut.folder, COOLED), Recorder(signal_after=17))
    recorder = Recorder()
    outcome = train(make_setup(cut.folder, {**COOLED, "train.max_steps": 19}), recorder)
    assert (outcome.step, outcome.reason) == (19, "max_steps 19 reached")
    assert recorder.messages == []
    assert rates(cut) == rates(whole)[:19]


@pytest.mark.parametrize("steps", [(10, 20), (18, 20), (11, 14, 20)])
def test_a_run_that_is_given_more_time_forgets_its_cooldown(
    steps: tuple[int, ...], make_setup: MakeSetup, tmp_path: Path
) -> None:
    whole, often = Run(tmp_path / "whole"), Run(tmp_path / "often")
    train(make_setup(whole.folder, COOLED))
    recorder = Recorder()
    for n in steps:
        train(make_setup(often.folder, {**COOLED, "train.max_steps": n}), recorder)
    assert (
        sum("going on from before the cooldown" in m for m in recorder.messages) == len(steps) - 1
    )
    for kind in ("checkpoints", "state"):
        assert digests(often.folder / kind / "00000020") == digests(
            whole.folder / kind / "00000020"
        )
    assert timeless_log(often) == timeless_log(whole)
    for name in ("best", "latest"):
        assert (often.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_finished_model_stays_the_best_until_another_is_better(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    run, recorder = Run(tmp_path / "run"), Recorder(signal_after=10)
    by_loss = {**COOLED, "train.validate_every": 3, "train.metric": "loss"}
    train(make_setup(run.folder, {**by_loss, "train.max_steps": 10}))
    assert run.pointer("best") == "00000010"
    finished = digests(run.checkpoint(10))
    more = {**by_loss, "train.max_steps": 1000}
    with pytest.raises(Killed):
        train(make_setup(run.folder, more), Recorder(kill_at=9))
    outcome = train(make_setup(run.folder, more), recorder)
    assert (outcome.step, outcome.best_step) == (11, 10)
    assert "finished model of step 10 stays the best" in recorder.messages[-1]
    (validation,) = recorder.validations  # better than all before the cooldown, not than its end
    assert (validation.step, validation.is_best) == (9, False)
    for name in set(finished) - {"manifest.json"}:
        assert digests(resolve(run.folder))[name] == finished[name]
    assert digests(run.checkpoint(10)) != finished  # this line's own
    outcome = train(make_setup(run.folder, {**by_loss, "train.max_steps": 40}))
    assert outcome.best_step > 10
    assert run.pointer("best") == f"{outcome.best_step:08d}"
    assert not list(run.folder.glob("checkpoints/*cooled"))


def test_a_shorter_limit_leaves_a_finished_run_as_it_is(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    train(make_setup(tmp_path / "run", {**COOLED, "train.max_steps": 10}))
    before = digests(tmp_path / "run")
    assert train(make_setup(tmp_path / "run", {**COOLED, "train.max_steps": 5})).step == 10
    assert digests(tmp_path / "run") == before


def test_a_run_does_not_go_back_to_a_state_that_is_damaged(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    finished = {**COOLED, "train.max_steps": 10}
    train(make_setup(run.folder, finished))
    tensors = run.state(8) / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(UserError, match=r"00000008: missing or damaged.*keep to the old limit"):
            train(make_setup(run.folder, COOLED))
        shutil.rmtree(run.state(8), ignore_errors=True)
    assert train(make_setup(run.folder, finished)).step == 10


def test_a_finished_cooldown_is_not_begun_again(make_setup: MakeSetup, tmp_path: Path) -> None:
    train(make_setup(tmp_path / "run", COOLED))
    before = digests(tmp_path / "run")
    assert train(make_setup(tmp_path / "run", COOLED)).step == 20
    assert digests(tmp_path / "run") == before
