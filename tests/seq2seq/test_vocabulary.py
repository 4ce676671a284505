import dataclasses
from collections import Counter
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
    before, after = (Counter(t.vocabulary()[N_SPECIAL:]) for t in tokenizers)
    assert (found.n_copied, found.n_new, found.n_dropped) == (
        (before & after).total(),
        (after - before).total(),
        (before - after).total(),
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


@pytest.mark.parametrize("tags", [[], ["de", "fr"]])
@pytest.mark.parametrize("kind", ["byte-level bpe", "bpe", "unigram"])
def test_the_same_vocabulary_changes_no_weight(kind: str, tags: list[str]) -> None:
    tokenizer = (
        bpe.train(OLD, 300, tags=tags)
        if kind == "byte-level bpe"
        else spm.train(OLD, 330, kind, tags=tags)  # type: ignore[arg-type]
    )
    found = transfer(tokenizer, tokenizer)
    assert found.sources == tuple((i,) for i in range(tokenizer.vocab_size))
    n_text = tokenizer.vocab_size - N_SPECIAL - len(tags)
    assert (found.n_copied, found.n_new, found.n_dropped) == (n_text, 0, 0)
    weights = weights_of(ModelConfig(tokenizer.vocab_size, 16, 32, 2, 1, 1))
    carried = carried_over(weights, found.sources)
    assert carried.keys() == weights.keys()
    assert all(torch.equal(carried[name], weights[name]) for name in weights)


def test_a_letter_and_the_byte_that_stands_in_for_it_keep_rows_of_their_own() -> None:
    """In sentencepiece `d` is a piece, and `<0x64>` another, which no text with a `d` is cut into."""
    plain, old, new = bpe.train(OLD, 300), spm.train(OLD, 330, "bpe"), spm.train(NEW, 330)

    def ids(tokenizer: Tokenizer) -> tuple[int, int]:
        byte, letter = (i for i, piece in enumerate(tokenizer.vocabulary()) if piece == b"d")
        assert tokenizer.show([byte, letter]) == ["<0x64>", "d"]
        return byte, letter

    (byte, letter), (new_byte, new_letter) = ids(old), ids(new)
    sources = transfer(old, new).sources
    assert (sources[new_byte], sources[new_letter]) == ((byte,), (letter,))
    of_text = plain.vocabulary().index(b"d")
    assert transfer(old, plain).sources[of_text] == (letter,)
    to_both = transfer(plain, new)
    assert (to_both.sources[new_byte], to_both.sources[new_letter]) == ((of_text,), (of_text,))


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
