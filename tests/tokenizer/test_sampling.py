import random
from collections import Counter
from math import exp, log

import pytest

from tokenizer.errors import UserError
from tokenizer.sampling import WordSampler, bpe_dropout, sample_unigram

# What BPE learns from "low low low lower newest": l+o, lo+w, e+r.
RANKS = {("l", "o"): 0, ("lo", "w"): 1, ("e", "r"): 2}


def letters_or_word(word: str, dropout: float, rng: random.Random) -> list[int]:
    return [ord(c) for c in word] if rng.random() < dropout else [len(word)]


def test_without_dropout_merges_go_in_the_order_of_training() -> None:
    rng = random.Random(0)
    assert bpe_dropout("lower", RANKS, 0.0, rng) == ["low", "er"]
    assert bpe_dropout("lower", {("w", "e"): 0, **RANKS}, 0.0, rng) == ["lo", "we", "r"]


def test_dropout_of_one_leaves_single_symbols() -> None:
    assert bpe_dropout("lower", RANKS, 1.0, random.Random(0)) == list("lower")


def test_merge_is_dropped_with_the_given_probability() -> None:
    rng = random.Random(0)
    kept = sum(bpe_dropout("lo", RANKS, 0.3, rng) == ["lo"] for _ in range(4000))
    assert kept / 4000 == pytest.approx(0.7, abs=0.03)


def test_unigram_samples_have_the_probabilities_of_the_model() -> None:
    # ab: p("ab") = 0.3, p("a") p("b") = 0.5 * 0.2 = 0.1; with alpha 0.5 the odds are √3 : 1.
    log_probs = {"a": log(0.5), "b": log(0.2), "ab": log(0.3)}
    rng = random.Random(0)
    for alpha, odds in ((1.0, 3.0), (0.5, 3.0**0.5), (0.0, 1.0)):
        drawn = Counter(
            " ".join(sample_unigram("ab", log_probs, 2, alpha, rng)) for _ in range(4000)
        )
        assert set(drawn) == {"ab", "a b"}
        assert drawn["ab"] / 4000 == pytest.approx(odds / (odds + 1), abs=0.03)


def test_unigram_samples_spell_the_word_even_with_unknown_characters() -> None:
    log_probs = {"a": -1.0, "b": -2.0, "ab": -1.5, "ba": -1.5}
    rng = random.Random(0)
    for word in ("x", "abba", "xaxb", "ab" * 500, "x" * 500):
        for alpha in (0.0, 0.2, 1.0):
            assert "".join(sample_unigram(word, log_probs, 2, alpha, rng)) == word


def test_no_weight_is_too_small_for_a_long_word() -> None:
    assert exp(-1000.0 * 3000) == 0.0
    pieces = sample_unigram("a" * 3000, {"a": -1000.0}, 1, 1.0, random.Random(0))
    assert len(pieces) == 3000


def test_same_state_of_the_generator_gives_the_same_sample() -> None:
    words = ["some", "words", "some", "more"] * 20
    first = WordSampler(letters_or_word).sample(words, 0.5, random.Random(7))
    warm = WordSampler(letters_or_word)
    for seed in range(5):
        warm.sample(words[::-1], 0.5, random.Random(seed))
    warm.sample(words, 0.1, random.Random(0))
    assert warm.sample(words, 0.5, random.Random(7)) == first
    assert warm.sample(words, 0.5, random.Random(8)) != first


def test_generator_advances_by_one_draw_a_word() -> None:
    sampled, drawn = random.Random(3), random.Random(3)
    WordSampler(letters_or_word).sample(["a", "b", "a"], 0.5, sampled)
    for _ in range(3):
        drawn.getrandbits(6)
    assert sampled.getstate() == drawn.getstate()


@pytest.mark.parametrize("dropout", [-0.1, 1.1, float("nan")])
def test_dropout_is_a_probability(dropout: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        WordSampler(letters_or_word).sample(["a"], dropout, random.Random(0))
