from pathlib import Path

import pytest

from seq2seq.checkpoint import build_model, load_model
from seq2seq.engine_format import load_engine_model
from seq2seq.export import compare, export_engine
from seq2seq.translator import Translator
from tokenizer.errors import UserError

LINES = ["a dog sleeps", "", "the big cat in the Straße", "man"]


@pytest.fixture
def original(model_folder: Path) -> Translator:
    saved = load_model(model_folder)
    return Translator(build_model(saved), saved.tokenizer)


def test_a_model_equals_itself(original: Translator) -> None:
    parity = compare(original, original, LINES, references=LINES)
    assert (parity.n_lines, parity.n_equal) == (3, 3)
    assert (parity.bleu, parity.chrf) == (pytest.approx(100), pytest.approx(100))
    assert [(name, old == new) for name, old, new in parity.scores] == [
        ("BLEU", True),
        ("chrF2", True),
    ]
    assert min(parity.speeds) > 0


def test_another_model_differs(original: Translator, model_folder: Path) -> None:
    saved = load_model(model_folder)
    saved.weights["src_embedding.weight"].neg_()
    parity = compare(original, Translator(build_model(saved), saved.tokenizer), LINES)
    assert parity.n_equal < parity.n_lines
    assert parity.bleu < 100
    assert parity.scores == ()


def test_blank_lines_do_not_count(original: Translator, model_folder: Path) -> None:
    saved = load_model(model_folder)
    saved.weights["src_embedding.weight"].neg_()
    other = Translator(build_model(saved), saved.tokenizer)
    few = compare(original, other, LINES, references=LINES)
    many = compare(original, other, [*LINES, *[" "] * 50], references=[*LINES, *["word"] * 50])
    assert (many.n_lines, many.n_equal, many.scores) == (few.n_lines, few.n_equal, few.scores)
    with pytest.raises(UserError, match="4 lines have 3 references"):
        compare(original, other, LINES, references=LINES[:3])


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_nothing_to_translate_is_refused(lines: list[str], original: Translator) -> None:
    with pytest.raises(UserError, match="no sentences"):
        compare(original, original, lines)


def test_an_export_holds_what_translating_needs(model_folder: Path, tmp_path: Path) -> None:
    export_engine(load_model(model_folder), "int8", tmp_path / "out")
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")} == {
        "config.json",
        "manifest.json",
        "model.bin",
        "shared_vocabulary.json",
        "tokenizer/tokenizer.json",
    }
    assert load_engine_model(tmp_path / "out").config == load_model(model_folder).config
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "saved"]


def test_an_unknown_quantization_is_refused_before_anything_is_written(
    model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--quantization int3: is not one of float32, "):
        export_engine(load_model(model_folder), "int3", tmp_path / "out")
    assert not (tmp_path / "out").exists()
