"""Which sentences go together, and when: the batch of step n is a pure function of (seed, corpus, n).

An epoch visits every pair once, and copies of one as often as they are in its `Mixture`, in a shuffled
order. The order is cut into pools; the pairs of a pool are loaded, sorted by length, and cut into
micro-batches of at most `batch_tokens` tokens a side, which are then shuffled. Only one pool is ever in
memory, so a corpus may be larger than it.

    cut = functools.partial(cut_pool, n_places, load, plan)
    for position, examples in micro_batches(n_places, cut, plan, START):
        batch = collate(examples)

A run resumes by going on from the last `Position` it saved.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from seq2seq.batch import Example
from seq2seq.mixture import shuffled

POOL = 1 << 15  # pairs sorted by length together: enough for little padding, small in memory
_BANDS = (1, 2, 3, 4, 6, 8)  # tokens of target length that are sorted by the source together


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What determines the batches, besides the corpus.

    Attributes:
        seed: Of the shuffling.
        batch_tokens: Most tokens of a micro-batch: sentences times the longest side.
        pool: Pairs that are sorted by length together.
    """

    seed: int
    batch_tokens: int
    pool: int = POOL


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the endless sequence of micro-batches: the next one is batch `batch` of a pool."""

    epoch: int = 0
    pool: int = 0
    batch: int = 0


START = Position()
Load = Callable[[np.ndarray, Position], Sequence[Example]]
Placed = tuple[Position, list[Example]]  # a micro-batch behind the position after it


def micro_batches(
    n_places: int, cut: Callable[[int, int], Sequence[Placed]], plan: BatchPlan, start: Position
) -> Iterator[Placed]:
    """Yield micro-batches for ever, from a position on.

    Args:
        n_places: Pairs in an epoch.
        cut: Makes those of an epoch and pool, always the same.
        plan: Seed and sizes.
        start: Where to begin.
    """
    n_done = start.batch
    for epoch, pool in pools(n_places, plan, start):
        yield from cut(epoch, pool)[n_done:]
        n_done = 0


def pools(n_places: int, plan: BatchPlan, start: Position) -> Iterator[tuple[int, int]]:
    """The epoch and number of each pool for ever, from that of a position on.

    >>> list(itertools.islice(pools(5, BatchPlan(1, 9, pool=2), Position(0, 1)), 4))
    [(0, 1), (0, 2), (1, 0), (1, 1)]
    """
    n_pools = -(-n_places // plan.pool)
    first = start.epoch * n_pools + start.pool
    return (divmod(number, n_pools) for number in itertools.count(first))


def cut_pool(n_places: int, load: Load, plan: BatchPlan, epoch: int, pool: int) -> list[Placed]:
    """The micro-batches of one pool.

    Args:
        n_places: Pairs in an epoch.
        load: Makes the examples at the places of a pool, which is told by its beginning; always the same.
        plan: Seed and sizes.
        epoch: From 0.
        pool: Of the epoch, from 0.
    """
    places = np.arange(pool * plan.pool, min((pool + 1) * plan.pool, n_places))
    examples = load(shuffled(places, n_places, plan.seed, epoch), Position(epoch, pool))
    batches = cut_batches(examples, plan.batch_tokens)
    order = np.random.default_rng((plan.seed, epoch, pool)).permutation(len(batches))
    is_last = places[-1] == n_places - 1
    positions = [Position(epoch, pool, done) for done in range(1, len(batches))]
    positions.append(Position(epoch + 1) if is_last else Position(epoch, pool + 1))
    return [(after, batches[i]) for after, i in zip(positions, order, strict=True)]


def cut_rest(
    batches: Sequence[Placed],
    start: Position,
    load: Callable[[np.ndarray], Sequence[Example]],
    plan: BatchPlan,
) -> list[Placed]:
    """The micro-batches of a pool that is cut in another way from a position on, each pair still once.

    Args:
        batches: The pool as it was begun.
        start: In this pool.
        load: Makes the examples of the other way, from the indices of pairs.
        plan: Seed and sizes.
    """
    rest = [example.index for _, batch in batches[start.batch :] for example in batch]
    new = cut_batches(load(np.array(rest, dtype=np.int64)), plan.batch_tokens)
    order = np.random.default_rng((plan.seed, *astuple(start))).permutation(len(new))
    positions = [replace(start, batch=start.batch + done) for done in range(1, len(new))]
    positions.append(batches[-1][0])
    done = list(batches[: start.batch])
    return [*done, *((after, new[i]) for after, i in zip(positions, order, strict=True))]


def cut_batches(examples: Sequence[Example], batch_tokens: int) -> list[list[Example]]:
    """Sort examples by length and cut them into batches within the budget, with little padding.

    Neighbours must be alike on both sides. They are sorted by target length in bands of some tokens,
    and within a band by source length, upwards and downwards in turn. The fewer and larger the
    batches, the wider the best band: of several widths the one with the least padding is taken.

    An example longer than the budget is a batch of its own.
    """
    sides = [(len(e.src), 0 if e.tgt is None else len(e.tgt)) for e in examples]
    lengths = np.array(sides, dtype=np.int64).reshape(-1, 2) + 1
    candidates = []
    for band in _BANDS:
        bands = lengths[:, 1] // band
        order = np.lexsort((np.where(bands % 2, 1, -1) * lengths[:, 0], bands))
        cuts = _cuts(lengths[order].max(axis=1), batch_tokens)
        candidates.append((_n_cells(lengths[order], cuts), band, order, cuts))
    _, _, order, cuts = min(candidates, key=lambda c: c[:2])
    return [
        [examples[i] for i in order[start:end]]
        for start, end in zip([0, *cuts], [*cuts, len(examples)], strict=True)
    ]


def _n_cells(lengths: np.ndarray, cuts: Sequence[int]) -> int:
    """Cells of both sides, padding included, when sorted lengths (n, 2) are cut there."""
    starts = np.array([0, *cuts])
    sizes = np.diff(np.append(starts, len(lengths)))
    return int((sizes[:, None] * np.maximum.reduceat(lengths, starts, axis=0)).sum())


def _cuts(widths: np.ndarray, batch_tokens: int) -> list[int]:
    """Where to cut sorted pairs so that count times the largest width stays in the budget.

    >>> _cuts(np.array([2, 2, 3, 5]), 6)
    [2, 3]
    """
    cuts: list[int] = []
    start, widest = 0, 0
    for i, width in enumerate(widths.tolist()):
        widest = max(widest, width)
        if i > start and widest * (i + 1 - start) > batch_tokens:
            cuts.append(i)
            start, widest = i, width
    return cuts


def stable_seed(*parts: int) -> int:
    """A seed of 63 bits from some numbers, the same on every machine.

    >>> stable_seed(1, 2) == stable_seed(1, 2) != stable_seed(2, 1)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
