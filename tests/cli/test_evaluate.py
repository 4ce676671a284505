import json
import subprocess
import sys

import pytest

REFERENCES = (
    b"The dog runs in the street .\r\nIt\x0cwas 1,000 m away\xe2\x80\xa8 .\n"
    b"yes \nthe small cat sees\n"
)
TRANSLATIONS = b"The dog runs on a street.\nIt was\t1,000 m\raway .\nyes\nthe cat sees\n"


@pytest.fixture(autouse=True)
def files(tmp_path):
    (tmp_path / "ref").write_bytes(REFERENCES)
    for name in ("hyp", "again"):
        (tmp_path / name).write_bytes(TRANSLATIONS)
    (tmp_path / "short").write_bytes(b"one\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "broken").write_bytes(b"a\nb\nc\nd\xff\n")


def scores(result):
    assert result.code == 0
    (system,) = json.loads(result.out)["systems"]
    return {metric["name"]: metric["score"] for metric in system["metrics"]}


@pytest.mark.parametrize("options", [[], ["--lowercase"], ["--tokenize", "char"]])
def test_scores_equal_those_of_the_sacrebleu_command(tfm, tmp_path, options):
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        "ref",
        "-i",
        "hyp",
        "-m",
        "bleu",
        "chrf",
        "-w",
        "6",
    ]
    command += ["-lc" if option == "--lowercase" else option for option in options]
    theirs = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    expected = [metric["score"] for metric in json.loads(theirs)]
    ours = scores(tfm("evaluate", "--ref", "ref", "--hyp", "hyp", "--json", *options))
    assert [ours["BLEU"], ours["chrF2"]] == pytest.approx(expected, abs=1e-6)


def test_metrics_may_be_chosen(tfm):
    command = ["evaluate", "--ref", "ref", "--hyp", "hyp", "--json"]
    everything = scores(tfm(*command))
    asked = ["--metric", "chrf", "--metric", "bleu", "--metric", "chrf"]
    assert scores(tfm(*command, *asked)) == {n: everything[n] for n in ("chrF2", "BLEU")}
    unknown = tfm(*command, "--metric", "rouge")
    assert unknown.code == 2
    assert unknown.err == "tfm: error: --metric rouge: is not one of bleu, chrf, ter\n"


def test_a_text_compared_with_itself_is_perfect(tfm):
    ours = scores(tfm("evaluate", "--ref", "ref", "--hyp", "ref", "--json"))
    assert ours == pytest.approx({"BLEU": 100, "chrF2": 100, "TER": 0})


@pytest.mark.parametrize("more", [["--hyp", "hyp", "--hyp", "ref"], ["--hyp", "hyp", "ref"]])
def test_several_systems_are_rows_of_one_table(tfm, more):
    result = tfm("evaluate", "--ref", "ref", *more)
    lines = result.out.decode().split("\n")
    assert lines[0].split() == ["system", "BLEU", "chrF2", "TER"]
    assert [line.split()[0] for line in lines[1:3]] == ["hyp", "ref"]
    assert "version:" in result.out.decode()
    assert result.err == ""


def test_further_files_come_after_those_of_the_options(tfm):
    result = tfm("evaluate", "--ref", "ref", "--hyp", "hyp", "again", "--hyp", "ref")
    assert [line.split()[0] for line in result.out.decode().split("\n")[1:4]] == [
        "hyp",
        "ref",
        "again",
    ]


def test_a_default_model_is_no_option_that_was_given(tfm, monkeypatch):
    monkeypatch.setenv("TFM_MODEL", "elsewhere")
    assert tfm("evaluate", "--ref", "ref", "--hyp", "hyp").code == 0


def test_a_model_is_scored_by_its_translations(tfm, model, parallel, tmp_path):
    src, tgt = parallel
    options = ["-m", model, "--beam-size", 2]
    tfm("translate", src, "-o", "translated", *options)
    by_model = tfm("evaluate", "--ref", tgt, "--src", src, "--json", *options)
    by_file = tfm("evaluate", "--ref", tgt, "--hyp", "translated", "--json")
    assert scores(by_model) == scores(by_file)


@pytest.mark.parametrize("by", [["--hyp", "hyp"], ["--src", "hyp", "-m", "no model"]])
def test_a_tokenization_that_is_not_here_is_refused_in_one_line_before_the_work(
    tfm, by, monkeypatch
):
    monkeypatch.setitem(sys.modules, "MeCab", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", raising=False)
    result = tfm("evaluate", "--ref", "ref", *by, "--tokenize", "ja-mecab")
    assert (result.code, result.out) == (2, b"")
    assert "--tokenize ja-mecab: not available here (Japanese" in result.err
    assert "pip install sacrebleu[ja]" in result.err
    assert "\\n" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ref", "ref", "--hyp", "short"], "short has 1 lines and ref has 4"),
        (["--ref", "short", "--hyp", "ref"], "ref has 4 lines and short has 1"),
        (["--ref", "ref", "--src", "short"], "short has 1 lines and ref has 4"),
        (["--ref", "empty", "--hyp", "empty"], "empty: is empty"),
        (["--ref", "broken", "--hyp", "hyp"], "broken: line 4: not UTF-8"),
        (["--ref", "ref"], "--src"),
        (["--ref", "ref", "--src", "hyp", "--hyp", "hyp"], "--src"),
        (["--ref", "ref", "--hyp", "hyp", "--tokenize", "14b"], "--tokenize 14b"),
        (["--ref", "missing", "--hyp", "hyp"], "missing: no such file"),
        (["--ref", "ref", "--hyp", "hyp", "-m", "model"], "--model: only for --src, which a model"),
        (
            ["--ref", "ref", "--hyp", "hyp", "--tgt-lang", "de", "--device", "auto"],
            "--tgt-lang, --device: only for --src",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(tfm, arguments, message):
    result = tfm("evaluate", *arguments)
    assert (result.code, result.out) == (2, b"")
    assert message in result.err


def test_lines_without_four_words_are_warned_of(tfm, tmp_path):
    (tmp_path / "zh").write_bytes("两个男人站在炉子旁边准备食物。\n".encode() * 3)
    result = tfm("evaluate", "--ref", "zh", "--hyp", "zh")
    assert result.code == 0
    assert "tfm: warning: zh: few lines have four words between spaces" in result.err
    result = tfm("evaluate", "--ref", "zh", "--hyp", "zh", "--tokenize", "char", "--json")
    assert result.err == ""
    assert scores(result)["BLEU"] == 100
