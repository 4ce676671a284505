"""Lines as a model reads them.

Without line breaks, in parts where they are too long, and with the language to translate into.
"""

import functools
import re
from collections.abc import Iterator, Sequence

from tokenizer.base import Tokenizer
from tokenizer.errors import UserError

_FULL, _CLOSING = "。！？។။", "”’」』）"  # of scripts without spaces between sentences
# Other ends need a space behind them, as in 3.5; a closing quotation mark may come between.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?…؟۔।॥።։])(?=\s)|(?<=[.!?…؟۔।॥።։]["'”’»)\]])(?=\s)"""
    rf"""|(?<=[{_FULL}])(?![{_CLOSING}])|(?<=[{_FULL}][{_CLOSING}])(?![{_CLOSING}])"""
    rf"""|(?<=[{_FULL}][{_CLOSING}]{{2}})"""
)
_WORD = re.compile(r"\s*\S+")


def as_line(text: str) -> str:
    """What a model reads and writes of a text, in training too: no line breaks, no outer spaces."""
    return text.replace("\n", " ").strip()


def split_long(text: str, tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Cut a text into segments of at most `longest` tokens: at sentence ends where it can be.

    Args:
        text: Not blank.
        tokenizer: Counts the tokens.
        longest: Tokens of a segment.

    Returns:
        The ids of each segment.
    """
    segments: list[list[int]] = []
    for unit in _pack(_SENTENCE_END.split(text), tokenizer, longest):
        if len(ids := tokenizer.encode(unit)) <= longest:
            segments.append(ids)
            continue
        for words in _pack(_WORD.findall(unit), tokenizer, longest):
            segments += _cut(tokenizer.encode(words), longest, tokenizer)
    return segments


def _cut(ids: list[int], longest: int, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Parts of at most `longest` ids, cut where a character begins if that is possible."""
    start = 0
    while len(ids) - start > longest:
        begins = _beginnings(tokenizer)  # type: ignore[arg-type]  # it has a hash
        places = range(start + longest, start, -1)
        end = next((place for place in places if begins[ids[place]]), start + longest)
        yield ids[start:end]
        start = end
    yield ids[start:]


@functools.lru_cache(maxsize=1)
def _beginnings(tokenizer: Tokenizer) -> tuple[bool, ...]:
    """Whether each piece begins with a character, not within one: the bytes after its first are 10xxxxxx."""
    return tuple(not piece or piece[0] & 0xC0 != 0x80 for piece in tokenizer.vocabulary())


def _pack(units: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[str]:
    """Join neighbours, each with the spaces before it, as long as they fit together."""
    units = [unit for unit in units if unit.strip()]
    packed: list[str] = []
    room = 0
    alone = tokenizer.encode_batch([unit.lstrip() for unit in units])
    for unit, first, more in zip(units, alone, tokenizer.encode_batch(units), strict=True):
        n = len(more) + (not unit[0].isspace())  # where two meet there may be one piece more
        if packed and n <= room:
            packed[-1] += unit
            room -= n
        else:
            packed.append(unit.lstrip())
            room = longest - len(first)
    return packed


def tag_ids(tokenizer: Tokenizer, tgt_lang: str | None) -> list[int]:
    """What stands at the front of a source to say the language it is to be translated into.

    Args:
        tokenizer: Of the model; without language tags there is one direction only.
        tgt_lang: Its name, or None.

    Returns:
        The id of the tag, or nothing.

    Raises:
        UserError: When the language is missing or not known, naming those that are.
    """
    known = tokenizer.tags
    if tgt_lang is None:
        if known:
            raise UserError(f"--tgt-lang is missing: give one of {', '.join(known)}")
        return []
    if not known:
        raise UserError(
            f"--tgt-lang {tgt_lang}: the tokenizer has no language tags; leave the option out, or "
            f"make a tokenizer for a new model with: tfm train-tokenizer --tag {tgt_lang} …"
        )
    if tgt_lang not in known:
        raise UserError(f"--tgt-lang {tgt_lang}: not known; give one of {', '.join(known)}")
    return [known[tgt_lang]]
