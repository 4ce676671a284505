"""What every tokenizer can do, and the checks that all of them share.

The tokenizers themselves are in `bpe.py` and `spm.py`; to train one or to load one from a folder,
see `folder.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tokenizer.errors import UserError
from tokenizer.files import explained, make_folder, publish_file

if TYPE_CHECKING:
    import numpy as np  # which takes longer to load than the command line

MAX_VOCAB_SIZE = 1_000_000
Ids: TypeAlias = "Sequence[int] | np.ndarray"


class Tokenizer(Protocol):
    """Text to ids and back, without loss: `decode(encode(text)) == text`.

    Ids are bare: no BOS, no EOS, never a control id, whatever the text says. Text that reads `</s>`
    or `<pad>` is ordinary text. Control ids come first, in the order of `special.py`, every byte has a
    piece of its own, and a tokenizer can be a key of a dictionary.
    """

    @property
    def vocab_size(self) -> int:
        """How many ids there are: all pieces and the control ids of `special.py`."""

    @property
    def tags(self) -> Mapping[str, int]:
        """The language tags: names such as `de`, and their ids, which `encode` never gives."""

    def encode(self, text: str) -> list[int]:
        """Turn a text into the ids of its pieces.

        Raises:
            UserError: The text holds a lone surrogate, which is no character.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts at once, which is faster; errors as for `encode`."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text; control ids are dropped, broken UTF-8 becomes U+FFFD.

        Raises:
            UserError: An id is not in the vocabulary.
        """

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Decode many sequences of ids; errors as for `decode`."""

    def pieces(self, text: str) -> list[str]:
        """Show the pieces that `encode` cuts a text into, a space as `▁`; for human eyes."""

    def vocabulary(self) -> list[bytes]:
        """The text that each id stands for, as bytes in the order of ids; none for a control id."""

    def show(self, ids: Sequence[int]) -> list[str]:
        """Show the pieces that ids of text stand for, as `pieces` does."""

    def resample(self, batch: Sequence[Ids], dropout: float, seeds: Ids) -> "list[np.ndarray]":
        """Encode what some ids stand for in one of its many other ways, drawn at random.

        A model that sees a sentence cut now this way, now that way, learns what pieces are made of
        (subword regularisation).

        Args:
            batch: Of one text each; control ids are dropped.
            dropout: From 0, the same as `encode`, to 1, the most random.
            seeds: Of each text, 0 … 2⁶⁴ - 1; the result depends on the text, its seed and `dropout`
                alone.

        Returns:
            For each text its ids, (pieces,), int64.

        Raises:
            UserError: As for `decode`, or `dropout` is not between 0 and 1.
        """

    def files(self) -> dict[str, bytes]:
        """Return what `save` writes: file names and their content."""

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files; `folder.load_tokenizer` reads them.

        Raises:
            UserError: The folder cannot be written to.
        """


def check_text(text: str) -> None:
    r"""Refuse text that has no UTF-8 form.

    Raises:
        UserError: The text holds a lone surrogate, such as "\ud800".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"text: lone surrogate U+{ord(text[error.start]):04X} at character {error.start + 1}; "
            "surrogates are not characters, so decode the text as UTF-8"
        ) from error


def some_text(lines: Iterable[str], name: str) -> Iterator[str]:
    """Pass training text on, line by line, and complain at the end if there was none.

    Raises:
        UserError: All lines are blank, or one holds a lone surrogate.
    """
    is_blank = True
    for line in lines:
        check_text(line)
        is_blank = is_blank and not line.strip()
        yield line
    if is_blank:
        raise UserError(f"{name}: no text to train a tokenizer on; give files with text in them")


def text_ids(ids: Iterable[int], vocab_size: int, n_control: int) -> list[int]:
    """Check ids that are to be decoded, and drop the control ids, which are the first `n_control`.

    Raises:
        UserError: An id is not in the vocabulary.
    """
    kept: list[int] = []
    for piece_id in ids:
        if not 0 <= piece_id < vocab_size:
            raise UserError(
                f"id {piece_id}: not in the vocabulary, whose ids are 0 to {vocab_size - 1}"
            )
        if piece_id >= n_control:
            kept.append(piece_id)
    return kept


def check_vocab_size(vocab_size: int, minimum: int) -> None:
    """Refuse a vocabulary size that cannot be.

    Raises:
        UserError: The size is below the minimum or above a million.
    """
    if not minimum <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"vocab size {vocab_size}: must be from {minimum} to {MAX_VOCAB_SIZE}")


def save_files(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, each of them whole or not at all.

    Raises:
        UserError: The folder cannot be written to.
    """
    folder = Path(folder)
    with explained(folder):
        make_folder(folder)
    for name, content in files.items():
        publish_file(folder / name, content)
