"""Models that were saved by earlier releases are read for ever, and translate as they did."""

import json
from pathlib import Path

import pytest

from seq2seq.config import SearchConfig
from seq2seq.translator import Translator

DATA = Path(__file__).parent.parent / "data"
FORMATS = sorted(path.stem for path in DATA.glob("format_*.json"))


def test_the_first_format_is_kept() -> None:
    assert "format_1" in FORMATS


@pytest.mark.parametrize("model", FORMATS)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_model_of_an_earlier_release_translates_as_it_did(model: str, precision: str) -> None:
    expected = json.loads((DATA / f"{model}.json").read_bytes())["sentences"]
    translator = Translator.load(DATA / model, "cpu", precision)
    sources = [sentence["source"] for sentence in expected]
    for name, config in (
        ("greedy", SearchConfig(beam_size=1)),
        ("beam 5", SearchConfig(beam_size=5)),
    ):
        for (found,), sentence in zip(
            translator.alternatives(sources, config), expected, strict=True
        ):
            known = sentence[name]
            assert found.text == known["text"]
            assert found.log_prob == pytest.approx(known["log_prob"], abs=1e-3)
            assert name == "greedy" or found.score == pytest.approx(known["score"], abs=1e-3)
