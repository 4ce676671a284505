"""What every tokenizer promises, tried on each of them."""

import itertools
import random
from pathlib import Path

import pytest

from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.folder import load_tokenizer
from tokenizer.special import N_SPECIAL


def random_texts(n: int) -> list[str]:
    """Strings over all planes, without surrogates; half of the characters are common ones."""
    rng = random.Random(0)
    common = "aeinrst  AEN.,'ä▁␛_<>/\n\r\t\0"
    texts = []
    for _ in range(n):
        plane = rng.choice([0x80, 0x800, 0xD800, 0x110000])
        characters = [
            rng.choice(common) if rng.random() < 0.5 else chr(rng.randrange(plane))
            for _ in range(rng.randrange(20))
        ]
        texts.append("".join(c for c in characters if not 0xD800 <= ord(c) < 0xE000))
    return texts


def test_decoding_gives_back_every_text(tokenizer: Tokenizer, nasty_texts: list[str]) -> None:
    texts = nasty_texts + random_texts(5000)
    lost = [ascii(t) for t in texts if tokenizer.decode(tokenizer.encode(t)) != t]
    assert lost == []


def test_no_text_becomes_a_control_id(
    tokenizer: Tokenizer, nasty_texts: list[str], tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    for text in nasty_texts:
        ids = tokenizer.encode(text)
        assert all(N_SPECIAL <= i < tokenizer.vocab_size for i in ids)
        assert load_tokenizer(tmp_path).encode(text) == ids


def test_batches_equal_single_calls(tokenizer: Tokenizer, nasty_texts: list[str]) -> None:
    batch = tokenizer.encode_batch(nasty_texts)
    assert batch == [tokenizer.encode(text) for text in nasty_texts]
    assert tokenizer.decode_batch(batch) == nasty_texts
    assert (
        tokenizer.encode_batch(nasty_texts[::-1]) == batch[::-1]
    )  # what is remembered is the same
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.decode_batch([[], []]) == ["", ""]


def test_words_are_the_same_in_any_text(tokenizer: Tokenizer) -> None:
    texts = random_texts(2000)
    together = tokenizer.encode_batch([f"{a} {b}" for a, b in itertools.pairwise(texts)])
    for (a, b), ids in zip(itertools.pairwise(texts), together, strict=True):
        assert tokenizer.encode(f"{a} {b}") == ids


def test_control_ids_are_dropped_in_decoding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a dog")
    framed = [2, *ids[:1], 4, 0, *ids[1:], 1, 3, 0, 0]
    assert tokenizer.decode(framed) == "a dog"


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer.decode([tokenizer.vocab_size - 1]), str)
    for bad in (-1, tokenizer.vocab_size, 2**40):
        with pytest.raises(UserError, match=f"id {bad}: not in the vocabulary"):
            tokenizer.decode([5, bad])


def test_half_a_character_becomes_a_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🐕")
    assert tokenizer.decode(ids[:-1]).strip("\ufffd ") == ""
    assert "\ufffd" in tokenizer.decode(ids[:-1])


def test_any_ids_decode_to_valid_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(500):
        tokenizer.decode([rng.randrange(tokenizer.vocab_size) for _ in range(8)]).encode()


def test_lone_surrogate_is_named(tokenizer: Tokenizer) -> None:
    for call in (
        tokenizer.encode,
        tokenizer.pieces,
        lambda text: tokenizer.encode_batch(["", text]),
    ):
        with pytest.raises(UserError, match=r"lone surrogate U\+D8AB at character 3"):
            call("ab\ud8ab")


def test_first_word_has_the_pieces_of_a_later_one(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("dog")
    assert tokenizer.encode("a dog")[-len(first) :] == first
    assert tokenizer.encode(" dog") != first


def test_pieces_are_one_for_each_id_and_hold_no_white_space(
    tokenizer: Tokenizer, nasty_texts: list[str]
) -> None:
    assert "".join(tokenizer.pieces("a dog runs")) == "▁a▁dog▁runs"
    for text in nasty_texts[:26]:
        pieces = tokenizer.pieces(text)
        assert len(pieces) == len(tokenizer.encode(text))
        assert not any(piece.split() != [piece] for piece in pieces)


def test_samples_decode_to_the_text(tokenizer: Tokenizer, nasty_texts: list[str]) -> None:
    texts = nasty_texts + random_texts(200)
    batch = tokenizer.encode_batch(texts)
    for dropout in (0.1, 0.9, 1.0):
        sampled = tokenizer.resample(batch, dropout, range(len(texts)))
        assert tokenizer.decode_batch(sampled) == texts
        assert all(ids.min(initial=N_SPECIAL) >= N_SPECIAL for ids in sampled)


def test_weakest_samples_are_the_encoding(
    tokenizer: Tokenizer, corpus: list[str], nasty_texts: list[str]
) -> None:
    batch = tokenizer.encode_batch([*corpus[:13], *nasty_texts])
    random_pieces = tokenizer.resample(batch, 1.0, range(len(batch)))
    for source in (batch, random_pieces):
        for dropout in (0.0, 1e-12):
            sampled = tokenizer.resample(source, dropout, [0] * len(batch))
            assert [ids.tolist() for ids in sampled] == batch


def test_samples_differ_and_repeat(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "the young men are running"
    tokenizer.save(tmp_path)
    other = load_tokenizer(tmp_path)
    batch = [tokenizer.encode(text)] * 60
    drawn = tokenizer.resample(batch, 0.5, range(60))
    assert len({tuple(ids.tolist()) for ids in drawn}) > 10
    again = other.resample(batch, 0.5, range(59, -1, -1))
    assert [ids.tolist() for ids in drawn[::-1]] == [ids.tolist() for ids in again]


def test_sampling_refuses_ids_that_are_none(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="not in the vocabulary"):
        tokenizer.resample([[tokenizer.vocab_size]], 0.5, [0])


def test_saving_is_whole_and_tidy(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    tokenizer.save(folder)
    tokenizer.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == tokenizer.files()
    assert load_tokenizer(folder).files() == tokenizer.files()


def test_saving_where_one_cannot_write_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file/tokenizer: could not be written"):
        tokenizer.save(tmp_path / "file" / "tokenizer")


def test_the_bytes_of_its_ids_make_up_a_text(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.vocabulary()
    assert len(vocabulary) == tokenizer.vocab_size
    assert [i for i, piece in enumerate(vocabulary) if not piece] == list(range(N_SPECIAL))
    for text in ("a dog runs", "zwei junge Männer", "1234  你好 👩‍👩‍👧\n"):
        assert b"".join(vocabulary[i] for i in tokenizer.encode(text)).decode() == f" {text}"
