import gzip
import inspect
import random
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli.translate import translate
from seq2seq.checkpoint import load_model, save_model
from seq2seq.config import ModelConfig
from seq2seq.export import export_engine
from seq2seq.model import Transformer
from seq2seq.translator import Translator
from tokenizer import bpe
from tokenizer.special import BOS, MASK, PAD, UNK

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
    assert result.out.split(b"\n")[:3] == [b""] * 3


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


def test_the_same_seed_draws_the_same(tfm, model):
    arguments = ["translate", "-m", model, "--sample", "--temperature", 2]
    once, again, other = (
        tfm(*arguments, "--seed", seed, stdin=b"a dog runs\n" * 5).out for seed in (1, 1, 2)
    )
    assert once == again != other


SOURCES, PREFIXES = b"a dog\nthe cat\n\na man\n", b"big cat\n\n\n  in the\n"


def test_translations_begin_with_what_a_file_says(tfm, model, tmp_path):
    (tmp_path / "prefixes").write_bytes(PREFIXES)
    arguments = ["translate", "-m", model, "--precision", "fp64"]
    free = tfm(*arguments, stdin=SOURCES).out.split(b"\n")
    bound = tfm(*arguments, "--prefix-file", "prefixes", stdin=SOURCES).out.split(b"\n")
    assert bound[0].startswith(b"big cat")
    assert bound[1:3] == free[1:3]
    assert bound[3].startswith(b"in the")
    table = b"a dog\tbig cat\nthe cat\t\n\na man\t  in the\n"
    assert tfm(*arguments, "--prefix", stdin=table).out.split(b"\n") == bound


@pytest.mark.parametrize(
    ("prefixes", "named"),
    [
        (b"a\nb\n", "prefixes: has fewer lines than stdin"),
        (b"a\nb\nc\nd\ne\n", "prefixes: has more lines than stdin, which has 4"),
        (b"a\n\xff\nc\nd\n", "prefixes: line 2: not UTF-8"),
        (b"dog " * 400 + b"\n\n\n\n", "prefix of line 1: "),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(tfm, model, tmp_path, prefixes, named):
    (tmp_path / "prefixes").write_bytes(prefixes)
    options = ["--prefix-file", "prefixes", "-o", "out"]
    result = tfm("translate", "-m", model, *options, stdin=SOURCES)
    assert result.code == 2
    assert f"tfm: error: {named}" in result.err
    assert not (tmp_path / "out").exists()


def test_several_models_translate_as_one(tfm, model):
    alone = tfm("translate", "-m", model, "--precision", "fp64", stdin=SOURCES)
    twice = tfm("translate", "-m", model, "-m", model, "--precision", "fp64", stdin=SOURCES)
    assert (twice.code, twice.out) == (0, alone.out)


@pytest.mark.parametrize("command", ["translate", "score"])
def test_models_of_different_tokenizers_are_refused_by_name(tfm, model, tmp_path, command):
    saved = load_model(model)
    other = bpe.train(["a dog sees the cat"] * 9, 1000)
    config = replace(saved.config, vocab_size=other.vocab_size)
    save_model(tmp_path / "other", config, dict(Transformer(config).named_parameters()), other)
    (tmp_path / "text").write_bytes(b"a dog\n")
    files = ["--src", "text", "--tgt", "text"] if command == "score" else ["text"]
    result = tfm(command, "-m", model, "-m", "other", *files)
    assert result.code == 2
    assert f"other: has another tokenizer than {saved.folder}" in result.err


def test_strictly_nothing_depends_on_the_batch(tfm, model, pairs):
    text = "\n".join(source for source, _ in pairs[:15]).encode()
    arguments = ["translate", "-m", model, "--strict", "--format", "jsonl", "--beam-size", 2]
    outputs = {tfm(*arguments, "--batch-tokens", n, stdin=text).out for n in (1, 100, 4096)}
    assert len(outputs) == 1
    (together,) = outputs
    backwards = tfm(*arguments, stdin=b"\n".join(text.split(b"\n")[::-1])).out
    assert backwards.split(b"\n")[-2::-1] == together.split(b"\n")[:-1]


def test_strictly_text_that_is_not_utf8_is_refused(tfm, model):
    result = tfm("translate", "-m", model, "--strict", stdin=b"a\n\xff\n")
    assert (result.code, result.out) == (2, b"")
    assert "tfm: error: stdin: line 2: not UTF-8" in result.err


def test_groups_of_a_beam_give_other_alternatives(tfm, model):
    arguments = ["translate", "-m", model, "--beam-size", 4, "--n-best", 4]
    plain = tfm(*arguments, stdin=b"a dog runs\n").out
    groups = tfm(
        *arguments, "--beam-groups", 4, "--diversity-penalty", 9, stdin=b"a dog runs\n"
    ).out
    assert plain != groups
    assert groups.count(b"\n") == 4


def test_a_translation_that_was_cut_is_named(tfm, model):
    options = ["--min-len", 99, "--max-len-factor", 0.1]
    result = tfm("translate", "-m", model, *options, stdin=b"a dog\n" * 12)
    assert result.code == 0
    assert (
        "stdin: 12 lines (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …): the translation did not end"
        in result.err
    )


def test_output_goes_into_a_file(tfm, model, tmp_path):
    text = b"a dog\nthe cat\n"
    result = tfm("translate", "-m", model, "-o", "out", stdin=text)
    assert (result.code, result.out) == (0, b"")
    assert (tmp_path / "out").read_bytes() == tfm("translate", "-m", model, stdin=text).out


@pytest.mark.parametrize("arguments", [["io"], ["in", "--prefix-file", "io"]])
@pytest.mark.parametrize("output", ["io", "link"])
def test_what_is_read_is_not_replaced(tfm, model, tmp_path, arguments, output):
    for name in ("in", "io"):
        (tmp_path / name).write_bytes(b"a dog\n")
    (tmp_path / "link").symlink_to("io")
    result = tfm("translate", "-m", model, *arguments, "-o", output)
    assert (result.code, (tmp_path / "io").read_bytes()) == (2, b"a dog\n")
    assert result.err == f"tfm: error: {output}: is read for this; give another -o\n"


@pytest.mark.parametrize("name", ["train.toml", "log.jsonl", "data/ids.bin", "data/x", "best"])
def test_what_a_training_wrote_is_not_replaced(tfm, model, name):
    path = model / name
    before = path.read_bytes() if path.exists() else None
    result = tfm("translate", "-m", model, "-o", path, stdin=b"a dog\n")
    assert result.code == 2
    assert "only training writes into" in result.err
    assert (path.read_bytes() if path.exists() else None) == before


def test_what_standard_output_goes_to_is_not_read(entry, model, tmp_path):
    path = tmp_path / "io"
    path.write_bytes(b"a dog\n" * 9)
    for given in ([str(path)], []):
        with path.open("rb") as source, path.open("ab") as target:
            command = [*entry, "translate", "-m", str(model), *given]
            result = subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.PIPE)
        assert result.returncode == 2
        assert b"/dev/stdout: is read for this" in result.stderr
    assert path.read_bytes() == b"a dog\n" * 9


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_what_standard_input_comes_from_is_not_replaced(tfm, model, arguments):
    result = tfm("translate", "-m", model, *arguments, "-o", ".stdin", stdin=b"a dog\n")
    assert result.code == 2
    assert result.err == "tfm: error: .stdin: is read for this; give another -o\n"


def test_lines_that_are_not_utf8_are_translated_and_named(tfm, model):
    result = tfm("translate", "-m", model, stdin=b"a\n\xff\nb\n\xed\xa0\x80\n")
    assert (result.code, result.out.count(b"\n")) == (0, 4)
    assert "tfm: warning: stdin: lines 2, 4: not UTF-8" in result.err


def test_a_compressed_file_is_unpacked(tfm, model, tmp_path):
    lines = b"the dog\na \xff cat\n"
    (tmp_path / "plain").write_bytes(lines)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(lines[:9]) + gzip.compress(lines[9:]))
    (tmp_path / "broken.gz").write_bytes(gzip.compress(lines)[:-4])
    plain, packed, broken = (
        tfm("translate", "-m", model, name) for name in ("plain", "packed.gz", "broken.gz")
    )
    assert (packed.code, packed.out) == (plain.code, plain.out) == (0, plain.out)
    assert "packed.gz: line 2: not UTF-8" in packed.err
    assert broken.code == 2
    assert "error: broken.gz: cannot be read" in broken.err


def test_a_long_line_is_translated_in_parts_and_named(tfm, model):
    result = tfm("translate", "-m", model, stdin=b"a\n" + b"dog " * 400)
    assert (result.code, result.out.count(b"\n")) == (0, 2)
    assert "stdin: line 2: longer than 256 tokens" in result.err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--beam-size", "0"], "--beam-size: 0 is out of range"),
        (["--beam-size", "1001"], "--beam-size: 1001 is out of range"),
        (["--n-best", "6"], "--n-best 6: is more than --beam-size 5"),
        (["--top-p", "1.5", "--sample"], "--top-p"),
        (["--temperature", "nan", "--sample"], "--temperature"),
        (["--temperature", "2"], "--temperature: is for sampling; add --sample"),
        (["--seed", "-1", "--sample"], "--seed"),
        (["--beam-groups", "2"], "--beam-groups 2: do not divide --beam-size 5"),
        (["--beam-groups", "5", "--sample"], "--beam-groups: are for beam search"),
        (["--diversity-penalty", "1"], "--diversity-penalty: is for groups of a beam"),
        (["--max-repeats", "-1"], "--max-repeats: -1 is out of range"),
        (["--max-repeats", "1"], "--max-repeats 1: "),
        (["--token-scores"], "--token-scores: needs --format jsonl"),
        (["--prefix", "--prefix-file", "x"], "--prefix-file: "),
        (["--prefix-file", "missing-prefixes"], "missing-prefixes"),
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


@pytest.fixture(scope="module")
def original(small_tokenizer, tmp_path_factory):
    """A model that says much, and is sure of it, but never a control id."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 32, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    vocab_size = small_tokenizer.vocab_size
    untrained = Transformer(ModelConfig(vocab_size=vocab_size, tie_embeddings="none", **sizes))
    weights = {name: torch.randn_like(w) / 2 for name, w in untrained.named_parameters()}
    weights["decoder_norm.bias"][:] = 0.5
    weights["output.weight"][[PAD, UNK, BOS, MASK]] = -4.0
    folder = tmp_path_factory.mktemp("original") / "model"
    save_model(folder, untrained.config, weights, small_tokenizer)
    return folder


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    """The same, exported for CTranslate2."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_engine(load_model(original), "float32", folder)
    return folder


SAMPLE = ["--sample", "--max-repeats", "0"]
WITH_CTRANSLATE2 = [  # None: as with the model that was exported; else what is refused
    ("file", ["lines"], None),
    ("output", ["-o", "out"], None),
    ("beam_size", ["--beam-size", "1"], None),
    ("length_penalty", ["--length-penalty", "0.5", "--format", "tsv", "--beam-size", "1"], None),
    ("n_best", ["--n-best", "3", "--beam-size", "3", "--format", "tsv"], None),
    ("format", ["--format", "jsonl", "--beam-size", "1"], None),
    ("token_scores", ["--format", "jsonl", "--token-scores", "--beam-size", "1"], None),
    ("prefix", ["--prefix", "--beam-size", "1"], None),
    ("prefix_file", ["--prefix-file", "prefixes", "--beam-size", "1"], None),
    ("strict", ["--strict", "--beam-size", "1"], None),
    ("batch_tokens", ["--batch-tokens", "20", "--beam-size", "1"], None),
    ("min_len", ["--min-len", "9", "--beam-size", "1", "--format", "tsv"], None),
    ("max_len_factor", ["--max-len-factor", "0.1", "--beam-size", "1", "--format", "tsv"], None),
    ("no_repeat_ngram", ["--no-repeat-ngram", "2", "--beam-size", "1", "--format", "tsv"], None),
    ("threads", ["--threads", "1", "--beam-size", "1"], None),
    ("device", ["--device", "cpu", "--beam-size", "1"], None),
    ("precision", ["--precision", "fp32", "--beam-size", "1"], None),
    (
        "precision",
        ["--precision", "fp64"],
        "--precision fp64: CTranslate2 does not have it; it has",
    ),
    ("tgt_lang", ["--tgt-lang", "de"], "--tgt-lang de: the tokenizer has no language tags"),
    ("model", ["-m", "{model}"], "can translate and score and nothing else; give the model it was"),
    ("max_repeats", ["--max-repeats", "0", "--beam-size", "1"], None),
    ("max_repeats", ["--max-repeats", "3"], "--max-repeats: CTranslate2 does not count them; use "),
    ("max_repeats", ["--max-repeats", "8"], "--max-repeats: CTranslate2 does not count them; use "),
    ("beam_groups", ["--beam-groups", "5"], "--beam-groups: CTranslate2 does not have it; use the"),
    (
        "diversity_penalty",
        ["--beam-groups", "5", "--diversity-penalty", "1"],
        "--beam-groups: CTranslate2 does not have it; use the model",
    ),
    ("sample", SAMPLE, "--sample: CTranslate2 cannot repeat its draws by a seed; sample from"),
    ("temperature", [*SAMPLE, "--temperature", "2"], "--sample: CTranslate2"),
    ("top_k", [*SAMPLE, "--top-k", "3"], "--sample: CTranslate2"),
    ("top_p", [*SAMPLE, "--top-p", "0.5"], "--sample: CTranslate2"),
    ("seed", [*SAMPLE, "--seed", "3"], "--sample: CTranslate2"),
]


@pytest.mark.parametrize(("name", "options", "refused"), WITH_CTRANSLATE2)
def test_with_ctranslate2_each_option_does_the_same_or_is_refused_by_name(
    tfm, original, exported, tmp_path, name, options, refused
):
    (tmp_path / "lines").write_bytes(b"a dog\n\nthe big cat\tsees\n")
    (tmp_path / "prefixes").write_bytes(b"sees\n\nin\n")
    options = [option.format(model=original) for option in options]
    given = b"" if refused else (tmp_path / "lines").read_bytes()  # refused before anything is read
    result = tfm("translate", "-m", exported, *options, stdin=given)
    if refused:
        assert (result.code, result.out) == (2, b"")
        assert refused in result.err
        assert (result.err.count("tfm: error: "), result.err.count("\n")) == (1, 1)
        return
    written = (tmp_path / "out").read_bytes() if name == "output" else result.out
    options += ["--precision", "fp32", "--max-repeats", "0"]
    ours = tfm("translate", "-m", original, *options, stdin=given)
    expected = (tmp_path / "out").read_bytes() if name == "output" else ours.out
    assert (result.code, result.err) == (0, ours.err)
    scores, ours_scores = ([float(x) for x in SCORE.findall(text)] for text in (written, expected))
    assert scores == pytest.approx(ours_scores, abs=2e-4)
    assert SCORE.sub(b"", written) == SCORE.sub(b"", expected)
    assert len(written) > 20  # there is text in it


SCORE = re.compile(rb"-?[0-9]+\.[0-9]+")


def test_every_option_is_in_the_table_of_ctranslate2():
    parameters = inspect.signature(translate).parameters
    assert {name for name, _, _ in WITH_CTRANSLATE2} == set(parameters)


def test_what_a_translation_does_not_need_is_not_imported(model):
    code = """
import sys
from cli.app import main
code = main(["translate", "-m", sys.argv[1]])
idle = {"torch._dynamo", "torch._inductor", "sympy", "sacrebleu", "rich", "ctranslate2"}
sys.exit(code or ", ".join(idle & set(sys.modules)) or 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(model)], input=b"a dog\n", capture_output=True, check=False
    )
    assert (result.returncode, result.stdout.count(b"\n")) == (0, 1), result.stderr.decode()


def test_a_partner_at_the_other_end_of_a_pipe_gets_each_answer_at_once(entry, model):
    command = [*entry, "translate", "-m", str(model)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        for line in (b"a dog\n", b"\n", b"the cat\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\n")
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_lines_take_hardly_more_memory_than_twenty_thousand(entry, model):
    words, rng = ["a", "the", "man", "dog", "sees", "big"], random.Random(0)
    lines = (" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(100_000))
    command = [*entry, "translate", "-m", str(model), "--beam-size", "1", "--max-len-factor", "0.5"]
    pipe, peaks = subprocess.PIPE, []
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:

        def feed():
            with process.stdin:
                process.stdin.writelines(f"{line}\n".encode() for line in lines)

        threading.Thread(target=feed).start()
        for number, _ in enumerate(process.stdout, start=1):
            if number % 20_000 == 0:
                status = Path(f"/proc/{process.pid}/status").read_text()
                peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]))
    assert (process.returncode, number) == (0, 100_000)
    assert peaks[-1] - peaks[0] < 50_000, peaks  # kB; the heap is never quite tidy
