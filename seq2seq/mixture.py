"""What an epoch consists of: every corpus as often as its weight says, in an order of its own.

    mixture = Mixture(sizes=(1000, 100), weights=(1.0, 2.5))
    len(mixture)                                    1250 places in an epoch
    mixture.rows(np.arange(1250), seed=1, epoch=0)  the pair at each place; the batches mix the places

Corpus i of nᵢ pairs and weight wᵢ has mᵢ = round(wᵢ·nᵢ) places. It is an endless stream: all its pairs
in a random order, then all in another one, and so on; epoch e = 0, 1, … takes the pairs from e·mᵢ
to (e+1)·mᵢ - 1 of that stream. So a weight of 0.1 shows another tenth in every epoch until all were
shown, and no pair of a corpus is ever more than once ahead of another. Nothing is held in memory, and
the stream is a pure function of seed and epoch.
"""

from dataclasses import dataclass

import numpy as np

from tokenizer.sampling import scrambled

_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Mixture:
    """Corpora, and how often each of their pairs is seen in an epoch, on average.

    Attributes:
        sizes: Pairs of each corpus, which stand one behind the other.
        weights: Of each corpus, positive.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Places of each corpus in an epoch; a corpus that has pairs has at least one.

        >>> Mixture((1000, 100, 0), (1.0, 2.5, 7.0)).counts
        (1000, 250, 0)
        """
        pairs = zip(self.sizes, self.weights, strict=True)
        return tuple(max(min(n, 1), round(n * weight)) for n, weight in pairs)

    def __len__(self) -> int:
        return sum(self.counts)

    def rows(self, places: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The pairs that stand at some places of an epoch.

        Args:
            places: Any of 0 … len - 1; those of a corpus are next to one another.
            seed: Of the order of each pass over a corpus.
            epoch: From 0.

        Returns:
            For each place, 0 … sum(sizes) - 1, int64.
        """
        rows = np.empty(len(places), dtype=np.int64)
        first_place = first_row = 0
        for number, (n, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            mine = (first_place <= places) & (places < first_place + count)
            offsets = places[mine] - first_place
            if count != n:  # else the epoch is one whole pass, and its batches are shuffled anyway
                offsets = _streamed(offsets + epoch * count, n, (seed, number))
            rows[mine] = first_row + offsets
            first_place, first_row = first_place + count, first_row + n
        return rows


def _streamed(places: np.ndarray, n: int, seed: tuple[int, int]) -> np.ndarray:
    """The numbers at some places of an endless stream of permutations of 0 … n - 1."""
    out = np.empty(len(places), dtype=np.int64)
    passes = places // n
    for number in np.unique(passes).tolist():
        here = passes == number
        out[here] = shuffled(places[here] % n, n, seed, number)
    return out


def shuffled(places: np.ndarray, n: int, seed: int | tuple[int, ...], epoch: int) -> np.ndarray:
    """Where a random permutation of 0 … n - 1 sends the given places, without ever holding it whole.

    A Feistel network permutes the 4^h ≥ n numbers of 2h bits; a number that falls outside is sent on
    until it falls inside (cycle walking; Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains).

    Args:
        places: Any of 0 … n - 1.
        n: The size of the permutation.
        seed: With `epoch`, chooses the permutation.
        epoch: See `seed`.

    Returns:
        Distinct numbers below n for distinct places, int64.

    >>> sorted(shuffled(np.arange(10), 10, seed=1, epoch=0).tolist()) == list(range(10))
    True
    """
    parts = seed if isinstance(seed, tuple) else (seed,)
    half = np.uint64(max(1, -(-max(n - 1, 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.default_rng((*parts, epoch)).integers(
        1, 1 << 62, size=_ROUNDS, dtype=np.uint64
    )
    out = places.astype(np.uint64)
    outside = np.ones(len(out), dtype=bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & mask
        for key in keys:
            left, right = right, left ^ (scrambled(right + key) & mask)
        out[outside] = left << half | right
        outside = out >= n
    return out.astype(np.int64)
