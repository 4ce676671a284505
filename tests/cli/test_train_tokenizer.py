import os
import shutil
import threading

import pytest

from seq2seq.run import Run
from tokenizer.folder import load_tokenizer


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--library", "sentencepiece"],
        ["--algorithm", "unigram"],
        ["--algorithm", "unigram", "--library", "sentencepiece"],
    ],
)
def test_it_writes_a_tokenizer_of_the_size_it_tells(tfm, parallel, tmp_path, options):
    result = tfm("train-tokenizer", *parallel, "--vocab-size", 300, *options)
    assert (result.code, result.out) == (0, b"")
    tokenizer = load_tokenizer(tmp_path / "model" / "tokenizer")
    assert f"{tokenizer.vocab_size:,} pieces" in result.err
    assert tokenizer.decode(tokenizer.encode("a dog")) == "a dog"


def test_it_says_so_when_the_text_has_fewer_pieces(tfm, parallel):
    result = tfm("train-tokenizer", *parallel, "--vocab-size", 5000)
    assert result.code == 0
    assert "5,000 asked for; the text has no more" in result.err


def test_a_pipe_is_read_once(tfm, parallel, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    text = parallel[0].read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[text])
    writer.start()
    result = tfm("train-tokenizer", "pipe", "--vocab-size", 300)
    writer.join()
    assert result.code == 0


def test_a_tokenizer_that_is_there_stays_unless_told_otherwise(tfm, parallel, tmp_path):
    arguments = ["train-tokenizer", *parallel, "--vocab-size"]
    tfm(*arguments, 300)
    path = tmp_path / "model" / "tokenizer" / "tokenizer.json"
    before = path.read_bytes()
    refused = tfm(*arguments, 290)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert path.read_bytes() == before
    assert tfm(*arguments, 290, "--overwrite").code == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize("name", ["tokenizer/mycode.py", "tokenizer", "lock"])
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_what_is_no_tokenizer_is_never_replaced(tfm, parallel, tmp_path, name, options):
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"years of work")
    result = tfm("train-tokenizer", *parallel, "--vocab-size", 300, *options)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"tfm: error: model/{name}: is not")
    assert "move it" in result.err
    assert [p for p in (tmp_path / "model").rglob("*") if p.is_file()] == [path]
    assert path.read_bytes() == b"years of work"


def test_the_tokenizer_of_a_trained_model_stays_in_any_case(tfm, parallel, model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    result = tfm("train-tokenizer", *parallel, "-m", "copy", "--vocab-size", 290, "--overwrite")
    assert result.code == 2
    assert "holds a trained model" in result.err


def test_the_tokenizer_of_a_run_that_can_go_on_stays_in_any_case(tfm, parallel, model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints")
    result = tfm("train-tokenizer", *parallel, "-m", "copy", "--vocab-size", 290, "--overwrite")
    assert result.code == 2
    assert "holds a trained model" in result.err


@pytest.mark.parametrize("missing", ["", "tokenizer", "manifest.json", "config.json"])
def test_a_folder_of_a_model_is_no_place_for_a_tokenizer(tfm, parallel, model, tmp_path, missing):
    shutil.copytree(Run(model).checkpoint(20), tmp_path / "copy", ignore=lambda *_: [missing])
    before = sorted((tmp_path / "copy").rglob("*"))
    result = tfm("train-tokenizer", *parallel, "-m", "copy", "--vocab-size", 290, "--overwrite")
    assert result.code == 2
    assert "copy: is a model, not a run; choose another -m" in result.err
    assert sorted((tmp_path / "copy").rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "no text to train a tokenizer on"),
        (b"\n" * 50, [], "no text to train a tokenizer on"),
        (b"a\n" * 6 + b"\xff\n", [], "text: line 7: not UTF-8"),
        (b"a dog\n", ["--vocab-size", "3"], "vocab size 3: must be from 261"),
        (b"a dog\n", ["--algorithm", "wordpiece"], "algorithm wordpiece"),
        (b"a dog\n", ["--library", "mine"], "library mine"),
    ],
)
def test_failure_leaves_nothing_behind(tfm, tmp_path, content, options, message):
    (tmp_path / "text").write_bytes(content)
    result = tfm("train-tokenizer", "text", *options)
    assert result.code == 2
    assert message in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_what_a_killed_writer_left_is_swept(tfm, parallel, tmp_path):
    (tmp_path / "run/.tmp-1-ab").mkdir(parents=True)
    assert tfm("train-tokenizer", *parallel, "-m", "run", "--vocab-size", 300).code == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"lock", "tokenizer"}
