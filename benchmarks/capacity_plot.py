"""The measured points of the capacity benchmark, and their picture: a dot for each measurement, lines through means."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 330, 260, 58, 44, 40
COLOURS = {"sqlite": "#7a7a7a", "postgres": "#1f5fa8", "redis": "#c23b22", "rabbitmq": "#e08a00", "ideal": "#9a9a9a"}
CALLED = {"sqlite": "SQLite", "postgres": "PostgreSQL", "redis": "with Redis", "rabbitmq": "with RabbitMQ"}


class Points:
    """What was measured: a figure by what it is of, the kind of fleet and a number."""

    def __init__(self, file: Path | None = None) -> None:
        """`file` keeps them, so that parts which ran at different times come into one picture."""
        self._file = file
        self._all: list[tuple[str, str, int, float]] = []
        if file is not None and file.exists():
            self._all = [tuple(point) for point in json.loads(file.read_text("utf-8"))]
        self._fresh: set[tuple[str, str]] = set()

    def add(self, what: str, kind: str, number: int, figure: float) -> None:
        """Keep one; the first of a run takes the place of all that earlier runs have found."""
        if (what, kind) not in self._fresh:
            self._fresh.add((what, kind))
            self._all = [point for point in self._all if point[:2] != (what, kind)]
        self._all.append((what, kind, number, round(figure, 4)))
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._all), "utf-8")

    def latest(self, what: str, kind: str, number: int) -> float:
        """The one that was added last."""
        return self.of(what)[kind][number][-1]

    def of(self, what: str) -> dict[str, dict[int, list[float]]]:
        """All of one thing, by kind and number."""
        found: dict[str, dict[int, list[float]]] = {}
        for each, kind, number, figure in self._all:
            if each == what:
                found.setdefault(kind, {}).setdefault(number, []).append(figure)
        return found


@dataclass(frozen=True)
class Axis:
    """From numbers to places."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, number: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.logarithmic else (self.low, self.high)
        at = math.log10(max(number, self.low)) if self.logarithmic else number
        return self.begin + (at - low) / (high - low) * (self.end - self.begin)


def draw(points: Points) -> str:
    """The picture, as SVG; empty where nothing was measured that it shows."""
    panels = []
    if asleep := points.of("asleep"):
        counts = sorted({count for found in asleep.values() for count in found})
        ideal = {count: [2.0 * count] for count in counts}
        panels.append(("jobs/s, each 0.5 s of an engine asleep", "processes", asleep | {"ideal": ideal}, counts))
    if most := points.of("no work"):
        panels.append(("jobs/s, the engine takes no time", "processes", most, counts))
    if claims := points.of("claim, work"):
        panels.append(("a claim, ms of a processor", "jobs that wait", claims, sorted(claims["postgres"])))
    if not panels:
        return ""
    drawn = [
        _panel(title, below, found, ticks, (WIDTH + 10) * place)
        for place, (title, below, found, ticks) in enumerate(panels)
    ]
    width = (WIDTH + 10) * len(panels)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 24}" width="{width}"'
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    back = f'<rect width="{width}" height="{HEIGHT + 24}" fill="white"/>'
    return "\n".join([f"{head} {style}>", back, *drawn, _legend(), "</svg>"]) + "\n"


def _panel(
    title: str, below: str, found: Mapping[str, Mapping[int, Sequence[float]]], ticks: Sequence[int], left: int
) -> str:
    highest = max(figure for by_number in found.values() for figures in by_number.values() for figure in figures)
    step = _step(highest)
    top = math.ceil(highest / step) * step
    waiting = max(ticks) > 1000
    # Nothing that waits has its place a step left of the first that is something.
    across = Axis(100 if waiting else 0, max(ticks), left + LEFT, left + WIDTH - 12, logarithmic=waiting)
    up = Axis(0, top, HEIGHT - BOTTOM, TOP)
    lines = [f'<text x="{left + LEFT}" y="{TOP - 16}" font-weight="bold">{title}</text>']
    for n in range(round(top / step) + 1):
        y = up(n * step)
        lines += [
            f'<line x1="{left + LEFT}" x2="{left + WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e2e2"/>',
            f'<text x="{left + LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{n * step:g}</text>',
        ]
    for tick in ticks:
        lines.append(
            f'<text x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>'
        )
    middle = left + (LEFT + WIDTH) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - BOTTOM + 32}" text-anchor="middle">{below}</text>')
    for kind, by_number in found.items():
        means = [(across(number), up(statistics.mean(figures))) for number, figures in sorted(by_number.items())]
        lines.append(_line(means, COLOURS[kind], dashed=kind == "ideal"))
        if kind != "ideal":
            dots = ((across(number), up(figure)) for number, figures in by_number.items() for figure in figures)
            lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[kind]}"/>' for x, y in dots]
    return "\n".join(lines)


def _line(places: Iterable[tuple[float, float]], colour: str, *, dashed: bool) -> str:
    pattern = ' stroke-dasharray="4 3"' if dashed else ""
    through = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{through}" fill="none" stroke="{colour}" stroke-width="1.5"{pattern}/>'


def _legend() -> str:
    lines, x, y = [], LEFT, HEIGHT + 12
    for kind, called in [*CALLED.items(), ("ideal", "ideal")]:
        lines.append(_line([(x, y - 4), (x + 18, y - 4)], COLOURS[kind], dashed=kind == "ideal"))
        lines.append(f'<text x="{x + 24}" y="{y}">{called}</text>')
        x += 44 + 7 * len(called)
    return "\n".join(lines)


def _step(highest: float) -> float:
    """The distance of lines of which there are four to ten."""
    size = 10.0 ** math.floor(math.log10(highest))
    return next(size * share for share in (2.0, 1.0, 0.5, 0.2) if highest / (size * share) >= 4)


def _short(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number // 1_000_000} M"
