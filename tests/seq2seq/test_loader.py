import contextlib
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seq2seq.batch import Example
from seq2seq.batching import START, Position
from seq2seq.config import Value
from seq2seq.corpus import Corpus
from seq2seq.distributed import ALONE, World
from seq2seq.loader import Loader, Update, resample
from seq2seq.trainer import Setup
from tokenizer.base import Tokenizer

MakeLoader = Callable[..., Loader]
DROPOUT = 0.3


@pytest.fixture
def make_loader(
    make_setup: Callable[[Path, Mapping[str, Value]], Setup], tmp_path: Path
) -> MakeLoader:
    """Makes the loader of a rank from settings."""

    def make(world: World = ALONE, n_processes: int = 0, **settings: Value) -> Loader:
        dotted = {name.replace("__", "."): value for name, value in settings.items()}
        setup = make_setup(tmp_path / "run", {"data.bpe_dropout": DROPOUT, **dotted})
        return Loader(
            setup.config, setup.corpus, setup.tokenizer, world, False, n_processes=n_processes
        )

    return make


def take(
    loader: Loader, n: int, position: Position = START, plain_from: Position | None = None
) -> list[Update]:
    with contextlib.closing(loader.updates(position, plain_from)) as updates:
        return list(itertools.islice(updates, n))


def contents(updates: list[Update]) -> list[list[tuple[int, list[list[int]], list[list[int]]]]]:
    return [[(n, b.src.tolist(), b.tgt_out.tolist()) for n, b in u.batches] for u in updates]


def test_an_update_has_as_many_micro_batches_as_accumulated(make_loader: MakeLoader) -> None:
    updates = take(make_loader(optim__accumulate=3), 4)
    assert [[n for n, _ in u.batches] for u in updates] == [[0, 1, 2]] * 4
    for update in updates:
        batches = [batch for _, batch in update.batches]
        assert update.n_tokens == sum(batch.n_tokens for batch in batches) < update.n_cells
        assert len(update.rows) == sum(len(batch.src) for batch in batches)


def test_the_updates_from_a_position_on_are_those_of_the_whole(make_loader: MakeLoader) -> None:
    loader = make_loader(data__word_dropout=0.2)
    whole = take(loader, 40)
    assert whole[-1].after.epoch > 0
    for n in (1, 7, 31):
        rest = take(loader, 40 - n, whole[n - 1].after)
        assert contents(rest) == contents(whole[n:])
        assert [u.after for u in rest] == [u.after for u in whole[n:]]


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_out_what_one_process_would_take(size: int, make_loader: MakeLoader) -> None:
    one = contents(take(make_loader(optim__accumulate=size), 10))
    ranks = [
        contents(
            take(make_loader(replace(ALONE, rank=rank, size=size), optim__accumulate=size), 10)
        )
        for rank in range(size)
    ]
    together = [sorted(itertools.chain(*updates)) for updates in zip(*ranks, strict=True)]
    assert together == one


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("world", [ALONE, replace(ALONE, rank=1, size=2)], ids=["alone", "rank 1"])
def test_processes_make_the_same_updates(n: int, world: World, make_loader: MakeLoader) -> None:
    settings = {"data__word_dropout": 0.2, "data__bpe_dropout_after": 1, "optim__accumulate": 2}
    here, there = (make_loader(world, k, **settings) for k in (0, n))
    whole = take(here, 30)
    assert whole[-1].after.epoch >= 3
    for start in (START, whole[10].after):
        first = 0 if start is START else 11
        made = take(there, 30 - first, start)
        assert contents(made) == contents(whole[first:])
        assert [u.after for u in made] == [u.after for u in whole[first:]]


def test_an_epoch_holds_every_pair_once(make_loader: MakeLoader) -> None:
    loader = make_loader(data__batch_tokens=1024)
    updates = list(itertools.takewhile(lambda u: u.after.epoch == 0, take(loader, 100)))
    last = take(loader, len(updates) + 1)[-1]
    rows = [row for update in [*updates, last] for row in update.rows]
    assert sorted(rows) == list(range(loader.n_places))
    assert last.after == Position(1)


def test_bpe_dropout_cuts_the_same_pairs_into_more_pieces(make_loader: MakeLoader) -> None:
    loader = make_loader(data__batch_tokens=10**6)
    (own,), (sampled,) = take(loader, 1, plain_from=START), take(loader, 1)
    assert sorted(own.rows) == sorted(sampled.rows)
    assert sampled.n_tokens > own.n_tokens == pytest.approx(loader.n_tokens, rel=0.02)


def test_where_bpe_dropout_ends_every_pair_still_comes_once_an_epoch(
    make_loader: MakeLoader,
) -> None:
    loader = make_loader()
    begun = take(loader, 5)
    position = begun[-1].after
    after = take(loader, 60, position, position)
    rows: dict[int, list[int]] = {}
    starts = itertools.chain([START], (u.after for u in (*begun, *after)))
    for start, update in zip(starts, [*begun, *after], strict=False):
        rows.setdefault(start.epoch, []).extend(update.rows)
    assert 1 in rows
    assert all(sorted(rows[epoch]) == list(range(loader.n_places)) for epoch in (0, 1))
    n_plain, n_sampled = (
        sum(u.n_tokens for u in some if u.after.epoch == 0)
        for some in (after, take(loader, 60)[5:])
    )
    assert n_plain < n_sampled
    second = [u for u, v in zip(after[1:], after, strict=False) if v.after.epoch >= 1]
    assert contents(second[:10]) == contents(take(loader, 10, Position(1), START))
    for n in (1, 3, 10):  # as if it had been resumed
        rest = take(loader, 60 - n, after[n - 1].after, position)
        assert contents(rest) == contents(after[n:])


def test_bpe_dropout_begins_after_some_passes(make_loader: MakeLoader) -> None:
    an_epoch = make_loader(data__batch_tokens=10**6)  # an update
    plain = take(an_epoch, 3, plain_from=START)
    always = take(make_loader(data__batch_tokens=10**6), 4)
    later = take(make_loader(data__batch_tokens=10**6, data__bpe_dropout_after=2), 4)
    assert [u.after.epoch for u in later] == [1, 2, 3, 4]
    assert contents(later[:2]) == contents(plain[:2])
    assert plain[2].n_tokens < later[2].n_tokens < always[2].n_tokens
    assert contents(later[3:]) == contents(always[3:])


def test_what_bpe_dropout_would_make_too_long_is_taken_as_it_was(make_loader: MakeLoader) -> None:
    loader = make_loader(data__batch_tokens=10**6)
    (own,) = take(loader, 1, plain_from=START)
    ((_, batch),) = own.batches
    longest = max(batch.src.shape[1], batch.tgt_out.shape[1]) - 1  # one is the end
    narrow = make_loader(data__batch_tokens=10**6, data__max_len=longest, data__bpe_dropout=0.9)
    ((_, sampled),) = take(narrow, 1)[0].batches
    assert max(sampled.src.shape[1], sampled.tgt_out.shape[1]) - 1 <= longest
    assert sampled.n_tokens > batch.n_tokens
    assert not np.array_equal(sampled.index, batch.index)  # they are sorted by other lengths


def test_word_dropout_follows_from_seed_and_position(make_loader: MakeLoader) -> None:
    plain = take(make_loader(), 3, plain_from=START)
    a, b, other = (
        take(make_loader(data__word_dropout=0.5, train__seed=seed), 3, plain_from=START)
        for seed in (1, 1, 2)
    )
    assert contents(a) == contents(b)
    assert contents(a) != contents(plain)
    assert [u.rows for u in a] == [u.rows for u in plain] != [u.rows for u in other]
    assert all(
        torch.equal(x.tgt_out, y.tgt_out)
        for u, v in zip(a, plain, strict=True)
        for (_, x), (_, y) in zip(u.batches, v.batches, strict=True)
    )


# BPE-dropout of single sentences


def test_sampled_pieces_spell_the_same_text(
    small_corpus: Corpus, small_tokenizer: Tokenizer
) -> None:
    examples = [small_corpus[i] for i in range(50)]
    sampled = resample(examples, small_tokenizer, 0.5, seed=1)
    for before, after in zip(examples, sampled, strict=True):
        assert after.index == before.index
        for old, new in zip(before.sides(), after.sides(), strict=True):
            assert small_tokenizer.decode(new) == small_tokenizer.decode(old)
    assert any(a.sides() != b.sides() for a, b in zip(examples, sampled, strict=True))


def test_what_is_sampled_depends_on_the_example_and_the_seed_alone(
    small_corpus: Corpus, small_tokenizer: Tokenizer
) -> None:
    examples = [small_corpus[i] for i in range(20)]
    together = resample(examples, small_tokenizer, 0.5, seed=1)
    shuffled = random.Random(0).sample(examples, 20)
    for example in resample(shuffled, small_tokenizer, 0.5, seed=1):
        assert example.sides() == together[example.index].sides()
    other = resample(examples, small_tokenizer, 0.5, seed=2)
    assert [e.sides() for e in other] != [e.sides() for e in together]


def test_copies_of_a_pair_are_told_apart_by_their_keys(
    small_corpus: Corpus, small_tokenizer: Tokenizer
) -> None:
    longest = max((small_corpus[i] for i in range(200)), key=lambda e: len(e.src))
    copies = resample([longest] * 8, small_tokenizer, 0.5, seed=1, keys=range(8))
    assert len({str(example.sides()) for example in copies}) > 1
    again = resample([longest] * 8, small_tokenizer, 0.5, seed=1, keys=[3] * 8)
    assert {str(example.sides()) for example in again} == {str(copies[3].sides())}


def test_without_dropout_the_pieces_stay(small_corpus: Corpus, small_tokenizer: Tokenizer) -> None:
    examples = [small_corpus[i] for i in range(20)]
    same: list[Example] = resample(examples, small_tokenizer, 0.0, seed=1)
    assert [e.sides() for e in same] == [e.sides() for e in examples]
