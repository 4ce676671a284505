"""CTranslate2 in place of our model and our search.

    engine = Engine(load_engine_model(folder), device, precision, n_workers=2, n_threads=1)
    hypotheses = engine.search(sources, max_len, config)
    log_probs = engine.score(sources, targets)

The search is the engine's own; its hypotheses are ranked by our formula. It differs from `search.py`:

- a hypothesis cut at the longest length competes with the finished ones for the K places;
- where more than K are finished in the end, the engine's own ranking decides which are kept;
- a token that an option forbids (shortest length, n-grams) leaves its probability to the others;
- right after a prefix an output ends only where that is the most probable of all;
- loops (`max_repeats`) are not noticed.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch

from seq2seq.config import SearchConfig
from seq2seq.engine_format import EngineModel, positions_limit, vocabulary
from seq2seq.hypotheses import Hypothesis, falling, length_norm
from tokenizer.errors import UserError
from tokenizer.special import EOS, count_controls

_OBEYED = {"beam_size", "n_best", "length_penalty", "min_len", "max_len_factor", "max_len_extra"}
_OBEYED |= {"no_repeat_ngram", "max_repeats"}  # the latter is looked at by itself
# These mean something only with `sample` and `beam_groups`, which it does not have.
_IDLE = {"seed", "temperature", "top_k", "top_p", "diversity_penalty"}
_COMPUTE_TYPES = {
    "auto": "default",
    "fp32": "float32",
    "bf16": "bfloat16",
    "int8": "int8",
    "fp16": "float16",
}
_IMPOSSIBLE = -1e9  # the engine fills a beam with less where a prefix leaves it no choice
_SCORED = 32  # outputs scored at once: each takes a logit for every piece at every position


class Engine:
    """A model in CTranslate2.

    Attributes:
        config: Its shape.
        precision: What it computes in: our name for it, such as fp32, or CTranslate2's where we have none.
    """

    def __init__(
        self,
        model: EngineModel,
        device: torch.device,
        precision: str,
        n_workers: int = 1,
        n_threads: int = 1,
    ) -> None:
        """Give the engine a model.

        Args:
            model: As it was read.
            device: Where to compute.
            precision: auto (as the weights are stored, where the machine can), fp32, bf16, int8 or
                fp16.
            n_workers: Batches that are translated at once.
            n_threads: Threads of each.

        Raises:
            UserError: When the engine cannot compute so here, or cannot use the model.
        """
        import ctranslate2

        self.config = model.config
        self._names = vocabulary(model.config.vocab_size)
        self._ids = {name: i for i, name in enumerate(self._names)}
        self._never = frozenset(range(count_controls(model.tokenizer.tags))) - {EOS}
        try:
            self._translator = ctranslate2.Translator(
                "model",  # its content is given; a name that is no UTF-8 would be refused
                device=device.type,
                device_index=device.index or 0,
                compute_type=_compute_type(precision, device),
                inter_threads=n_workers,
                intra_threads=n_threads,
                files=model.files,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{model.folder}: CTranslate2 cannot use it ({error})") from None
        used = self._translator.compute_type
        ours = [name for name, theirs in _COMPUTE_TYPES.items() if theirs == used]
        self.precision = ours[0] if ours else used

    def search(
        self,
        sources: Sequence[Sequence[int]],
        max_len: Sequence[int],
        config: SearchConfig,
        prefixes: Sequence[Sequence[int]] | None = None,
        with_scores: bool = True,
    ) -> list[list[Hypothesis]]:
        """Translate a batch.

        Args:
            sources: Bare ids of each sentence, none empty.
            max_len: Longest output of each sentence; see `beam_search`.
            config: How to search; see `check_search`.
            prefixes: What each output must begin with, none longer than `max_len`.
            with_scores: Whether what was found is scored once more: the engine's search says nothing of
                single tokens, and takes what is forbidden for impossible.

        Returns:
            For each sentence its `n_best` hypotheses, best first; none where the model computes
            numbers that are not finite.

        Raises:
            UserError: When the engine has no such search.
        """
        check_search(config)
        prefixes = [()] * len(sources) if prefixes is None else prefixes
        limit = positions_limit(self.config)
        limits = [n if limit is None else min(n, limit - 1) for n in max_len]
        found = self._translate(sources, prefixes, max(limits), config)
        # The engine knows one longest length a batch: whatever reached its own is searched again. So
        # is what holds a control id, rare as that is: to forbid them always would cost exactness.
        again: dict[int, list[int]] = defaultdict(list)
        for i, hypotheses in enumerate(found):
            is_too_long = limits[i] < max(limits) and _n_steps(hypotheses) >= limits[i]
            if is_too_long or any(not self._never.isdisjoint(h.ids) for h in hypotheses):
                again[limits[i]].append(i)
        for longest, rows in again.items():
            some, begun = ([sequences[i] for i in rows] for sequences in (sources, prefixes))
            results = self._translate(some, begun, longest, config, suppress=True)
            for i, hypotheses in zip(rows, results, strict=True):
                found[i] = hypotheses
        best = [hypotheses[: config.n_best] for hypotheses in found]
        return self._rescored(sources, best, config.length_penalty) if with_scores else best

    def score(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[tuple[float, ...]]:
        """The log-probability of each token of given outputs, that of EOS last.

        Args:
            sources: Bare ids of each sentence, none empty.
            targets: Bare ids of its output.
        """
        with _libraries_found():
            results = self._translator.score_batch(
                [self._tokens(ids) for ids in sources],
                [self._tokens(ids) for ids in targets],
                max_batch_size=_SCORED,
                max_input_length=0,
            )
        return [tuple(result.log_probs) for result in results]

    def _translate(
        self,
        sources: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        longest: int,
        config: SearchConfig,
        suppress: bool = False,
    ) -> list[list[Hypothesis]]:
        """All K hypotheses of each sentence, at most `longest` tokens long, best first."""
        exponent = _exponent(config)
        never = [[self._names[i]] for i in sorted(self._never)] if suppress else None
        with _libraries_found():
            results = self._translator.translate_batch(
                [self._tokens(ids) for ids in sources],
                [self._tokens(ids) for ids in prefixes],
                beam_size=config.beam_size,
                num_hypotheses=config.beam_size,  # all of them, since we rank them in another way
                length_penalty=exponent,
                no_repeat_ngram_size=config.no_repeat_ngram,
                suppress_sequences=never,
                min_decoding_length=min(config.min_len, longest),
                max_decoding_length=longest,
                max_input_length=0,
                return_end_token=True,  # it counts in the length, and tells who was cut
                return_scores=True,
            )
        found = [
            [
                self._hypothesis(tokens, log_prob, config.length_penalty)
                for tokens, score in zip(result.hypotheses, result.scores, strict=True)
                if (log_prob := score * len(tokens) ** exponent) > _IMPOSSIBLE  # nor is it NaN
            ]
            for result in results
        ]
        if any(prefixes):  # the engine ranks what follows without them
            return self._rescored(sources, found, config.length_penalty)
        return [sorted(hypotheses, key=falling) for hypotheses in found]

    def _hypothesis(self, tokens: list[str], log_prob: float, penalty: float) -> Hypothesis:
        ids = [self._ids[token] for token in tokens]
        finished = ids[-1] == EOS
        score = log_prob / length_norm(float(len(ids)), penalty)
        return Hypothesis(tuple(ids[: len(ids) - finished]), score, log_prob, (), finished)

    def _rescored(
        self, sources: Sequence[Sequence[int]], found: list[list[Hypothesis]], penalty: float
    ) -> list[list[Hypothesis]]:
        """The same outputs with the log-probabilities that the model gives to their tokens, best first."""
        pairs = [(src, h) for src, some in zip(sources, found, strict=True) for h in some]
        scores = iter(self.score([src for src, _ in pairs], [h.ids for _, h in pairs]))
        return [
            sorted((_with_scores(h, next(scores), penalty) for h in some), key=falling)
            for some in found
        ]

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        """What the engine calls them."""
        return [self._names[i] for i in ids]


def _with_scores(hypothesis: Hypothesis, log_probs: Sequence[float], penalty: float) -> Hypothesis:
    """A hypothesis with the log-probabilities of its tokens; one that was cut has no end."""
    each = tuple(log_probs[: len(hypothesis.ids) + hypothesis.finished])
    total = math.fsum(each)
    score = total / length_norm(float(len(each)), penalty)
    return replace(hypothesis, score=score, log_prob=total, token_log_probs=each)


def _n_steps(hypotheses: Sequence[Hypothesis]) -> int:
    """Tokens of the longest, EOS counted."""
    return max((len(h.ids) + h.finished for h in hypotheses), default=0)


def check_search(config: SearchConfig, guard_is_asked_for: bool = False) -> None:
    """Refuse what CTranslate2 does not do, or not as we promise it.

    Args:
        config: How to search; the default guard against loops is ignored.
        guard_is_asked_for: The user gave --max-repeats, so it is refused.

    Raises:
        UserError: Naming the option.
    """
    if config.sample:
        raise UserError(
            "--sample: CTranslate2 cannot repeat its draws by a seed; "
            "sample from the model that was exported"
        )
    for field in fields(config):
        if field.name not in _OBEYED | _IDLE and getattr(config, field.name) != field.default:
            option = field.name.replace("_", "-")
            raise UserError(
                f"--{option}: CTranslate2 does not have it; use the model that was exported"
            )
    is_default = config.max_repeats == SearchConfig.max_repeats and not guard_is_asked_for
    if config.max_repeats and not is_default:
        raise UserError(
            "--max-repeats: CTranslate2 does not count them; use the model that was exported, "
            "or give 0"
        )


def _compute_type(precision: str, device: torch.device) -> str:
    """What CTranslate2 calls a precision, if it can compute in it here."""
    import ctranslate2

    if precision not in _COMPUTE_TYPES:
        known = ", ".join(_COMPUTE_TYPES)
        raise UserError(f"--precision {precision}: CTranslate2 does not have it; it has {known}")
    name = _COMPUTE_TYPES[precision]
    if name != "default" and name not in ctranslate2.get_supported_compute_types(device.type):
        raise UserError(f"--precision {precision}: CTranslate2 has no {name} on this {device.type}")
    return name


def _exponent(config: SearchConfig) -> float:
    """The exponent of the length in the engine's own ranking, log p / |y| ** exponent.

    It only decides which hypotheses beyond K are lost. ((5 + |y|) / 6) ** a rises with |y| as
    |y| ** (a·|y| / (5 + |y|)) does; here at 15 tokens. Exactly 0 would end the search earlier.
    """
    if config.beam_size == 1:
        return 0.0
    return 0.75 * config.length_penalty or 1e-9


@contextlib.contextmanager
def _libraries_found() -> Iterator[None]:
    """Explain that the engine lacks a library of the GPU, which it looks for when it first computes.

    Raises:
        UserError: Naming it; PyTorch may bring that of another version of CUDA.
    """
    try:
        yield
    except RuntimeError as error:
        if "cannot be loaded" not in str(error):
            raise
        raise UserError(f"CTranslate2 cannot use this GPU ({error}); use --device cpu") from None
