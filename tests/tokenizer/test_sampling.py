import random
from collections import Counter
from math import exp, log

import numpy as np
import pytest

from tokenizer.errors import UserError
from tokenizer.sampling import WordSampler, bpe_dropout, sample_unigram, scrambled

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


# Batches of texts; here an id stands for a word: 1 for "a", 2 for "bb", 3 for "ccc".


def sampler() -> WordSampler:
    return WordSampler(lambda ids: [["", "a", "bb", "ccc"][i] for i in ids], letters_or_word)


def drawn(words: WordSampler, batch: list[list[int]], seeds: list[int]) -> list[list[int]]:
    return [ids.tolist() for ids in words.resample(batch, 0.5, seeds)]


def test_what_becomes_of_a_text_depends_on_its_seed_alone() -> None:
    batch = [[1, 2, 3] * 5, [], [3] * 7, [2]]
    seeds = [7, 8, 2**64 - 1, 0]
    first = drawn(sampler(), batch, seeds)
    warm = sampler()
    for seed in range(5):
        warm.resample([[3, 2, 1]], 0.5, [seed])
    warm.resample(batch, 0.1, seeds)
    assert drawn(warm, batch, seeds) == first
    assert drawn(warm, batch[::-1], seeds[::-1]) == first[::-1]
    assert [
        drawn(warm, [text], [seed])[0] for text, seed in zip(batch, seeds, strict=True)
    ] == first
    assert drawn(warm, batch[:1], [8]) != first[:1]
    assert drawn(warm, [], []) == []


def test_every_word_is_drawn_for_itself() -> None:
    (ids,) = drawn(sampler(), [[2] * 4000], [1])
    n_letters = ids.count(ord("b")) / 2
    assert ids.count(2) + n_letters == 4000
    assert n_letters / 4000 == pytest.approx(0.5, abs=0.2)  # of 32 variants about half are letters
    (again,) = drawn(sampler(), [[2] * 4000], [2])
    assert again != ids


def test_the_number_of_words_that_are_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, seeds = [[1, 2, 3] * 9], [5]
    expected = drawn(sampler(), batch, seeds)
    monkeypatch.setattr("tokenizer.sampling._MAX_WORDS", 1)
    small = sampler()
    assert drawn(small, batch, seeds) == drawn(small, batch, seeds) == expected


@pytest.mark.parametrize("dropout", [-0.1, 1.1, float("nan")])
def test_dropout_is_a_probability(dropout: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        sampler().resample([[1]], dropout, [0])


def test_scrambled_numbers_are_those_of_splitmix64() -> None:
    # The first two outputs of its reference implementation for seed 0.
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.array([1, 2], dtype=np.uint64) * golden
    assert scrambled(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
