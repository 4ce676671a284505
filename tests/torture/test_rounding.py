"""What rounding may change: in float64 nothing, in float32 only what is a tie anyway."""

import random
from pathlib import Path

import pytest

from seq2seq.config import SearchConfig
from seq2seq.translator import Translator

FIRST_FORMAT = Path(__file__).parent.parent / "data" / "format_1"
WORDS = ["one", "two", "seven", "twelve", "thirty", "forty-two", "hundred", "thousand", "and", "x"]
TIE = 1e-4


@pytest.fixture
def sources():
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(60)]


def variants(translator, sources, config):
    """The same lines in batches of several sizes, in another order, and among others."""
    whole = translator.alternatives(sources, config)
    for batch_tokens in (1, 300):
        translator.batch_tokens = batch_tokens
        yield whole, translator.alternatives(sources, config)
    order = random.Random(2).sample(range(len(sources)), len(sources))
    shuffled = translator.alternatives([sources[i] for i in order], config)
    yield [whole[i] for i in order], shuffled
    halves = sources[: len(sources) // 2], sources[len(sources) // 2 :]
    yield whole, [found for half in halves for found in translator.alternatives(half, config)]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_in_float64_no_line_depends_on_its_neighbours(sources, beam_size):
    translator = Translator.load(FIRST_FORMAT, "cpu", "fp64", batch_tokens=4096)
    for one, other in variants(translator, sources, SearchConfig(beam_size=beam_size)):
        assert [a[0].text for a in one] == [b[0].text for b in other]


def test_in_float32_lines_differ_only_at_ties_and_seldom(sources):
    translator = Translator.load(FIRST_FORMAT, "cpu", "fp32", batch_tokens=4096)
    n_lines = n_different = 0
    for one, other in variants(translator, sources, SearchConfig(beam_size=4)):
        for (a, *_), (b, *_) in zip(one, other, strict=True):
            n_lines += 1
            n_different += a.text != b.text
            assert abs(a.score - b.score) < TIE
    assert n_different <= 0.01 * n_lines
