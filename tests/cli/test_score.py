import json
import re

import pytest

from seq2seq.checkpoint import load_model
from seq2seq.export import export_engine
from seq2seq.translator import Translator


def test_scores_are_log_probabilities_of_the_pairs_in_order(tfm, model, parallel, pairs):
    src, tgt = parallel
    result = tfm("score", "--src", src, "--tgt", tgt, "-m", model, "--precision", "fp32")
    scores = [float(line) for line in result.out.split()]
    expected = [t.log_prob for t in Translator.load(model, precision="fp32").score(pairs)]
    assert scores == pytest.approx(expected, abs=2e-6)
    assert max(scores) < 0


def test_given_tokens_are_as_probable_as_the_search_found_them(tfm, model, parallel):
    src, tgt = parallel
    options = ["-m", model, "--format", "jsonl", "--token-scores"]
    found = tfm("translate", src, "--prefix-file", tgt, "--beam-size", 1, *options).out
    scored = tfm("score", "--src", src, "--tgt", tgt, *options, "--length-penalty", 0).out
    for one, other in zip(found.split(b"\n")[:-1], scored.split(b"\n")[:-1], strict=True):
        (a,), (b,) = json.loads(one)["hypotheses"], json.loads(other)["hypotheses"]
        assert json.loads(one)["source"] == json.loads(other)["source"]
        assert list(a) == list(b)
        assert b["tokens"][-1] == "</s>"
        n = len(b["tokens"]) - 1
        assert a["tokens"][:n] == b["tokens"][:n]
        assert a["token_log_probs"][:n] == pytest.approx(b["token_log_probs"][:n], abs=1e-4)
        assert b["score"] == b["log_prob"]  # without a penalty


def test_a_table_has_line_rank_score_text(tfm, model, parallel, pairs):
    result = tfm(
        "score", "--src", parallel[0], "--tgt", parallel[1], "-m", model, "--format", "tsv"
    )
    rows = [line.split("\t") for line in result.out.decode().split("\n")[:-1]]
    assert [row[0] for row in rows] == [str(i + 1) for i in range(200)]
    assert [row[3] for row in rows] == [target for _, target in pairs]


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


@pytest.mark.parametrize("form", ["text", "tsv", "jsonl"])
def test_an_export_for_ctranslate2_scores_as_the_model_does(tfm, model, parallel, tmp_path, form):
    export_engine(load_model(model), "float32", tmp_path / "out")
    src, tgt = (path.read_bytes().split(b"\n")[:30] for path in parallel)
    (tmp_path / "src").write_bytes(b"\n".join([*src, b"", b" ", b"a dog", b"dog " * 200, b"\r"]))
    (tmp_path / "tgt").write_bytes(b"\n".join([*tgt, b"", b"a", b"", b"cat " * 200, b"\r"]))
    options = ["--src", "src", "--tgt", "tgt", "--format", form]
    options += ["--token-scores"] if form == "jsonl" else []
    ours, theirs = (tfm("score", "-m", folder, *options) for folder in (model, "out"))
    assert (theirs.code, theirs.err) == (0, ours.err)
    number = re.compile(rb"-?[0-9]+\.[0-9]+")
    scores, expected = ([float(x) for x in number.findall(r.out)] for r in (theirs, ours))
    assert len(scores) >= 35
    assert scores == pytest.approx(expected, abs=1e-4, rel=1e-6)
    assert number.sub(b"", theirs.out) == number.sub(b"", ours.out)


def test_an_export_for_ctranslate2_refuses_what_is_too_long_too(tfm, model, tmp_path):
    export_engine(load_model(model), "int8", tmp_path / "out")
    (tmp_path / "src").write_bytes(b"a\n" + b"dog " * 400 + b"\n")
    (tmp_path / "tgt").write_bytes(b"a\nb\n")
    ours, theirs = (
        tfm("score", "-m", folder, "--src", "src", "--tgt", "tgt") for folder in (model, "out")
    )
    assert (theirs.code, theirs.out, theirs.err) == (2, b"", ours.err)
