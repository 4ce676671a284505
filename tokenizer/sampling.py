"""Random segmentations of words: BPE-dropout and unigram sampling.

The libraries can do both, but only from random generators that nobody can seed. Here a
segmentation is a pure function of the word, the strength and a number, so that training repeats
exactly. It also lets us keep what was once computed: sampling a word costs little more than looking
it up, and a batch of texts is looked up as a whole.
"""

import math
import random
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np

from tokenizer.base import Ids
from tokenizer.errors import UserError

_N_VARIANT_BITS = 5
_MAX_WORDS = 1 << 15  # in the table: some 100 MB; the frequent words are met, and kept, first
_MAX_WORD_LENGTH = 64  # of a word in the table
_MAX_TEXTS = 1 << 17  # that are remembered cut into words: some 60 MB for sentences of 14 pieces
_UNKNOWN = -20.0  # log-probability of a character that is no piece
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # steps of SplitMix64


class WordSampler:
    """Draws each word's segmentation from 32 random ones, computed when first asked for."""

    def __init__(
        self,
        split: Callable[[list[int]], Iterable[str]],
        segment: Callable[[str, float, random.Random], list[int]],
    ) -> None:
        """Sample what ids stand for.

        Args:
            split: From ids to the words of their text.
            segment: From word, dropout and source of chance to the ids of one segmentation.
        """
        self._segment = segment
        self._dropout = 0.0
        self._table: dict[str, list[tuple[int, ...] | None]] = {}

        def words(ids: bytes) -> tuple[str, ...]:
            return tuple(map(sys.intern, split(np.frombuffer(ids, dtype=np.int64).tolist())))

        self._words = lru_cache(_MAX_TEXTS)(words)  # an epoch of a small corpus is split once

    def resample(self, batch: Sequence[Ids], dropout: float, seeds: Ids) -> list[np.ndarray]:
        """The same texts, each word segmented at random; see `Tokenizer.resample`."""
        if not 0 <= dropout <= 1:
            raise UserError(f"dropout {dropout}: must be between 0 and 1")
        if dropout != self._dropout:
            self._dropout = dropout
            self._table = {}
        texts = [self._words(np.asarray(ids, dtype=np.int64).tobytes()) for ids in batch]
        numbers = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
        words = list(numbers)
        n_words = np.array([len(text) for text in texts], dtype=np.int64)
        occurring = map(numbers.__getitem__, chain.from_iterable(texts))
        found = np.fromiter(occurring, dtype=np.int64, count=n_words.sum())
        # Word and variant in one number; what occurs often is looked up once.
        codes = found << _N_VARIANT_BITS | _drawn(seeds, n_words)
        distinct, which = np.unique(codes, return_inverse=True)
        mask = (1 << _N_VARIANT_BITS) - 1
        variants = [
            self._variant(words[code >> _N_VARIANT_BITS], code & mask) for code in distinct.tolist()
        ]
        ids, lengths = _joined(variants, which)
        ends = np.append(0, np.cumsum(lengths))[np.append(0, np.cumsum(n_words))]
        return [ids[start:end] for start, end in pairwise(ends.tolist())]

    def _variant(self, word: str, number: int) -> tuple[int, ...]:
        variants = self._table.get(word)
        return (variants and variants[number]) or self._compute(word, number)

    def _compute(self, word: str, number: int) -> tuple[int, ...]:
        # Python's own hash of a string differs from run to run.
        seed = zlib.crc32(f"{number} {self._dropout!r} {word}".encode())
        variant = tuple(self._segment(word, self._dropout, random.Random(seed)))
        variants = self._table.get(word)
        if variants is None:
            if len(self._table) >= _MAX_WORDS or len(word) > _MAX_WORD_LENGTH:
                return variant
            variants = self._table[word] = [None] * (1 << _N_VARIANT_BITS)
        if variant in variants:  # many are alike: keep one
            variant = variants[variants.index(variant)] or variant
        variants[number] = variant
        return variant


def _drawn(seeds: Ids, n_words: np.ndarray) -> np.ndarray:
    """The number of a variant for each word of some texts; those of a text follow from its seed.

    Returns:
        Of all words, (sum of n_words,), int64.
    """
    firsts = np.cumsum(n_words) - n_words
    places = np.arange(n_words.sum()) - np.repeat(firsts, n_words) + 1
    states = np.repeat(np.array(seeds, dtype=np.uint64), n_words)
    numbers = scrambled(states + places.astype(np.uint64) * _GOLDEN)
    return (numbers >> np.uint64(64 - _N_VARIANT_BITS)).astype(np.int64)


def scrambled(numbers: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits that look random, one for each (SplitMix64, Steele et al. 2014)."""
    x = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _joined(
    sequences: Sequence[tuple[int, ...]], which: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Some of the sequences one after the other, and the length of each.

    >>> ids, lengths = _joined([(1, 2), (), (3,)], np.array([2, 0, 1, 0]))
    >>> ids.tolist(), lengths.tolist()
    ([3, 1, 2, 1, 2], [1, 2, 0, 2])
    """
    sizes = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    flat = np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=sizes.sum())
    lengths = sizes[which]
    # From where a sequence stands among the chosen ones to where it stands among all.
    shifts = (np.cumsum(sizes) - sizes)[which] - (np.cumsum(lengths) - lengths)
    return flat[np.arange(lengths.sum()) + np.repeat(shifts, lengths)], lengths


def bpe_dropout(
    symbols: Iterable[str],
    ranks: Mapping[tuple[str, str], int],
    dropout: float,
    rng: random.Random,
) -> list[str]:
    """Segment a word by BPE that overlooks merges at random (Provilkov et al. 2020, algorithm 1).

    At every step each possible merge is dropped with probability `dropout`, and the first of those
    left, in the order of training, is carried out; when none is left, the word is done. Without
    dropout that is plain BPE, with a dropout of 1 the symbols stay as they are.

    >>> ranks = {("l", "o"): 0, ("lo", "w"): 1}
    >>> bpe_dropout("low", ranks, 0.0, random.Random(0))
    ['low']
    >>> bpe_dropout("low", ranks, 1.0, random.Random(0))
    ['l', 'o', 'w']

    Args:
        symbols: The word's smallest parts. Takes time quadratic in their number.
        ranks: The merges; a smaller rank goes first.
        dropout: Probability.
        rng: Source of chance.
    """
    parts = list(symbols)
    merges = [ranks.get(pair, math.inf) for pair in pairwise(parts)]
    while True:
        best, best_rank = -1, math.inf
        for i, rank in enumerate(merges):
            # Whether a merge that would lose anyway is dropped makes no difference.
            if rank < best_rank and rng.random() >= dropout:
                best, best_rank = i, rank
        if best < 0:
            return parts
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
        del merges[best]
        for i in range(max(best - 1, 0), min(best + 1, len(merges))):
            merges[i] = ranks.get((parts[i], parts[i + 1]), math.inf)


def sample_unigram(
    word: str, log_probs: Mapping[str, float], max_length: int, alpha: float, rng: random.Random
) -> list[str]:
    """Draw a segmentation with probability p(segmentation)^alpha / Z (Kudo 2018, section 3.2).

    Forward filtering: for every position, the total weight of all ways to get there. Backward
    sampling: from the end, draw the last piece in proportion to the weight of the ways it ends.

    Args:
        word: At least one character.
        log_probs: The pieces. A character that is none is a piece of its own, a rare one.
        max_length: Of the longest piece, in characters.
        alpha: 1 samples from the model, 0 from all segmentations alike.
        rng: Source of chance.
    """
    total = [0.0]  # log of the weight of all ways to reach each position
    arrivals: list[list[tuple[float, int]]] = [[]]  # (log weight, start of the last piece)
    for end in range(1, len(word) + 1):
        ways = []
        for start in range(max(0, end - max_length), end):
            log_prob = log_probs.get(word[start:end])
            if log_prob is not None:
                ways.append((total[start] + alpha * log_prob, start))
            elif start == end - 1:
                ways.append((total[start] + alpha * _UNKNOWN, start))
        most = max(weight for weight, _ in ways)
        ways = [(math.exp(weight - most), start) for weight, start in ways]
        total.append(most + math.log(sum(weight for weight, _ in ways)))
        arrivals.append(ways)
    pieces = []
    end = len(word)
    while end > 0:
        weights, starts = zip(*arrivals[end], strict=True)
        start = rng.choices(starts, weights)[0]
        pieces.append(word[start:end])
        end = start
    return pieces[::-1]
