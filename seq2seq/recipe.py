"""From what a user asked for to a `Setup` that can be trained: the recipe of `tfm train`.

    setup = prepare(request, notify)    tokenizer, settings, corpora, model
    Trainer(setup, reporter).run(...)

Run by the holder of the run's lock. Training the same request again resumes; a changed one is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from seq2seq.aligned import read_pairs
from seq2seq.batch import Example
from seq2seq.batching import stable_seed
from seq2seq.blocks import Text
from seq2seq.checkpoint import Model, load_model, resolve
from seq2seq.config import (
    RunConfig,
    override,
    read_toml,
    write_toml,
)
from seq2seq.corpus import Corpus, find_corpus, open_corpus
from seq2seq.distributed import ALONE, World
from seq2seq.hardware import choose_precision, multiplies_bf16
from seq2seq.keeper import Keeper
from seq2seq.model import Transformer
from seq2seq.past import (
    Past,
    check_same_corpus,
    check_same_validation,
    check_unchanged,
    settings_of,
)
from seq2seq.presets import Decision
from seq2seq.request import Request, asked_for, check, languages_of
from seq2seq.run import POINTERS, SETTINGS_TITLE, TOKENIZER, Run
from seq2seq.segments import as_line, tag_ids
from seq2seq.state import check_last_state
from seq2seq.storage import replace_folder, temporary_folder
from seq2seq.trainer import Setup
from seq2seq.validation import Validation, hold_out
from seq2seq.vocabulary import carried_over, transfer
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import publish_file, sweep, write
from tokenizer.folder import load_tokenizer, train_tokenizer


class Notify(Protocol):
    """Whoever wants to know what is being prepared."""

    def said(self, message: str) -> None:
        """Something that the user should know."""

    def decided(self, decisions: Sequence[Decision]) -> None:
        """What the preset chose, where nothing else was asked for."""

    def reading(self, n_pairs: int) -> None:
        """This many pairs of the corpus have been read."""


def prepare(request: Request, notify: Notify, world: World = ALONE) -> Setup:
    """Make or open all that a run is made of; writes into its folder.

    Raises:
        UserError: As `check`, and when the run in the folder is another one.
    """
    config, decisions = check(request)
    run, past = Run(request.run), request.past()
    has_tokenizer = run.tokenizer.exists()
    if has_tokenizer:
        decisions = [d for d in decisions if d.name != "data.vocab_size"]
    if world.is_first:
        sweep(run.folder)
        for inner in (run.folder / "checkpoints", run.folder / "state"):
            sweep(inner)
        if past is not None:
            _check_whole(run, config)
        _make_tokenizer(request, config, past, notify)
    world.wait(patiently=True)
    tokenizer = load_tokenizer(run.tokenizer)
    if has_tokenizer and past is None:
        notify.said(f"using the tokenizer in {run.tokenizer} ({tokenizer.vocab_size} pieces)")
    config, decisions = _settle(request, config, decisions, past, tokenizer, world, notify)
    if past is None:
        notify.decided(decisions)
    corpus, validation = _open_corpora(request, config, past, tokenizer, world, notify)
    world.wait()
    if world.is_first:
        if request.overwrite:
            _clear(run, config, notify)  # now that all has been read
        publish_settings(run, config, decisions)
    world.wait()
    model = _make_model(request, config, run, tokenizer, notify)
    asked = asked_for(request, past)
    return Setup(config, model.to(request.device), tokenizer, corpus, validation, run, world, asked)


def _check_whole(run: Run, config: RunConfig) -> None:
    """Refuse a run that is damaged before anything of it is changed."""
    check_last_state(run)
    Keeper(run, config.train.keep).check(run.steps("state")[-1])


def _clear(run: Run, config: RunConfig, notify: Notify) -> None:
    """Make room for the new run; says what becomes of the old one."""
    had_best = (run.folder / POINTERS[0]).exists()
    Keeper(run, config.train.keep).clear()
    if run.has_former():
        notify.said("the best model of the old run translates until the new one has been validated")
    elif had_best:
        notify.said("the best model of the old run was damaged, and is removed with it")


def publish_settings(run: Run, config: RunConfig, decisions: Sequence[Decision]) -> None:
    """Write `train.toml`, with the reasons of the preset in its head, unless it says this already."""
    if settings_of(run) == config:
        return
    heading = f"{SETTINGS_TITLE} Chosen by the preset:\n" + "\n".join(
        f"{d.name} = {d.value}: {d.reason}" for d in decisions
    )
    content = write_toml(config, heading if decisions else SETTINGS_TITLE)
    publish_file(run.settings, content)


def _make_tokenizer(request: Request, config: RunConfig, past: Past | None, notify: Notify) -> None:
    """Train a tokenizer, or take that of `init_from`, where the run has none."""
    run = Run(request.run)
    if run.tokenizer.exists():
        return
    if past is not None:
        raise UserError(
            f"{run.tokenizer}: is missing, so the run cannot be continued; copy that of a checkpoint "
            "there, or --overwrite to start anew"
        )
    if request.init_from is not None and not request.extend_vocab:
        tokenizer = load_tokenizer(resolve(request.init_from) / TOKENIZER)
        notify.said(f"no tokenizer in {run.folder}: taking the one of {request.init_from}")
    else:
        size = config.data.vocab_size
        notify.said(f"no tokenizer in {run.folder}: training one of up to {size} pieces")
        files = [*request.src, *request.tgt]
        tokenizer = train_tokenizer(files, vocab_size=size, tags=request.tgt_lang)
    publish_tokenizer(tokenizer, run.tokenizer)


def publish_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's folder, at once; an old one is replaced."""
    with temporary_folder(folder) as new:
        for name, content in tokenizer.files().items():
            write(new / name, content)
        replace_folder(new, folder)


def _settle(
    request: Request,
    config: RunConfig,
    decisions: list[Decision],
    past: Past | None,
    tokenizer: Tokenizer,
    world: World,
    notify: Notify,
) -> tuple[RunConfig, list[Decision]]:
    """Fill in what only the tokenizer, the machine and the run's past can tell."""
    run = Run(request.run)
    asked_vocab = {**request.settings, **request.flags}.get("model.vocab_size")
    if asked_vocab is not None and config.model.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size = {asked_vocab}, but the tokenizer in {run.tokenizer} has "
            f"{tokenizer.vocab_size} pieces; leave the setting out"
        )
    if request.init_from is not None and not request.extend_vocab and past is None:
        _check_same_tokenizer(request.init_from, tokenizer, run)
    config = override(config, {"model.vocab_size": tokenizer.vocab_size}, "tokenizer")
    precision = config.train.precision
    name, why = choose_precision(precision, request.device)
    if precision == "auto":
        decisions = [*decisions, Decision("train.precision", name, why)]
    config = override(config, {"train.precision": name}, "--precision")
    if name == "bf16" and request.device.type == "cpu" and not multiplies_bf16():
        notify.said("bf16 is many times slower than fp32 here: this CPU has no products in it")
    if (n := world.size) > config.optim.accumulate:
        if past is not None:
            raise UserError(
                f"{run.folder}: an update of this run has {config.optim.accumulate} micro-batches "
                f"(optim.accumulate), too few for {n} processes; start no more than that"
            )
        config = override(config, {"optim.accumulate": n}, "")
        decisions = [d for d in decisions if d.name != "optim.accumulate"]
        decisions.append(
            Decision("optim.accumulate", n, f"one micro-batch for each of {n} processes")
        )
    config = _agreed(config, world)
    if past is not None:
        check_unchanged(past.settings, config, run)
    return config, decisions


def _agreed(config: RunConfig, world: World) -> RunConfig:
    """The settings of rank 0, on every rank: others may count other processes, or measure otherwise."""
    settings = world.share(write_toml(config).decode()).encode()
    return override(RunConfig(), read_toml(settings, "rank 0"), "rank 0")


def _check_same_tokenizer(init_from: Path, tokenizer: Tokenizer, run: Run) -> None:
    if load_tokenizer(resolve(init_from) / TOKENIZER).files() != tokenizer.files():
        raise UserError(
            f"{run.tokenizer}: is another tokenizer than that of {init_from}; "
            "use a new -m without one to keep that of the model, or --extend-vocab to carry the model "
            "over to this one"
        )


def _open_corpora(
    request: Request,
    config: RunConfig,
    past: Past | None,
    tokenizer: Tokenizer,
    world: World,
    notify: Notify,
) -> tuple[Corpus, Validation]:
    """Open the id store of the training text, and read the validation text or hold some pairs out.

    The first process makes the store where there is none; the others find it. A text that the run was
    not begun with is refused before its store takes the place of the one there.
    """
    run = Run(request.run)
    languages, valid_languages = languages_of(request)
    tags = tuple(tag for name in languages for tag in tag_ids(tokenizer, name))
    text = Text(request.src, request.tgt, tokenizer, config.data.max_len, tags)

    def check(same: Callable[[Mapping[str, Any], str, Run], None], digest: str) -> None:
        if past is not None:
            same(past.facts, digest, run)

    validation = None
    if request.valid_src:
        validation = _read_validation(request, config, tokenizer, valid_languages)
        check(check_same_validation, validation.digest())
    if world.is_first:
        corpus = open_corpus(text, run.data, notify.reading, partial(check, check_same_corpus))
    world.wait(patiently=True)
    if not world.is_first:
        corpus = find_corpus(text, run.data)
    report = corpus.report
    if report.n_empty or report.n_too_long:
        notify.said(
            f"skipped {report.n_empty} pairs with an empty side and {report.n_too_long} longer than "
            f"data.max_len = {config.data.max_len} tokens"
        )
    if validation is None:
        corpus, validation = hold_out(corpus, tokenizer, config.data.holdout, config.train.seed)
        notify.said(f"no validation files: {len(validation.src)} pairs are held out for validation")
        check(check_same_validation, validation.digest())
    return corpus, validation


def _read_validation(
    request: Request, config: RunConfig, tokenizer: Tokenizer, languages: Sequence[str | None]
) -> Validation:
    """The validation text, without blank lines."""
    src, tgt, tgt_lang = [], [], []
    examples: list[Example] = []
    for *files, language in zip(request.valid_src, request.valid_tgt, languages, strict=True):
        tag = tag_ids(tokenizer, language)
        pairs = [(s, t) for s, t in read_pairs(files[:1], files[1:]) if s.strip() and t.strip()]
        src += [s for s, _ in pairs]
        tgt += [t for _, t in pairs]
        tgt_lang += [language] * len(pairs) if language else []
        sides = (tokenizer.encode_batch([as_line(pair[i]) for pair in pairs]) for i in (0, 1))
        for s, t in zip(*sides, strict=True):
            if max(len(tag) + len(s), len(t)) <= config.data.max_len:
                examples.append(Example([*tag, *s], t, len(examples)))
    if not examples:
        raise UserError(f"{request.valid_src[0]}: no usable pairs to validate on")
    return Validation(src, tgt, examples, tgt_lang)


def _make_model(
    request: Request, config: RunConfig, run: Run, tokenizer: Tokenizer, notify: Notify
) -> Transformer:
    """A new model, from the seed or from other weights."""
    torch.manual_seed(stable_seed(config.train.seed, 0))
    model = Transformer(config.model)
    if request.init_from is not None and not run.steps("state"):
        model.load_state_dict(
            _start(load_model(request.init_from), tokenizer, notify), strict=False
        )
    return model


def _start(start: Model, tokenizer: Tokenizer, notify: Notify) -> dict[str, Tensor]:
    """The weights of another model, for this tokenizer; says what is kept and what is not."""
    notify.said(
        f"starting from the weights of {start.folder}; the step, the learning rate, the optimizer, the "
        "averaged weights (EMA) and the best score begin anew"
    )
    if start.tokenizer.files() == tokenizer.files():
        return start.weights
    found = transfer(start.tokenizer, tokenizer)
    notify.said(
        f"another vocabulary, {start.tokenizer.vocab_size} → {tokenizer.vocab_size}: "
        f"{found.n_copied} pieces keep their embeddings, {found.n_new} new ones start as the mean of "
        f"the old pieces that spell them, {found.n_dropped} old ones are left out"
    )
    return carried_over(start.weights, found.sources)
