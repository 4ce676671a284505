import hashlib

import pytest

from cli.verify import compare
from seq2seq.run import Run


def everything_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def two_runs(tmp_path):
    """Two folders of runs whose sixth step holds the same bytes."""
    for name in ("through", "killed"):
        for folder in ("checkpoints", "state"):
            file = tmp_path / name / folder / "00000006" / "data"
            file.parent.mkdir(parents=True)
            file.write_bytes(b"weights")
    return tmp_path / "through", tmp_path / "killed"


def test_equal_files_are_equal(two_runs, capfd):
    assert compare(*two_runs) == 0
    out = capfd.readouterr().out
    digest = hashlib.sha256(b"weights").hexdigest()
    assert out == f"{digest}  checkpoints/00000006/data\n{digest}  state/00000006/data\nequal\n"


@pytest.mark.parametrize("change", ["another byte", "no such file", "one more file"])
def test_a_file_that_differs_is_named(two_runs, capfd, change):
    file = two_runs[1] / "state" / "00000006" / "data"
    match change:
        case "another byte":
            file.write_bytes(b"weighty")
        case "no such file":
            file.unlink()
        case _:
            file = file.with_name("more")
            file.write_bytes(b"")
    assert compare(*two_runs) == 3
    out, err = capfd.readouterr()
    assert out.endswith("different\n")
    assert f"resuming is not exact here: state/00000006/{file.name}\n" in err


def test_what_cannot_be_trained_is_refused_before_anything_starts(tfm, train_arguments, tmp_path):
    result = tfm(*train_arguments, "--verify-resume", "--set", "model.n_heads=3")
    assert result.code == 2
    assert "n_heads = 3" in result.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("end", [[], ["--"]])
def test_what_a_run_refuses_later_is_passed_on(tfm, train_arguments, tmp_path, end):
    result = tfm(*train_arguments, "--verify-resume", "--set", "model.vocab_size=299", *end)
    assert result.code == 2
    assert "tfm: error: model.vocab_size = 299, but the tokenizer" in result.err
    assert not (tmp_path / "run").exists()


def test_torchrun_is_left_out(tfm, train_arguments, monkeypatch):
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = tfm(*train_arguments, "--verify-resume")
    assert result.code == 2
    assert "leave torchrun out" in result.err


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resuming_is_exact_and_the_run_itself_is_not_touched(
    tfm, train_arguments, tmp_path, monkeypatch, threads
):
    settings = ["data.bpe_dropout=0.1", "optim.accumulate=2", "train.ema=0.9"]
    more = [word for setting in settings for word in ("--set", setting)]
    run = Run(tmp_path / "run")
    tfm(*train_arguments, *more, "--max-steps", 3, "--threads", 1)
    before = everything_in(run.folder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    result = tfm(*train_arguments, *more, "--threads", threads, "--overwrite", "--verify-resume")
    assert result.code == 0
    assert result.out.endswith(b"\nequal\n")
    assert "killed while step 3 was being saved" in result.err
    assert "killed after update 4, which was not saved" in result.err
    assert b"checkpoints/00000006/model.safetensors" in result.out
    assert everything_in(run.folder) == before
    assert not any(scratch.iterdir())
