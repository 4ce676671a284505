"""The data of each update, as one of the processes that train together meets it.

    loader = Loader(config, corpus, tokenizer, world, is_pinned=False)
    with contextlib.closing(loader.updates(position)) as updates:
        update = next(updates)

Micro-batches are dealt out to the ranks in turn. What an update holds follows from the settings, the
corpus and the position alone; it is prepared ahead by a background thread, which for a GPU is helped by
processes: cutting words anew (BPE-dropout) takes one core longer than a GPU takes to learn from them.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from seq2seq.batch import Batch, Example, collate, drop_words
from seq2seq.batching import (
    BatchPlan,
    Placed,
    Position,
    cut_pool,
    cut_rest,
    micro_batches,
    pools,
    stable_seed,
)
from seq2seq.config import RunConfig, corpus_weights
from seq2seq.corpus import Corpus
from seq2seq.distributed import World
from seq2seq.mixture import Mixture
from seq2seq.prefetch import prefetch
from seq2seq.workers import Workers
from tokenizer.base import Tokenizer
from tokenizer.sampling import scrambled
from tokenizer.special import count_controls

_PART = 1024  # pairs that are cut anew at a time, so that little memory is used
_PREFETCHED = 64  # micro-batches that are prepared, or one update
_Arrays = tuple[np.ndarray, ...]  # the tensors of a batch


@dataclass(frozen=True, slots=True)
class Update:
    """The data of one update on this rank.

    Attributes:
        batches: Micro-batches, each with its number among those of all ranks.
        after: The position after them.
        waited: Seconds that the loop waited for them.
    """

    batches: tuple[tuple[int, Batch], ...]
    after: Position
    waited: float = 0.0

    @property
    def n_tokens(self) -> int:
        """Source and target tokens, without padding."""
        return sum(batch.n_tokens for _, batch in self.batches)

    @property
    def n_cells(self) -> int:
        """The same with padding."""
        return sum(batch.n_cells for _, batch in self.batches)

    @property
    def n_pairs(self) -> int:
        """Sentence pairs."""
        return sum(len(batch.index) for _, batch in self.batches)

    @property
    def rows(self) -> list[int]:
        """Which pairs of the corpus are in it."""
        return [int(i) for _, batch in self.batches for i in batch.index]


class Loader:
    """Makes the updates of one rank."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        tokenizer: Tokenizer,
        world: World,
        is_pinned: bool,
        n_processes: int = 0,
    ) -> None:
        """Prepare for a run.

        Args:
            config: Its settings.
            corpus: To learn from.
            tokenizer: That made the corpus.
            world: The processes that share each update; no more than it has micro-batches.
            is_pinned: Whether batches lie in memory that a GPU can copy from by itself.
            n_processes: Copies of this process that make them, a pool each; 0 for its thread alone.
        """
        self._config = config
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._world = world
        self._is_pinned = is_pinned
        self._n_processes = n_processes
        self._plan = BatchPlan(config.train.seed, config.data.batch_tokens)
        self._mixture = Mixture(
            corpus.sizes, corpus_weights(config.data.weights, len(corpus.sizes))
        )
        self._n_micro_batches = config.optim.accumulate  # of an update
        self._n_control = count_controls(tokenizer.tags)

    @property
    def n_places(self) -> int:
        """Pairs in an epoch."""
        return len(self._mixture)

    @property
    def n_tokens(self) -> float:
        """Source and target tokens in an epoch without BPE-dropout, on average."""
        pairs = zip(self._mixture.counts, self._corpus.mean_lengths, strict=True)
        return sum(count * length for count, length in pairs)

    def updates(
        self, position: Position, plain_from: Position | None = None
    ) -> Generator[Update, None, None]:
        """The updates from a position on, for ever, prepared ahead; close it to stop that.

        Args:
            position: Of the first micro-batch.
            plain_from: Where BPE-dropout ends, at or before `position`; None: nowhere.
        """
        depth = max(_PREFETCHED // self._n_micro_batches, 1)
        prepared = prefetch(self._prepare(position, plain_from), depth)
        with contextlib.closing(prepared):
            while True:
                start = time.monotonic()
                update = next(prepared)
                yield replace(update, waited=time.monotonic() - start)

    def _prepare(
        self, position: Position, plain_from: Position | None
    ) -> Generator[Update, None, None]:
        """The micro-batches of each update that fall to this rank."""
        world = self._world
        with contextlib.closing(self._micro_batches(position, plain_from)) as stream:
            while True:
                batches = []
                for number in range(self._n_micro_batches):
                    position, make = next(stream)
                    if number % world.size == world.rank:
                        batches.append((number, make().pinned() if self._is_pinned else make()))
                yield Update(tuple(batches), position)

    def _micro_batches(
        self, start: Position, plain_from: Position | None
    ) -> Generator[tuple[Position, Callable[[], Batch]], None, None]:
        """What makes each micro-batch from a position on, and the position after it."""
        if not self._n_processes:
            cut = functools.partial(self._cut, plain_from)
            for after, examples in micro_batches(self.n_places, cut, self._plan, start):
                yield after, functools.partial(self._batch, examples, after)
            return
        tasks = ((plain_from, *pool) for pool in pools(self.n_places, self._plan, start))
        workers = Workers(self, self._n_processes, in_processes=True)
        with contextlib.closing(workers.ahead(Loader._pool, tasks)) as made:
            n_done = start.batch
            for pool in made:
                for after, arrays in pool[n_done:]:
                    yield after, functools.partial(_unpacked, arrays)
                n_done = 0

    def _pool(
        self, plain_from: Position | None, epoch: int, pool: int
    ) -> list[tuple[Position, _Arrays]]:
        """All micro-batches of a pool, as a process sends them to another."""
        return [
            (after, tuple(t.numpy() for t in self._batch(examples, after).tensors()))
            for after, examples in self._cut(plain_from, epoch, pool)
        ]

    def _cut(self, plain_from: Position | None, epoch: int, pool: int) -> list[Placed]:
        """The micro-batches of a pool; where BPE-dropout ends in it, its rest is cut anew."""
        load = functools.partial(self._load, plain_from)
        batches = cut_pool(self.n_places, load, self._plan, epoch, pool)
        p = plain_from
        if (
            not self._dropout(epoch)
            or p is None
            or p.batch == 0
            or (p.epoch, p.pool) != (epoch, pool)
        ):
            return batches
        return cut_rest(batches, p, self._corpus.examples, self._plan)

    def _dropout(self, epoch: int) -> float:
        """The probability that a merge is left out, as far as it has risen in an epoch."""
        data = self._config.data
        return data.bpe_dropout * _ramp(epoch, data.bpe_dropout_after)

    def _batch(self, examples: list[Example], position: Position) -> Batch:
        """A micro-batch as tensors; what word dropout takes away follows from the position after it."""
        batch, config = collate(examples), self._config
        if share := config.data.word_dropout:
            seed = stable_seed(config.train.seed, *astuple(position))
            batch = drop_words(batch, share, np.random.default_rng(seed), self._n_control)
        return batch

    def _load(
        self, plain_from: Position | None, places: np.ndarray, pool: Position
    ) -> list[Example]:
        """Pairs at the places of a pool, cut into pieces anew where there is BPE-dropout by then."""
        config, epoch = self._config, pool.epoch
        rows = self._mixture.rows(places, config.train.seed, epoch)
        examples = self._corpus.examples(rows)
        dropout = self._dropout(epoch)
        if not dropout or (plain_from is not None and pool >= plain_from):
            return examples
        seed = stable_seed(config.train.seed, epoch)
        sampled = resample(examples, self._tokenizer, dropout, seed, places.tolist())
        most = config.data.max_len  # what was cut too small is taken as it was
        return [
            new if new.longest <= most else old for old, new in zip(examples, sampled, strict=True)
        ]


def resample(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    dropout: float,
    seed: int,
    keys: Sequence[int] | None = None,
) -> list[Example]:
    """The same sentences cut into pieces anew, at random (BPE-dropout, Provilkov et al. 2020).

    Args:
        examples: What becomes of one depends on it, the seed and its key, not on the others.
        tokenizer: Which made the ids.
        dropout: See `Tokenizer.resample`.
        seed: Of all.
        keys: Tell copies of a pair apart; its index if not given.
    """
    tags = set(tokenizer.tags.values())  # no text, so they are not cut
    numbers = np.array(keys or [e.index for e in examples], dtype=np.uint64)
    seeds = scrambled(np.stack([2 * numbers, 2 * numbers + 1], axis=1) + np.uint64(seed))
    resampled = []
    for first in range(0, len(examples), _PART):
        some = examples[first : first + _PART]
        sides = [() if side is None else side for e in some for side in (e.src, e.tgt)]
        new = tokenizer.resample(sides, dropout, seeds[first : first + _PART].ravel())
        for example, src, tgt in zip(some, new[::2], new[1::2], strict=True):
            tag = [int(i) for i in example.src[:1] if i in tags]
            resampled.append(Example([*tag, *src] if tag else src, tgt, example.index))
    return resampled


def _unpacked(arrays: _Arrays) -> Batch:
    return Batch(*map(torch.from_numpy, arrays))


def _ramp(epoch: int, after: int) -> float:
    """How much of a quantity there is that rises to 1, linearly, after so many epochs in as many.

    >>> [_ramp(epoch, 2) for epoch in range(5)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    return 1.0 if epoch >= 2 * after else max(epoch + 1 - after, 0) / after
