import shutil
import sys

import pytest

from seq2seq.run import Run

needs_tensorboard = pytest.mark.filterwarnings("default")


def scalars(folder, tag):
    """The values that TensorBoard shows: step and value."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@needs_tensorboard
def test_tensorboard_shows_each_step_of_a_resumed_run_once(tfm, train_arguments, tmp_path):
    pytest.importorskip("tensorboard")
    run = Run(tmp_path / "run")
    assert tfm(*train_arguments, "--tensorboard").code == 0
    once = scalars(run.events, "train/loss")
    shutil.rmtree(run.state(20))  # as if it had been killed before the last save
    assert tfm(*train_arguments, "--tensorboard").code == 0
    assert len(list(run.events.iterdir())) == 2
    assert scalars(run.events, "train/loss") == once
    assert [step for step, _ in once] == [5, 10, 15, 16, 20]
    assert [step for step, _ in scalars(run.events, "validation/BLEU")] == [10, 20]


@needs_tensorboard
def test_a_run_may_go_on_without_event_files_and_overwriting_removes_them(
    tfm, train_arguments, tmp_path
):
    pytest.importorskip("tensorboard")
    run = Run(tmp_path / "run")
    assert tfm(*train_arguments, "--set", "train.tensorboard=true", "--max-steps", 5).code == 0
    assert tfm(*train_arguments, "--max-steps", 10).code == 0
    assert len(list(run.events.iterdir())) == 1
    assert tfm(*train_arguments, "--overwrite", "--max-steps", 5).code == 0
    assert not run.events.exists()


@needs_tensorboard
def test_training_survives_event_files_that_cannot_be_written(tfm, train_arguments, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_bytes(b"in the way")
    result = tfm(*train_arguments, "--tensorboard")
    assert result.code == 0
    assert result.err.count("event files could not be written") == 1
    assert Run(tmp_path / "run").steps("checkpoints") == [10, 16, 20]


def test_without_tensorboard_the_extra_is_named(tfm, train_arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = tfm(*train_arguments, "--tensorboard")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "pip install 'tfm[tensorboard]'" in result.err
    assert not (tmp_path / "run").exists()
