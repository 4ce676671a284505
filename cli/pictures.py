"""Curves as files: SVG and HTML by the standard library, PNG by matplotlib.

An SVG or HTML file needs nothing else: no script, no font, no style from elsewhere. It is light or
dark as its reader likes it, and shows the value of a validation under the pointer.
"""

import io
from collections.abc import Iterator, Sequence
from html import escape as quoted
from pathlib import Path

from cli.axes import Axis, label, step_axis, thinned, value_axis
from cli.history import Panel, Series
from cli.streams import escape
from tokenizer.errors import UserError

FORMATS = (".svg", ".html", ".png")
_WIDTH, _HEIGHT = 480, 300  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 40, 36  # around its curves
_ROW = 20  # height of a line of the legend
_MOST_MARKED = 60  # points of a curve that are marked one by one
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008
_STYLE = """
svg { background: #fff; color: #222; font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { html, svg { background: #16181d; color: #ddd; } }
.title { font-weight: 600; font-size: 14px; }
.grid { stroke: currentColor; stroke-opacity: .15; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
text { fill: currentColor; }
"""


def check_format(file: Path) -> None:
    """Refuse what cannot be drawn, before anything is read.

    Raises:
        UserError: When the name ends in no known format.
    """
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"{file}: the name of a picture ends in {', '.join(FORMATS)}")


def picture(panels: Sequence[Panel], file: Path) -> bytes:
    """Draw panels in the format that the file's name ends in.

    Raises:
        UserError: When what draws this format is not installed.
    """
    match file.suffix.lower():
        case ".png":
            return png(panels, file)
        case ".html":
            return html(panels).encode()
        case _:
            return svg(panels).encode()


def html(panels: Sequence[Panel]) -> str:
    """A page that holds the picture."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Learning curves</title>\n'
        "<style>body { margin: 1em; } svg { max-width: 100%; height: auto; }</style>\n</head>\n"
        f"<body>\n{svg(panels)}</body>\n</html>\n"
    )


def svg(panels: Sequence[Panel]) -> str:
    """Panels two by two, below a legend where there are several runs."""
    series = panels[0].series
    top = _ROW * len(series) + 10 if len(series) > 1 else 0
    width = _WIDTH * min(len(panels), 2)
    height = top + _HEIGHT * (-(-len(panels) // 2))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Learning curves" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<style>{_STYLE}</style>",
    ]
    for i, one in enumerate(series if top else ()):
        y = _ROW * (i + 1)
        parts.append(f'<path d="M16 {y - 4}h24" class="curve" stroke="{_colour(i)}"/>')
        parts.append(_text(48, y, one.name, "start"))
    for i, panel in enumerate(panels):
        parts.append(f'<g transform="translate({_WIDTH * (i % 2)} {top + _HEIGHT * (i // 2)})">')
        parts += [*_panel(panel, step_axis(panels)), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, steps: Axis) -> Iterator[str]:
    """The title, the grid with its labels, and the curves."""
    values = value_axis(panel)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    yield _text(_LEFT, _TOP - 14, panel.title, "start", "title")
    for tick in values.ticks(6):
        y = _y(values, tick)
        yield f'<path d="M{_LEFT} {y:.1f}H{right}" class="grid"/>'
        yield _text(_LEFT - 6, y + 4, label(tick), "end")
    for tick in steps.ticks(6):
        x = _x(steps, tick)
        yield f'<path d="M{x:.1f} {_TOP}V{bottom}" class="grid"/>'
        yield _text(x, bottom + 18, label(tick), "middle")
    for i, series in enumerate(panel.series):
        yield from _curve(series, steps, values, _colour(i))


def _curve(series: Series, steps: Axis, values: Axis, colour: str) -> Iterator[str]:
    points = thinned(series.points, _WIDTH)
    places = [f"{_x(steps, x):.1f} {_y(values, y):.1f}" for x, y in points]
    if len(places) > 1:
        yield f'<path d="M{"L".join(places)}" class="curve" stroke="{colour}"/>'
    for (x, y), place in zip(points, places, strict=True):
        if len(points) <= _MOST_MARKED:
            cx, cy = place.split()
            told = quoted(f"{escape(series.name)}, step {x:g}: {label(y)}")
            yield f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"><title>{told}</title></circle>'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _TOP + (1 - axis.place(value)) * (_HEIGHT - _TOP - _BOTTOM)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _text(x: float, y: float, text: str, anchor: str, style: str = "label") -> str:
    """A text; control characters, which XML forbids, are shown escaped."""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} class="{style}">{quoted(escape(text))}</text>'


def png(panels: Sequence[Panel], file: Path) -> bytes:
    """The same panels by matplotlib, which brings the fonts that a picture of dots needs.

    Raises:
        UserError: When matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            f"{file}: PNG needs matplotlib; pip install 'tfm[plot]', or give a name in .svg or .html"
        ) from None
    n_rows, n_columns = -(-len(panels) // 2), min(len(panels), 2)
    figure = Figure(figsize=(4.8 * n_columns, 3.0 * n_rows), dpi=150, layout="constrained")
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(n_rows, n_columns, i + 1)
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.set_yscale("log" if panel.is_log else "linear")
        axes.minorticks_off()
        ticks = value_axis(panel).ticks(6)
        axes.set_yticks(ticks, [label(tick) for tick in ticks])
        axes.grid(alpha=0.25)
        for j, series in enumerate(panel.series):
            marker = "." if len(series.points) <= _MOST_MARKED else ""
            points = thinned(series.points, 10 * _WIDTH)
            xs, ys = [x for x, _ in points], [y for _, y in points]
            # A $ would begin a formula, and what begins with _ would have no place in the legend.
            name = " " + escape(series.name).replace("$", r"\$")
            axes.plot(xs, ys, color=_colour(j), marker=marker, linewidth=1.2, label=name)
        if i == 0 and len(panel.series) > 1:
            axes.legend(fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
