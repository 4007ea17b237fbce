"""Line charts as plain data for the report's template: paths in a 1000 x 1000 box, ticks as per cent of it,
values for the pointer.

The template draws the box stretched to the page and sets every text in HTML over it, so text is readable at
any width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

POINTS = 600  # of one line; more are averaged in equal groups
BOX = 1000.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, or dots alone. `points` are (step, value), `band` (step, low, high)."""

    name: str
    color: int  # 1 to 4, the template's palette; 0: in the background
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False
    line: bool = True


@dataclass(frozen=True, kw_only=True)
class Chart:
    title: str
    note: str
    series: Sequence[Series]
    y_range: tuple[float, float] | None = None  # absent: the data's
    x_range: tuple[float, float] | None = None  # absent: step 0 to the last
    labels: Sequence[tuple[float, float, str]] = field(default=())  # x, y and what is written there
    bounds: Sequence[tuple[str, float]] = field(default=())  # horizontal lines
    marks: Sequence[tuple[str, float]] = field(default=())  # vertical lines at a step
    percent: bool = False
    x_percent: bool = False
    x_title: str = "step"


def series_of(
    records: Sequence[Mapping[str, Any]],
    kind: str,
    key: str,
    name: str,
    color: int,
    *,
    phase: str | None = None,
    band: bool = False,
    dots: bool = False,
) -> Series:
    """The values of `key` in the records of one kind (and phase); `band` takes `key/low` and `key/high`."""
    points = [
        record
        for record in records
        if record.get("kind") == kind and phase in (None, record.get("phase")) and _number(record.get(key))
    ]
    limits = [
        record
        for record in points
        if band and _number(record.get(f"{key}/low")) and _number(record.get(f"{key}/high"))
    ]
    return Series(
        name=name,
        color=color,
        points=[(float(record["step"]), float(record[key])) for record in points],
        band=[
            (float(record["step"]), float(record[f"{key}/low"]), float(record[f"{key}/high"]))
            for record in limits
        ],
        dots=dots,
    )


def keys_of(records: Sequence[Mapping[str, Any]], kind: str, prefix: str) -> list[str]:
    """The keys that start with `prefix` in the records of one kind, in the order they first appear."""
    return list(
        dict.fromkeys(
            key
            for record in records
            if record.get("kind") == kind
            for key in record
            if key.startswith(prefix)
        )
    )


def layout(chart: Chart, *, last_step: float) -> dict[str, Any] | None:
    """What the template needs to draw `chart`, over steps 0 to `last_step` where it has no range of its own;
    None when there is nothing to draw."""
    series = [_thinned(one) for one in chart.series if one.points]
    if not series:
        return None
    values = [y for one in series for _, y in one.points] + [
        y for one in series for _, low, high in one.band for y in (low, high)
    ]
    low, high = chart.y_range or value_range(values)
    left, right = chart.x_range or (0.0, max(last_step, 1.0))
    x_of = _scale(left, right)
    y_of = _scale(high, low)
    grouped = max(math.ceil(len(one.points) / POINTS) for one in chart.series)
    return {
        "title": chart.title,
        "x_title": chart.x_title,
        "note": chart.note + (f" Mean of every {grouped} steps." if grouped > 1 else ""),
        "lines": [
            {
                "name": one.name,
                "color": one.color,
                "path": _path([(x_of(x), y_of(y)) for x, y in one.points]) if one.line else "",
                "band": _area([(x_of(x), y_of(bottom), y_of(top)) for x, bottom, top in one.band]),
                "dots": (
                    "".join(f"M{x_of(x):.1f} {y_of(y):.1f}h.01" for x, y in one.points)
                    if one.dots or len(one.points) == 1
                    else ""
                ),
            }
            for one in series
        ],
        "y_ticks": [{"at": y_of(y) / 10, "text": _text(y, chart.percent)} for y in ticks(low, high, 4)],
        "x_ticks": [
            {"at": x_of(x) / 10, "text": _text(x, chart.x_percent)}
            for x in ticks(left, right, 6)
            if chart.x_range or x == int(x)
        ],
        "labels": [{"x": x_of(x) / 10, "y": y_of(y) / 10, "text": text} for x, y, text in chart.labels],
        "bounds": [
            {"at": y_of(y) / 10, "y": y_of(y), "text": text} for text, y in chart.bounds if low <= y <= high
        ],
        "marks": [
            {"at": x_of(x) / 10, "x": x_of(x), "text": text} for text, x in chart.marks if left <= x <= right
        ],
        "data": {
            "first": left,
            "last": right,
            "percent": chart.percent,
            "x": chart.x_title,
            "series": [
                {"name": one.name, "color": one.color, "points": one.points, "band": one.band}
                for one in series
                if one.color
            ],
        },
    }


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, about as
    many as asked for."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def value_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.4 * high else low - margin), high + margin


def _scale(start: float, end: float) -> Any:
    return lambda value: (min(max((value - start) / (end - start), 0.0), 1.0)) * BOX


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _area(band: Sequence[tuple[float, float, float]]) -> str:
    if len(band) < 2:
        return ""
    return _path([(x, top) for x, _, top in band] + [(x, bottom) for x, bottom, _ in reversed(band)]) + "Z"


def _thinned(series: Series) -> Series:
    group = math.ceil(len(series.points) / POINTS)
    if group <= 1:
        return series
    chunks = [series.points[start : start + group] for start in range(0, len(series.points), group)]
    means = [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
    return Series(name=series.name, color=series.color, points=means, band=series.band[::group], dots=False)


def _text(value: float, percent: bool) -> str:
    return f"{100 * value:g}\u00a0%" if percent else f"{value:g}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
