"""Train a tokenizer on files, load one from a folder, and tell how well it fits.

    tokenizer = train_tokenizer(["train.en", "train.de"], vocab_size=8000)
    tokenizer.save("model/tokenizer")
    tokenizer = load_tokenizer("model/tokenizer")

A folder holds one file, `tokenizer.json` or `sentencepiece.model`, as other tools know them too. It
may come from anywhere, so a file is checked before it is used, and nothing in it is executed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from tokenizer import bpe, spm
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import read_file
from tokenizer.lines import read_lines

# The kinds that there are: the file of each, and what reads its content and gets its name for messages.
KINDS: dict[str, Callable[[bytes, str], Tokenizer]] = {
    bpe.FILE_NAME: bpe.BpeTokenizer,
    spm.FILE_NAME: spm.SentencePieceTokenizer,
}
MOST_BYTES = 64 << 20  # of a file
_LINES_PER_REPORT = 10_000


def train_tokenizer(
    files: str | Path | Iterable[str | Path],
    *,
    vocab_size: int = 8000,
    algorithm: str = "bpe",
    library: str = "tokenizers",
    tags: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Tokenizer:
    """Train one vocabulary on all files together, such as both sides of a parallel corpus.

    The same files give the same vocabulary, byte for byte.

    Args:
        files: Text, possibly compressed; see `lines.read_lines`. A single one may stand alone.
        vocab_size: How many ids to end up with; fewer if the text does not give as many.
        algorithm: `bpe` or `unigram`.
        library: `tokenizers` or `sentencepiece`; the first has no unigram model without loss.
        tags: Languages to have a tag for, which tells a model what to translate into.
        progress: Called now and then with the numbers of lines and of characters read so far.

    Raises:
        UserError: A file cannot be read or is not UTF-8, there is no text, or the vocabulary size,
            the algorithm or the library cannot be had.
    """
    files = [files] if isinstance(files, str | Path) else list(files)
    if not files:
        raise UserError("no files to train a tokenizer on; name at least one")
    if isinstance(tags, str):
        raise UserError(
            f"tags {tags!r}: one language was given where several are expected; put it into a list"
        )
    name = ", ".join(map(str, files))
    lines = _reported(_interleaved(files), progress)
    match library, algorithm:
        case "tokenizers", "bpe":
            return bpe.train(lines, vocab_size, tags=tags, name=name)
        case "sentencepiece", "bpe" | "unigram":
            return spm.train(lines, vocab_size, algorithm, tags=tags, name=name)
        case "tokenizers", "unigram":
            raise UserError("algorithm unigram: needs the other library, --library sentencepiece")
        case "tokenizers" | "sentencepiece", _:
            raise UserError(f"algorithm {algorithm}: not known; use bpe or unigram")
        case _:
            raise UserError(f"library {library}: not known; use tokenizers or sentencepiece")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer that a folder holds.

    Raises:
        UserError: There is none or more than one, or its file is damaged or not such as we can use.
    """
    folder = Path(folder)
    names = [name for name in KINDS if (folder / name).exists()]
    match names:
        case []:
            raise UserError(f"{folder}: no tokenizer; make one with `tfm train-tokenizer`")
        case [name]:
            path = folder / name
            return KINDS[name](read_file(path, MOST_BYTES), str(path))
        case _:
            raise UserError(f"{folder}: holds both {' and '.join(names)}; remove one of them")


@dataclass(frozen=True)
class TokenizerReport:
    """How a tokenizer cuts a text.

    Attributes:
        n_lines: Lines that were read.
        n_characters: Unicode code points in them.
        n_words: Runs of characters between white space.
        n_pieces: Ids they were encoded to.
        vocab_size: Of the tokenizer.
    """

    n_lines: int
    n_characters: int
    n_words: int
    n_pieces: int
    vocab_size: int

    @property
    def pieces_per_word(self) -> float:
        """Fertility: 1 if every word is a piece, and some 1.2 to 1.6 as a rule. No words, 0."""
        return self.n_pieces / self.n_words if self.n_words else 0.0


def describe(
    tokenizer: Tokenizer, files: Sequence[str | Path], *, max_lines: int = 100_000
) -> TokenizerReport:
    """Encode the first `max_lines` lines of the files, taken in turn from each, and count.

    Raises:
        UserError: A file cannot be read or is not UTF-8.
    """
    n_lines = n_characters = n_words = n_pieces = 0
    text = islice(_interleaved(files), max_lines)
    while lines := list(islice(text, _LINES_PER_REPORT)):
        n_lines += len(lines)
        n_characters += sum(map(len, lines))
        n_words += sum(len(line.split()) for line in lines)
        n_pieces += sum(map(len, tokenizer.encode_batch(lines)))
    return TokenizerReport(n_lines, n_characters, n_words, n_pieces, tokenizer.vocab_size)


def _interleaved(files: Sequence[str | Path]) -> Iterator[str]:
    """A line of each file in turn, so that no language is left out where only a part is read."""
    for lines in zip_longest(*(read_lines(Path(file)) for file in files)):
        yield from (line for line in lines if line is not None)


def _reported(lines: Iterable[str], progress: Callable[[int, int], None] | None) -> Iterator[str]:
    n_lines = n_characters = 0
    for line in lines:
        yield line
        n_lines += 1
        n_characters += len(line)
        if progress is not None and n_lines % _LINES_PER_REPORT == 0:
            progress(n_lines, n_characters)
    if progress is not None:
        progress(n_lines, n_characters)
