from pathlib import Path

import pytest
import torch

from seq2seq.keeper import Keeper
from seq2seq.reports import Progress
from seq2seq.run import Incumbent, Run
from seq2seq.storage import publish_folder
from tokenizer.errors import UserError


def write_model(folder: Path) -> None:
    publish_folder(folder, {"model": folder.name.encode()})


def run_that_came_to(tmp_path: Path, *progresses: Progress) -> Run:
    """A run with a model and a state of each of these steps."""
    run = Run(tmp_path)
    for progress in progresses:
        Keeper(run, 9).save(progress, {"x": torch.zeros(1)}, {}, write_model)
    return run


BEGUN = Progress(step=8, best_step=8, best_score=1.0)
FINISHED = Progress(step=10, best_step=10, best_score=2.0)


def incumbents(run: Run) -> list[str]:
    return [path.name for path in run.folder.glob("checkpoints/*-cooled")]


def test_a_finished_model_becomes_the_incumbent(tmp_path: Path) -> None:
    run = run_that_came_to(tmp_path, BEGUN, FINISHED)
    keeper = Keeper(run, 9)
    keeper.take_back(FINISHED, 8)
    assert run.steps("state") == [8]
    keeper.resume(BEGUN, write_model)
    assert keeper.incumbent(BEGUN) == Incumbent(10, 2.0)
    assert keeper.best_step(BEGUN) == 10
    assert (run.pointer("best"), run.pointer("latest")) == ("00000010-cooled", "00000008")
    assert (run.named("00000010-cooled") / "model").read_bytes() == b"00000010"
    assert run.steps("checkpoints") == [8]


def test_a_model_from_before_the_cooldown_becomes_none(tmp_path: Path) -> None:
    worse = Progress(step=10, best_step=8, best_score=1.0)
    run = run_that_came_to(tmp_path, BEGUN, worse)
    keeper = Keeper(run, 9)
    keeper.take_back(worse, 8)
    keeper.resume(BEGUN, write_model)
    assert keeper.incumbent(BEGUN) is None
    assert (run.pointer("best"), incumbents(run)) == ("00000008", [])


@pytest.mark.parametrize(
    ("score", "kept"), [(1.5, "00000010"), (2.0, "00000020"), (3.0, "00000020")]
)
def test_of_two_finished_models_the_better_one_stays(
    score: float, kept: str, tmp_path: Path
) -> None:
    run = run_that_came_to(tmp_path, BEGUN, FINISHED)
    keeper = Keeper(run, 9)
    keeper.take_back(FINISHED, 8)
    keeper.resume(BEGUN, write_model)
    again = Progress(step=20, best_step=20, best_score=score)
    keeper.save(again, {"x": torch.zeros(1)}, {}, write_model)
    keeper.take_back(again, 16)
    assert run.pointer("best") == f"{kept}-cooled"
    assert incumbents(run) == [f"{kept}-cooled"]


def test_what_beats_the_incumbent_takes_its_place(tmp_path: Path) -> None:
    run = run_that_came_to(tmp_path, BEGUN, FINISHED)
    keeper = Keeper(run, 9)
    keeper.take_back(FINISHED, 8)
    keeper.resume(BEGUN, write_model)
    own = Progress(step=10, best_step=10, best_score=1.5)  # another model, at the same step
    keeper.save(own, {"x": torch.zeros(1)}, {}, write_model)
    assert run.pointer("best") == "00000010-cooled"
    assert run.steps("checkpoints") == [8, 10]
    keeper.save(
        Progress(step=12, best_step=12, best_score=2.5), {"x": torch.zeros(1)}, {}, write_model
    )
    assert (run.pointer("best"), incumbents(run)) == ("00000012", [])


def test_taking_back_may_be_killed_and_done_again(tmp_path: Path) -> None:
    run = run_that_came_to(tmp_path, BEGUN, FINISHED)
    run.keep_incumbent(Incumbent(10, 2.0))
    run.point("best", 10)  # killed before this was changed
    Keeper(run, 9).take_back(FINISHED, 8)
    assert run.pointer("best") == "00000010-cooled"


def test_with_the_old_limit_a_run_is_as_finished_as_before(tmp_path: Path) -> None:
    run = run_that_came_to(tmp_path, BEGUN, FINISHED)
    run.keep_incumbent(Incumbent(10, 2.0))  # killed before the states were removed
    Keeper(run, 9).resume(FINISHED, write_model)
    assert (run.pointer("best"), incumbents(run)) == ("00000010", [])


@pytest.mark.parametrize("score", [b"", b"[]", b'{"score": "high"}'])
def test_a_score_that_is_none_is_refused(score: bytes, tmp_path: Path) -> None:
    run = Run(tmp_path)
    publish_folder(run.named("00000010-cooled"), {"score.json": score})
    with pytest.raises(UserError, match=r"00000010-cooled/score\.json"):
        run.incumbent()
