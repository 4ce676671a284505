"""Byte-level BPE over Hugging Face `tokenizers`.

Every byte has a piece, so that there is no unknown text. A file that `BpeTokenizer` writes is a
standard tokenizer.json: any tool that reads those finds the same ids.

    tokenizer = train(["a dog runs", "a dog sleeps"], vocab_size=300)
    tokenizer.pieces("a dog")     # ['▁a', '▁dog']
"""

import json
import random
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from tokenizer.base import (
    MAX_VOCAB_SIZE,
    Ids,
    check_text,
    check_vocab_size,
    save_files,
    some_text,
    text_ids,
)
from tokenizer.errors import UserError
from tokenizer.files import read_json
from tokenizer.sampling import WordSampler, bpe_dropout
from tokenizer.special import N_SPECIAL, check_tags, count_controls

FILE_NAME = "tokenizer.json"

# The names of ids 0 to 4 in the file; language tags follow them: ⟨2de⟩, ⟨2fr⟩. Their brackets are not
# in the byte-level alphabet, so no text can spell them. They are not registered as "added tokens"
# either: the library cuts those out of user text.
_CONTROLS = ("⟨pad⟩", "⟨unk⟩", "⟨bos⟩", "⟨eos⟩", "⟨mask⟩")
_TAG = re.compile("⟨2(.*)⟩")

# Merges never cross the borders of these words: letters with their marks and joiners (Hindi,
# Persian) · single digits, so that numbers are copied digit by digit and not learnt one by one ·
# runs of anything else that is visible · white space. A word takes one space before it along. A
# contraction falls apart ("don ' t"): rules for these suit one language and hurt the next.
_LETTER = r"\p{L}\p{M}\x{200C}\x{200D}"
_WORD = rf" ?[{_LETTER}]+| ?\p{{N}}| ?[^\s{_LETTER}\p{{N}}]+|\s+(?!\S)|\s+"

# Where pieces are learnt, which takes time in the square of the longest word, long words fall apart.
_LEARNT_WORD = _WORD.replace("+", "{1,1000}")

# Longer pieces are frozen phrases of the corpus, or rulers made of dashes.
_MAX_PIECE_BYTES = 32
_MIN_COUNT = 2  # a pair of pieces seen once teaches nothing
_MAX_PARTS = 1 << 17  # that are remembered with their ids: some 30 MB
_MAX_PART_LENGTH = 24  # of a part that is remembered: longer ones hardly come again
_MAX_RUN = 32  # bytes that BPE-dropout works on at a time


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte, as GPT-2 has them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(byte) for byte in printable}
    stand_ins |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [stand_ins[byte] for byte in range(256)]


_ALPHABET = _byte_alphabet()
_BYTE_OF = {character: byte for byte, character in enumerate(_ALPHABET)}


def train(
    lines: Iterable[str],
    vocab_size: int,
    *,
    tags: Sequence[str] = (),
    name: str = "training text",
) -> "BpeTokenizer":
    """Learn a vocabulary; the same lines give the same vocabulary, byte for byte.

    Args:
        lines: Text without line ends. Only counts of words are kept in memory.
        vocab_size: How many ids to end up with; fewer if the text has no more pairs to merge.
        tags: Languages to have a tag for.
        name: What to call the text in errors.

    Raises:
        UserError: There is no text, or `vocab_size` leaves no room for the 256 bytes.
    """
    controls = [*_CONTROLS, *(f"⟨2{tag}⟩" for tag in check_tags(tags))]
    check_vocab_size(vocab_size, len(controls) + 256)
    library = tokenizers.Tokenizer.from_str(json.dumps(_document({}, [], _LEARNT_WORD)))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(controls),
        min_frequency=_MIN_COUNT,
        initial_alphabet=_ALPHABET,
        max_token_length=_MAX_PIECE_BYTES,
        show_progress=False,
    )
    library.train_from_iterator(some_text(lines, name), trainer)
    model = json.loads(library.to_str())["model"]
    learnt = sorted(model["vocab"], key=model["vocab"].get)
    vocab = {piece: i for i, piece in enumerate([*controls, *learnt])}
    document = _document(vocab, model["merges"])
    return BpeTokenizer(json.dumps(document, ensure_ascii=False).encode(), FILE_NAME)


class BpeTokenizer:
    """A trained byte-level BPE vocabulary; see `base.Tokenizer` for what the methods promise.

    A space is put before the text and taken off again, so that a word has the same pieces at the
    start of a sentence as in the middle.
    """

    def __init__(self, data: bytes, name: str = FILE_NAME) -> None:
        """Read a tokenizer.json.

        Args:
            data: The content of the file.
            name: What to call it in errors.

        Raises:
            UserError: It is not such a file as `train` makes.
        """
        self._data = data
        self._vocab, self._merges = _parse(data, name)
        self._piece_of = list(self._vocab)
        self._tags = _tags_of(self._piece_of)
        try:
            self._library = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises no narrower type
            raise UserError(f"{name}: {error}") from error
        self._sampler = WordSampler(self._split, self._segment)
        self._ids_of: dict[str, tuple[int, ...]] = {}  # the frequent parts are met, and kept, first

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer`."""
        return len(self._vocab)

    @property
    def tags(self) -> dict[str, int]:
        """See `Tokenizer`."""
        return dict(self._tags)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        check_text(text)
        return self._library.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        for text in texts:
            check_text(text)
        rows = [_parts(text) for text in texts]
        # Most parts of a text were met before, and then this is several times as fast as the library.
        ids_of: dict[str, Sequence[int]] = {
            part: self._ids_of.get(part, ()) for part in chain.from_iterable(rows)
        }
        new = [part for part, ids in ids_of.items() if not ids]
        encodings = self._library.encode_batch(new, add_special_tokens=False)
        for part, encoding in zip(new, encodings, strict=True):
            ids_of[part] = encoding.ids
            if len(part) <= _MAX_PART_LENGTH and len(self._ids_of) < _MAX_PARTS:
                self._ids_of[part] = tuple(ids_of[part])
        return [[i for part in row for i in ids_of[part]] for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        kept = text_ids(ids, self.vocab_size, count_controls(self._tags))
        return self._library.decode(kept, skip_special_tokens=False)

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """See `Tokenizer`."""
        return [self.decode(ids) for ids in batch]

    def pieces(self, text: str) -> list[str]:
        """See `Tokenizer`; bytes that are not text by themselves are shown as `<0xC3>`."""
        return self.show(self.encode(text))

    def show(self, ids: Sequence[int]) -> list[str]:
        """See `Tokenizer`."""
        return [_shown(self._piece_of[i]) for i in ids]

    def vocabulary(self) -> list[bytes]:
        """See `Tokenizer`."""
        n_control = count_controls(self._tags)
        return [b"" if i < n_control else _bytes(p) for i, p in enumerate(self._piece_of)]

    def resample(self, batch: Sequence[Ids], dropout: float, seeds: Ids) -> list[np.ndarray]:
        """See `Tokenizer`; `dropout` is the probability that a merge is overlooked."""
        if dropout == 0:
            return [np.array(self.encode(self.decode(list(ids))), np.int64) for ids in batch]
        return self._sampler.resample(batch, dropout, seeds)

    def _split(self, ids: Sequence[int]) -> list[str]:
        """The words of a text, as the library cuts it before it looks for pieces."""
        text = self.decode(ids)
        # An empty text stays empty: the library puts no space before it.
        words = self._library.pre_tokenizer.pre_tokenize_str(" " + text) if text else []
        return [word for word, _ in words]

    def _segment(self, word: str, dropout: float, rng: random.Random) -> list[int]:
        pieces: list[str] = []
        for run in [word] if len(word) <= _MAX_RUN else self._runs(word):
            pieces += bpe_dropout(run, self._ranks, dropout, rng)
        return [self._vocab[piece] for piece in pieces]

    def _runs(self, word: str) -> list[str]:
        """Cut a long word, such as a Chinese sentence, where its best segmentation has a border."""
        runs = [""]
        for token in self._library.model.tokenize(word):
            if len(runs[-1]) + len(token.value) > _MAX_RUN:
                runs.append("")
            runs[-1] += token.value
        return runs

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {(left, right): rank for rank, (left, right) in enumerate(self._merges)}

    def files(self) -> dict[str, bytes]:
        """See `Tokenizer`."""
        return {FILE_NAME: self._data}

    def save(self, folder: str | Path) -> None:
        """See `Tokenizer`."""
        save_files(folder, self.files())


def _parts(text: str) -> list[str]:
    """Cut a text at its spaces into parts that have the ids of texts of their own.

    A single space always begins a word. What other white space does depends on what is around it:
    a text that has any stays whole.

    >>> _parts("a dog"), _parts("a  dog"), _parts("")
    (['a', 'dog'], ['a  dog'], [])
    """
    parts = text.split(" ")
    return parts if parts == text.split() else [text] if text else []


def _bytes(piece: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in piece)


def _shown(piece: str) -> str:
    data = _bytes(piece)
    try:
        text = data.decode().replace(" ", "▁")
    except UnicodeDecodeError:
        text = ""
    return text if text.isprintable() and text else "".join(f"<0x{byte:02X}>" for byte in data)


def _document(vocab: Any, merges: Any, word: str = _WORD) -> dict[str, Any]:
    """The content of a tokenizer.json: all but the vocabulary and its merges is always the same."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level |= {"use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": word}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Prepend", "prepend": " "},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [byte_level, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _parse(data: bytes, name: str) -> tuple[dict[str, int], list[list[str]]]:
    """Read and check a tokenizer.json; the vocabulary comes back in the order of its ids."""
    document = read_json(data, name)
    try:
        vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{name}: damaged, or no tokenizer ({error})") from error
    if document != _document(vocab, merges):
        raise UserError(
            f"{name}: not a byte-level BPE as tfm makes it; make one with `tfm train-tokenizer`"
        )
    if not (_is_vocab(vocab) and _are_merges(merges, vocab)):
        raise UserError(f"{name}: damaged: the ids, the pieces or the merges do not fit together")
    return dict(sorted(vocab.items(), key=lambda item: item[1])), merges


def _tags_of(pieces: Sequence[str]) -> dict[str, int]:
    """The language tags, which stand behind the other control names."""
    tags: dict[str, int] = {}
    for i in range(N_SPECIAL, len(pieces)):
        if (match := _TAG.fullmatch(pieces[i])) is None:
            break
        tags[match[1]] = i
    return tags


def _is_vocab(vocab: Any) -> bool:
    """Whether ids count up from 0, control names come first, and all else is made of bytes."""
    if not isinstance(vocab, dict) or len(vocab) > MAX_VOCAB_SIZE:
        return False
    if not all(type(i) is int for i in vocab.values()):
        return False
    pieces = sorted(vocab, key=vocab.__getitem__)
    n_control = count_controls(_tags_of(pieces))
    return (
        [vocab[piece] for piece in pieces] == list(range(len(pieces)))
        and tuple(pieces[:N_SPECIAL]) == _CONTROLS
        and "" not in vocab
        and set("".join(pieces[n_control:])) == set(_ALPHABET)
        and all(character in vocab for character in _ALPHABET)
    )


def _are_merges(merges: Any, vocab: dict[str, int]) -> bool:
    """Whether every merge makes a piece of two pieces."""
    if not isinstance(merges, list):
        return False
    n_control = count_controls(_tags_of(sorted(vocab, key=vocab.__getitem__)))
    for merge in merges:
        if not (isinstance(merge, list) and len(merge) == 2):
            return False
        if not all(isinstance(part, str) and vocab.get(part, 0) >= n_control for part in merge):
            return False
        if merge[0] + merge[1] not in vocab:
            return False
    return True
