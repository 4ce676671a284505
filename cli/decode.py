"""`tfm decode`: ids to text."""

from pathlib import Path

from cli.models import load_tokenizer
from cli.options import InputFile, Model
from cli.streams import lines_from, lines_to
from tokenizer.errors import UserError

_WINDOW = 1024  # lines between two flushes
_MAX_DIGITS = 12


def decode(file: InputFile = None, model: Model = Path("model")) -> None:
    """Turn ids back into text.

    Reads ids as `tfm encode` writes them: one line for each line of text, separated by spaces.
    """
    tokenizer = load_tokenizer(model)
    n_before = 0
    with lines_from(file, strict=True) as reader, lines_to(None) as writer:
        for window in reader.windows(_WINDOW):
            for number, line in enumerate(window, start=n_before + 1):
                try:
                    writer.write(tokenizer.decode([_read_id(word) for word in line.split()]))
                except UserError as error:
                    raise UserError(f"{reader.name}: line {number}: {error}") from None
            writer.flush()
            n_before += len(window)


def _read_id(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS):
        shown = word if len(word) <= 2 * _MAX_DIGITS else f"{word[:_MAX_DIGITS]}…"
        raise UserError(f"{shown!r} is not an id; ids are whole numbers, separated by spaces")
    return int(word)
