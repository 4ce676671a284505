import dataclasses
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seq2seq.checkpoint import load_model, resolve, save_model
from seq2seq.keeper import Keeper
from seq2seq.model import Transformer
from seq2seq.progress import Cooldown, Progress
from seq2seq.run import Incumbent, Run
from seq2seq.storage import publish_folder
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import publish_file

WriteModel = Callable[[Path], None]
STATE = {"x": torch.zeros(1)}
BEGUN = Progress(step=8, best_step=8, best_score=1.0)
FINISHED = Progress(
    step=10, best_step=10, best_score=2.0, cooldown=Cooldown(8, 2, "max_steps", 10.0, 8)
)


@pytest.fixture
def write_model(small_model: Transformer, small_tokenizer: Tokenizer) -> WriteModel:
    """Publish a model whose weights say in which folder it was made."""

    def write(folder: Path) -> None:
        step = float(folder.name)
        weights = {name: torch.full_like(w, step) for name, w in small_model.named_parameters()}
        save_model(folder, small_model.config, weights, small_tokenizer)

    return write


@pytest.fixture
def finished(tmp_path: Path, write_model: WriteModel) -> Run:
    """A run with a cooldown from step 8 to step 10, which made the best model."""
    run = Run(tmp_path / "run")
    for progress in (BEGUN, FINISHED):
        Keeper(run, 3).save(progress, STATE, {}, write_model)
    assert run.pointer("best") == "00000010"
    return run


def taken_back(run: Run, write_model: WriteModel) -> Keeper:
    keeper = Keeper(run, 3)
    keeper.take_back(FINISHED, 8, write_model)
    keeper.resume(BEGUN, write_model)
    return keeper


def best_weights(run: Run) -> float:
    """Which step the best model was made at."""
    return float(next(iter(load_model(run.folder).weights.values())).max())


def incumbents(run: Run) -> list[str]:
    return [path.name for path in run.folder.glob("checkpoints/*-cooled")]


def test_a_finished_model_becomes_the_incumbent(finished: Run, write_model: WriteModel) -> None:
    keeper = taken_back(finished, write_model)
    assert keeper.unbeaten(BEGUN) == Incumbent(10, 2.0)
    assert keeper.best_step(BEGUN) == 10
    assert (finished.pointer("best"), finished.pointer("latest")) == (
        "00000010-cooled",
        "00000008",
    )
    assert best_weights(finished) == 10.0
    assert (finished.steps("state"), finished.steps("checkpoints")) == ([8], [8])


def test_a_model_from_before_the_cooldown_becomes_none(
    finished: Run, write_model: WriteModel
) -> None:
    keeper = Keeper(finished, 3)
    keeper.take_back(dataclasses.replace(FINISHED, best_step=8, best_score=1.0), 8, write_model)
    keeper.resume(BEGUN, write_model)
    assert keeper.unbeaten(BEGUN) is None
    assert (finished.pointer("best"), incumbents(finished)) == ("00000008", [])


@pytest.mark.parametrize(("score", "kept"), [(1.5, 10), (2.0, 20), (3.0, 20)])
def test_of_two_finished_models_the_better_one_stays(
    score: float, kept: int, finished: Run, write_model: WriteModel
) -> None:
    keeper = taken_back(finished, write_model)
    again = Progress(step=20, best_step=20, best_score=score)
    keeper.save(again, STATE, {}, write_model)
    keeper.take_back(again, 16, write_model)
    assert finished.pointer("best") == f"{kept:08d}-cooled"
    assert incumbents(finished) == [f"{kept:08d}-cooled"]
    assert best_weights(finished) == kept


def test_what_beats_the_incumbent_takes_its_place(finished: Run, write_model: WriteModel) -> None:
    keeper = taken_back(finished, write_model)
    own = Progress(step=10, best_step=10, best_score=1.5)  # another model, at the same step
    keeper.save(own, STATE, {}, write_model)
    assert finished.pointer("best") == "00000010-cooled"
    assert finished.steps("checkpoints") == [8, 10]
    better = Progress(step=12, best_step=12, best_score=2.5)
    keeper.save(better, STATE, {}, write_model)
    assert (finished.pointer("best"), incumbents(finished)) == ("00000012", [])
    assert keeper.best_step(better) == 12


@pytest.mark.parametrize("pointer", ["00000010", "00000010-cooled"])
def test_taking_back_may_be_killed_and_done_again(
    pointer: str, finished: Run, write_model: WriteModel
) -> None:
    keeper = Keeper(finished, 3)
    keeper.take_back(FINISHED, 8, write_model)
    publish_folder(finished.state(10), {"as if": b"it were there still"})
    publish_file(finished.folder / "best", pointer.encode())
    keeper.take_back(FINISHED, 8, write_model)
    assert finished.pointer("best") == "00000010-cooled"
    assert finished.steps("state") == [8]


def test_with_the_old_limit_a_run_is_as_finished_as_before(
    finished: Run, write_model: WriteModel
) -> None:
    Keeper(finished, 3).take_back(FINISHED, 8, write_model)  # killed before states were removed
    Keeper(finished, 3).resume(FINISHED, write_model)
    assert (finished.pointer("best"), incumbents(finished)) == ("00000010", [])


def test_a_model_that_a_kill_left_out_is_made_before_the_run_goes_back(
    finished: Run, write_model: WriteModel
) -> None:
    shutil.rmtree(finished.checkpoint(10))
    finished.point("best", 8)
    taken_back(finished, write_model)
    assert finished.pointer("best") == "00000010-cooled"
    assert best_weights(finished) == 10.0


def test_a_damaged_model_is_named_before_anything_is_removed(
    finished: Run, write_model: WriteModel
) -> None:
    weights = finished.checkpoint(10) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"remove the folder .*00000010 to go on without it"):
        Keeper(finished, 3).take_back(FINISHED, 8, write_model)
    assert finished.steps("state") == [8, 10]


def test_what_best_does_not_name_is_no_incumbent(finished: Run, write_model: WriteModel) -> None:
    publish_folder(finished.named("00000099-cooled"), {"score.json": b'{"score": 9.0}'})
    keeper = Keeper(finished, 3)
    keeper.resume(FINISHED, write_model)
    assert keeper.unbeaten(FINISHED) is None
    assert (finished.pointer("best"), incumbents(finished)) == ("00000010", [])


def test_a_new_beginning_forgets_the_incumbent(finished: Run, write_model: WriteModel) -> None:
    taken_back(finished, write_model)
    keeper = Keeper(finished, 3)
    keeper.begin()
    assert (finished.pointer("best"), incumbents(finished)) == (None, [])


def former(run: Run) -> list[str]:
    return [path.name for path in run.folder.glob("checkpoints/*-former")]


@pytest.mark.parametrize("is_taken_back", [False, True])
def test_a_run_that_is_begun_anew_keeps_its_best_model_until_it_has_another(
    is_taken_back: bool, finished: Run, write_model: WriteModel
) -> None:
    if is_taken_back:
        taken_back(finished, write_model)
    for _ in range(2):  # as if it had been killed
        Keeper(finished, 3).clear()
        assert (best_weights(finished), former(finished)) == (10.0, ["00000010-former"])
        names = {
            path.name for path in finished.folder.rglob("*") if path.parent.name != "tokenizer"
        }
        assert not names & {"00000008", "00000010", "00000010-cooled", "state.json", "latest"}
    keeper = Keeper(finished, 3)
    keeper.begin()
    keeper.save(Progress(step=4), STATE, {}, write_model)
    assert (finished.pointer("latest"), best_weights(finished)) == ("00000004", 10.0)
    keeper = Keeper(finished, 3)
    keeper.check(4)
    keeper.resume(Progress(step=4), write_model)
    assert best_weights(finished) == 10.0
    keeper.save(Progress(step=10, best_step=10, best_score=0.1), STATE, {}, write_model)
    assert (finished.pointer("best"), former(finished)) == ("00000010", [])


@pytest.mark.parametrize("what", ["model", "pointer", "nothing"])
def test_what_cannot_be_used_is_not_kept_of_a_run_that_is_begun_anew(
    what: str, finished: Run
) -> None:
    if what == "model":
        (finished.checkpoint(10) / "model.safetensors").write_bytes(b"")
    elif what == "pointer":
        (finished.folder / "best").write_bytes(b"\xff")
    else:
        (finished.folder / "best").unlink()
    Keeper(finished, 3).clear()
    assert not list(finished.folder.iterdir())


def test_a_disk_too_full_for_a_copy_leaves_the_best_model_of_a_run_begun_anew(
    finished: Run,
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))  # bytes of a file
    try:
        with pytest.raises(UserError, match="00000010-former: could not be written"):
            Keeper(finished, 3).clear()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert best_weights(finished) == 10.0
    assert finished.steps("state") == [8, 10]
    Keeper(finished, 3).clear()
    assert best_weights(finished) == 10.0


def test_best_never_names_what_is_not_there(finished: Run, write_model: WriteModel) -> None:
    keeper = Keeper(finished, 1)
    lost = Progress(step=9, best_step=7, best_score=1.0)  # whose model is gone
    keeper.resume(lost, write_model)
    assert resolve(finished.folder) == finished.checkpoint(10)  # what it named stays
    shutil.rmtree(finished.checkpoint(10))
    keeper.resume(lost, write_model)
    assert resolve(finished.folder) == finished.checkpoint(9)


def test_in_a_cooldown_stays_what_going_back_needs(tmp_path: Path, write_model: WriteModel) -> None:
    run = Run(tmp_path / "run")
    keeper = Keeper(run, 2)
    cooldown = Cooldown(start=4, n=9, kind="max_steps", value=13.0, best_step=2)
    for step in (2, 4, 6, 8, 10):
        progress = Progress(step, best_step=step, best_score=step / 10)
        if step > 4:
            progress = dataclasses.replace(progress, cooldown=cooldown)
        keeper.save(progress, STATE, {}, write_model)
    assert run.steps("checkpoints") == [2, 10]
    assert run.steps("state") == [4, 8, 10]


@pytest.mark.parametrize("score", [b"", b"[]", b'{"score": "high"}'])
def test_a_score_that_is_none_is_refused_with_a_remedy(score: bytes, tmp_path: Path) -> None:
    run = Run(tmp_path)
    publish_folder(run.named("00000010-cooled"), {"score.json": score})
    publish_file(run.folder / "best", b"00000010-cooled")
    with pytest.raises(UserError, match=r"score\.json.*; remove the folder .*00000010-cooled"):
        run.incumbent()
    (run.named("00000010-cooled") / "score.json").unlink()
    with pytest.raises(UserError, match=r"score\.json.*; remove the folder .*00000010-cooled"):
        run.incumbent()
