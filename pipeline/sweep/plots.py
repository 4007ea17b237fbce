"""The sweep's plots as SVG that stands alone and inside the page: light and dark, readable on a phone at its
own width.

All are drawn 440 wide, so that a phone shows text at about its real size; a wider page scales them up a
little.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from pipeline.reports.charts import ticks
from pipeline.sweep.scores import OBJECTIVES

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 30, 46
STYLE = """
.sp { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans",
  sans-serif; }
.sp.alone { --ink: #16191f; --soft: #5b6472; --line: #e1e5ea; --card: #fff; --s1: #2460d8; --s2: #c2640a;
  background: var(--card); }
@media (prefers-color-scheme: dark) {
  .sp.alone { --ink: #e8ebef; --soft: #9aa4b2; --line: #2a313b; --card: #171b21; --s1: #7aa7ff;
    --s2: #f0a35c; }
}
.sp text { fill: var(--soft); }
.sp text.ink { fill: var(--ink); }
.sp text.over { paint-order: stroke; stroke: var(--card); stroke-width: 3px; pointer-events: none; }
.sp .grid { stroke: var(--line); fill: none; }
.sp .axis { stroke: var(--soft); opacity: .55; fill: none; }
.sp .trial { stroke: var(--soft); stroke-width: 1.3; fill: none; opacity: .5; }
.sp .default { stroke: var(--s2); stroke-width: 2.2; fill: none; }
.sp .best { stroke: var(--s1); stroke-width: 2.6; fill: none; }
.sp .trial:hover, .sp .default:hover, .sp .best:hover { stroke: var(--ink); opacity: 1; stroke-width: 3; }
.sp .bound { stroke: var(--ink); stroke-dasharray: 5 4; opacity: .65; fill: none; }
.sp .stairs { stroke: var(--s1); stroke-width: 1.4; stroke-dasharray: 2 3; fill: none; }
.sp .dot { fill: var(--card); stroke: var(--soft); stroke-width: 1.6; }
.sp .dot.front { fill: var(--s1); stroke: var(--s1); }
.sp .ring { fill: none; stroke: var(--s2); stroke-width: 2; }
.sp .bar { fill: var(--s1); }
.sp .rail { fill: var(--line); }
"""


def scatter(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    pair: tuple[int, int],
    front: Sequence[int],
    default: int | None,
) -> str:
    """Finished trials by two objectives; the front of all objectives is filled, the default ringed."""
    points: dict[tuple[float, float], list[int]] = {}
    for row in rows:
        points.setdefault((row["values"][pair[0]], row["values"][pair[1]]), []).append(row["number"])
    x_of, x_marks = _axis([x for x, _ in points], LEFT, WIDTH - RIGHT, names[pair[0]])
    y_of, y_marks = _axis([y for _, y in points], HEIGHT - BOTTOM, TOP, names[pair[1]])
    parts = _frame(x_marks, y_marks, OBJECTIVES[names[pair[0]]].title, OBJECTIVES[names[pair[1]]].title)
    if len(names) == 2:
        chosen = sorted(point for point, numbers in points.items() if set(numbers) & set(front))
        corners = [
            f"L{x_of(b[0]):.1f} {y_of(a[1]):.1f}L{x_of(b[0]):.1f} {y_of(b[1]):.1f}"
            for a, b in pairwise(chosen)
        ]
        if corners:
            parts.append(
                f'<path class="stairs" d="M{x_of(chosen[0][0]):.1f}'
                f' {y_of(chosen[0][1]):.1f}{"".join(corners)}"/>'
            )
    # what labels keep clear of: the dots, then each other
    taken = [(x_of(x) - 7, y_of(y) + 4, 14.0) for x, y in points]
    for (x, y), numbers in sorted(points.items()):
        at = f'cx="{x_of(x):.1f}" cy="{y_of(y):.1f}"'
        measured = f"{value_text(names[pair[0]], x)}, {value_text(names[pair[1]], y)}"
        said = f"trial{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: {measured}"
        parts.append(
            f'<circle class="dot{" front" if set(numbers) & set(front) else ""}" {at}'
            f' r="5"><title>{escape(said)}</title></circle>'
        )
        if default in numbers:
            parts.append(f'<circle class="ring" {at} r="9"/>')
        label = ", ".join(map(str, numbers[:4])) + (f" +{len(numbers) - 4}" if len(numbers) > 4 else "")
        shift, anchor = (-12, "end") if x_of(x) > WIDTH - 90 else (12, "start")
        long = 7.0 * len(label)
        line = _free(taken, x_of(x) + (shift if anchor == "start" else shift - long), y_of(y) - 7, long)
        parts.append(
            f'<text class="over" x="{x_of(x) + shift:.1f}" y="{line:.1f}"'
            f' text-anchor="{anchor}">{label}</text>'
        )
    return _svg(parts, f"{OBJECTIVES[names[pair[0]]].title} against {OBJECTIVES[names[pair[1]]].title}")


def _free(taken: list[tuple[float, float, float]], x: float, y: float, width: float) -> float:
    """The first line at or below y where a label of `width` beginning at x covers none of those `taken` (x,
    y, width), which it joins."""
    while any(abs(y - line) < 12 and x < start + long and start < x + width for start, line, long in taken):
        y += 13
    taken.append((x, y, width))
    return y


def parallel(
    rows: Sequence[Mapping[str, Any]],
    space: Sequence[str],
    names: Sequence[str],
    best: int | None,
    default: int | None,
) -> str:
    """Every finished trial as a line through its settings and its objectives."""
    axes: list[tuple[str, list[Any], str | None]] = [
        (key.rsplit(".", 1)[-1], [row["settings"][key] for row in rows], None) for key in space
    ]
    axes += [
        (OBJECTIVES[name].title, [row["values"][index] for row in rows], name)
        for index, name in enumerate(names)
    ]
    xs = [
        LEFT - 10 + index * (WIDTH - LEFT - RIGHT - 10) / max(1, len(axes) - 1) for index in range(len(axes))
    ]
    parts, columns, scales = [], [], []
    for place, (x, (title, values, name)) in enumerate(zip(xs, axes)):
        where, marks = _positions(values, name)
        columns.append(where)
        parts.append(f'<path class="axis" d="M{x:.1f} {TOP + 12}V{HEIGHT - BOTTOM}"/>')
        anchor = "start" if place == 0 else "end" if place == len(axes) - 1 else "middle"
        shift = -LEFT + 16 if place == 0 else RIGHT if place == len(axes) - 1 else 0
        parts += [
            f'<text class="ink" x="{x + shift:.1f}" y="{TOP - 16 + 13 * row}"'
            f' text-anchor="{anchor}">{escape(words)}</text>'
            for row, words in enumerate(_in_two(title))
        ]
        scales += [
            f'<text class="over" x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
            for y, text in marks
        ]
    order = sorted(
        range(len(rows)), key=lambda index: (rows[index]["number"] == best, rows[index]["number"] == default)
    )
    for index in order:
        row = rows[index]
        path = "L".join(f"{x:.1f} {column[index]:.1f}" for x, column in zip(xs, columns))
        kind = "best" if row["number"] == best else "default" if row["number"] == default else "trial"
        settings = ", ".join(
            f"{key.rsplit('.', 1)[-1]} {_short(value)}" for key, value in row["settings"].items()
        )
        title = escape(f"trial {row['number']}: {settings}")
        parts.append(f'<path class="{kind}" d="M{path}"><title>{title}</title></path>')
    return _svg(parts + scales, "settings and objectives of every trial")


def bars(importance: Mapping[str, Mapping[str, float]]) -> str:
    """How much of each objective's variance every setting explains."""
    parts, y = [], TOP
    for name, shares in importance.items():
        parts.append(f'<text class="ink" x="16" y="{y + 4}">{escape(OBJECTIVES[name].title)}</text>')
        y += 14
        for key, share in sorted(shares.items(), key=lambda item: -item[1]):
            label = key.rsplit(".", 1)[-1]
            parts.append(
                f'<text x="16" y="{y + 13}">{escape(label)}</text><rect class="rail" x="140" y="{y + 3}"'
                ' width="236" height="12" rx="3"/>'
            )
            parts.append(
                f'<rect class="bar" x="140" y="{y + 3}" width="{236 * share:.1f}" height="12" rx="3"/>'
            )
            parts.append(
                f'<text x="{WIDTH - RIGHT}" y="{y + 13}" text-anchor="end">{100 * share:.0f}\u00a0%</text>'
            )
            y += 22
        if not shares:
            parts.append(f'<text x="16" y="{y + 13}">too few trials, or no difference between them</text>')
            y += 22
        y += 12
    return _svg(parts, "importance of the settings", height=y)


def curves(
    checks: Mapping[int, Sequence[Mapping[str, Any]]],
    key: str,
    best: int | None,
    default: int | None,
    target: float,
    last: int,
) -> str:
    """The upper bound at every check of every trial: settled is who stays below the target."""
    y_marks = [
        ((HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - TOP) * y, f"{100 * y:g}\u00a0%")
        for y in (0, 0.25, 0.5, 0.75, 1)
    ]

    def point(step: float, value: float) -> str:
        return (
            f"{LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, last):.1f}"
            f" {(HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - TOP) * value:.1f}"
        )

    x_marks = [
        (LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, last), f"{step:g}")
        for step in ticks(0, last, 6)
        if step == int(step)
    ]
    parts = _frame(x_marks, y_marks, "step", "upper 95 % bound")
    parts.append(f'<path class="bound" d="M{point(0, target)}L{point(last, target)}"/>')
    for number in sorted(checks, key=lambda number: (number == best, number == default)):
        line = [
            point(record["step"], record[key]) for record in checks[number] if record.get(key) is not None
        ]
        if line:
            kind = "best" if number == best else "default" if number == default else "trial"
            parts.append(f'<path class="{kind}" d="M{"L".join(line)}"><title>trial {number}</title></path>')
    return _svg(parts, "upper bound at every check")


def value_text(name: str, value: float) -> str:
    return f"{100 * value:.3g}\u00a0%" if OBJECTIVES[name].percent else f"{value:.4g}"


def _axis(
    values: Sequence[float], start: float, end: float, name: str
) -> tuple[Any, list[tuple[float, str]]]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    if OBJECTIVES[name].percent:
        low, high = max(low, -0.02), min(high, 1.02)

    def of(value: float) -> float:
        return start + (end - start) * (value - low) / (high - low)

    return of, [
        (of(value), value_text(name, value))
        for value in ticks(low, high, 4)
        if not OBJECTIVES[name].percent or 0 <= value <= 1
    ]


def _positions(values: Sequence[Any], name: str | None) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights of values on a parallel axis and its marks: few or unordered values evenly, positive ones over
    a decade by logarithm."""
    import math

    bottom, top = HEIGHT - BOTTOM, TOP + 20
    distinct = (
        sorted(set(values))
        if all(isinstance(value, int | float) for value in values)
        else sorted(set(values), key=str)
    )
    if len(distinct) == 1:
        return [(bottom + top) / 2] * len(values), [((bottom + top) / 2, _text(name, distinct[0]))]
    if name is None and (len(distinct) <= 6 or not all(isinstance(value, int | float) for value in distinct)):
        at = {
            repr(value): bottom - (bottom - top) * index / (len(distinct) - 1)
            for index, value in enumerate(distinct)
        }
        return [at[repr(value)] for value in values], [
            (at[repr(value)], _text(name, value)) for value in distinct
        ]
    positive = [value for value in distinct if value > 0]
    if name is None and positive and positive[-1] / positive[0] > 20:
        floor = 1 if len(positive) < len(distinct) else 0  # zero stands below the axis of logarithms
        low, high = math.log10(positive[0]), math.log10(positive[-1])

        def height(value: float) -> float:
            share = (math.log10(value) - low) / (high - low) if value > 0 else -0.14
            return bottom - (bottom - top) * (share + 0.14 * floor) / (1 + 0.14 * floor)

        marks = [
            (height(10.0**power), f"{10.0**power:g}") for power in range(math.ceil(low), math.floor(high) + 1)
        ]
        return [height(value) for value in values], marks + ([(height(0), "0")] if floor else [])
    low, high = distinct[0], distinct[-1]
    return (
        [bottom - (bottom - top) * (value - low) / (high - low) for value in values],
        [(bottom, _text(name, low)), (top, _text(name, high))],
    )


def _text(name: str | None, value: Any) -> str:
    return _short(value) if name is None else value_text(name, value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _in_two(title: str) -> list[str]:
    """A title on at most two lines of similar length."""
    words = title.replace("_", " ").split()
    if len(title) <= 11 or len(words) == 1:
        return [title]
    cut = min(range(1, len(words)), key=lambda at: abs(len(" ".join(words[:at])) - len(" ".join(words[at:]))))
    return [" ".join(words[:cut]), " ".join(words[cut:])]


def _frame(
    x_marks: Sequence[tuple[float, str]], y_marks: Sequence[tuple[float, str]], x_title: str, y_title: str
) -> list[str]:
    low = HEIGHT - BOTTOM
    parts = [f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>' for y, _ in y_marks]
    parts += [
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>' for y, text in y_marks
    ]
    parts += [
        f'<text x="{x:.1f}" y="{low + 18}" text-anchor="middle">{escape(text)}</text>' for x, text in x_marks
    ]
    parts.append(f'<path class="axis" d="M{LEFT} {low}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_title)}</text>')
    return [*parts, f'<text x="4" y="{TOP - 16}">{escape(y_title)}</text>']


def _svg(parts: Sequence[str], title: str, height: float = HEIGHT) -> str:
    said = escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sp alone" viewBox="0 0 {WIDTH} {height:g}"'
        f' role="img" aria-label="{said}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>"
    )
