import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.checkpoint import Model as SavedModel
from seq2seq.checkpoint import build_model
from seq2seq.config import ModelConfig
from seq2seq.model import Transformer
from seq2seq.vocabulary import carried_over, spelling, transfer
from tokenizer import bpe, spm
from tokenizer.base import Tokenizer
from tokenizer.special import EOS, N_SPECIAL

OLD = ["the dog runs", "a big dog", "the big cat sleeps"] * 4
NEW = ["the dog barks", "barking dogs in Straßen", "the cat sleeps"] * 4
BYTES = {bytes([byte]): byte for byte in range(256)}


@pytest.fixture(scope="module", params=["bpe to bpe", "bpe to sentencepiece"])
def tokenizers(request: pytest.FixtureRequest) -> tuple[Tokenizer, Tokenizer]:
    """An old tokenizer and another one."""
    old = bpe.train(OLD, 300)
    new = bpe.train(NEW, 310) if request.param == "bpe to bpe" else spm.train(NEW, 330, "bpe")
    return old, new


def weights_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(Transformer(config).named_parameters())


def test_a_common_piece_keeps_its_row_and_a_new_one_is_the_mean_of_its_parts(
    tokenizers: tuple[Tokenizer, Tokenizer],
) -> None:
    old, new = tokenizers
    rows = torch.randn(old.vocab_size, 4)
    found = transfer(old, new)
    carried = carried_over({"src_embedding.weight": rows}, found.sources)["src_embedding.weight"]
    before, after = old.vocabulary(), new.vocabulary()
    assert torch.equal(carried[:N_SPECIAL], rows[:N_SPECIAL])
    for piece, row, sources in zip(after, carried, found.sources, strict=True):
        assert b"".join(before[i] for i in sources) == piece
        assert torch.allclose(row, rows[list(sources)].mean(0))
        if piece in before[N_SPECIAL:]:
            assert torch.equal(row, rows[before.index(piece)])


def test_what_is_kept_new_and_dropped_is_counted(tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    old, new = tokenizers
    found = transfer(old, new)
    before, after = (set(t.vocabulary()[N_SPECIAL:]) for t in tokenizers)
    assert (found.n_copied, found.n_new, found.n_dropped) == (
        len(before & after),
        len(after - before),
        len(before - after),
    )
    assert min(found.n_copied, found.n_new, found.n_dropped) > 0


def test_a_tag_keeps_its_row_and_a_new_one_is_the_mean_of_those_there_were() -> None:
    plain, old = bpe.train(OLD, 300), bpe.train(OLD, 300, tags=["de", "fr"])
    new = spm.train(NEW, 330, tags=["fr", "es"])
    first = [transfer(t, new).sources[N_SPECIAL : N_SPECIAL + 2] for t in (plain, old)]
    assert first == [((EOS,), (EOS,)), ((old.tags["fr"],), (old.tags["de"], old.tags["fr"]))]
    for sources in (transfer(old, new).sources, transfer(old, plain).sources):
        assert all(min(ids) >= N_SPECIAL + 2 for ids in sources[N_SPECIAL + 2 :])
    assert len(transfer(old, plain).sources) == plain.vocab_size


def test_the_same_vocabulary_changes_no_weight() -> None:
    tokenizer = bpe.train(OLD, 300)
    config = ModelConfig(tokenizer.vocab_size, 16, 32, 2, 1, 1)
    weights = weights_of(config)
    carried = carried_over(weights, transfer(tokenizer, tokenizer).sources)
    assert carried.keys() == weights.keys()
    assert all(torch.equal(carried[name], weights[name]) for name in weights)


@pytest.mark.parametrize("tied", ["all", "target", "none"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_the_weights_make_a_model_of_the_new_vocabulary(
    tokenizers: tuple[Tokenizer, Tokenizer], tied: str, positions: str
) -> None:
    old, new = tokenizers
    config = ModelConfig(old.vocab_size, 16, 32, 2, 1, 1, tie_embeddings=tied, positions=positions)
    weights = weights_of(config)
    carried = carried_over(weights, transfer(old, new).sources)
    larger = dataclasses.replace(config, vocab_size=new.vocab_size)
    model = build_model(SavedModel(larger, carried, new, folder=None))  # type: ignore[arg-type]
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in Transformer(larger).named_parameters()
    }
    untouched = [name for name in weights if weights[name].shape == carried[name].shape]
    assert all(torch.equal(carried[name], weights[name]) for name in untouched)
    assert "encoder.0.ffn.up.weight" in untouched
    # A text of common pieces means to the new model what it meant to the old one.
    common = [i for i, s in enumerate(transfer(old, new).sources) if len(s) == 1][-4:]
    as_before = [transfer(old, new).sources[i][0] for i in common]
    before = build_model(SavedModel(config, weights, old, folder=None))  # type: ignore[arg-type]
    states = [
        m.encode(torch.tensor([ids])).states for m, ids in ((model, common), (before, as_before))
    ]
    assert torch.equal(*states)


def all_spellings(piece: bytes, ids: dict[bytes, int]) -> list[Sequence[int]]:
    if not piece:
        return [()]
    return [
        (ids[piece[:n]], *rest)
        for n in range(len(piece), 0, -1)
        if piece[:n] in ids
        for rest in all_spellings(piece[n:], ids)
    ]


@given(
    st.text("ab", min_size=1, max_size=8),
    st.lists(st.text("ab", min_size=2, max_size=4), max_size=6),
)
def test_a_spelling_is_the_first_of_the_shortest(piece: str, longer: list[str]) -> None:
    ids = BYTES | {part.encode(): 256 + i for i, part in enumerate(dict.fromkeys(longer))}
    assert spelling(piece.encode(), ids) == min(all_spellings(piece.encode(), ids), key=len)
