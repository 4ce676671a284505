"""The log of a run, read back: what `tfm info` tells and draws.

    entries = read_log(Path("model/log.jsonl"))
    panels = learning_curves({"model": entries})

A log may be cut off, or come from anywhere: what is no entry of ours is left out. How curves are drawn is in
`braille.py` (on a terminal) and `pictures.py` (into a file).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seq2seq.run import MOST_OF_LOG
from tokenizer.errors import UserError

Point = tuple[float, float]

_MAX_NUMBER = 1e15  # no step, time or score comes near it; a stranger's number might
_FIELDS = {  # what is read of an entry of each kind
    "step": ("step", "epoch", "nll", "lr", "tokens_per_second", "seconds"),
    "validation": ("step", "nll", "bleu", "chrf", "is_best", "seconds"),
}


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: of a run, by its name, the points (step, value) in the order of steps."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity over the steps, a curve for each run.

    Attributes:
        title: What it is.
        series: The curves; one without points keeps its place, so that colours agree over panels.
        is_log: Equal ratios are equally far apart.
    """

    title: str
    series: tuple[Series, ...]
    is_log: bool = False


def read_log(path: Path) -> list[dict[str, Any]]:
    """What training wrote down; a line that a crash cut off, or a stranger wrote, is left out.

    Raises:
        UserError: When the file cannot be read, or is no log by its size.
    """
    from tokenizer.files import read_file, read_json

    if not path.exists():
        return []
    entries = []
    for line in read_file(path, MOST_OF_LOG).split(b"\n"):
        try:
            entry = read_json(line, str(path))
        except UserError:
            continue
        names = _FIELDS.get(str(entry.get("kind"))) if isinstance(entry, dict) else None
        if names and all(_is_number(entry.get(name)) for name in names):
            entries.append(entry)
    return entries


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < _MAX_NUMBER


def perplexity(nll: float) -> float:
    """The perplexity of a loss in nats per token, at most 1e9."""
    return min(math.exp(min(nll, 700.0)), 1e9)


def bleu_name(tokenize: str) -> str:
    """What people read beside a BLEU: that of characters must not be taken for that of words.

    >>> bleu_name("13a"), bleu_name("char")
    ('BLEU', 'BLEU (char)')
    """
    return "BLEU" if tokenize == "13a" else f"BLEU ({tokenize})"


def bleu_of(entry: Mapping[str, Any]) -> str:
    """What people read beside the BLEU of a validation; a log of before has that of words."""
    return bleu_name("char" if entry.get("tokenize") == "char" else "13a")


def _bleu_names(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The kinds of BLEU that there are in logs, which cannot be compared with one another."""
    return sorted({bleu_of(e) for e in entries if e["kind"] == "validation"})


def learning_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """The curves of runs, beside one another in each panel; panels without a point are left out.

    Args:
        logs: The entries of each run, by the name to show.
    """

    def panel(
        title: str,
        kind: str,
        value: Callable[[Mapping[str, Any]], float],
        is_log: bool = False,
        of: str | None = None,
    ) -> Panel:
        def points(entries: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
            some = [e for e in entries if e["kind"] == kind and of in (None, bleu_of(e))]
            found = {float(e["step"]): float(value(e)) for e in some}
            return tuple(sorted((x, y) for x, y in found.items() if y > 0 or not is_log))

        return Panel(title, tuple(Series(n, points(e)) for n, e in logs.items()), is_log)

    panels = [
        panel("training loss, nats per token", "step", lambda e: e["nll"]),
        panel("validation perplexity", "validation", lambda e: perplexity(e["nll"]), is_log=True),
        *(
            panel(f"validation {name}", "validation", lambda e: e["bleu"], of=name)
            for name in _bleu_names(itertools.chain(*logs.values()))
        ),
        panel("learning rate", "step", lambda e: e["lr"]),
    ]
    return [p for p in panels if any(series.points for series in p.series)]
