"""`tfm info`: what a model is."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.history import bleu_of, learning_curves, perplexity, read_log
from cli.models import load_tokenizer
from cli.options import FINISHED_BEFORE, Model
from cli.plain import duration
from cli.streams import escape, say, write_file
from seq2seq.run import TOKENIZER, run_of
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from seq2seq.config import ModelConfig


def info(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="With --plot: the picture to write, .svg, .html or .png.",
            show_default=False,
        ),
    ] = None,
    model: Model = Path("model"),
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the learning curves, on the terminal or into FILE.")
    ] = False,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="With --plot: another run to draw too; may be given several times."
        ),
    ] = None,
) -> None:
    """Show what a model is and how it was trained.

    tfm info --plot draws on the terminal, tfm info --plot curves.svg into a file. PNG needs
    pip install 'tfm[plot]'; SVG and HTML need nothing.
    """
    if plot:
        _plot([model, *(compare or [])], None if str(file) == "-" else file)
        return
    if file is not None and file.is_dir():
        raise UserError(f"{file}: is a folder; the model is named by -m {file}")
    if file is not None or compare:
        raise UserError(f"{file or '--compare'}: is for a picture; add --plot")
    from seq2seq.checkpoint import is_for_engine, read_config, resolve
    from seq2seq.weights import tensor_shapes

    folder = resolve(model)
    config = read_config(folder)
    n_parameters = sum(shape.numel() for shape in tensor_shapes(config).values())
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    rows = [
        ("model", str(folder)),
        ("parameters", f"{n_parameters:,} ({n_bytes / 1e6:.1f} MB on disk)"),
        *_shape(config),
        ("vocabulary", f"{config.vocab_size:,} pieces, {_kind(folder)}"),
    ]
    if is_for_engine(folder):
        rows.append(("engine", "CTranslate2, which translates and scores"))
    run = run_of(model)
    is_of_run = run.folder != folder  # else the model stands alone
    entries = read_log(run.log) if is_of_run else []
    if is_of_run and (steps := run.steps("checkpoints")):
        rows.append(("checkpoints", ", ".join(map(str, steps))))
    incumbent = run.incumbent()
    if is_of_run and run.has_former():
        rows.append(("best", "of the run before, until this one has been validated"))
    if incumbent is not None:
        rows.append(("best", f"step {incumbent.step}, {FINISHED_BEFORE}"))
    rows += _history(entries)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {escape(value)}" for name, value in rows]
    sys.stdout.write("\n".join(lines + _scores(entries, incumbent is None)) + "\n")


def _plot(runs: Sequence[Path], file: Path | None) -> None:
    """Draw the learning curves of runs, on standard output or into a file."""
    from cli.console import show_curves
    from cli.pictures import check_format, picture

    if file is not None:
        check_format(file)
    logs = {}
    for run in runs:
        log = run_of(run).log
        logs[str(run)] = read_log(log)
        if not logs[str(run)]:
            raise UserError(
                f"{log}: holds no training; --plot needs the folder of a run that has begun"
            )
    panels = learning_curves(logs)
    if file is None:
        show_curves(panels)
        return
    write_file(file, picture(panels, file))
    say(f"{file}: learning curves of {', '.join(logs)}")


def _shape(config: "ModelConfig") -> list[tuple[str, str]]:
    return [
        ("layers", f"{config.n_encoder_layers} encoder, {config.n_decoder_layers} decoder"),
        (
            "width",
            f"d_model {config.d_model}, d_ff {config.d_ff}, {config.n_heads} heads",
        ),
        (
            "variant",
            f"{config.norm}-norm ({config.norm_type}), {config.activation}, {config.positions} "
            f"positions, tied embeddings: {config.tie_embeddings}",
        ),
    ]


def _kind(folder: Path) -> str:
    """The tokenizer's file, and with it its library."""
    return ", ".join(sorted(load_tokenizer(folder).files())) + f" in {TOKENIZER}/"


def _history(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How long and how fast the run was trained."""
    steps = [e for e in entries if e["kind"] == "step"]
    if not steps:
        return []
    last = steps[-1]
    seconds = max(e["seconds"] for e in entries)
    return [
        (
            "trained",
            f"{last['step']:,} steps, epoch {last['epoch']}, {duration(seconds)}, "
            f"{last['tokens_per_second']:,.0f} tokens/s at the end",
        ),
        ("training loss", f"{steps[0]['nll']:.3f} → {last['nll']:.3f} nats per token"),
    ]


def _scores(entries: list[dict[str, Any]], with_best: bool) -> list[str]:
    """A table of the validations; the best one is marked where it is among them."""
    rows = [e for e in entries if e["kind"] == "validation"]
    if not rows:
        return []
    best = max((e["step"] for e in rows if e["is_best"]), default=None)
    name = bleu_of(rows[-1])
    width = max(len(name) + 2, 8)
    lines = ["", f"{'validation':>10}{name:>{width}}{'chrF':>8}{'ppl':>10}"]
    for e in rows:
        mark = "  best" if with_best and e["step"] == best else ""
        ppl = perplexity(e["nll"])
        lines.append(f"{e['step']:>10}{e['bleu']:{width}.2f}{e['chrf']:8.2f}{ppl:10.2f}{mark}")
    return lines
