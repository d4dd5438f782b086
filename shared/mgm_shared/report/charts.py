"""Charts: from numbers to places in percent, which stretch with the page while letters keep their size.

Axes: P points of a curve · K bins of a histogram, with K+1 edges.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mgm_shared.report.blocks import Axis, Bin, Chart, Curve, Rule

# More points than a page has pixels only make the file larger.
MAX_POINTS = 400
STEPS = (1, 2, 2.5, 5, 10)
NUM_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A range of values on an axis, linear or logarithmic."""

    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, in percent."""
        low, high, value = (math.log10(number) if self.is_log else number for number in (self.low, self.high, value))
        return round(100 * (value - low) / (high - low), 3)

    def axis(self, label: str) -> Axis:
        """The axis of this scale, with round numbers at its ticks."""
        values = self._decades() if self.is_log else self._multiples()
        return Axis(label=label, ticks=[(self.place(value), short(value)) for value in values])

    def _decades(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(powers) <= 3 else (1,)
        values = [factor * 10.0**power for power in powers for factor in factors]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]

    def _multiples(self) -> list[float]:
        step = _round_step((self.high - self.low) / NUM_TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def _round_step(step: float) -> float:
    """The next larger number of the form 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in STEPS if power * factor >= step * (1 - 1e-9))


def around(values: Iterable[float], *, margin: float = 0.06, floor: float | None = None) -> Scale:
    """A linear scale that holds the finite values, with a margin; it begins at `floor` if that is given."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if floor is not None:
        low = floor
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Scale(low=low if floor is not None else low - room, high=high + room)


def short(value: float) -> str:
    """A number in few letters: 1.2M, 240k, 0.005, 3e-06."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            unit = 1e3 if letter == "k" else limit
            return f"{value / unit:.3g}{letter}"
    return f"{value:.4g}"


def histogram(
    title: str,
    values: NDArray[np.float64],
    edges: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    weights: NDArray[np.float64] | None = None,
    is_log: bool = False,
    caption: str = "",
) -> Chart:
    """How many values lie between each pair of edges, or the sum of their weights; outer ones go to the outer bins."""
    scale = Scale(low=edges[0], high=edges[-1], is_log=is_log)
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], -np.inf))
    count_K, _ = np.histogram(inside, np.asarray(edges), weights=weights)
    top = around(count_K.tolist(), floor=0.0)
    total = float(count_K.sum()) or 1.0
    bins = []
    for left, right, count in zip(edges, edges[1:], count_K.tolist(), strict=False):
        x, end = scale.place(left), scale.place(right)
        remark = f"{short(left)} to {short(right)}: {short(count)} ({count / total:.1%})"
        bins.append(Bin(x=x, width=round(end - x, 3), height=top.place(count), remark=remark))
    return Chart(title=title, x=scale.axis(x_label), y=top.axis(y_label), bins=bins, caption=caption)


def edges_between(low: float, high: float, num: int, *, is_log: bool = False) -> list[float]:
    """The edges of `num` bins of equal width, on a logarithmic scale of equal ratio."""
    if is_log:
        return [float(edge) for edge in np.geomspace(low, high, num + 1)]
    return [float(edge) for edge in np.linspace(low, high, num + 1)]


@dataclass(frozen=True, kw_only=True)
class Series:
    """The points of a curve; those that are not finite leave a gap."""

    name: str
    x_P: Sequence[float]
    y_P: Sequence[float]
    is_dashed: bool = False


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    rules: Sequence[tuple[float, str]] = (),
    floor: float | None = None,
    caption: str = "",
    is_tall: bool = False,
) -> Chart:
    """Curves over a common axis, with horizontal `rules` (value, name). Long curves are averaged, see `thinned`."""
    thin = [thinned(one) for one in series]
    x_values = [x for one in thin for x in one.x_P if math.isfinite(x)] or [0.0, 1.0]
    x_scale = Scale(low=min(x_values), high=max(x_values) if max(x_values) > min(x_values) else min(x_values) + 1)
    y_scale = around([*(y for one in thin for y in one.y_P), *(value for value, _ in rules)], floor=floor)
    curves = [
        Curve(name=one.name, path=_path(one, x_scale, y_scale), colour=k, remark=_remark(one), is_dashed=one.is_dashed)
        for k, one in enumerate(thin)
    ]
    return Chart(
        title=title,
        x=x_scale.axis(x_label),
        y=y_scale.axis(y_label),
        curves=curves,
        rules=[Rule(y=y_scale.place(value), name=name) for value, name in rules],
        caption=caption,
        is_tall=is_tall,
    )


def thinned(series: Series) -> Series:
    """The curve with at most MAX_POINTS points, each the mean of as many neighbours."""
    num_points = len(series.x_P)
    if num_points <= MAX_POINTS:
        return series
    places = np.array_split(np.arange(num_points), MAX_POINTS)
    x_P, y_P = np.asarray(series.x_P, float), np.asarray(series.y_P, float)
    means = [_mean_of_finite(y_P[place]) for place in places]
    return Series(
        name=series.name, x_P=[float(x_P[place].mean()) for place in places], y_P=means, is_dashed=series.is_dashed
    )


def _mean_of_finite(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _path(series: Series, x_scale: Scale, y_scale: Scale) -> str:
    """The curve as an SVG path in percent, y downwards; a single point is a line of no length, which is a dot."""
    parts: list[str] = []
    is_drawing = False
    for x, y in zip(series.x_P, series.y_P, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            is_drawing = False
            continue
        parts.append(f"{'L' if is_drawing else 'M'}{x_scale.place(x):g} {100 - y_scale.place(y):g}")
        is_drawing = True
    return "".join(parts) + ("h0" if len(parts) == 1 else "")


def _remark(series: Series) -> str:
    finite = [y for y in series.y_P if math.isfinite(y)]
    return f"{series.name}: {finite[0]:.4g} → {finite[-1]:.4g}" if finite else series.name
