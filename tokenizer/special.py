"""The control ids of every vocabulary: five, and language tags where a model needs them.

They are integers of the model's framing, not text: no tokenizer of this package ever produces one
of them from what a user typed, and `decode` drops them. Which of the five frame a sentence, and
where, is decided in `seq2seq/batch.py`.

A language tag at the front of a source tells a model of many directions what to translate into
(Johnson et al. 2017). The tags come right after the five, in the order of `Tokenizer.tags`.
"""

import re
from collections.abc import Collection, Iterable
from typing import Final

from tokenizer.errors import UserError

PAD: Final = 0
UNK: Final = 1
BOS: Final = 2
EOS: Final = 3
MASK: Final = 4

N_SPECIAL: Final = 5

_TAG = re.compile("[A-Za-z][A-Za-z0-9_-]{0,31}")


def check_tags(tags: Iterable[str]) -> list[str]:
    """The names of languages, each once.

    >>> check_tags(["de", "pt-BR", "de"])
    ['de', 'pt-BR']

    Raises:
        UserError: When one of them cannot be a name.
    """
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise UserError(
                f"language {tag!r}: a name has up to 32 letters, digits, - and _, such as de or pt-BR"
            )
    return list(dict.fromkeys(tags))


def count_controls(tags: Collection[str]) -> int:
    """How many ids are control ids, the first of a vocabulary with these language tags."""
    return N_SPECIAL + len(tags)
