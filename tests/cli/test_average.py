import pytest

from seq2seq.checkpoint import load_model
from seq2seq.run import Run


@pytest.fixture
def checkpoints(model):
    run = Run(model)
    return [run.checkpoint(step) for step in run.steps("checkpoints")]


def test_the_command_writes_a_model_that_translates(tfm, checkpoints, tmp_path):
    result = tfm("average", *checkpoints, "-o", "mean")
    assert (result.code, result.out) == (0, b"")
    assert load_model(tmp_path / "mean").weights.keys() == load_model(checkpoints[0]).weights.keys()
    assert tfm("translate", "-m", "mean", stdin=b"a dog\n").out.count(b"\n") == 1


def test_models_that_do_not_belong_together_are_named(tfm, checkpoints, train_arguments, tmp_path):
    tfm(*train_arguments, "--max-steps", 1, "--set", "model.d_ff=48")
    result = tfm("average", checkpoints[0], "run", "-o", "mean")
    assert result.code == 2
    assert "another shape" in result.err
    assert not (tmp_path / "mean").exists()


def test_nothing_is_overwritten(tfm, checkpoints, tmp_path):
    (tmp_path / "mean").mkdir()
    result = tfm("average", *checkpoints, "-o", "mean")
    assert result.code == 2
    assert "mean: exists already" in result.err


@pytest.mark.parametrize("place", ["checkpoints/00000099", "checkpoints/a/b", "state/a"])
def test_nothing_is_added_to_a_run(tfm, model, checkpoints, place):
    before = set(model.rglob("*"))
    result = tfm("average", *checkpoints, "-o", model / place)
    assert result.code == 2
    assert f"{place}: only training writes into {model}" in result.err
    assert set(model.rglob("*")) == before
