"""What the outputs of some sentences must be like: how they begin, and what never comes next.

    constraints = Constraints(prefix, max_loop, n_control)
    constraints.forbid(logits, live, config)

What is the same for all sentences is in `SearchConfig`, and what a single rule does to logits in `logits.py`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seq2seq.config import SearchConfig
from seq2seq.hypotheses import Prefixes
from seq2seq.logits import forbid_loops, forbid_repeats
from tokenizer.special import EOS, N_SPECIAL, PAD


@dataclass(frozen=True, slots=True)
class Constraints:
    """Of B sentences.

    Attributes:
        prefix: What each output must begin with, padded with PAD, (B, P). It is part of the output,
            of its length and of its log-probability. None: nothing.
        max_loop: How often in a row an output may have the same few tokens, at least 2, (B,): more
            rounds are not allowed (`forbid_loops`). None: any number.
        n_control: Of ids that are control ids, the first of the vocabulary; EOS alone is produced.
    """

    prefix: Tensor | None = None
    max_loop: Tensor | None = None
    n_control: int = N_SPECIAL

    def of(self, sentences: Tensor) -> "Constraints":
        """Those of the given sentences, some of which may be named several times."""
        prefix = None if self.prefix is None else self.prefix[sentences]
        max_loop = None if self.max_loop is None else self.max_loop[sentences]
        return replace(self, prefix=prefix, max_loop=max_loop)

    def forbid(self, logits: Tensor, live: Prefixes, config: SearchConfig) -> None:
        """Set the logits of tokens that are not allowed to -inf, in place.

        They keep their share of the probability, so that the search and scoring a given output agree.

        Args:
            logits: Of each next token, (B·K, V).
            live: The prefixes that it would extend.
            config: Reads `min_len` and `no_repeat_ngram`.
        """
        n_prefixes, forced = live.ids.size(1), None
        if self.prefix is not None and live.length < self.prefix.size(1):
            tokens = self.prefix[live.sentence, live.length].repeat_interleave(n_prefixes)
            rows = (tokens != PAD).nonzero()[:, 0]
            forced = rows, tokens[rows], logits[rows, tokens[rows]]
        ends = logits[:, EOS].clone()
        logits[:, : self.n_control] = -torch.inf
        if live.length >= config.min_len:
            logits[:, EOS] = ends
        if config.no_repeat_ngram:
            forbid_repeats(logits, live.ids.flatten(0, 1), config.no_repeat_ngram)
        if self.max_loop is not None:
            most = self.max_loop[live.sentence].repeat_interleave(n_prefixes)
            forbid_loops(logits, live.ids.flatten(0, 1), most)
        if forced is not None:
            rows, tokens, values = forced
            logits[rows] = -torch.inf
            logits[rows, tokens] = values


FREE = Constraints()
