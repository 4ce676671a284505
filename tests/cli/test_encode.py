import pytest

TEXT = "a dog runs\n\n  two  spaces \n</s> <pad> ▁ ½ ﬁ é\u2028x\x0c\n\x00\x1b[31m\nlast".encode()


def test_decoding_gives_the_text_back(tfm, model):
    ids = tfm("encode", "-m", model, stdin=TEXT)
    assert ids.code == 0
    assert ids.out.count(b"\n") == TEXT.count(b"\n") + 1
    assert tfm("decode", "-m", model, stdin=ids.out).out == TEXT + b"\n"


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


def test_the_environment_names_the_model(tfm, model, monkeypatch):
    monkeypatch.setenv("TFM_MODEL", str(model))
    assert tfm("encode", stdin=b"a dog\n").code == 0


def test_a_line_that_is_not_utf8_is_named(tfm, model):
    result = tfm("encode", "-m", model, stdin=b"fine\nnot \xff fine\n")
    assert result.code == 2
    assert "stdin: line 2: not UTF-8" in result.err


def test_without_a_tokenizer_it_says_what_to_do(tfm):
    result = tfm("encode", stdin=b"a\n")
    assert result.code == 2
    assert "tfm train-tokenizer" in result.err


@pytest.mark.parametrize("word", ["x", "-1", "1.5", "９", "99999", "1" * 5000])
def test_a_wrong_id_is_named_with_its_line(tfm, model, word):
    result = tfm("decode", "-m", model, stdin=f"7 8\n9 {word}\n".encode())
    assert result.code == 2
    assert result.err.startswith("tfm: error: stdin: line 2: ")
    assert word[:12] in result.err
    assert len(result.err) < 200
