import json
import subprocess

import pytest

from cli.options import search_config
from seq2seq.translator import Translator

NASTY = [
    b"",
    b"   ",
    b"\t",
    b"a dog",
    b"a\x0bdog\x0c\x1c\xc2\x85runs \xe2\x80\xa8 in",
    b"lone \r CR",
    b"windows\r",
    b"\x00\x1b[31m",
    "👩‍🚀 \u202eRTL\u202c ＮＦＤ é \ufeff".encode(),
    b"</s> <pad> <unk> <0x41> \xe2\x96\x81",
    b'{"json": "<html>"}',
    b"word " * 600,
]


@pytest.mark.parametrize("beam_size", ["1", "2"])
def test_every_line_in_is_a_line_out(tfm, model, beam_size):
    result = tfm("translate", "-m", model, "--beam-size", beam_size, stdin=b"\n".join(NASTY))
    assert result.code == 0
    assert result.out.count(b"\n") == len(NASTY)
    result.out.decode()
    assert result.out.split(b"\n")[:3] == NASTY[:3]


@pytest.mark.parametrize(("text", "n_lines"), [(b"", 0), (b"\n", 1), (b"a", 1), (b"a\n\n\nb", 4)])
def test_an_unfinished_last_line_counts_and_no_text_is_no_line(tfm, model, text, n_lines):
    assert tfm("translate", "-m", model, stdin=text).out.count(b"\n") == n_lines


def test_it_translates_as_the_library_does(tfm, model, pairs):
    sources = [source for source, _ in pairs]
    result = tfm("translate", "-m", model, "--beam-size", 3, stdin="\n".join(sources).encode())
    expected = Translator.load(model).translate(sources, beam_size=3)
    assert result.out.decode() == "".join(f"{line}\n" for line in expected)


def test_threads_change_no_translation(tfm, model, pairs):
    text = "\n".join(source for source, _ in pairs).encode()
    arguments = ["translate", "-m", model, "--precision", "fp64", "--batch-tokens", 100]
    assert tfm(*arguments, "--threads", 2, stdin=text).out == tfm(*arguments, stdin=text).out


def test_n_best_as_text_is_n_lines_for_each(tfm, model):
    arguments = ["translate", "-m", model, "--beam-size", 3]
    best = tfm(*arguments, stdin=b"a dog\n\nthe cat\n").out.decode().split("\n")
    three = tfm(*arguments, "--n-best", 3, stdin=b"a dog\n\nthe cat\n").out.decode().split("\n")
    assert len(three) == 3 * 3 + 1
    assert three[::3][:3] == best[:3]
    assert three[3:6] == ["", "", ""]


def test_jsonl_holds_sources_and_ranked_hypotheses(tfm, model):
    arguments = ["translate", "-m", model, "--beam-size", 3, "--n-best", 2, "--format", "jsonl"]
    lines = tfm(*arguments, stdin=b"a dog\n\n\xff\n").out.decode().split("\n")
    documents = [json.loads(line) for line in lines if line]
    assert [d["source"] for d in documents] == ["a dog", "", "\ufffd"]
    assert [len(d["hypotheses"]) for d in documents] == [2, 1, 2]
    for document in documents:
        scores = [h["score"] for h in document["hypotheses"]]
        assert scores == sorted(scores, reverse=True)
        assert all(h.keys() == {"text", "score", "log_prob"} for h in document["hypotheses"])


def test_tsv_has_line_rank_score_text(tfm, model):
    arguments = ["translate", "-m", model, "--beam-size", 2, "--n-best", 2, "--format", "tsv"]
    lines = tfm(*arguments, stdin=b"a\tdog\nthe cat\n").out.decode().split("\n")[:-1]
    rows = [line.split("\t") for line in lines]
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]
    assert all(len(row) == 4 and float(row[2]) <= 0 for row in rows)


def test_the_same_seed_draws_the_same(tfm, model):
    arguments = ["translate", "-m", model, "--sample", "--temperature", 2]
    once, again, other = (
        tfm(*arguments, "--seed", seed, stdin=b"a dog runs\n" * 5).out for seed in (1, 1, 2)
    )
    assert once == again != other


def test_output_goes_into_a_file(tfm, model, tmp_path):
    text = b"a dog\nthe cat\n"
    result = tfm("translate", "-m", model, "-o", "out", stdin=text)
    assert (result.code, result.out) == (0, b"")
    assert (tmp_path / "out").read_bytes() == tfm("translate", "-m", model, stdin=text).out


def test_lines_that_are_not_utf8_are_translated_and_named(tfm, model):
    result = tfm("translate", "-m", model, stdin=b"a\n\xff\nb\n\xed\xa0\x80\n")
    assert (result.code, result.out.count(b"\n")) == (0, 4)
    assert "tfm: warning: stdin: lines 2, 4: not UTF-8" in result.err


def test_a_long_line_is_translated_in_parts_and_named(tfm, model):
    result = tfm("translate", "-m", model, stdin=b"a\n" + b"dog " * 400)
    assert (result.code, result.out.count(b"\n")) == (0, 2)
    assert "stdin: line 2: longer than 256 tokens" in result.err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--beam-size", "0"], "--beam-size: 0 is out of range"),
        (["--n-best", "6"], "--n-best 6: is more than --beam-size 5"),
        (["--top-p", "1.5", "--sample"], "--top-p"),
        (["--temperature", "nan", "--sample"], "--temperature"),
        (["--temperature", "2"], "--temperature: is for sampling; add --sample"),
        (["--seed", "-1", "--sample"], "--seed"),
        (["--format", "xml"], "--format xml: is not one of text, tsv, jsonl"),
        (["--precision", "fp7"], "--precision fp7"),
        (["--device", "tpu"], "--device tpu"),
        (["-o", "missing/out"], "missing/out"),
        (["missing-file"], "missing-file"),
        (["-m", "missing-model"], "missing-model: no such folder; train a model first"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tfm, model, options, named):
    result = tfm("translate", "-m", model, *options, stdin=b"a dog\n")
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith("tfm: error: ")
    assert result.err.count("\n") == 1
    assert named in result.err


def test_options_that_were_not_given_leave_the_defaults():
    assert search_config({"beam_size": None, "n_best": None}) == search_config({})


def test_a_partner_at_the_other_end_of_a_pipe_gets_each_answer_at_once(entry, model):
    command = [*entry, "translate", "-m", str(model)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        for line in (b"a dog\n", b"\n", b"the cat\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\n")
    assert process.returncode == 0
