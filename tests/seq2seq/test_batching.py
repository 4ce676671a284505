import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.batch import Example, collate
from seq2seq.batching import (
    START,
    BatchPlan,
    Position,
    cut_batches,
    cut_pool,
    micro_batches,
    stable_seed,
)

SMALL_POOLS = BatchPlan(seed=3, batch_tokens=40, pool=16)


def example(index: int) -> Example:
    """Of 1 to 7 source and 1 to 5 target ids, which depend on the index alone."""
    return Example([5] * (1 + index % 7), [6] * (1 + index * 3 % 5), index)


def load(rows: np.ndarray, pool: Position) -> Sequence[Example]:
    return [example(int(i)) for i in rows]


def take(
    n_pairs: int, plan: BatchPlan, start: Position, n: int
) -> list[tuple[Position, list[int]]]:
    cut = functools.partial(cut_pool, n_pairs, load, plan)
    stream = itertools.islice(micro_batches(n_pairs, cut, plan, start), n)
    return [(position, [e.index for e in batch]) for position, batch in stream]


def epoch_of(n_pairs: int, plan: BatchPlan, epoch: int) -> list[list[int]]:
    """The micro-batches of one epoch."""
    batches = []
    cut = functools.partial(cut_pool, n_pairs, load, plan)
    for position, batch in micro_batches(n_pairs, cut, plan, Position(epoch)):
        batches.append([e.index for e in batch])
        if position.epoch > epoch:
            return batches
    raise AssertionError


# Epochs


@pytest.mark.parametrize("n_pairs", [1, 2, 15, 16, 17, 100])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_visits_every_pair_once(n_pairs: int, epoch: int) -> None:
    indices = itertools.chain(*epoch_of(n_pairs, SMALL_POOLS, epoch))
    assert sorted(indices) == list(range(n_pairs))


def test_every_epoch_and_every_seed_has_its_own_order() -> None:
    orders = [epoch_of(100, SMALL_POOLS, epoch) for epoch in range(4)]
    orders.append(epoch_of(100, BatchPlan(4, 40, 16), 0))
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_wherever_one_begins_the_sequence_goes_on_the_same() -> None:
    whole = take(50, SMALL_POOLS, START, 60)
    assert whole[-1][0].epoch >= 2
    for i in range(len(whole) - 3):
        assert take(50, SMALL_POOLS, whole[i][0], 3) == whole[i + 1 : i + 4]


def test_positions_grow() -> None:
    positions = [position for position, _ in take(50, SMALL_POOLS, START, 60)]
    assert positions == sorted(set(positions))


def test_pairs_of_similar_length_are_together() -> None:
    plan = BatchPlan(seed=1, batch_tokens=200)
    batches = epoch_of(1000, plan, 0)
    real = sum(len(example(i).src) + len(example(i).tgt or ()) for i in range(1000))
    cells = sum(
        len(b) * (max(len(example(i).src) for i in b) + max(len(example(i).tgt or ()) for i in b))
        for b in batches
    )
    assert cells < 1.15 * real


def test_the_loader_is_asked_for_one_pool_at_a_time_and_told_which() -> None:
    asked: list[tuple[int, Position]] = []

    def note(rows: np.ndarray, pool: Position) -> Sequence[Example]:
        asked.append((len(rows), pool))
        return load(rows, pool)

    cut = functools.partial(cut_pool, 40, note, SMALL_POOLS)
    stream = micro_batches(40, cut, SMALL_POOLS, START)
    while asked[-1:] != [(16, Position(1))]:
        next(stream)
    first = [(16, Position(0, 0)), (16, Position(0, 1)), (8, Position(0, 2))]
    assert asked == [*first, (16, Position(1))]


# Batches

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 100))
def test_no_batch_exceeds_the_budget_unless_it_is_one_pair(
    lengths: list[tuple[int, int]], budget: int
) -> None:
    examples = [Example([5] * s, [5] * t, i) for i, (s, t) in enumerate(lengths)]
    batches = cut_batches(examples, budget)
    assert sorted(e.index for batch in batches for e in batch) == list(range(len(examples)))
    for batch in batches:
        width = max(max(len(e.src), len(e.tgt or ())) for e in batch) + 1  # EOS or BOS
        assert len(batch) * width <= budget or len(batch) == 1


@given(LENGTHS, st.integers(10, 100))
def test_a_batch_is_as_large_as_the_budget_allows(
    lengths: list[tuple[int, int]], budget: int
) -> None:
    examples = [Example([5] * s, [5] * t, i) for i, (s, t) in enumerate(lengths)]
    for batch, following in itertools.pairwise(cut_batches(examples, budget)):
        joined = [*batch, following[0]]
        width = max(max(len(e.src), len(e.tgt or ())) for e in joined) + 1
        assert len(joined) * width > budget


@pytest.mark.parametrize(("n", "budget", "most"), [(5000, 2048, 0.09), (30_000, 4096, 0.05)])
def test_little_of_a_batch_is_padding(n: int, budget: int, most: float) -> None:
    rng = np.random.default_rng(1)  # a translation is about as long as its source
    src = np.clip(rng.lognormal(2.5, 0.35, n).round().astype(int), 1, None)
    tgt = np.clip((src * rng.normal(1.0, 0.15, n)).round().astype(int), 1, None)
    examples = [Example([5] * s, [5] * t, i) for i, (s, t) in enumerate(zip(src, tgt, strict=True))]
    batches = [collate(batch) for batch in cut_batches(examples, budget)]
    n_tokens, n_cells = (sum(getattr(b, name) for b in batches) for name in ("n_tokens", "n_cells"))
    assert 1 - n_tokens / n_cells < most


def test_sources_alone_can_be_cut() -> None:
    batches = cut_batches([Example([5] * n, None, n) for n in (3, 1, 2)], 6)
    assert [[e.index for e in batch] for batch in batches] == [[1, 2], [3]]


def test_a_seed_depends_on_each_of_its_parts_in_order() -> None:
    seeds = {stable_seed(*parts) for parts in [(1, 2), (2, 1), (1,), (1, 2, 0), (12,)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 1 << 63 for seed in seeds)
