import pytest

TEXT = "a dog runs\n\n  two  spaces \n</s> <pad> ▁ ½ ﬁ é\u2028x\x0c\n\x00\x1b[31m\nlast".encode()


def test_decoding_gives_the_text_back(tfm, model):
    ids = tfm("encode", "-m", model, stdin=TEXT)
    assert ids.code == 0
    assert ids.out.count(b"\n") == TEXT.count(b"\n") + 1
    assert tfm("decode", "-m", model, stdin=ids.out).out == TEXT + b"\n"


@pytest.mark.parametrize("word", ["x", "-1", "1.5", "９", "99999", "1" * 5000])
def test_a_wrong_id_is_named_with_its_line(tfm, model, word):
    result = tfm("decode", "-m", model, stdin=f"7 8\n9 {word}\n".encode())
    assert result.code == 2
    assert result.err.startswith("tfm: error: stdin: line 2: ")
    assert word[:12] in result.err
    assert len(result.err) < 200
