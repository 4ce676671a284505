"""What `--preset` decides: settings that follow from the data and the machine, each with its reason.

    decide("auto", Facts(29_000, "cpu"))     → [Decision("model.d_model", 128, "…"), …]

A preset is a list of decisions; a file, `--set` and flags go before it. Free of torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from seq2seq.config import RunConfig, Value, override
from tokenizer.errors import UserError

PRESETS = ("auto", "tiny", "small", "base", "big")
_LONG = 4 * 3600.0  # seconds; what a CPU learns in less: examples/bench/README.md


@dataclass(frozen=True, slots=True)
class Facts:
    """What presets look at.

    Attributes:
        n_pairs: Lines of the corpus.
        device: cpu or cuda.
        n_processes: That torchrun started; they share an update.
        n_threads: That a process alone on a CPU may share an update out to, as processes of its own.
        max_time: Seconds that the training may take; 0 for no limit.
        d_model: Of the model whose weights the training starts from; 0 for a new one.
    """

    n_pairs: int
    device: str
    n_processes: int = 1
    n_threads: int = 1
    max_time: float = 0.0
    d_model: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One setting, and why it has this value."""

    name: str
    value: Value
    reason: str


def decide(preset: str, facts: Facts) -> list[Decision]:
    """The settings of a preset for this corpus and machine.

    Args:
        preset: One of `PRESETS`; all but `auto` fix the size of the model.
        facts: About the corpus and the machine.

    Raises:
        UserError: When there is no such preset.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: is not one of {', '.join(PRESETS)}")
    size, why = _choose_size(facts) if preset == "auto" else (preset, "as asked for")
    return [
        *_model(size, why, facts),
        *_data(facts),
        *_batch(size, facts),
        *_schedule(size, facts),
    ]


def apply(config: RunConfig, decisions: Sequence[Decision]) -> RunConfig:
    """The settings with these decisions in them."""
    return override(config, {d.name: d.value for d in decisions}, "--preset")


def _choose_size(facts: Facts) -> tuple[str, str]:
    """One of `_SHAPES`, and why."""
    n = f"{facts.n_pairs:,} pairs"
    if facts.d_model:
        fitting = (s for s in _SHAPES if facts.d_model <= int(_SHAPES[s]["d_model"]))
        return next(fitting, "big"), "as the model to start from"
    if facts.n_pairs < 100_000:
        return "tiny", f"{n}: a larger model would learn them by heart"
    if facts.device == "cpu" and 0 < facts.max_time < _LONG:
        hours = f"{facts.max_time / 3600:.3g} h"
        return "tiny", f"{n}: a larger model learns too little on a CPU in {hours}"
    if facts.device == "cpu" or facts.n_pairs < 1_000_000:
        return "small", f"{n} on {facts.device}"
    return "base", f"{n} on {facts.device}"


_SHAPES: dict[str, dict[str, Value]] = {
    "tiny": {
        "d_model": 128,
        "d_ff": 256,
        "n_heads": 4,
        "n_encoder_layers": 4,
        "n_decoder_layers": 4,
    },
    "small": {
        "d_model": 256,
        "d_ff": 1024,
        "n_heads": 4,
        "n_encoder_layers": 6,
        "n_decoder_layers": 4,
    },
    "base": {
        "d_model": 512,
        "d_ff": 2048,
        "n_heads": 8,
        "n_encoder_layers": 6,
        "n_decoder_layers": 6,
    },
    "big": {
        "d_model": 1024,
        "d_ff": 4096,
        "n_heads": 16,
        "n_encoder_layers": 6,
        "n_decoder_layers": 6,
    },
}
_LEARNING_RATES = {"tiny": 0.005, "small": 0.002, "base": 0.001, "big": 0.0005}


def _model(size: str, why: str, facts: Facts) -> list[Decision]:
    few = facts.n_pairs < (10_000 if size == "tiny" else 100_000)
    some = facts.n_pairs < 1_000_000
    dropout = 0.3 if few else 0.2 if some else 0.1
    return [
        *(
            Decision(f"model.{name}", value, f"{size}; {why}")
            for name, value in _SHAPES[size].items()
        ),
        Decision("model.positions", "rotary", "learns faster than with sinusoidal positions"),
        Decision("model.dropout", dropout, "the less data, the more noise a model needs"),
        Decision("optim.lr", _LEARNING_RATES[size], f"a {size} model trains stably at this rate"),
    ]


def _data(facts: Facts) -> list[Decision]:
    vocab = min(32_000, max(1_000, round(46 * math.sqrt(facts.n_pairs) / 500) * 500))
    vocab_size = Decision(
        "data.vocab_size", vocab, "each piece should occur often enough to be learnt"
    )
    if facts.n_pairs >= 1_000_000:
        return [vocab_size, Decision("data.bpe_dropout", 0.0, "enough data without it")]
    passes = round(math.sqrt(3_000_000 / facts.n_pairs))
    passes = max(passes, 3)  # put in all at once, it makes the loss jump by a nat
    return [
        vocab_size,
        Decision("data.bpe_dropout", 0.1, "rare words are seen in many pieces"),
        Decision("data.bpe_dropout_after", passes, "words as they are come first"),
    ]


def _batch(size: str, facts: Facts) -> list[Decision]:
    """Tokens of an update, cut into as many micro-batches as processes share it."""
    tokens, why = _update(size, facts)
    n = facts.n_processes
    if n == 1 and facts.device == "cpu":
        most = {"tiny": 8, "small": 8, "base": 4}.get(size, 1)
        n = max(d for d in (1, 2, 4, 8) if d <= min(facts.n_threads, most) or d == 1)
    parts = f"one micro-batch for each of {n} processes" if n > 1 else "one micro-batch"
    return [
        Decision("data.batch_tokens", tokens // n, why),
        Decision("optim.accumulate", n, f"{tokens // n * n} tokens an update, {parts}"),
    ]


def _update(size: str, facts: Facts) -> tuple[int, str]:
    """Tokens of an update, and why."""
    if facts.n_pairs < 10_000:
        return 2048, f"{facts.n_pairs:,} pairs have few tokens"
    if size in ("tiny", "small") and facts.device == "cpu":
        return 2048, f"a {size} model learns faster from small updates"
    tokens = 4096 if facts.device == "cpu" else 16_384
    return tokens, f"{facts.n_pairs:,} pairs on {facts.device}"


def _schedule(size: str, facts: Facts) -> list[Decision]:
    few, much = facts.n_pairs < 10_000, facts.n_pairs >= 1_000_000
    tokens, _ = _update(size, facts)
    more = 1 if few else max(4096 // tokens, 1)  # of small updates
    is_quick = size == "tiny" or (size == "small" and facts.device == "cpu" and not much)
    warmup = 400 if is_quick else 4000 if much else 1000
    every = (200 if few else 2000 if much else 500) * more
    cooldown = (4000 if much else 1000) * more
    return [
        Decision("optim.warmup_steps", warmup, "the first updates must be careful"),
        Decision("train.ema", 0.999, "the mean of late weights is less noisy than the last"),
        Decision("train.validate_every", every, "often with few pairs, seldom with many"),
        Decision("train.save_every", every, "as often as validating"),
        Decision("train.cooldown", cooldown, "a model ends best on plain text at a falling rate"),
        Decision("train.patience", 15 if few else 10, "ends when nothing gets better any more"),
    ]
