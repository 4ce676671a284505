"""What a user asks `tfm train` for, and all of it that can be refused before anything is written.

config, decisions = check(Request(run=Path("model"), src=[...], tgt=[...]))
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from seq2seq.aligned import check_files, read_pairs
from seq2seq.checkpoint import load_model, refuse_model, resolve
from seq2seq.config import (
    ModelConfig,
    RunConfig,
    Value,
    corpus_weights,
    differences,
    get,
    override,
    read_toml,
    seconds,
    with_settings_of,
)
from seq2seq.config import check as check_config
from seq2seq.corpus import known_counts
from seq2seq.hardware import choose_precision
from seq2seq.ownership import refuse_foreign
from seq2seq.past import FREE, OF_A_COMMAND, Past, listing, past_of, settings_of
from seq2seq.presets import Decision, Facts, apply, decide
from seq2seq.run import TOKENIZER, Run
from seq2seq.segments import tag_ids
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import read_file
from tokenizer.folder import load_tokenizer
from tokenizer.special import check_tags

_START = "init_from"  # in what a run remembers
_EXTENDED = " with --extend-vocab"  # behind it


@dataclass(frozen=True)
class Request:
    """What a user asked `tfm train` for.

    Attributes:
        run: The folder of the run.
        src: Source files.
        tgt: Target files, aligned with them.
        valid_src: Validation sources; may be empty.
        valid_tgt: Validation targets.
        preset: One of `presets.PRESETS`.
        config_file: Settings in TOML, or None.
        settings: From `--set`.
        flags: From flags with a name of their own; these go before all others.
        device: Where to train.
        overwrite: Start anew.
        init_from: A model whose weights to start from, or None.
        extend_vocab: The run has its own tokenizer; carry those weights over to it.
        n_processes: That torchrun started, this one included.
        n_threads: That a process alone on a CPU may share its work out to.
        tgt_lang: Language of each target file, or one for all, where a model is to translate into several.
    """

    run: Path
    src: Sequence[Path]
    tgt: Sequence[Path]
    valid_src: Sequence[Path] = ()
    valid_tgt: Sequence[Path] = ()
    preset: str = "auto"
    config_file: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, Value] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    overwrite: bool = False
    init_from: Path | None = None
    extend_vocab: bool = False
    n_processes: int = 1
    n_threads: int = 1
    tgt_lang: Sequence[str] = ()

    @cached_property
    def from_file(self) -> Mapping[str, Value]:
        """The settings of `config_file`; it is read once."""
        if self.config_file is None:
            return {}
        return read_toml(read_file(self.config_file), str(self.config_file))

    @property
    def said(self) -> Mapping[str, Value]:
        """All settings that the user names."""
        return {**self.from_file, **self.settings, **self.flags}

    def past(self) -> Past | None:
        """What the run in the folder remembers; None where one begins there, perhaps anew."""
        return None if self.overwrite else past_of(Run(self.run))


def check(request: Request) -> tuple[RunConfig, list[Decision]]:
    """Refuse what can be refused before anything is written, and resolve the settings.

    Returns:
        The settings, and the decisions of the preset that are in them. The precision may still be
        open, and a tokenizer that is to be trained may have fewer pieces than its model has here.

    Raises:
        UserError: For files that do not fit together and settings that cannot be.
    """
    run = Run(request.run)
    refuse_model(run.folder)
    refuse_foreign(run, request.overwrite)
    n_pairs = _check_files(request)
    tokenizer = _tokenizer_of(request)
    _check_languages(request, tokenizer)
    past = request.past()
    limit = _as_asked(RunConfig(), request).train.max_time
    max_time = seconds(limit) if limit else 0.0
    facts = Facts(n_pairs, request.device.type, request.n_processes, request.n_threads, max_time)
    start = None
    if request.init_from is not None and past is None:  # later the start is not needed any more
        start = load_model(request.init_from).config
        facts = replace(facts, d_model=start.d_model)
    decisions = decide(request.preset, facts)
    if start is not None:
        decisions = [d for d in decisions if not d.name.startswith("model.")]
    config = apply(RunConfig(start or ModelConfig()), decisions)
    config = _as_asked(config, request)
    if "data.batch_tokens" in request.said and "optim.accumulate" not in request.said:
        config = override(config, {"optim.accumulate": 1}, "")  # a batch is an update, unless said
    if past is not None:
        _check_same_start(request, past)
        changed = _changed_since(past, asked_for(request, past), decisions)
        free = FREE & {*OF_A_COMMAND, *request.said}
        config = with_settings_of(past.settings, config, changed | free)
    check_config(config)
    corpus_weights(config.data.weights, len(request.src))
    if config.train.precision != "auto":
        choose_precision(config.train.precision, request.device)
    _check_together(config)
    if past is None and tokenizer is not None:
        _check_vocabulary(request, config.data.vocab_size, tokenizer)
    if request.init_from is not None and start is not None:
        _check_start(request, request.init_from, start, config)
    if past is None and "model.vocab_size" not in request.said:
        size = config.data.vocab_size if tokenizer is None else tokenizer.vocab_size
        config = override(config, {"model.vocab_size": size}, "")
    return config, _those_in(config, decisions, request)


def _those_in(config: RunConfig, decisions: Sequence[Decision], request: Request) -> list[Decision]:
    """The decisions that are in the settings, as the user says nothing else."""
    said = {*request.said}
    if "data.batch_tokens" in said:
        said.add("optim.accumulate")  # whose reason is the size of an update
    return [d for d in decisions if d.name not in said and get(config, d.name) == d.value]


def asked_for(request: Request, past: Past | None) -> dict[str, Value]:
    """What a user says of a run, as it remembers it: the preset, the settings that last, and its start.

    As long as that stays the same, a run keeps its settings, whatever a preset would decide now: on
    another device, with other time, or in another version of tfm.
    """
    lasting = {name: value for name, value in request.said.items() if name not in OF_A_COMMAND}
    start = _named_start(request) if past is None else past.asked.get(_START)
    return {"preset": request.preset, **({} if start is None else {_START: start}), **lasting}


def _named_start(request: Request) -> str:
    """The model whose weights the user names to start from, or ""."""
    if request.init_from is None:
        return ""
    name = os.fsencode(request.init_from).decode(errors="backslashreplace")
    return name + _EXTENDED if request.extend_vocab else name


def _changed_since(
    past: Past, asked: Mapping[str, Value], decisions: Sequence[Decision]
) -> set[str]:
    """The settings of a run that the user speaks of otherwise than when it was begun."""
    changed = {n for n in {*past.asked, *asked} if past.asked.get(n) != asked.get(n)}
    return changed | {d.name for d in decisions} if "preset" in changed else changed


def _check_same_start(request: Request, past: Past) -> None:
    """Refuse to begin a run from another model when it has begun; the option may be left out by then."""
    named = _named_start(request)
    then = str(past.asked.get(_START, named))
    if named and then != named and _located(then) != _located(named):
        raise UserError(
            f"{request.run}: was begun from {then or 'no other model'}; leave --init-from out, "
            "use another -m, or --overwrite to start anew"
        )


def _located(start: str) -> tuple[Path, bool] | None:
    """The same for every name of a start: its folder, and whether the vocabulary is extended."""
    folder = start.removesuffix(_EXTENDED)
    return (_real(Path(folder)), folder != start) if start else None


def _real(folder: Path) -> Path:
    """The folder itself, behind all links; `Path.resolve` raises where they go in a circle."""
    return Path(os.path.realpath(folder))


def _as_asked(config: RunConfig, request: Request) -> RunConfig:
    """The settings with what the user asked for in them: in a file, by `--set`, by flags."""
    config = override(config, request.from_file, str(request.config_file))
    config = override(config, request.settings, "--set")
    for name, value in request.flags.items():
        flag = "--" + name.partition(".")[2].replace("_", "-")
        config = override(config, {name: value}, flag)
    return config


def _check_files(request: Request) -> int:
    """Refuse files that do not fit together; returns the pairs of the training text."""
    if request.extend_vocab and request.init_from is None:
        raise UserError("--extend-vocab: is for a model to start from; add --init-from DIR")
    if request.valid_src or request.valid_tgt:
        check_files(request.valid_src, request.valid_tgt, options=("--valid-src", "--valid-tgt"))
        pairs = read_pairs(request.valid_src, request.valid_tgt)
        if not any(s.strip() and t.strip() for s, t in pairs):
            raise UserError(f"{request.valid_src[0]}: no usable pairs to validate on")
    n_pairs = check_files(request.src, request.tgt, known_counts(Run(request.run).data))
    if not n_pairs:
        raise UserError(f"{request.src[0]}: no usable pairs; the file is empty")
    return n_pairs


def _check_together(config: RunConfig) -> None:
    """Refuse settings of different tables that do not go together."""
    optim = config.optim
    if optim.has_end and config.train.max_steps is None:
        raise UserError(
            f"optim.schedule = {optim.schedule!r} needs an end to fall to; give --max-steps"
        )
    if optim.has_end and optim.min_lr > optim.lr:
        raise UserError(f"optim.min_lr = {optim.min_lr:g}: is more than optim.lr = {optim.lr:g}")
    if config.model.positions == "learned" and config.data.max_len >= config.model.max_positions:
        raise UserError(
            f"model.max_positions = {config.model.max_positions}: must be more than "
            f"data.max_len = {config.data.max_len}, as the end of a sentence takes a place too"
        )


def _check_start(request: Request, init_from: Path, start: ModelConfig, config: RunConfig) -> None:
    """Refuse weights to start from that do not fit, or that --overwrite would remove."""
    changed = differences(RunConfig(start), RunConfig(config.model))
    changed = [c for c in changed if not c[0].endswith("dropout")]
    if request.extend_vocab:
        changed = [c for c in changed if c[0] != "model.vocab_size"]
    if changed:
        raise UserError(
            f"{init_from}: is a model of another shape ({listing(changed)}); "
            "leave these settings out"
        )
    if request.overwrite and _real(init_from).is_relative_to(_real(request.run)):
        raise UserError(f"{init_from}: --overwrite would remove it; choose another -m")


def _tokenizer_of(request: Request) -> Tokenizer | None:
    """The tokenizer that the run has, or takes from the model it starts from; None if it makes one."""
    run = Run(request.run)
    if run.tokenizer.exists():
        return load_tokenizer(run.tokenizer)
    if request.init_from is not None and not request.extend_vocab:
        return load_tokenizer(resolve(request.init_from) / TOKENIZER)
    return None


def _check_vocabulary(request: Request, asked: int, tokenizer: Tokenizer) -> None:
    """Refuse a `data.vocab_size` by --set that would not have made the tokenizer which is there.

    That may have fewer pieces, where its text gave no more. One that has all that were asked for when
    the settings of the run were written would have more now.
    """
    of_start = request.init_from is not None and not request.extend_vocab
    if of_start or "data.vocab_size" not in request.settings:
        return
    run = Run(request.run)
    try:
        before = settings_of(run)
    except UserError:
        before = None  # damaged; it is written anew
    size = tokenizer.vocab_size
    is_full = before is not None and before.data.vocab_size == size
    if asked < size or (asked > size and is_full):
        raise UserError(
            f"data.vocab_size = {asked}, but the tokenizer in {run.tokenizer} has {size} pieces; "
            "leave the setting out, or give another -m"
        )


def _check_languages(request: Request, tokenizer: Tokenizer | None) -> None:
    """Refuse languages that the tokenizer which is there has no tag for."""
    languages, _ = languages_of(request)
    if tokenizer is not None:
        for language in languages:
            tag_ids(tokenizer, language)


def languages_of(request: Request) -> tuple[Sequence[str | None], Sequence[str | None]]:
    """The language of each pair of files, for training and for validation.

    Raises:
        UserError: When it cannot be known.
    """
    names = check_tags(request.tgt_lang)
    shares: list[Sequence[str | None]] = []
    for option, files in (("--src", request.src), ("--valid-src", request.valid_src)):
        if len(names) <= 1:
            shares.append([names[0] if names else None] * len(files))
        elif len(request.tgt_lang) == len(files) or not files:
            shares.append(list(request.tgt_lang)[: len(files)])
        else:
            raise UserError(
                f"--tgt-lang is given {len(request.tgt_lang)} times and {option} {len(files)} times; "
                "give the language of each, in their order"
            )
    return shares[0], shares[1]
