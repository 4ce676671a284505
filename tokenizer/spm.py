"""Unigram or BPE over `sentencepiece`, with byte fallback and without loss.

A file that `SentencePieceTokenizer` writes is a standard sentencepiece model. Other tools find the
same ids in it for any text without the two characters that `_escape` replaces.

    tokenizer = train(["a dog runs", "a dog sleeps"], vocab_size=300, algorithm="unigram")
    tokenizer.pieces("a dog")     # ['▁a', '▁dog']
"""

import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

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
from tokenizer.sampling import WordSampler, bpe_dropout, sample_unigram
from tokenizer.special import BOS, EOS, MASK, N_SPECIAL, PAD, UNK, check_tags, count_controls

FILE_NAME = "sentencepiece.model"

_MAX_LINES = 10_000_000  # the library keeps all text in memory
_MAX_LINE_BYTES = 1 << 16  # it leaves out longer lines, which are cut therefore
_MAX_WORD_BYTES = 1 << 12  # and takes very long to learn from longer words and gaps
_ALPHA = 0.2  # of Kudo 2018: how sharply sampling prefers probable segmentations
_MAX_RUN = 32  # characters that BPE-dropout works on at a time

_TAG = re.compile("<2(.*)>")

# What NFKC, case folding or a tidying of spaces would change.
_PROBE = "  ﬁ ½ Å ＡＢ  ẞ e\u0301 \u00a0\u3000 "


def train(
    lines: Iterable[str],
    vocab_size: int,
    algorithm: Literal["unigram", "bpe"] = "unigram",
    *,
    tags: Sequence[str] = (),
    name: str = "training text",
) -> "SentencePieceTokenizer":
    """Learn a vocabulary; the same lines give the same vocabulary, byte for byte.

    Args:
        lines: Text without line ends. The first 10 million are kept in memory and learnt from; a line of
            more than 64 KiB, or with a word of more than 4 KiB, counts as several.
        vocab_size: How many ids to end up with; fewer if the text does not give as many.
        algorithm: A unigram language model (Kudo 2018), or BPE.
        tags: Languages to have a tag for.
        name: What to call the text in errors.

    Raises:
        UserError: There is no text, or `vocab_size` leaves no room for the bytes and characters.
    """
    tags = check_tags(tags)
    check_vocab_size(vocab_size, count_controls(tags) + 256)
    text = _Text(some_text(lines, name))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            model_type=algorithm,
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small text gives fewer pieces instead of an error
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            control_symbols=["<mask>", *(f"<2{tag}>" for tag in tags)],
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,  # a first word shares its pieces with later ones
            split_digits=True,
            input_sentence_size=_MAX_LINES,
            shuffle_input_sentence=False,
            max_sentence_length=_MAX_LINE_BYTES,
            num_threads=1,  # the number of threads changes the result
            minloglevel=2,
        )
    except RuntimeError as error:
        text.check()
        if sizes := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                f"vocab size {vocab_size}: too small for the characters of this text; "
                f"it needs at least {sizes[1]}"
            ) from error
        raise UserError(
            f"{name}: sentencepiece cannot learn from this text ({_one_line(error)}); "
            "give more text, or use --algorithm bpe --library tokenizers"
        ) from error
    text.check()
    return SentencePieceTokenizer(model.getvalue(), FILE_NAME)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Text:
    """Training text on its way to the library, which does not pass on errors as they are."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines
        self._error: UserError | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._lines:
                # The library sets lines with its own reserved characters aside.
                yield from _cut(_escape(line.translate({0x0: " ", 0x9: " ", 0x2585: " "})))
        except UserError as error:
            self._error = error

    def check(self) -> None:
        """Raise the error that ended the text, if one did."""
        if self._error is not None:
            raise self._error


def _cut(line: str) -> Iterator[str]:
    """Cut a line at spaces into parts that the library takes; a longer word falls apart.

    The library puts a space before each part, in place of the one where it was cut: words stay as they are.
    """
    data = line.encode()
    longest = max(map(len, re.findall(b" +|[^ ]+", data)), default=0)
    limit = _MAX_LINE_BYTES if longest <= _MAX_WORD_BYTES else _MAX_WORD_BYTES
    start = 0
    while len(data) - start > limit:
        end = data.rfind(b" ", start + 1, start + limit + 1)
        is_word = end == -1
        if is_word:
            end = start + limit
            while data[end] & 0xC0 == 0x80:  # within a character
                end -= 1
        yield data[start:end].decode()
        start = end if is_word else end + 1
    yield data[start:].decode() if start else line


def _escape(text: str) -> str:
    """Hide `▁`, which the library takes for a space, as `␛_`, and so `␛` as `␛␛`."""
    return text.replace("␛", "␛␛").replace("▁", "␛_")


def _unescape(text: str) -> str:
    """Undo `_escape`; a `␛` that a model put anywhere else stays as it is.

    >>> _unescape(_escape("a ▁ ␛_ ␛␛")) == "a ▁ ␛_ ␛␛"
    True
    """
    return re.sub("␛([␛_])", lambda match: "▁" if match[1] == "_" else "␛", text)


class SentencePieceTokenizer:
    """A trained sentencepiece model; see `base.Tokenizer` for what the methods promise.

    The library puts a space before the text and takes it off again, so that a word has the same
    pieces at the start of a sentence as in the middle.
    """

    def __init__(self, data: bytes, name: str = FILE_NAME) -> None:
        """Read a sentencepiece model.

        Args:
            data: The content of the file.
            name: What to call it in errors.

        Raises:
            UserError: It is no such file, or was trained with settings that lose text.
        """
        if not data:
            raise UserError(f"{name}: damaged: the file is empty")
        try:
            self._library = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{name}: damaged, or no sentencepiece model ({_one_line(error)})"
            ) from error
        self._data = data
        self._check(name)
        self._tags = self._read_tags()
        self._sampler = WordSampler(self._split, self._segment)

    def _check(self, name: str) -> None:
        library = self._library
        if library.vocab_size() > MAX_VOCAB_SIZE:
            raise UserError(f"{name}: more than {MAX_VOCAB_SIZE} pieces")
        controls = [library.pad_id(), library.unk_id(), library.bos_id(), library.eos_id()]
        missing = []
        if controls != [PAD, UNK, BOS, EOS]:
            missing.append("pad_id=0 unk_id=1 bos_id=2 eos_id=3")
        if library.vocab_size() <= MASK or not library.is_control(MASK):
            missing.append("control_symbols=<mask> (id 4)")
        if not all(library.is_byte(library.piece_to_id(f"<0x{byte:02X}>")) for byte in range(256)):
            missing.append("byte_fallback=true")
        if library.normalize(_PROBE) != ("▁" + _PROBE).replace(" ", "▁"):
            missing.append("normalization_rule_name=identity remove_extra_whitespaces=false")
        if missing:
            raise UserError(
                f"{name}: does not keep text and control ids apart, or loses text; "
                f"train the model with {' '.join(missing)}"
            )

    def _read_tags(self) -> dict[str, int]:
        """The language tags, which stand behind the other control ids."""
        tags: dict[str, int] = {}
        for i in range(N_SPECIAL, self.vocab_size):
            match = _TAG.fullmatch(self._library.id_to_piece(i))
            if match is None or not self._library.is_control(i):
                break
            tags[match[1]] = i
        return tags

    @property
    def tags(self) -> dict[str, int]:
        """See `Tokenizer`."""
        return dict(self._tags)

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer`."""
        return self._library.vocab_size()

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        check_text(text)
        return self._library.encode(_escape(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        for text in texts:
            check_text(text)
        return self._library.encode([_escape(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        kept = text_ids(ids, self.vocab_size, count_controls(self._tags))
        return _unescape(self._library.decode(kept))

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """See `Tokenizer`."""
        return [self.decode(ids) for ids in batch]

    def pieces(self, text: str) -> list[str]:
        """See `Tokenizer`; what has no piece of its own is shown as its bytes, `<0xC3>`."""
        return self.show(self.encode(text))

    def show(self, ids: Sequence[int]) -> list[str]:
        """See `Tokenizer`."""
        return [self._library.id_to_piece(i) for i in ids]

    def vocabulary(self) -> list[bytes]:
        """See `Tokenizer`."""
        library = self._library
        n_control = count_controls(self._tags)
        names = [library.id_to_piece(i) for i in range(self.vocab_size)]
        return [
            b""
            if i < n_control
            else bytes([int(name[3:5], 16)])  # <0xC3>
            if library.is_byte(i)
            else _unescape(name.replace("▁", " ")).encode()
            for i, name in enumerate(names)
        ]

    def resample(self, batch: Sequence[Ids], dropout: float, seeds: Ids) -> list[np.ndarray]:
        """See `Tokenizer`.

        With BPE, `dropout` is the probability that a merge is overlooked. With a unigram model it
        is the probability that a word is drawn from p(segmentation)^0.2 rather than segmented best.
        """
        if dropout == 0:
            return [np.array(self.encode(self.decode(list(ids))), np.int64) for ids in batch]
        return self._sampler.resample(batch, dropout, seeds)

    def _split(self, ids: Sequence[int]) -> list[str]:
        """The words of a text, each with the spaces before it."""
        text = self.decode(ids)
        return re.findall(" +[^ ]*", " " + _escape(text)) if text else []

    def _segment(self, word: str, dropout: float, rng: random.Random) -> list[int]:
        word = word.replace(" ", "▁")
        if self._ranks is not None:
            runs = [word[i : i + _MAX_RUN] for i in range(0, len(word), _MAX_RUN)]
            pieces = [p for run in runs for p in bpe_dropout(run, self._ranks, dropout, rng)]
        elif rng.random() < dropout or word == "▁":  # which the library puts before a text only
            pieces = sample_unigram(word, self._scores, self._max_length, _ALPHA, rng)
        else:
            return self._library.encode(word[1:].replace("▁", " "))
        ids: list[int] = []
        for piece in pieces:
            if piece in self._scores:
                ids.append(self._library.piece_to_id(piece))
            else:
                ids += [self._library.piece_to_id(f"<0x{byte:02X}>") for byte in piece.encode()]
        return ids

    @cached_property
    def _scores(self) -> dict[str, float]:
        """The pieces that are text: log-probabilities, or minus the rank in a BPE model."""
        library = self._library
        return {
            library.id_to_piece(i): library.get_score(i)
            for i in range(N_SPECIAL, self.vocab_size)
            if not (library.is_byte(i) or library.is_control(i) or library.is_unused(i))
        }

    @cached_property
    def _max_length(self) -> int:
        return max(map(len, self._scores), default=1)

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int] | None:
        """The merges of a BPE model, whose scores are 0, -1, -2, ...; None for a unigram model."""
        if not all(score.is_integer() for score in self._scores.values()):
            return None
        return {
            (piece[:i], piece[i:]): round(-score)
            for piece, score in self._scores.items()
            for i in range(1, len(piece))
            if piece[:i] in self._scores and piece[i:] in self._scores
        }

    def files(self) -> dict[str, bytes]:
        """See `Tokenizer`."""
        return {FILE_NAME: self._data}

    def save(self, folder: str | Path) -> None:
        """See `Tokenizer`."""
        save_files(folder, self.files())
