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


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_model_of_an_earlier_release_translates_as_it_did(name: str, precision: str) -> None:
    expected = json.loads((DATA / f"{name}.json").read_bytes())["sentences"]
    translator = Translator.load(DATA / name, "cpu", precision)
    sources = [sentence["source"] for sentence in expected]
    greedy = translator.alternatives(sources, SearchConfig(beam_size=1))
    beam = translator.alternatives(sources, SearchConfig(beam_size=5, n_best=2))
    assert [[h.text for h in found] for found in greedy] == [
        [s["greedy"]["text"]] for s in expected
    ]
    assert [[h.text for h in found] for found in beam] == [
        [h["text"] for h in s["beam 5"]] for s in expected
    ]
    for found, sentence in zip(beam, expected, strict=True):
        for hypothesis, known in zip(found, sentence["beam 5"], strict=True):
            assert hypothesis.score == pytest.approx(known["score"], abs=1e-3)
            assert hypothesis.log_prob == pytest.approx(known["log_prob"], abs=1e-3)
    for found, sentence in zip(greedy, expected, strict=True):
        assert found[0].log_prob == pytest.approx(sentence["greedy"]["log_prob"], abs=1e-3)
