import os
import sys
from pathlib import Path

import pytest


@pytest.fixture
def export(tfm, model):
    return lambda *options: tfm("export", "-m", model, "--to", "safetensors", "-o", "out", *options)


def test_an_export_translates_like_the_run(tfm, model, export, parallel):
    assert export().code == 0
    src, _ = parallel
    options = ["--precision", "fp32"]
    exported = tfm("translate", "-m", "out", src, *options)
    assert exported.out == tfm("translate", "-m", model, src, *options).out


def test_an_export_is_replaced_only_when_asked(export, tmp_path):
    export()
    before = (tmp_path / "out").stat().st_ino
    refused = export()
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (tmp_path / "out").stat().st_ino == before
    assert export("--overwrite").code == 0
    assert (tmp_path / "out").stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".", "./", ".."])
def test_a_folder_without_a_name_of_its_own_is_refused(tfm, model, tmp_path, monkeypatch, name):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    result = tfm("export", "-m", model, "--to", "safetensors", "-o", name)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert not any((tmp_path / "in").iterdir())


def test_what_is_no_export_is_never_replaced(export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_bytes(b"years of work")
    assert export("--overwrite").code == 2
    assert (tmp_path / "out" / "thesis").read_bytes() == b"years of work"


def test_what_lies_in_an_export_is_not_lost_with_it(export, tmp_path):
    export()
    (tmp_path / "out" / "thesis").write_bytes(b"years of work")
    refused = export("--overwrite")
    assert refused.code == 2
    assert "out/thesis: is not of tfm's making and would be lost; move it" in refused.err
    assert "give another -o" in refused.err
    assert (tmp_path / "out" / "thesis").read_bytes() == b"years of work"


@pytest.mark.parametrize("is_link", [False, True])
def test_a_checkpoint_of_a_run_is_never_replaced(tfm, model, tmp_path, is_link):
    checkpoint = model / "checkpoints" / "00000010"
    before = checkpoint.stat().st_ino
    (tmp_path / "link").symlink_to(checkpoint)
    output = "link" if is_link else checkpoint
    result = tfm("export", "-m", model, "--to", "safetensors", "-o", output, "--overwrite")
    assert result.code == 2
    assert f"{output}: only training writes into {checkpoint.parent}; give another -o" in result.err
    assert checkpoint.stat().st_ino == before


def test_an_unknown_format_is_refused(tfm, model, tmp_path):
    result = tfm("export", "-m", model, "--to", "pickle", "-o", "out")
    assert result.code == 2
    assert "--to pickle: is not one of " in result.err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def to_engine(tfm, model):
    return lambda *options: tfm(
        "export", "-m", model, "--to", "ctranslate2", "-o", "out", "--threads", 1, *options
    )


def test_an_export_to_ctranslate2_translates_like_the_run(tfm, model, to_engine, parallel):
    src, tgt = parallel
    result = to_engine("--check", src, "--check-ref", tgt, "--min-bleu", 0)
    assert (result.code, result.out) == (0, b"")
    for said in ("equal translations", "BLEU of references", "speed, lines/s", "size, MB"):
        assert said in " ".join(result.err.split())
    options = ["--beam-size", 1, "--threads", 1, "--max-repeats", 0, "--format", "tsv"]
    ours = tfm("translate", "-m", model, src, *options, "--precision", "fp32")
    theirs = tfm("translate", "-m", "out", src, *options)
    assert theirs.code == 0
    texts = [[line.split(b"\t")[3] for line in x.out.split(b"\n")[:-1]] for x in (ours, theirs)]
    assert texts[0] == texts[1]
    assert b"CTranslate2" in tfm("info", "-m", "out").out


def test_an_export_in_a_folder_of_any_name_translates(tfm, to_engine, parallel):
    assert to_engine("--min-bleu", 0).code == 0
    name = os.fsdecode(b"caf\xe9")
    Path("out").rename(name)
    result = tfm("translate", "-m", name, "--threads", 1, stdin=b"the dog\n")
    assert (result.code, result.out.count(b"\n")) == (0, 1)


def test_without_the_package_it_is_said_how_to_get_it(tfm, to_engine, tmp_path, monkeypatch):
    assert to_engine("--min-bleu", 0).code == 0
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    for result in (to_engine("--overwrite"), tfm("translate", "-m", "out", stdin=b"a dog\n")):
        assert result.code == 2
        assert "pip install 'tfm[ctranslate2]'" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_engine_folder_damaged_anywhere_is_refused_by_name(tfm, to_engine, tmp_path):
    assert to_engine("--min-bleu", 0).code == 0
    for path in [p for p in (tmp_path / "out").rglob("*.*") if p.is_file()]:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        result = tfm("translate", "-m", "out", stdin=b"a dog\n")
        assert result.code == 2
        assert path.name in result.err
        path.write_bytes(content)


def test_sentences_of_the_training_data_are_compared_where_no_others_are_given(to_engine):
    result = to_engine("--min-bleu", 0)
    assert result.code == 0
    assert "compared on 200 lines" in result.err


@pytest.mark.parametrize("place", ["best", "latest", "checkpoints/00000010"])
def test_any_model_of_a_run_is_compared_on_its_training_data(tfm, model, place):
    arguments = ["--to", "ctranslate2", "-o", "out", "--threads", 1, "--min-bleu", 0]
    result = tfm("export", "-m", model / place, *arguments)
    assert result.code == 0
    assert "compared on 200 lines" in result.err


def test_an_export_without_sentences_to_compare_is_refused(tfm, export, tmp_path):
    assert export().code == 0
    result = tfm("export", "-m", "out", "--to", "ctranslate2", "-o", "other")
    assert result.code == 2
    assert "give lines by --check" in result.err
    assert not (tmp_path / "other").exists()


def test_blank_lines_are_left_out_of_the_comparison(to_engine, tmp_path):
    (tmp_path / "lines").write_bytes(b"a dog\n\n  \nthe cat\n")
    result = to_engine("--check", "lines", "--min-bleu", 0)
    assert "compared on 2 lines (2 blank ones left out)" in result.err


def test_lines_of_every_kind_can_be_compared_on(to_engine, tmp_path):
    (tmp_path / "lines").write_bytes(
        b"\x00\x1b[31m\t\x0b\xc2\x85 \xe2\x80\xa8\n</s> <pad>\n"
        + b"dog " * 600
        + b"\r\n\r\nlone \r CR"
    )
    result = to_engine("--check", "lines", "--min-bleu", 0)
    assert (result.code, result.out) == (0, b"")
    assert "compared on 4 lines (1 blank ones left out)" in result.err


def test_a_model_is_not_replaced_by_its_export(tfm, export, tmp_path):
    assert export().code == 0
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    options = ["--to", "ctranslate2", "--check", "lines", "--overwrite"]
    result = tfm("export", "-m", "out", "-o", tmp_path / "out" / ".." / "out", *options)
    assert result.code == 2
    assert "out: is the model to export" in result.err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_an_export_that_translates_otherwise_is_not_written(to_engine, parallel, tmp_path):
    assert to_engine("--min-bleu", 0).code == 0
    before = (tmp_path / "out" / "model.bin").read_bytes()
    options = ["--quantization", "int8", "--min-bleu", 100, "--overwrite"]
    result = to_engine("--check", parallel[0], *options)
    assert result.code == 2
    assert "not written: its translations score " in result.err
    assert (tmp_path / "out" / "model.bin").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "safetensors", "--quantization", "int8"], "--quantization: only for --to ctrans"),
        (["--to", "safetensors", "--check", "x"], "--check: only for --to ctranslate2"),
        (
            ["--to", "safetensors", "--tgt-lang", "xx", "--min-bleu", "90", "--threads", "3"],
            "--min-bleu, --tgt-lang, --threads: only for --to ctranslate2\n",
        ),
        (["--to", "ctranslate2", "--quantization", "int3"], "--quantization int3: is not one of"),
        (["--to", "ctranslate2", "--check-ref", "x"], "needs --check"),
        (["--to", "ctranslate2", "--check", "nowhere"], "nowhere: no such file"),
        (["--to", "ctranslate2", "--check", "empty"], "--check empty: there is no sentence"),
        (["--to", "ctranslate2", "--min-bleu", "nan"], "--min-bleu"),
        (["--to", "ctranslate2", "--check", "latin1"], "latin1: line 2: not UTF-8"),
    ],
)
def test_options_that_make_no_sense_are_refused(tfm, model, options, message, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "latin1").write_bytes(b"a\n\xff\n")
    result = tfm("export", "-m", model, "-o", "out", *options)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_a_circle_of_links_is_no_bug(tfm, model, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for output in ("loop", "loop/x"):
        result = tfm("export", "-m", model, "--to", "safetensors", "-o", output)
        assert result.code == 2
        assert f"{output}" in result.err
