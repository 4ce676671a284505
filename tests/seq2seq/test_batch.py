import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.batch import Example, collate, drop_words
from tokenizer.special import BOS, EOS, N_SPECIAL, PAD, UNK

SENTENCES = st.lists(st.integers(5, 100), max_size=8)


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=5))
def test_each_row_is_its_sentence_framed_then_padding(pairs: list) -> None:
    batch = collate([Example(src, tgt, i) for i, (src, tgt) in enumerate(pairs)])

    assert all(t.dtype == torch.int64 for t in batch.tensors())
    assert batch.index.tolist() == list(range(len(pairs)))
    for row, (src, tgt) in enumerate(pairs):
        framed = {"src": [*src, EOS], "tgt_in": [BOS, *tgt], "tgt_out": [*tgt, EOS]}
        for name, expected in framed.items():
            ids = getattr(batch, name)[row].tolist()
            assert ids[: len(expected)] == expected
            assert set(ids[len(expected) :]) <= {PAD}


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=5))
def test_a_batch_is_as_wide_as_its_longest_sentence(pairs: list) -> None:
    batch = collate([Example(src, tgt, 0) for src, tgt in pairs])
    assert batch.src.size(1) == max(len(src) for src, _ in pairs) + 1
    assert batch.tgt_in.size(1) == batch.tgt_out.size(1) == max(len(t) for _, t in pairs) + 1


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=5))
def test_n_tokens_counts_end_tokens_but_no_padding(pairs: list) -> None:
    batch = collate([Example(src, tgt, 0) for src, tgt in pairs])
    assert batch.n_tokens == sum(len(src) + 1 + len(tgt) + 1 for src, tgt in pairs)


def test_the_output_is_the_input_one_position_later() -> None:
    batch = collate([Example([5], [6, 7, 8], 0), Example([5], [9], 1)])
    real = batch.tgt_in[:, 1:] != PAD
    assert torch.equal(batch.tgt_in[:, 1:][real], batch.tgt_out[:, :-1][real])


@pytest.mark.parametrize("second", [None, [7, 8]])
def test_without_all_targets_the_decoder_begins_with_bos_alone(second: list[int] | None) -> None:
    batch = collate([Example([5, 6], None, 3), Example([5], second, 1)])
    assert batch.tgt_in.tolist() == [[BOS], [BOS]]
    assert batch.src.tolist() == [[5, 6, EOS], [5, EOS, PAD]]
    assert batch.index.tolist() == [3, 1]


def test_ids_may_be_arrays_of_any_integer_type() -> None:
    lists = collate([Example([5, 6], [7], 0)])
    arrays = collate([Example(np.array([5, 6], np.uint16), np.array([7], np.int32), 0)])
    assert all(torch.equal(a, b) for a, b in zip(lists.tensors(), arrays.tensors(), strict=True))


def test_to_a_device_keeps_every_tensor_in_its_place() -> None:
    batch = collate([Example([5, 6], [7], 4)])
    moved = batch.to(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(batch.tensors(), moved.tensors(), strict=True))


def test_word_dropout_takes_text_from_the_inputs_only() -> None:
    batch = collate([Example(list(range(5, 105)), list(range(200, 300)), 0), Example([5], [6], 1)])
    dropped = drop_words(batch, 0.3, np.random.default_rng(1))
    assert torch.equal(dropped.tgt_out, batch.tgt_out)
    for before, after in ((batch.src, dropped.src), (batch.tgt_in, dropped.tgt_in)):
        changed = before != after
        assert 15 < int(changed.sum()) < 46
        assert set(after[changed].tolist()) == {UNK}
        assert bool((before[changed] >= N_SPECIAL).all())
    again = drop_words(batch, 0.3, np.random.default_rng(1))
    assert torch.equal(again.src, dropped.src)


def test_halves_hold_all_rows() -> None:
    batch = collate([Example([5 + i], [6] * i, i) for i in range(5)])
    first, second = batch.halves()
    for whole, a, b in zip(batch.tensors(), first.tensors(), second.tensors(), strict=True):
        assert torch.equal(torch.cat((a, b)), whole)
    assert len(first.index) == 2
