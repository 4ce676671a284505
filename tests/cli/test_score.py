import pytest

from seq2seq.translator import Translator


def test_scores_are_log_probabilities_of_the_pairs_in_order(tfm, model, parallel, pairs):
    src, tgt = parallel
    result = tfm("score", "--src", src, "--tgt", tgt, "-m", model, "--precision", "fp32")
    scores = [float(line) for line in result.out.split()]
    expected = [t.log_prob for t in Translator.load(model, precision="fp32").score(pairs)]
    assert scores == pytest.approx(expected, abs=2e-6)
    assert max(scores) < 0


def test_a_blank_source_counts_and_scores_nothing(tfm, model, tmp_path):
    (tmp_path / "src").write_bytes(b"\na dog\n")
    (tmp_path / "tgt").write_bytes(b"x\ny\n")
    result = tfm("score", "--src", "src", "--tgt", "tgt", "-m", model)
    assert result.out.split(b"\n")[0] == b"0.000000"
    assert result.out.count(b"\n") == 2


def test_files_that_differ_in_length_are_named_with_their_counts(tfm, model, parallel, tmp_path):
    (tmp_path / "short").write_bytes(b"one\n")
    result = tfm("score", "--src", parallel[0], "--tgt", "short", "-m", model)
    assert (result.code, result.out) == (2, b"")
    assert "has 200 lines and short has 1" in result.err


def test_a_line_that_is_too_long_is_named(tfm, model, tmp_path):
    (tmp_path / "src").write_bytes(b"a\n" + b"dog " * 400 + b"\n")
    (tmp_path / "tgt").write_bytes(b"a\nb\n")
    result = tfm("score", "--src", "src", "--tgt", "tgt", "-m", model)
    assert result.code == 2
    assert "src, tgt: line 2: " in result.err
