"""The commands of `tfm`, and their exit codes (`errors.py`).

0 done · 1 a bug in tfm (traceback) · 2 something the user can fix (one line) ·
3 training stopped on non-finite numbers, or a resumed run was another one · 130 interrupted ·
141 the reader of the output went away · 143 ended by SIGTERM after saving
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from types import FrameType
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperOption

from cli.average import average
from cli.decode import decode
from cli.encode import encode
from cli.errors import Terminated, exit_code
from cli.evaluate import evaluate
from cli.export import export
from cli.info import info
from cli.score import score
from cli.streams import standard_streams
from cli.train import train
from cli.train_tokenizer import train_tokenizer
from cli.translate import translate
from tokenizer.errors import UserError

_WITHOUT_MODELS = ("train-tokenizer", "encode", "decode", "info")
_ORDERLY = 2.0  # seconds that the end of a command may take before another signal cuts it short


class _Command(TyperCommand):
    """A command, most of which load PyTorch."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        if self.name not in _WITHOUT_MODELS:
            # PyTorch would load it from C, and drop the exception of a signal that comes meanwhile.
            import numpy  # noqa: F401
        return super().invoke(ctx)


class _Scoring(_Command):
    """A command that takes an option once: by the last one in silence, its numbers would mislead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command.

        Raises:
            UserError: When an option for one value is given more than once.
        """
        words = list(args)  # parsing consumes them
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(args=words)
        options = [p for p in order if isinstance(p, TyperOption)]
        for option in options:
            if options.count(option) > 1 and not (option.multiple or option.is_flag):
                raise UserError(f"{'/'.join(option.opts)}: is given twice; give it once")
        return rest


app = typer.Typer(
    name="tfm",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (
    train_tokenizer,
    encode,
    decode,
    train,
    translate,
    evaluate,
    score,
    average,
    export,
    info,
):
    app.command(cls=_Scoring if command in (evaluate, score) else _Command)(command)

# What Typer raises for a wrong command line; the class has moved between its versions.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


@app.callback(invoke_without_command=True)
def tfm(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """From two text files to a translation model of your own.

    Start with: tfm train --src FILE --tgt FILE, then: tfm translate
    """
    if version:
        typer.echo(f"tfm {metadata.version('tfm')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Those of the process if not given.

    Returns:
        The exit code.
    """
    # Threads that wait for work in a loop slow a busy machine down a hundredfold. Read by torch
    # when it is loaded, which happens inside the commands.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else list(arguments)
    # Products compiled for a shape of batch, of which hardly one comes back soon, in training none: a
    # fraction of the usual number is as fast and saves hundreds of megabytes (examples/bench/README.md).
    kept = "64" if given[:1] == ["train"] else "200"
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", kept)
    try:
        with standard_streams(), _terminable():
            code = exit_code(lambda: _invoke(given))
            unwritten = exit_code(_flush)
    except Terminated:  # after the command, or while it came to its end otherwise
        return 143
    return code or unwritten


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let the first SIGTERM or SIGHUP end a command in an orderly way, which no other one disturbs.

    Where that takes long, as what reads our output has stopped, a later one ends it at once. `tfm train`
    has handlers of its own.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may they be set
        yield
        return

    # One that is ignored, as by nohup, stays so.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    came_at: float | None = None

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came_at
        now = time.monotonic()
        if came_at is None:
            came_at = now
            raise Terminated
        if now - came_at > _ORDERLY:
            os._exit(143)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        # After a signal the process ends with its code; at its end Python would restore the defaults of ours.
        for number in numbers:
            signal.signal(number, signal.SIG_DFL if came_at is None else signal.SIG_IGN)


def _invoke(arguments: list[str]) -> int:
    """Parse and run, without Typer's own handling of errors."""
    command = typer.main.get_command(app)
    if "" in arguments:
        raise UserError("one argument is empty; is a variable of the shell not set?")
    try:
        with command.make_context("tfm", list(arguments), obj=tuple(arguments)) as context:
            _check_folder()
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "tfm"
        what = " ".join(error.format_message().split()).removesuffix(".")
        raise UserError(f"{what}; see {where} --help") from None
    return 0


def _check_folder() -> None:
    """Refuse to work where the current folder is gone: PyTorch would end the process without a word."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        raise UserError(
            "the current folder does not exist any more; change to another one"
        ) from None


def _flush() -> int:
    sys.stdout.flush()
    return 0
