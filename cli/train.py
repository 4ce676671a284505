"""`tfm train`: text to a model."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import enough_memory, explained
from cli.events import check_tensorboard, event_files
from cli.options import FINISHED_BEFORE, Device, Precision, Run, Threads, setting_option
from cli.plain import Notices
from cli.process import keep_freed_memory, settle_gpu, use_threads
from cli.ranks import check_names, companions, useful_processes
from cli.streams import complain, say
from cli.verify import verify_resume
from seq2seq.config import TrainConfig, explain_toml
from seq2seq.presets import PRESETS
from seq2seq.run import SETTINGS_TITLE
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from seq2seq.distributed import World
    from seq2seq.request import Request
    from seq2seq.run import Run as RunFolder
    from seq2seq.trainer import Interrupt, Outcome


def train(
    context: typer.Context,
    src: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Source lines; may be given several times.")
    ],
    tgt: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Their translations, line by line.")
    ],
    weight: Annotated[
        list[float] | None,
        typer.Option(
            metavar="W",
            help="How often the pairs of a --src are seen in an epoch; one for each, in order. "
            " [default: 1 each]",
            show_default=False,
        ),
    ] = None,
    tgt_lang: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LANG",
            help="Language of --tgt, such as de, for a model that translates into several; one for "
            "each --tgt, in order.",
            show_default=False,
        ),
    ] = None,
    valid_src: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Source lines to choose the best model by."),
    ] = None,
    valid_tgt: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Their translations.")
    ] = None,
    run: Run = Path("model"),
    preset: Annotated[
        str,
        typer.Option(metavar="|".join(PRESETS), help="Size of the model; auto looks at the data."),
    ] = "auto",
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Settings from a file, such as a train.toml."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; --show-config lists them."),
    ] = None,
    max_steps: Annotated[int | None, setting_option(TrainConfig, "max_steps")] = None,
    max_epochs: Annotated[int | None, setting_option(TrainConfig, "max_epochs")] = None,
    max_time: Annotated[str | None, setting_option(TrainConfig, "max_time", metavar="30m")] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Size of a batch: sentences x longest side, in tokens; the preset chooses.",
        ),
    ] = None,
    seed: Annotated[
        int | None, setting_option(TrainConfig, "seed", help="The same seed gives the same model.")
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Start anew if there is a run already; its best model goes when there is another.",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Start from the weights of another model (fine-tuning)."),
    ] = None,
    extend_vocab: Annotated[
        bool,
        typer.Option(
            "--extend-vocab",
            help="With --init-from: go over to the tokenizer of this run; new pieces start as means.",
        ),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write event files for TensorBoard, too."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify-resume",
            help="Prove here that resuming is exact: short runs elsewhere, killed and compared.",
        ),
    ] = False,
    show_config: Annotated[
        bool,
        typer.Option("--show-config", help="Show all settings as TOML, explained, and stop."),
    ] = False,
) -> None:
    """Train a translation model on two aligned files.

    Line n of --tgt must be the translation of line n of --src. Nothing else is needed: tfm trains
    a tokenizer if there is none, holds out a small part of the data for validation if none is
    given, and chooses its settings. Run again, the same command goes on where it stopped. Ctrl-C
    saves and stops. On several GPUs: torchrun --nproc-per-node 4 --no-python tfm train ...
    """
    flags = {
        "train.max_steps": max_steps,
        "train.max_epochs": max_epochs,
        "train.max_time": max_time,
        "data.batch_tokens": batch_tokens,
        "data.weights": " ".join(f"{w:.12g}" for w in weight) if weight else None,
        "train.seed": seed,
        "train.tensorboard": tensorboard or None,
        "train.precision": precision,
    }
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: is not one of {', '.join(PRESETS)}")
    assigned = _assignments(settings or [])
    files = [*src, *tgt, *(valid_src or []), *(valid_tgt or [])]
    check_names([*files, config] if config else files)

    from seq2seq.distributed import MEETING, joined_world, place
    from seq2seq.hardware import choose_device, choose_precision
    from seq2seq.request import Request, check

    # What `companions` started has its share of them in OMP_NUM_THREADS.
    n_threads = use_threads(None if MEETING in os.environ else threads)
    keep_freed_memory()
    here = place(os.environ)
    is_alone = "WORLD_SIZE" not in os.environ  # torchrun or `companions` started no others
    request = Request(
        run=run,
        src=src,
        tgt=tgt,
        valid_src=valid_src or [],
        valid_tgt=valid_tgt or [],
        preset=preset,
        config_file=config,
        settings=assigned,
        flags={name: value for name, value in flags.items() if value is not None},
        device=choose_device(device, here.local_rank),
        overwrite=overwrite,
        init_from=init_from,
        extend_vocab=extend_vocab,
        tgt_lang=tgt_lang or [],
        n_processes=here.size,
        n_threads=n_threads if is_alone else 1,
    )
    resolved, decisions = check(request)
    if resolved.train.tensorboard:
        check_tensorboard()
    if show_config:
        if here.is_first:
            Notices(is_silent=False).decided(decisions)
            sys.stdout.write(f"# {SETTINGS_TITLE}\n{explain_toml(resolved)}")
        return
    if verify:
        if not is_alone:
            raise UserError("--verify-resume: starts processes of its own; leave torchrun out")
        measured, _ = choose_precision(resolved.train.precision, request.device)
        raise typer.Exit(verify_resume(context.obj, run, resolved, measured))
    n = 1
    if is_alone and request.device.type == "cpu":
        n = useful_processes(n_threads, resolved.model.d_model, resolved.optim.accumulate)
    own_threads = n_threads // n
    with companions(n, context.obj, own_threads):
        use_threads(own_threads)
        with joined_world(os.environ, request.device.type) as world, _explaining():
            code = _run(request, world, is_alone)
    raise typer.Exit(code)


def _assignments(settings: Sequence[str]) -> dict[str, str]:
    """Read `KEY=VALUE`.

    >>> _assignments(["model.d_model=64"])
    {'model.d_model': '64'}
    """
    assigned = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write KEY=VALUE, such as --set model.dropout=0.2")
        assigned[name.strip()] = value.strip()
    return assigned


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Say what goes wrong in here before the other processes are left: torchrun ends all with the first.

    Where one of them has ended without this one's doing, it is for that to explain.
    """
    from seq2seq.distributed import MEETING, is_lost_peer

    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if not is_lost_peer(error):
            raise typer.Exit(explained(error)) from None
        if MEETING in os.environ:  # `companions` knows how they ended
            raise
        say("tfm: another process of this training has ended; it says why, or torchrun does")
        raise typer.Exit(2) from None


def _run(request: "Request", world: "World", is_alone: bool) -> int:
    """Prepare and train; returns the exit code."""
    import torch

    from cli.console import training
    from seq2seq.learner import NonFiniteError
    from seq2seq.recipe import prepare
    from seq2seq.storage import locked
    from seq2seq.trainer import Interrupt, Trainer

    if request.device.type == "cuda":
        torch.cuda.set_device(request.device)
    is_silent = not world.is_first
    interrupt = Interrupt()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_handled({signal.SIGUSR1: _saving(interrupt)}))
        if world.is_first:
            stack.enter_context(locked(request.run))
        with enough_memory("choose a smaller --preset"):
            setup = prepare(request, Notices(is_silent), world)
        settle_gpu(request.device, setup.config.train.precision)
        longest = setup.config.data.max_len  # a micro-batch has been cut down to one pair by then
        advice = f"in a new run, choose a smaller --preset or lower data.max_len, now {longest}"
        stack.enter_context(enough_memory(advice))
        try:
            with training(setup.config.train, interrupt, is_silent) as reporter:
                if setup.config.train.tensorboard and world.is_first:
                    reporter = stack.enter_context(event_files(setup.run.events, reporter))
                trainer = Trainer(setup, reporter)
                before = trainer.progress
                with _handled(_stopping(interrupt, is_alone)):
                    outcome = trainer.run(interrupt)
        except NonFiniteError as error:
            if not is_silent:
                complain(f"training stopped: {error}")
            return 3
    if not is_silent:
        is_new = outcome.step > before.step or before.awaits_validation
        _report(setup.run, outcome, is_new, request.overwrite)
    return 128 + outcome.signal if outcome.signal else 0


def _report(run: "RunFolder", outcome: "Outcome", is_new: bool, began_anew: bool) -> None:
    """Say how it ended and what to do next."""
    ended = "stopped" if outcome.signal else "finished" if is_new else "already"
    say(f"{ended} at step {outcome.step}: {outcome.reason}")
    if outcome.best_step:
        how = f" ({FINISHED_BEFORE})" if run.incumbent() else ""
        say(
            f"best model: step {outcome.best_step}{how}; translate with: tfm translate -m {run.folder}"
        )
    if outcome.signal:
        say(f"run the same command again{', without --overwrite,' * began_anew} to go on")


_Handler = Callable[[int, FrameType | None], None]


def _saving(interrupt: "Interrupt") -> _Handler:
    """Let a signal ask for the next update to be saved, also before there is any."""

    def save(number: int, frame: FrameType | None) -> None:
        interrupt.save = True

    return save


def _stopping(interrupt: "Interrupt", is_alone: bool) -> dict[int, _Handler]:
    """Let the signals that end a run end it after the update that they come in.

    A second INT stops at once, but not under torchrun, which itself sends one after that of the
    terminal.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and interrupt.stop and is_alone:
            raise KeyboardInterrupt
        interrupt.stop = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM

    return dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop)


@contextlib.contextmanager
def _handled(handlers: Mapping[int, _Handler]) -> Iterator[None]:
    """Let functions handle signals; HUP not where nohup has it ignored."""
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if number != signal.SIGHUP or before[number] != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
