"""Curves in characters: in a panel each cell of a terminal is two by four dots of Braille.

Where no colours tell several curves apart, their cells are letters instead. Colours themselves are put on
in `console.py`. A sparkline is one curve, of blocks, on one line.
"""

from collections.abc import Iterator, Sequence

from cli.axes import Axis, label, step_axis, thinned, value_axis
from cli.history import Panel, Point
from cli.streams import escape

Span = tuple[str, int | None]  # text, and the number of the curve that it belongs to
Row = list[Span]

HEIGHT = 8  # rows of a panel, without its title and its steps
_MARGIN = 9  # columns of the labels on the left
_MIN_WIDTH, _MAX_WIDTH = 24, 100  # columns of a panel
_GAP = 3
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column, then by row
_BLANK = 0x2800
_BLOCKS = "▁▂▃▄▅▆▇█"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def draw(panels: Sequence[Panel], columns: int, has_colours: bool) -> list[Row]:
    """Draw panels below one another, in pairs where the terminal is wide enough.

    Args:
        panels: Each with a point at least.
        columns: Of the terminal.
        has_colours: Curves can be told apart by colour.
    """
    n_beside = 2 if columns >= 100 and len(panels) > 1 else 1
    width = (columns - _GAP * (n_beside - 1)) // n_beside
    width = min(max(width, _MIN_WIDTH), _MAX_WIDTH)
    rows: list[Row] = []
    if len(panels[0].series) > 1:
        rows += [*_legend(panels[0], has_colours), []]
    drawn = [_panel(panel, step_axis(panels), width, has_colours) for panel in panels]
    for start in range(0, len(drawn), n_beside):
        for parts in zip(*drawn[start : start + n_beside], strict=True):
            rows.append(
                [span for part in parts for span in [*_padded(part, width), (" " * _GAP, None)]]
            )
        rows.append([])
    return rows[:-1]


def _legend(panel: Panel, has_colours: bool) -> list[Row]:
    return [
        [("●" if has_colours else LETTERS[i % len(LETTERS)], i), (f" {escape(series.name)}", None)]
        for i, series in enumerate(panel.series)
    ]


def _padded(row: Row, width: int) -> Row:
    return [*row, (" " * (width - sum(len(text) for text, _ in row)), None)]


def _panel(panel: Panel, steps: Axis, width: int, has_colours: bool) -> list[Row]:
    """A title, the curves with labels on the left, and the steps below."""
    values = value_axis(panel)
    inner = width - _MARGIN - 1
    cells = _cells(panel, steps, values, inner)
    as_letters = not has_colours and len(panel.series) > 1
    labels = {round((1 - values.place(t)) * (HEIGHT - 1)): label(t) for t in values.ticks(4)}
    rows: list[Row] = [[(panel.title[:width], None)]]
    for y in range(HEIGHT):
        name = labels.get(y, "")
        rows.append([(f"{name:>{_MARGIN}}{'┤' if name else '│'}", None)])
        for dots, owner in cells[y]:
            text = chr(_BLANK + dots) if dots else " "
            if dots and as_letters and owner is not None:
                text = LETTERS[owner % len(LETTERS)]
            rows[-1].append((text, owner))
    first, last = label(steps.low), f"step {label(steps.high)}"
    rows.append([(" " * _MARGIN + "└" + "─" * inner, None)])
    rows.append([(" " * _MARGIN + f" {first}{last:>{inner - len(first)}}", None)])
    return rows


def _cells(
    panel: Panel, steps: Axis, values: Axis, inner: int
) -> list[list[tuple[int, int | None]]]:
    """The dots of each cell and whose they are; a later curve lies on top."""
    cells: list[list[tuple[int, int | None]]] = [[(0, None)] * inner for _ in range(HEIGHT)]
    for number, series in enumerate(panel.series):
        across, down = 2 * inner - 1, 4 * HEIGHT - 1
        places = [
            (steps.place(x) * across, (1 - values.place(y)) * down)
            for x, y in thinned(series.points, 2 * inner)
        ]
        for x, y in _dots(places):
            dots, owner = cells[y // 4][x // 2]
            bit = _DOTS[x % 2][y % 4]
            cells[y // 4][x // 2] = ((dots if owner == number else 0) | bit, number)
    return cells


def _dots(places: Sequence[Point]) -> Iterator[tuple[int, int]]:
    """The dots of a line through these places."""
    for (x0, y0), (x1, y1) in zip(places, places[1:] or places, strict=False):
        n = max(round(max(abs(x1 - x0), abs(y1 - y0))), 1)
        for i in range(n + 1):
            yield round(x0 + (x1 - x0) * i / n), round(y0 + (y1 - y0) * i / n)


def sparkline(values: Sequence[float]) -> str:
    """Draw a small curve, from the lowest value to the highest.

    >>> sparkline([3.0, 2.0, 1.0])
    '█▅▁'
    """
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[int((v - low) * scale + 0.5 * (scale > 0))] for v in values)
