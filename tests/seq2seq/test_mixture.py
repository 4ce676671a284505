import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq.mixture import Mixture, shuffled

SIZES_AND_WEIGHTS = st.lists(
    st.tuples(st.integers(0, 40), st.floats(0.01, 4)), min_size=1, max_size=4
).filter(lambda corpora: any(n for n, _ in corpora))


def mixture_of(corpora: list[tuple[int, float]]) -> Mixture:
    return Mixture(tuple(n for n, _ in corpora), tuple(w for _, w in corpora))


def epoch_of(mixture: Mixture, epoch: int, seed: int = 1) -> list[int]:
    return mixture.rows(np.arange(len(mixture)), seed, epoch).tolist()


# Mixtures


@settings(max_examples=50)
@given(SIZES_AND_WEIGHTS, st.integers(0, 50))
def test_every_corpus_has_its_share_of_an_epoch(
    corpora: list[tuple[int, float]], epoch: int
) -> None:
    mixture = mixture_of(corpora)
    rows = epoch_of(mixture, epoch)
    first = 0
    for n, weight in corpora:
        share = sum(first <= row < first + n for row in rows)
        assert share == (max(1, round(n * weight)) if n else 0)
        first += n
    assert len(rows) == len(mixture)
    assert all(0 <= row < first for row in rows)


@settings(max_examples=30)
@given(SIZES_AND_WEIGHTS, st.integers(1, 6))
def test_no_pair_is_ever_more_than_once_ahead_of_another_of_its_corpus(
    corpora: list[tuple[int, float]], n_epochs: int
) -> None:
    mixture = mixture_of(corpora)
    seen = Counter(row for epoch in range(n_epochs) for row in epoch_of(mixture, epoch))
    first = 0
    for n, _ in corpora:
        times = [seen[row] for row in range(first, first + n)]
        assert max(times, default=0) - min(times, default=0) <= 1
        first += n


def test_a_tenth_of_a_corpus_an_epoch_is_all_of_it_in_ten() -> None:
    mixture = Mixture((50, 100), (1.0, 0.1))
    tenths = [epoch_of(mixture, epoch)[50:] for epoch in range(10)]
    assert sorted(itertools.chain(*tenths)) == list(range(50, 150))
    assert sorted(tenths[0]) != list(range(50, 60))


def test_weights_of_one_are_a_plain_pass_over_all_pairs() -> None:
    for epoch in range(3):
        assert epoch_of(Mixture((3, 5), (1.0, 1.0)), epoch) == list(range(8))


def test_what_stands_at_a_place_depends_on_seed_and_epoch_alone() -> None:
    mixture = Mixture((30, 20, 7), (0.5, 2.5, 1.0))
    whole = epoch_of(mixture, 3)
    for places in ([5], [71, 0, 40], range(10, 60)):
        assert mixture.rows(np.array(places), 1, 3).tolist() == [whole[i] for i in places]
    assert whole != epoch_of(mixture, 4)
    assert whole != epoch_of(mixture, 3, seed=2)


def test_two_corpora_are_shuffled_apart() -> None:
    rows = np.array(epoch_of(Mixture((100, 100), (0.5, 0.5)), 0))
    assert sorted(rows[:50]) != sorted(rows[50:] - 100)


def test_a_mixture_of_giants_is_never_held() -> None:
    mixture = Mixture((10**12, 10), (0.3, 1e6))
    rows = mixture.rows(np.array([0, 299_999_999_999, 300_000_000_000, len(mixture) - 1]), 1, 7)
    assert rows[:2].max() < 10**12 <= rows[2:].min()
    assert rows.max() < 10**12 + 10


# Permutations


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(0, 1 << 31), st.integers(0, 100))
def test_shuffling_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    out = shuffled(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(out), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 1000, 65_537])
def test_shuffling_is_a_permutation_at_powers_and_around_them(n: int) -> None:
    assert np.array_equal(np.sort(shuffled(np.arange(n), n, 1, 0)), np.arange(n))


def test_a_place_goes_where_it_goes_alone() -> None:
    whole = shuffled(np.arange(1000), 1000, 1, 0)
    for places in ([7], [999, 0], range(100, 200)):
        assert np.array_equal(shuffled(np.array(places), 1000, 1, 0), whole[places])


def test_giant_corpora_are_shuffled_without_being_held() -> None:
    out = shuffled(np.arange(10), 10**12, 1, 0)
    assert len(set(out.tolist())) == 10
    assert out.min() >= 0
    assert out.max() < 10**12


def test_shuffling_leaves_no_trace_of_the_order() -> None:
    n = 10_000
    out = shuffled(np.arange(n), n, 1, 0)
    # The correlation of independent ranks has a standard deviation of 1 / √n.
    assert abs(np.corrcoef(np.arange(n), out)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(out, shuffled(np.arange(n), n, 1, 1))[0, 1]) < 5 / np.sqrt(n)
