"""Every setting of a run: its name, default, allowed range and meaning, in one place.

Frozen dataclasses, free of torch so that the command line can read their defaults at once: those of a
run, and `SearchConfig` of a translation. A setting of a run is named `section.field` in `--set`, in a
`--config` file and in its `train.toml`:

    >>> config = override(RunConfig(), {"optim.lr": "0.002", "model.activation": "swiglu"}, "--set")
    >>> config.optim.lr, config.model.activation
    (0.002, 'swiglu')

Not here: what `--preset` decides from the data (`presets.py`).
"""

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tomli_w

from tokenizer.errors import UserError

Value = int | float | bool | str
# Source tokens, times the beam, that are translated at once; for training see `DataConfig.batch_tokens`.
TRANSLATED_TOKENS = 4096
TRANSLATED_TOKENS_GPU = 65_536  # each step takes a GPU about as long for few as for many
_LOWEST_WEIGHT, _HIGHEST_WEIGHT = 1e-6, 1e6  # of a corpus
_DURATION = re.compile(
    r"(?:(N) *d *)?(?:(N) *h *)?(?:(N) *m *)?(?:(N) *s)?|(N)".replace("N", r"\d+\.?\d*|\.\d+"),
    re.I | re.A,
)
C = TypeVar("C")  # a settings class


def setting(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a settings class, with its meaning and what it may be."""
    metadata = {"meaning": meaning, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Transformer; all that is needed, besides weights, to rebuild it."""

    vocab_size: int = setting(8000, "ids in the joint vocabulary", low=6, high=1 << 20)
    d_model: int = setting(256, "width of the residual stream", low=2, high=1 << 16)
    d_ff: int = setting(1024, "inner width of the feed-forward layers", low=1, high=1 << 18)
    n_heads: int = setting(4, "attention heads; divides d_model", low=1)
    n_encoder_layers: int = setting(4, "encoder layers", low=1, high=256)
    n_decoder_layers: int = setting(4, "decoder layers", low=1, high=256)
    dropout: float = setting(0.1, "dropout on embeddings and sublayer outputs", low=0, high=0.95)
    attention_dropout: float = setting(0.0, "dropout on attention weights", low=0, high=0.95)
    activation_dropout: float = setting(0.0, "dropout inside feed-forward", low=0, high=0.95)
    norm: str = setting("pre", "normalise before or after a sublayer", choices=("pre", "post"))
    norm_type: str = setting("layer", "LayerNorm or RMSNorm", choices=("layer", "rms"))
    activation: str = setting("relu", "of feed-forward", choices=("relu", "gelu", "swiglu"))
    positions: str = setting(
        "sinusoidal", "how order is known", choices=("sinusoidal", "learned", "rotary")
    )
    max_positions: int = setting(1024, "longest input of learned positions", low=2, high=1 << 20)
    tie_embeddings: str = setting(
        "all",
        "shared matrices: source, target and output; target and output; none",
        choices=("all", "target", "none"),
    )


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches."""

    vocab_size: int = setting(
        8000, "of the tokenizer that `tfm train` trains when there is none", low=261
    )
    batch_tokens: int = setting(
        4096, "a micro-batch: sentences x longest side, in tokens", low=8, high=1 << 24
    )
    max_len: int = setting(256, "longer pairs, in tokens a side, are skipped", low=1, high=65_000)
    bpe_dropout: float = setting(
        0.0, "share of BPE merges dropped (Provilkov et al. 2020)", low=0, high=0.9
    )
    bpe_dropout_after: int = setting(
        0, "... after this many passes over the data, and rising in as many", low=0
    )
    word_dropout: float = setting(
        0.0, "share of input tokens replaced by UNK (Bowman et al. 2016)", low=0, high=0.9
    )
    weights: str = setting(
        "", "of the corpora, in the order of --src, such as '1 2.5'; 1 each if empty"
    )
    holdout: int = setting(
        1000, "at most this many pairs validate when no files are given", low=1, high=100_000
    )


@dataclass(frozen=True)
class OptimConfig:
    """One update of the weights."""

    lr: float = setting(1e-3, "highest learning rate", low=1e-12, high=1e30)
    warmup_steps: int = setting(1000, "steps of linear rise", low=0)
    schedule: str = setting(
        "inverse_sqrt", "after the warm-up", choices=("inverse_sqrt", "cosine", "constant")
    )
    min_lr: float = setting(0.0, "where cosine ends", low=0)
    beta1: float = setting(0.9, "Adam: decay of the mean", low=0, high=0.99999)
    beta2: float = setting(0.98, "Adam: decay of the square", low=0, high=0.999999)
    eps: float = setting(1e-9, "Adam: added to the root", low=1e-20, high=1.0)
    weight_decay: float = setting(0.0, "decoupled, on matrices only", low=0, high=10)
    label_smoothing: float = setting(
        0.1, "probability mass spread evenly over the vocabulary", low=0, high=0.9
    )
    r_drop: float = setting(
        0.0, "weight of agreement between two passes (Liang et al. 2021); 0 is off", low=0, high=100
    )
    clip_norm: float = setting(1.0, "largest gradient norm; 0 is off", low=0)
    accumulate: int = setting(1, "micro-batches of an update, in all", low=1, high=65_536)

    @property
    def has_end(self) -> bool:
        """Whether the schedule falls by itself, to an end at `train.max_steps` that cannot be moved."""
        return self.schedule == "cosine"


@dataclass(frozen=True)
class TrainConfig:
    """How long a run goes on, what it saves, and on what it runs."""

    max_steps: int | None = setting(None, "stop after this many updates", low=1)
    max_epochs: int | None = setting(None, "stop after this many passes over the data", low=1)
    max_time: str | None = setting(None, "stop after this long: 90s, 30m, 2h30m")
    validate_every: int = setting(500, "updates between validations", low=1)
    save_every: int = setting(500, "updates between checkpoints", low=1)
    log_every: int = setting(50, "updates between log lines", low=1)
    keep: int = setting(3, "checkpoints kept besides the best", low=1)
    patience: int = setting(10, "validations without a better score; 0 is off", low=0)
    cooldown: int = setting(
        0, "last updates, at a falling rate and with less noise; 0 is none", low=0
    )
    metric: str = setting("bleu", "best checkpoint by", choices=("bleu", "chrf", "loss"))
    ema: float = setting(0.0, "decay of the averaged weights; 0 is off", low=0, high=0.999999)
    seed: int = setting(1, "of everything random", low=0, high=(1 << 31) - 1)
    tensorboard: bool = setting(False, "write event files for TensorBoard too")
    precision: str = setting(
        "auto", "of the arithmetic", choices=("auto", "fp32", "bf16", "fp16", "fp64")
    )


@dataclass(frozen=True)
class SearchConfig:
    """How a translation is looked for: `search.py`; how long it may be: `batch_translator.py`."""

    beam_size: int = setting(5, "prefixes kept per sentence; 1 is greedy", low=1, high=1000)
    length_penalty: float = setting(1.4, "exponent of the length in the score", low=-10, high=10)
    n_best: int = setting(1, "translations per sentence", low=1, high=1000)
    min_len: int = setting(0, "shortest output, in tokens", low=0)
    max_len_factor: float = setting(2.0, "longest output: this times the source", low=0.1, high=100)
    max_len_extra: int = setting(10, "... and this many tokens more", low=1, high=10_000)
    no_repeat_ngram: int = setting(0, "no n-gram of this size twice; 0 is off", low=0, high=1000)
    max_repeats: int = setting(8, "of a few tokens in a row; 0 is any number", low=0, high=1000)
    beam_groups: int = setting(
        1, "groups of the beam that avoid each other's words", low=1, high=1000
    )
    diversity_penalty: float = setting(0.5, "... by this log-probability", low=0, high=1000)
    sample: bool = setting(False, "draw at random instead of searching")
    temperature: float = setting(1.0, "of sampling", low=1e-6, high=1e6)
    top_k: int = setting(0, "sample among this many tokens; 0 is all", low=0)
    top_p: float = setting(1.0, "sample within this share of probability", low=1e-9, high=1.0)
    seed: int = setting(1, "of sampling", low=0, high=(1 << 31) - 1)


@dataclass(frozen=True)
class RunConfig:
    """The settings of a training run: the four tables of `train.toml`."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()


SECTIONS = tuple(f.name for f in dataclasses.fields(RunConfig))


def override(config: RunConfig, values: Mapping[str, Value], where: str) -> RunConfig:
    """Replace settings by name.

    Args:
        config: What to start from.
        values: `section.field` to its new value; strings are read as the type of the field.
        where: Whence the values come (an option or a file), for messages.

    Raises:
        UserError: For an unknown name (with the nearest known one), a value of the wrong type or
            out of range.
    """
    for name, value in values.items():
        section, _, key = name.partition(".")
        if name not in setting_names():
            raise UserError(f"{where}: unknown setting {name!r}{_nearest(name, setting_names())}")
        table = set_field(getattr(config, section), key, value, f"{where}: {name}", f"{section}.")
        config = dataclasses.replace(config, **{section: table})
    return config


def set_field(table: C, key: str, value: Value, where: str, prefix: str = "") -> C:
    """Replace one field of a settings dataclass, checked; see `override`."""
    fields = {f.name: f for f in dataclasses.fields(table)}  # type: ignore[arg-type]
    if key not in fields:
        known = [prefix + name for name in fields]
        raise UserError(f"{where}: unknown setting{_nearest(prefix + key, known)}")
    hint = typing.get_type_hints(type(table))[key]
    typed = _typed(value, hint, where)
    _check_range(typed, fields[key].metadata, where)
    return dataclasses.replace(table, **{key: typed})  # type: ignore[type-var]


def check_search(config: SearchConfig) -> None:
    """Refuse what is out of range, and combinations that no single field can see.

    Raises:
        UserError: Naming the setting as the option of `tfm translate` that it is.
    """
    for f in dataclasses.fields(config):
        _check_range(getattr(config, f.name), f.metadata, f"--{f.name.replace('_', '-')}")
    if config.max_repeats == 1:
        raise UserError("--max-repeats 1: would forbid a word twice; give 0 or at least 2")
    if config.beam_size % config.beam_groups:
        raise UserError(
            f"--beam-groups {config.beam_groups}: do not divide --beam-size {config.beam_size} evenly"
        )
    if config.beam_groups > 1 and config.sample:
        raise UserError("--beam-groups: are for beam search; leave out --sample")
    if config.n_best > config.beam_size and not config.sample:
        raise UserError(
            f"--n-best {config.n_best}: is more than --beam-size {config.beam_size}; "
            "a beam finds no more translations than it is wide"
        )


def check(config: RunConfig) -> None:
    """Refuse combinations that no single field can see.

    Raises:
        UserError: Naming the settings that do not go together.
    """
    check_model(config.model, "settings")
    if config.train.max_time is not None:
        seconds(config.train.max_time)


def check_model(model: ModelConfig, where: str) -> None:
    """Refuse a shape that no Transformer can have; `where` begins the message."""
    if model.d_model % model.n_heads:
        raise UserError(
            f"{where}: model.n_heads = {model.n_heads} does not divide "
            f"model.d_model = {model.d_model}"
        )
    if model.positions == "rotary" and (model.d_model // model.n_heads) % 2:
        raise UserError(
            f"{where}: model.positions = 'rotary' needs an even width of head, "
            f"not {model.d_model} / {model.n_heads}"
        )
    if model.positions == "sinusoidal" and model.d_model % 2:
        raise UserError(f"{where}: model.d_model = {model.d_model} is odd; positions need it even")


def seconds(text: str) -> float:
    """Read a duration.

    >>> seconds("90s"), seconds("2h30m"), seconds("1.5h"), seconds("45")
    (90.0, 9000.0, 5400.0, 45.0)

    Raises:
        UserError: When it is none, or not positive.
    """
    parts = _DURATION.fullmatch(text.strip())
    numbers = parts.groups(default="0") if parts else ["0"] * 5
    value = sum(float(n) * unit for n, unit in zip(numbers, (86400, 3600, 60, 1, 1), strict=True))
    if not (0 < value < math.inf):
        raise UserError(
            f"max_time: {text!r} is not a duration; write for example 90s, 30m or 2h30m"
        )
    return value


def corpus_weights(text: str, n: int) -> tuple[float, ...]:
    """Read the weights of n corpora.

    >>> corpus_weights("1 2.5", 2), corpus_weights("", 2)
    ((1.0, 2.5), (1.0, 1.0))

    Raises:
        UserError: When there are more or fewer, or one is not positive.
    """
    try:
        weights = [float(_parse(word, float)) for word in text.split()]
    except ValueError:
        weights = [math.nan]
    for weight in weights:
        if not _LOWEST_WEIGHT <= weight <= _HIGHEST_WEIGHT:
            raise UserError(
                f"data.weights: {text!r} are not numbers from {_LOWEST_WEIGHT} to {_HIGHEST_WEIGHT}"
            )
    if weights and len(weights) != n:
        raise UserError(
            f"data.weights: {text!r} are {len(weights)} weights for {n} corpora; "
            "give one for each --src, in their order"
        )
    return tuple(weights or [1.0] * n)


def setting_names() -> list[str]:
    """All names that `--set` knows, in the order of the classes.

    >>> setting_names()[:2]
    ['model.vocab_size', 'model.d_model']
    """
    return [
        f"{section}.{f.name}"
        for section in SECTIONS
        for f in dataclasses.fields(getattr(RunConfig(), section))
    ]


def to_dict(table: Any) -> dict[str, Value]:
    """The fields that are set (not None) of one settings dataclass."""
    return {k: v for k, v in dataclasses.asdict(table).items() if v is not None}


def model_from_dict(table: object, where: str) -> ModelConfig:
    """Rebuild a `ModelConfig` that came from a file, trusting nothing.

    Raises:
        UserError: Naming the missing, unknown or impossible key.
    """
    if not isinstance(table, dict):
        raise UserError(f"{where}: 'model' is not a table of settings")
    model = ModelConfig()
    missing = {f.name for f in dataclasses.fields(ModelConfig)} - table.keys()
    if missing:
        raise UserError(f"{where}: model.{min(missing)} is missing")
    for key, value in table.items():
        if isinstance(value, str) and type(getattr(model, str(key), "")) is not str:
            raise UserError(f"{where}: model.{key}: {value!r} is text, not a number")
        model = set_field(model, str(key), value, f"{where}: model.{key}", "model.")
    check_model(model, where)
    return model


def read_toml(data: bytes, where: str) -> dict[str, Value]:
    """Read settings from TOML: tables `[model]`, `[data]`, `[optim]`, `[train]`.

    Returns:
        `section.field` to value, as `override` takes them.

    Raises:
        UserError: When it is no such TOML.
    """
    try:
        document = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, a huge number
        raise UserError(f"{where}: not valid TOML: {error}") from None
    values: dict[str, Value] = {}
    for section, table in document.items():
        if section not in SECTIONS or not isinstance(table, dict):
            known = ", ".join(f"[{s}]" for s in SECTIONS)
            raise UserError(f"{where}: unknown table {section!r}; there are {known}")
        values.update({f"{section}.{key}": value for key, value in table.items()})
    return values


def write_toml(config: RunConfig, heading: str = "") -> bytes:
    """The settings as TOML, each table with its fields; `read_toml` gives them back."""
    document = {name: to_dict(getattr(config, name)) for name in SECTIONS}
    comment = "".join(f"# {line}\n" for line in heading.split("\n")) if heading else ""
    return (comment + tomli_w.dumps(document)).encode()


def explain_toml(config: RunConfig) -> str:
    """The settings as TOML for people: all, also those that are not set, each with its meaning."""
    lines = []
    for section in SECTIONS:
        lines.append(f"\n[{section}]")
        table = getattr(config, section)
        for f in dataclasses.fields(table):
            value = getattr(table, f.name)
            line = f"# {f.name} =" if value is None else tomli_w.dumps({f.name: value}).rstrip("\n")
            limits = f"  [{allowed}]" if (allowed := _allowed(f.metadata)) else ""
            lines.append(f"{line:<31} # {f.metadata['meaning']}{limits}")
    return "\n".join(lines) + "\n"


def differences(old: RunConfig, new: RunConfig) -> list[tuple[str, object, object]]:
    """The settings that differ: name, old and new value.

    >>> differences(RunConfig(), override(RunConfig(), {"optim.lr": 0.5}, "--set"))
    [('optim.lr', 0.001, 0.5)]
    """
    return [
        (name, before, after)
        for name in setting_names()
        if (before := get(old, name)) != (after := get(new, name))
    ]


def with_settings_of(config: RunConfig, other: RunConfig, names: Collection[str]) -> RunConfig:
    """The settings of `config`, those of `names` as they are in another.

    >>> other = override(RunConfig(), {"optim.lr": 0.5, "train.seed": 2}, "--set")
    >>> differences(RunConfig(), with_settings_of(RunConfig(), other, {"optim.lr"}))
    [('optim.lr', 0.001, 0.5)]
    """
    for section in SECTIONS:
        table, source = getattr(config, section), getattr(other, section)
        values = {
            f.name: getattr(source, f.name)
            for f in dataclasses.fields(table)
            if f"{section}.{f.name}" in names
        }
        config = dataclasses.replace(config, **{section: dataclasses.replace(table, **values)})
    return config


def get(config: RunConfig, name: str) -> Value | None:
    """The value of the setting `section.field`."""
    section, _, key = name.partition(".")
    value: Value | None = getattr(getattr(config, section), key)
    return value


def _nearest(name: str, known: list[str]) -> str:
    """How a message ends: with names that may have been meant, as they end so or look alike, or with all."""
    last = name.lower().rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == last]
    close = same or difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    if not close:
        return f"; there are {', '.join(known)}"
    return f"; did you mean {' or '.join(map(repr, close))}?"


def _typed(value: object, hint: Any, where: str) -> Value | None:
    """Read `value` as the type that a field declares."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, str) and type(None) in options and value.lower() == "none":
        return None
    kind = options[0]
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    try:
        if fits and (kind is bool or not isinstance(value, bool)):
            return kind(value)
        if isinstance(value, str):
            return _parse(value, kind)
    except (ValueError, OverflowError):
        pass
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise UserError(f"{where}: {value!r} is not {names[kind]}")


def _parse(text: str, kind: type) -> Value:
    """Read text as a number or truth value; ValueError when it is none."""
    if kind is bool and text.lower() in ("true", "false", "1", "0"):
        return text.lower() in ("true", "1")
    is_plain = text.isascii() and "_" not in text  # Python reads 1_000 and ١ too
    if kind is bool or not is_plain or (kind is int and len(text) > 20):
        raise ValueError(text)
    return kind(text)


def _check_range(value: Value | None, rule: Mapping[str, Any], where: str) -> None:
    low, high, choices = rule["low"], rule["high"], rule["choices"]
    if value is None:
        return
    if choices is not None and value not in choices:
        raise UserError(f"{where}: {value!r} is not {_allowed(rule)}")
    if isinstance(value, (str, bool)):
        return
    too_low, too_high = low is not None and value < low, high is not None and value > high
    infinite = isinstance(value, float) and not math.isfinite(value)
    if too_low or too_high or infinite:
        raise UserError(f"{where}: {value} is out of range; it must be {_allowed(rule)}")


def _allowed(rule: Mapping[str, Any]) -> str:
    """What a setting may be, in words; "" if anything of its type."""
    if rule["choices"] is not None:
        return f"one of {', '.join(rule['choices'])}"
    if rule["high"] is not None:
        return f"from {rule['low']} to {rule['high']}"
    return "" if rule["low"] is None else f"at least {rule['low']}"
