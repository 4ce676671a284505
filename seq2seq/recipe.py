"""From what a user asked for to a `Setup` that can be trained: the recipe of `tfm train`.

    check(request)                      all that can be refused before anything is written
    setup = prepare(request, notify)    tokenizer, settings, corpora, model
    Trainer(setup, reporter).run(...)

Run by the holder of the run's lock. Training the same request again resumes; a changed one is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from seq2seq.aligned import check_files, read_pairs
from seq2seq.batch import Example
from seq2seq.batching import stable_seed
from seq2seq.checkpoint import TOKENIZER, Model, Run, load_model, resolve
from seq2seq.config import (
    ModelConfig,
    RunConfig,
    Value,
    corpus_weights,
    differences,
    get,
    override,
    read_toml,
    write_toml,
)
from seq2seq.config import check as check_config
from seq2seq.corpus import Corpus, known_sizes, open_corpus
from seq2seq.distributed import ALONE, World
from seq2seq.hardware import choose_precision
from seq2seq.model import Transformer
from seq2seq.presets import Decision, Facts, apply, decide
from seq2seq.segments import tag_ids
from seq2seq.storage import (
    publish_file,
    read_file,
    remove_folder,
    replace_folder,
    sweep,
    temporary_folder,
    write,
)
from seq2seq.trainer import Setup
from seq2seq.validation import Validation, hold_out
from seq2seq.vocabulary import carried_over, transfer
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.folder import load_tokenizer, train_tokenizer
from tokenizer.special import check_tags

_FREE = {  # settings that may change when a run is continued
    "train.max_steps",
    "train.max_epochs",
    "train.max_time",
    "train.patience",
    "train.keep",
    "train.log_every",
    "train.tensorboard",
}
_OF_THE_MACHINE = (  # chosen for the machine that began the run; they stay when another goes on
    "data.batch_tokens",
    "optim.accumulate",
    "train.precision",
)


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
        n_processes: That could share the work on this machine.
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
    tgt_lang: Sequence[str] = ()


class Notify(Protocol):
    """Whoever wants to know what is being prepared."""

    def said(self, message: str) -> None:
        """Something that the user should know."""

    def decided(self, decisions: Sequence[Decision]) -> None:
        """What the preset chose, where nothing else was asked for."""

    def reading(self, n_pairs: int) -> None:
        """So many pairs of the corpus are read."""


def check(request: Request) -> tuple[RunConfig, list[Decision]]:
    """Refuse what can be refused before anything is written, and resolve the settings.

    Returns:
        The settings, and the decisions of the preset that are in them. The vocabulary and the
        precision may still be open.

    Raises:
        UserError: For files that do not fit together and settings that cannot be.
    """
    n_pairs, n_bytes = _check_files(request)
    _check_languages(request)
    facts = Facts(n_pairs, n_bytes, request.device.type, request.n_processes)
    decisions = decide(request.preset, facts)
    asked: dict[str, Value] = {}
    config = apply(RunConfig(), decisions)
    past = None if request.overwrite else _past_settings(Run(request.run))
    if past is not None:
        kept = {name: value for name in _OF_THE_MACHINE if (value := get(past, name)) is not None}
        config = override(config, kept, str(request.run))
        decisions = [d for d in decisions if d.name not in kept]
    if request.init_from is not None:
        start = load_model(request.init_from).config
        config = replace(config, model=start)
        decisions = [d for d in decisions if not d.name.startswith("model.")]
    if request.config_file is not None:
        where = str(request.config_file)
        values = read_toml(read_file(request.config_file), where)
        config = override(config, values, where)
        asked.update(values)
    config = override(config, request.settings, "--set")
    asked.update(request.settings)
    for name, value in request.flags.items():
        flag = "--" + name.partition(".")[2].replace("_", "-")
        config = override(config, {name: value}, flag)
    asked.update(request.flags)
    if "data.batch_tokens" in asked and "optim.accumulate" not in asked:
        config = override(config, {"optim.accumulate": 1}, "")  # a batch is an update, unless said
        decisions = [d for d in decisions if d.name != "optim.accumulate"]
    check_config(config)
    corpus_weights(config.data.weights, len(request.src))
    if config.train.precision != "auto":
        choose_precision(config.train.precision, request.device)
    _check_together(config)
    if request.init_from is not None:
        _check_start(request, request.init_from, start, config)
    return config, [d for d in decisions if d.name not in asked]


def _check_files(request: Request) -> tuple[int, int]:
    """Refuse files that do not fit together; returns the pairs and bytes of the training text."""
    if request.extend_vocab and request.init_from is None:
        raise UserError("--extend-vocab: is for a model to start from; add --init-from DIR")
    if request.valid_src or request.valid_tgt:
        check_files(request.valid_src, request.valid_tgt)
        pairs = read_pairs(request.valid_src, request.valid_tgt)
        if not any(s.strip() and t.strip() for s, t in pairs):
            raise UserError(f"{request.valid_src[0]}: no usable pairs to validate on")
    return check_files(request.src, request.tgt, known_sizes(Run(request.run).data))


def _check_together(config: RunConfig) -> None:
    """Refuse settings of different tables that do not go together."""
    if config.optim.schedule == "cosine" and config.train.max_steps is None:
        raise UserError("optim.schedule = 'cosine' needs an end to fall to; give --max-steps")
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
            f"{init_from}: is a model of another shape ({_listing(changed)}); "
            "leave these settings out"
        )
    if request.overwrite and init_from.resolve().is_relative_to(request.run.resolve()):
        raise UserError(f"{init_from}: --overwrite would remove it; choose another -m")


def _listing(changed: Sequence[tuple[str, object, object]]) -> str:
    return ", ".join(f"{name}: {old} → {new}" for name, old, new in changed)


def prepare(request: Request, notify: Notify, world: World = ALONE) -> Setup:
    """Make or open all that a run is made of; writes into its folder.

    Raises:
        UserError: As `check`, and when the run in the folder is another one.
    """
    config, decisions = check(request)
    run = Run(request.run)
    if run.tokenizer.exists():
        decisions = [d for d in decisions if d.name != "data.vocab_size"]
    if world.is_first:
        sweep(run.folder)
        for inner in (run.folder / "checkpoints", run.folder / "state"):
            sweep(inner)
        if request.overwrite:
            clear(run)
        _make_tokenizer(request, run, config, notify)
    world.wait(patiently=True)
    tokenizer = load_tokenizer(run.tokenizer)
    config, decisions = _settle(request, config, decisions, run, tokenizer, world)
    if world.is_first:
        if not run.steps("state"):
            notify.decided(decisions)
        publish_settings(run, config, decisions)
        _open_corpora(request, run, config, tokenizer, notify)
    world.wait(patiently=True)
    corpus, validation = _open_corpora(request, run, config, tokenizer, None)
    if len({digest for (digest,) in world.gather([corpus.digest])}) > 1:
        raise UserError(
            "one process reads another text than the first; give all of them the same files"
        )
    report = corpus.report
    if report.n_empty or report.n_too_long:
        notify.said(
            f"skipped {report.n_empty} pairs with an empty side and {report.n_too_long} longer than "
            f"data.max_len = {config.data.max_len} tokens"
        )
    if validation is None:
        corpus, validation = hold_out(corpus, tokenizer, config.data.holdout, config.train.seed)
        notify.said(f"no validation files: {len(validation.src)} pairs are held out for validation")
    model = _make_model(request, config, run, tokenizer, notify)
    return Setup(config, model.to(request.device), tokenizer, corpus, validation, run, world)


def clear(run: Run) -> None:
    """Remove all of a run but its tokenizer."""
    for name in ("best", "latest", "log.jsonl", "train.toml"):
        (run.folder / name).unlink(missing_ok=True)
    for folder in (run.folder / "state", run.folder / "checkpoints", run.data, run.events):
        remove_folder(folder)


def publish_settings(run: Run, config: RunConfig, decisions: Sequence[Decision]) -> None:
    """Write `train.toml`, with the reasons of the preset in its head, unless it says this already."""
    if _past_settings(run) == config:
        return
    heading = "The settings of this run. Chosen by the preset:\n" + "\n".join(
        f"{d.name} = {d.value}: {d.reason}" for d in decisions
    )
    content = write_toml(config, heading if decisions else "The settings of this run.")
    publish_file(run.settings, content)


def _make_tokenizer(request: Request, run: Run, config: RunConfig, notify: Notify) -> None:
    """Train a tokenizer, or take that of `init_from`, where the run has none."""
    if run.tokenizer.exists():
        return
    if request.init_from is not None and not request.extend_vocab:
        tokenizer: Tokenizer = load_model(request.init_from).tokenizer
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
    run: Run,
    tokenizer: Tokenizer,
    world: World,
) -> tuple[RunConfig, list[Decision]]:
    """Fill in what only the tokenizer, the machine and the run's past can tell."""
    asked_vocab = {**request.settings, **request.flags}.get("model.vocab_size")
    if asked_vocab is not None and config.model.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size = {asked_vocab}, but the tokenizer in {run.tokenizer} has "
            f"{tokenizer.vocab_size} pieces; leave the setting out"
        )
    if request.init_from is not None and not request.extend_vocab:
        _check_same_tokenizer(request.init_from, tokenizer, run)
    config = override(config, {"model.vocab_size": tokenizer.vocab_size}, "tokenizer")
    past = _past_settings(run)
    precision = config.train.precision
    name, why = choose_precision(precision, request.device)
    if precision == "auto":
        decisions = [*decisions, Decision("train.precision", name, why)]
    config = override(config, {"train.precision": name}, "--precision")
    config = _agreed(config, world)
    if past is not None and run.steps("state"):
        _check_unchanged(past, config, run)
    return config, decisions


def _agreed(config: RunConfig, world: World) -> RunConfig:
    """The settings of rank 0, on every rank: others may count other processes, or measure otherwise."""
    settings = world.share(write_toml(config).decode()).encode()
    return override(RunConfig(), read_toml(settings, "rank 0"), "rank 0")


def _past_settings(run: Run) -> RunConfig | None:
    """What is in the `train.toml` of the run, if there is one."""
    if not run.settings.exists():
        return None
    where = str(run.settings)
    return override(RunConfig(), read_toml(read_file(run.settings), where), where)


def _check_same_tokenizer(init_from: Path, tokenizer: Tokenizer, run: Run) -> None:
    if load_model(init_from).tokenizer.files() != tokenizer.files():
        raise UserError(
            f"{run.tokenizer}: is another tokenizer than that of {init_from}; "
            "use a new -m without one to keep that of the model, or --extend-vocab to carry the model "
            "over to this one"
        )


def _check_unchanged(past: RunConfig, config: RunConfig, run: Run) -> None:
    """Refuse to continue a run under other settings, naming each."""
    changed = [c for c in differences(past, config) if c[0] not in _FREE]
    limits = [c for c in differences(past, config) if c[0] == "train.max_steps"]
    if past.optim.schedule == "cosine":
        changed += limits
    if changed:
        raise UserError(
            f"{run.folder}: holds a run with other settings ({_listing(changed)}); "
            "use the old ones, another -m, or --overwrite to start anew"
        )


def _open_corpora(
    request: Request, run: Run, config: RunConfig, tokenizer: Tokenizer, notify: Notify | None
) -> tuple[Corpus, Validation | None]:
    """Open the id store of the training text, and read the validation text."""
    languages, valid_languages = _languages(request)
    corpus = open_corpus(
        request.src,
        request.tgt,
        tokenizer,
        config.data.max_len,
        run.data,
        notify.reading if notify else None,
        tags=[tag for name in languages for tag in tag_ids(tokenizer, name)],
    )
    if not request.valid_src:
        return corpus, None
    return corpus, _read_validation(request, config, tokenizer, valid_languages)


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
        sides = (tokenizer.encode_batch([pair[i] for pair in pairs]) for i in (0, 1))
        for s, t in zip(*sides, strict=True):
            if max(len(tag) + len(s), len(t)) <= config.data.max_len:
                examples.append(Example([*tag, *s], t, len(examples)))
    if not examples:
        raise UserError(f"{request.valid_src[0]}: no usable pairs to validate on")
    return Validation(src, tgt, examples, tgt_lang)


def _check_languages(request: Request) -> None:
    """Refuse languages that the tokenizer which is there has no tag for."""
    languages, _ = _languages(request)
    run = Run(request.run)
    if run.tokenizer.exists():
        tokenizer = load_tokenizer(run.tokenizer)
    elif request.init_from is not None and not request.extend_vocab:
        tokenizer = load_tokenizer(resolve(request.init_from) / TOKENIZER)
    else:
        return
    for language in languages:
        tag_ids(tokenizer, language)


def _languages(request: Request) -> tuple[Sequence[str | None], Sequence[str | None]]:
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
