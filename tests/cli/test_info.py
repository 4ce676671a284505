import os
import shutil
import subprocess
import sys

import pytest

from seq2seq.checkpoint import load_model, model_files, resolve
from seq2seq.run import Incumbent, Run


def test_it_tells_size_history_and_scores_of_a_run(tfm, model):
    text = tfm("info", "-m", model).out.decode()
    n_parameters = sum(w.numel() for w in load_model(model).weights.values())
    assert f"{n_parameters:,}" in text
    assert "20 steps" in text
    assert "BLEU" in text
    assert "best" in text


@pytest.mark.parametrize("place", ["best", "latest", "checkpoints/00000010"])
def test_it_tells_the_history_of_the_run_that_a_model_is_of(tfm, model, monkeypatch, place):
    expected = tfm("info", "-m", model).out.decode().split("\n")
    for where, path in ((model, place), ((model / place).parent, (model / place).name)):
        monkeypatch.chdir(where)
        lines = tfm("info", "-m", path).out.decode().split("\n")
        assert lines[0].endswith(resolve(model / place).name)
        assert lines[1:] == expected[1:]
    assert tfm("info", "--plot", "-m", path).out == tfm("info", "--plot", "-m", model).out


def test_it_tells_what_a_model_is_that_stands_alone(tfm, model, tmp_path):
    shutil.copytree(Run(model).checkpoint(20), tmp_path / "alone")
    (tmp_path / "alone" / "log.jsonl").write_bytes(Run(model).log.read_bytes())
    text = tfm("info", "-m", "alone").out.decode()
    assert "parameters" in text
    assert "BLEU" not in text


def test_a_finished_model_that_is_the_best_still_is_named(tfm, train_arguments, tmp_path):
    tfm(*train_arguments)
    run = Run(tmp_path / "run")
    last = load_model(run.checkpoint(20))
    files = model_files(last.config, last.weights, last.tokenizer)
    run.keep_incumbent(Incumbent(20, 1e9), files)
    text = tfm("info", "-m", "run").out.decode()
    assert "checkpoints/00000020-cooled" in text
    assert "step 20, finished before the run was given more time" in text
    assert "  best\n" not in text
    assert tfm("translate", "-m", "run", stdin=b"a dog\n").code == 0
    again = tfm(*train_arguments)
    assert "finished model of step 20 stays the best until another is better" in again.err
    assert "step 20 (finished before the run was given more time)" in again.err


def test_bleu_of_characters_is_not_shown_as_that_of_words(tfm, train_arguments, tmp_path):
    tfm(*train_arguments)
    log = Run(tmp_path / "run").log
    log.write_bytes(log.read_bytes().replace(b'"tokenize": "13a"', b'"tokenize": "char"'))
    words, characters = (tfm("info", "-m", "run", *o).out.decode() for o in ([], ["--plot"]))
    assert "  BLEU (char)    chrF" in words
    assert "validation BLEU (char)" in characters
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    other = Run(tmp_path / "other").log
    other.write_bytes(
        other.read_bytes().replace(b'"tokenize": "char"', b'"tokenize": "\\u001b[31m"')
    )
    both = tfm("info", "-m", "run", "--plot", "--compare", "other").out.decode()
    assert both.count("validation BLEU (char)") == both.count("validation BLEU\n") == 1


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(tfm, train_arguments, tmp_path):
    tfm(*train_arguments)
    complete = tfm("info", "-m", "run").out
    with (tmp_path / "run" / "log.jsonl").open("ab") as log:
        log.write(b'{"kind": "step", "step": "many"}\n[1]\n{"kind": "step", "st')
    assert tfm("info", "-m", "run").out == complete


def test_without_a_model_it_says_what_to_do(tfm, tmp_path):
    (tmp_path / "model").mkdir()
    result = tfm("info")
    assert result.code == 2
    assert "model: holds no model yet; train one with" in result.err


def test_learning_curves_are_drawn_on_standard_output(tfm, model):
    result = tfm("info", "-m", model, "--plot")
    assert (result.code, result.err) == (0, "")
    text = result.out.decode()
    for title in ("training loss", "validation perplexity", "validation BLEU", "learning rate"):
        assert title in text
    assert any("\u2800" < character <= "\u28ff" for character in text)
    assert b"\x1b" not in result.out


def test_curves_are_there_before_pytorch_is_loaded(model):
    program = (
        "import sys; from cli.app import main; main(sys.argv[1:]);"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "info", "-m", model / "latest", "--plot"]
    result = subprocess.run(command, capture_output=True, check=True)
    assert result.stdout.endswith(b"\n[]\n")


def test_a_dash_is_standard_output_too(tfm, model):
    assert tfm("info", "-m", model, "--plot", "-").out == tfm("info", "-m", model, "--plot").out


@pytest.mark.parametrize("options", [[], ["--plot"]])
def test_a_reader_of_numbers_or_curves_may_go_away(entry, model, options):
    reading, writing = os.pipe()
    os.close(reading)
    command = [*entry, "info", "-m", str(model), *options]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("name", ["curves.svg", "curves.html", "CURVES.SVG"])
def test_learning_curves_are_written_into_a_file(tfm, model, tmp_path, name):
    result = tfm("info", "-m", model, "--plot", name)
    assert (result.code, result.out) == (0, b"")
    assert b"validation BLEU" in (tmp_path / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_runs_are_compared_in_one_picture(tfm, model, tmp_path):
    other = tmp_path / "other run"
    shutil.copytree(model, other)
    assert tfm("info", "-m", model, "--plot", "both.svg", "--compare", other).code == 0
    assert (tmp_path / "both.svg").read_bytes().count(b"other run</text>") == 1
    out = tfm("info", "-m", model, "--plot", "--compare", other).out.decode()
    assert f"b {other}" in out


@pytest.mark.parametrize("n_bytes", [0, 1])
def test_a_log_that_tells_nothing_is_named(tfm, model, tmp_path, n_bytes):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_bytes(b"{" * n_bytes)
    result = tfm("info", "-m", "run", "--plot", "curves.svg")
    assert result.code == 2
    assert "run/log.jsonl: holds no training" in result.err
    assert not (tmp_path / "curves.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--plot", "curves.pdf"], "curves.pdf"),
        (["--plot", "/dev/null"], "/dev/null"),
        (["--plot", "missing/curves.svg"], "missing/curves.svg"),
        (["--plot", "--compare", "missing"], "missing/log.jsonl"),
        (["curves.svg"], "curves.svg: is for a picture; add --plot"),
        (["--compare", "x"], "--compare: is for a picture; add --plot"),
    ],
)
def test_a_picture_that_cannot_be_is_refused(tfm, model, arguments, named):
    result = tfm("info", "-m", model, *arguments)
    assert (result.code, result.out) == (2, b"")
    assert named in result.err
    assert result.err.count("\n") == 1


def test_a_model_in_the_place_of_the_picture_is_told_where_it_goes(tfm, model):
    result = tfm("info", model)
    assert result.code == 2
    assert f"{model}: is a folder; the model is named by -m {model}" in result.err
