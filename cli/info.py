"""`tfm info`: what a model is."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.options import TOKENIZER, Model, load_tokenizer
from cli.streams import escape

if TYPE_CHECKING:
    from seq2seq.config import ModelConfig

_MAX_LOG_BYTES = 1 << 30
_FIELDS = {  # what is read of an entry of each kind
    "step": ("step", "epoch", "nll", "tokens_per_second", "seconds"),
    "validation": ("step", "nll", "bleu", "chrf", "is_best", "seconds"),
}


def info(model: Model = Path("model")) -> None:
    """Show what a model is and how it was trained."""
    from seq2seq.checkpoint import Run, read_config, resolve, tensor_shapes

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
    run = Run(model)
    steps = run.steps("checkpoints")
    entries = _read_log(run.log) if folder != model else []
    if steps and folder != model:
        rows.append(("checkpoints", ", ".join(map(str, steps))))
    rows += _history(entries)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {escape(value)}" for name, value in rows]
    sys.stdout.write("\n".join(lines + _scores(entries)) + "\n")


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


def _read_log(path: Path) -> list[dict[str, Any]]:
    """What training wrote down; a line that a crash cut off, or a stranger wrote, is left out."""
    from seq2seq.storage import read_file, read_json
    from tokenizer.errors import UserError
    from tokenizer.lines import split_lines

    if not path.exists():
        return []
    entries = []
    for line in split_lines(read_file(path, _MAX_LOG_BYTES), str(path)):
        try:
            entry = read_json(line.encode(), str(path))
        except UserError:
            continue
        names = _FIELDS.get(str(entry.get("kind"))) if isinstance(entry, dict) else None
        if names and all(isinstance(entry.get(name), int | float) for name in names):
            entries.append(entry)
    return entries


def _history(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How long and how fast the run was trained."""
    from cli.console import duration

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


def _scores(entries: list[dict[str, Any]]) -> list[str]:
    """A table of the validations."""
    from cli.console import perplexity

    rows = [e for e in entries if e["kind"] == "validation"]
    if not rows:
        return []
    best = max((e["step"] for e in rows if e["is_best"]), default=None)
    lines = ["", f"{'validation':>10}{'BLEU':>8}{'chrF':>8}{'ppl':>10}"]
    for e in rows:
        mark = "  best" if e["step"] == best else ""
        ppl = perplexity(e["nll"])
        lines.append(f"{e['step']:>10}{e['bleu']:8.2f}{e['chrf']:8.2f}{ppl:10.2f}{mark}")
    return lines
