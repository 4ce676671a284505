"""Where values stand on an axis, and which of them are written beside it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cli.history import Panel, Point


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high`, evenly or by their logarithms."""

    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, from 0 at `low` to 1 at `high`."""
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """At most this many round values within the axis.

        >>> Axis(0, 1000).ticks(5)
        [0.0, 500.0, 1000.0]
        >>> Axis(3, 900, is_log=True).ticks(3)
        [10.0, 100.0]
        """
        if self.is_log and self.high / self.low > 20:
            exponents = range(
                math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1
            )
            stride = -(-len(exponents) // most)
            return [10.0**e for e in exponents[::stride]]
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        steps = (unit * factor for factor in (1, 2, 5, 10, 20))
        for step in steps:
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first < most:
                return [i * step for i in range(first, last + 1)]
        return []


def axis_of(values: Iterable[float], is_log: bool = False) -> Axis:
    """The axis that just holds the values; around a single one there is room."""
    found = list(values)
    low, high = min(found), max(found)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    return Axis(low, high, is_log)


def step_axis(panels: Sequence[Panel]) -> Axis:
    """The axis of steps, one for all panels: what stands above one another belongs together."""
    return axis_of(x for panel in panels for series in panel.series for x, _ in series.points)


def value_axis(panel: Panel) -> Axis:
    """The axis of the values of a panel."""
    return axis_of((y for series in panel.series for _, y in series.points), panel.is_log)


def thinned(points: Sequence[Point], columns: int) -> list[Point]:
    """Points that draw the same curve, four a column: its first, lowest, highest and last.

    >>> thinned([(0, 1.0), (1, 9.0), (2, 5.0), (3, 0.0), (4, 2.0), (5, 3.0)], columns=1)
    [(0, 1.0), (1, 9.0), (3, 0.0), (5, 3.0)]
    """
    if len(points) <= 4 * columns:
        return list(points)
    size = -(-len(points) // columns)
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        lowest, highest = (choose(part, key=lambda p: p[1]) for choose in (min, max))
        kept += sorted({part[0], lowest, highest, part[-1]})
    return kept


def label(value: float) -> str:
    """A value in at most nine characters.

    >>> label(0.0005), label(12.5), label(2500.0), label(40_000.0), label(3e6)
    ('0.0005', '12.5', '2500', '40k', '3M')
    """
    size = abs(value)
    if 1e6 <= size < 1e9:
        return f"{value / 1e6:.4g}M"
    if 1e4 <= size < 1e6:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}" if 1e-2 <= size < 1e4 else f"{value:.2g}"
