"""One batch of ids to ids, by our model and our search or by CTranslate2's.

    hypotheses, looping_lines = BatchTranslator([model]).search(examples, config, keys)

It is all that a process needs that works on batches of another (`Workers`): no text, and no order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seq2seq.batch import Example, collate
from seq2seq.config import SearchConfig
from seq2seq.constraints import Constraints
from seq2seq.decoder import new_step, target_log_probs
from seq2seq.engine import Engine
from seq2seq.hypotheses import Hypothesis, looping
from seq2seq.logits import max_loops
from seq2seq.model import Transformer
from seq2seq.search import search
from tokenizer.special import N_SPECIAL, PAD


class BatchTranslator:
    """A model, or several as one, that searches for outputs and scores given ones.

    Attributes:
        device: Where it takes its sentences.
        most_positions: The longest sequence that it can read, framing counted; None: any.
    """

    def __init__(self, models: Sequence[Transformer] | Engine, n_control: int = N_SPECIAL) -> None:
        """Wrap what computes.

        Args:
            models: One model of ours or an ensemble (`EnsembleStep`), in evaluation mode, of one
                device and precision; or the engine, which knows its control ids.
            n_control: Of ids that are control ids, the first of the vocabulary.
        """
        self._n_control = n_control
        self._models = models
        if isinstance(models, Engine):
            self.device, configs = torch.device("cpu"), [models.config]
        else:
            self.device = models[0].tgt_embedding.weight.device
            configs = [model.config for model in models]
        learned = [c.max_positions for c in configs if c.positions == "learned"]
        self.most_positions = min(learned, default=None)

    @torch.inference_mode()
    def search(
        self,
        examples: Sequence[Example],
        config: SearchConfig,
        keys: Sequence[int],
        with_scores: bool = True,
    ) -> tuple[list[list[Hypothesis]], list[int]]:
        """Search for the best outputs of some sentences.

        Args:
            examples: The targets are what each output must begin with. The index is the line that a
                sentence is of.
            config: How to search.
            keys: Of each sentence, see `sample`.
            with_scores: Whether single tokens need theirs, of which CTranslate2's search has none.

        Returns:
            Hypotheses of each sentence, best first, none where the model computes numbers that are
            not finite; and the indices of those whose output is in a loop.

        Raises:
            UserError: When CTranslate2 runs the model and has no such search.
        """
        batch = collate(examples).to(self.device)
        prefix = batch.tgt_in[:, 1:]  # without BOS
        max_len = self._max_len(batch.src, prefix, config)
        if isinstance(self._models, Engine):
            sources, prefixes = zip(*(example.sides() for example in examples), strict=True)
            found = self._models.search(sources, max_len.tolist(), config, prefixes, with_scores)
            return found, []
        max_loop = max_loops(batch.src, config)
        step = new_step(self._models, batch.src)
        constraints = Constraints(prefix, max_loop, self._n_control)
        results = search(step, len(examples), max_len, config, keys, constraints)
        return results, sorted(looping(batch.index, results, max_loop))

    def log_probs(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        """Those of the tokens of each target, EOS last; what may follow means nothing."""
        if isinstance(self._models, Engine):
            sources, targets = zip(*(example.sides() for example in examples), strict=True)
            return self._models.score(sources, targets)
        batch = collate(examples).to(self.device)
        log_probs: list[list[float]] = target_log_probs(self._models, batch).tolist()
        return log_probs

    def _max_len(self, src: Tensor, prefix: Tensor, config: SearchConfig) -> Tensor:
        """Longest output of each sentence: a multiple of its source and some more, (B,).

        However long the prefix, `max_len_extra` more tokens may follow it.
        """
        n_src, n_prefix = (src != PAD).sum(1), (prefix != PAD).sum(1)
        longest = (n_src * config.max_len_factor).long().maximum(n_prefix) + config.max_len_extra
        if self.most_positions is not None:
            longest = longest.clamp(max=self.most_positions - 1)
        return longest
