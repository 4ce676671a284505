"""The five control ids of every vocabulary.

They are integers of the model's framing, not text: no tokenizer of this package ever produces one
of them from what a user typed, and `decode` drops them. Which of them frame a sentence, and where,
is decided in `seq2seq/batch.py`.
"""

from typing import Final

PAD: Final = 0
UNK: Final = 1
BOS: Final = 2
EOS: Final = 3
MASK: Final = 4

N_SPECIAL: Final = 5
