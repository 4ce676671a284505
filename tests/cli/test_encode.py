import shutil

import pytest

from seq2seq.checkpoint import resolve
from tokenizer import bpe


def test_text_that_reads_like_a_control_token_is_text(tfm, model):
    ids = tfm("encode", "-m", model, stdin=b"alpha </s> <pad> beta\n").out.split()
    assert min(map(int, ids)) >= 5


def test_pieces_join_to_the_text(tfm, model):
    pieces = tfm("encode", "-m", model, "--pieces", stdin=b"a dog runs\n").out.decode().split()
    assert "".join(pieces).replace("▁", " ").strip() == "a dog runs"


def test_a_file_and_standard_input_are_the_same(tfm, model, parallel):
    src, _ = parallel
    from_file = tfm("encode", "-m", model, src)
    assert from_file.out == tfm("encode", "-m", model, stdin=src.read_bytes()).out
    assert from_file.out == tfm("encode", "-m", model, "-", stdin=src.read_bytes()).out


def test_the_environment_names_the_model(tfm, model, monkeypatch, tmp_path):
    monkeypatch.setenv("TFM_MODEL", str(model))
    assert tfm("encode", stdin=b"a dog\n").code == 0
    (tmp_path / "a:b").symlink_to(model)
    monkeypatch.setenv("TFM_MODEL", str(tmp_path / "a:b"))
    for command in ("encode", "translate", "info"):
        assert tfm(command, stdin=b"a dog\n").code == 0


def test_a_line_that_is_not_utf8_is_named(tfm, model):
    result = tfm("encode", "-m", model, stdin=b"fine\nnot \xff fine\n")
    assert result.code == 2
    assert "stdin: line 2: not UTF-8" in result.err


def test_without_a_tokenizer_it_says_what_to_do(tfm):
    result = tfm("encode", stdin=b"a\n")
    assert result.code == 2
    assert "tfm train-tokenizer" in result.err


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_tokenizer_that_is_not_that_of_its_model_is_refused(tfm, model, tmp_path, command):
    shutil.copytree(resolve(model), tmp_path / "copy")
    assert tfm(command, "-m", "copy", stdin=b"7 8\n").code == 0
    bpe.train(["another text"], 300).save(tmp_path / "copy" / "tokenizer")
    result = tfm(command, "-m", "copy", stdin=b"7 8\n")
    assert result.code == 2
    assert "tfm: error: copy/tokenizer/tokenizer.json: " in result.err
