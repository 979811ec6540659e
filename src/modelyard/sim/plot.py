"""A replay as a picture: for each strategy who was resident when, the memory that was used, and the waits.

Called by `modelyard replay --plot`. The SVG is written by hand, in colours that follow the reader's system or
one theme; a PNG is made of it by resvg, which the extra `plot` installs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import ceil, log1p
from pathlib import Path
from xml.sax.saxutils import escape

from modelyard.errors import ModelyardError
from modelyard.sim.choices import Theme
from modelyard.sim.replay import Run, Stay, percentile, thinned

WIDTH, LEFT, RIGHT = 1080, 150, 24
ROW, ROWS = 12, 20  # height of a model's row, and rows of a device at most
MEMORY, WAITS = 56, 96  # heights of the charts
BINS = 180  # of the waits over time, at most; each for as many requests as a percentile is worth
PER_BIN = 30
SCALE = 2  # pixels of a PNG per unit

LIGHT = {
    "bg": "#ffffff", "text": "#1f2328", "muted": "#59636e", "grid": "#d1d9e0", "stripe": "#f6f8fa",
    "ready": "#2f6fb0", "loading": "#e8912d", "leaving": "#9a6fd0", "used": "#2f6fb0", "budget": "#cf222e",
    "most": "#c9d7e6", "p95": "#e8912d", "p50": "#2f6fb0", "target": "#1a7f37", "refused": "#cf222e",
}  # fmt: skip
DARK = {
    "bg": "#0d1117", "text": "#e6edf3", "muted": "#9198a1", "grid": "#3d444d", "stripe": "#151b23",
    "ready": "#4493f8", "loading": "#f0a04b", "leaving": "#ab7df8", "used": "#4493f8", "budget": "#ff7b72",
    "most": "#2b4162", "p95": "#f0a04b", "p50": "#6cb6ff", "target": "#3fb950", "refused": "#ff7b72",
}  # fmt: skip


def check(path: Path) -> None:
    """Raise ModelyardError for a picture that could not be written in the end."""
    if path.suffix not in (".svg", ".png"):
        raise ModelyardError(f"{path}: a picture is an .svg or a .png")
    if not path.parent.is_dir():
        raise ModelyardError(f"{path}: there is no folder {path.parent}")
    if path.suffix == ".png":
        _renderer()


def write(path: Path, runs: Sequence[Run], target: float, *, title: str, theme: Theme = Theme.AUTO) -> None:
    """Draw the runs into an .svg or .png file. Raises ModelyardError."""
    png = path.suffix == ".png"
    text = svg(runs, target, title=title, theme=Theme.LIGHT if png and theme is Theme.AUTO else theme)
    try:
        path.write_bytes(_renderer()(text) if png else text.encode())
    except OSError as error:
        raise ModelyardError(f"{path} cannot be written: {error.strerror or error}") from error


def _renderer() -> Callable[[str], bytes]:
    """SVG → PNG. Raises ModelyardError where the library is missing."""
    try:
        library = import_module("resvg_py")
    except ImportError:
        raise ModelyardError("a .png needs resvg: pip install 'modelyard[plot]', or draw an .svg") from None
    return lambda text: bytes(library.svg_to_bytes(svg_string=text, zoom=SCALE))


def svg(runs: Sequence[Run], target: float, *, title: str, theme: Theme = Theme.AUTO) -> str:
    """The picture as text. All panels have one scale of time and one of waits."""
    longest = max([target, *(run.wait(1.0) for run in runs)])
    frame = _Frame(max(run.end for run in runs) or 1.0, longest, _by_residency(runs))
    body: list[str] = []
    y = 66.0
    for run in runs:
        panel = _Panel(run, frame, target, y)
        body += panel.drawn()
        y = panel.bottom
    height = ceil(y + 8)
    names = ", ".join(run.strategy for run in runs)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img">',
        f"<title>Replay of {escape(title)}</title>",
        f"<desc>Residency, memory and waits over time: {escape(names)}</desc>",
        f"<style>{_style(theme)}</style>",
        f'<rect class="bg" width="{WIDTH}" height="{height}"/>',
        _text(16, 26, f"Replay of {title}", "title"),
        *_legend(target),
    ]
    return "\n".join([*head, *body, "</svg>\n"])


def _by_residency(runs: Iterable[Run]) -> dict[str, int]:
    """The places of models: those first that are resident longest over all runs."""
    time: dict[str, float] = {}
    for run in runs:
        for stay in run.stays:
            time[stay.model] = time.get(stay.model, 0.0) + stay.until(run.end) - stay.start
    ordered = sorted(time, key=lambda model: (-time[model], model))
    return {model: place for place, model in enumerate(ordered)}


def _style(theme: Theme) -> str:
    rules = [
        "text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:11px}",
        ".title{font-size:16px;font-weight:600}.name{font-size:14px;font-weight:600}.small{font-size:9.5px}",
        ".line{fill:none;stroke-width:1.4;stroke-linejoin:round}",
        ".dash{stroke-dasharray:5 3}.thin{stroke-width:.6}.p95,.p50{stroke-linecap:round}",
        _colours(DARK if theme is Theme.DARK else LIGHT),
    ]
    if theme is Theme.AUTO:
        rules.append(f"@media (prefers-color-scheme:dark){{{_colours(DARK)}}}")
    return "".join(rules)


def _colours(of: Mapping[str, str]) -> str:
    fills = "".join(
        f".{name}{{fill:{of[name]}}}"
        for name in ("bg", "stripe", "ready", "loading", "leaving", "most", "refused", "muted")
    )
    strokes = "".join(f".{name}{{stroke:{of[name]}}}" for name in ("grid", "budget", "p95", "p50", "target"))
    used = f".used{{fill:{of['used']};fill-opacity:.3;stroke:{of['used']};stroke-width:1}}"
    return f"text,.title,.name{{fill:{of['text']}}}text.muted{{fill:{of['muted']}}}{fills}{strokes}{used}"


def _legend(target: float) -> Iterator[str]:
    x = 16.0
    boxes = (
        *(("ready", "resident"), ("loading", "loading"), ("leaving", "draining or stopping")),
        *(("used", "memory reserved"), ("budget", "budget"), ("most", "longest wait"), ("p95", "wait p95")),
        *(("p50", "wait p50"), ("target", f"{target:g} s"), ("refused", "refused")),
    )
    for name, text in boxes:
        if name in ("budget", "p95", "p50", "target"):
            dash = " dash" if name in ("budget", "target") else ""
            yield f'<path class="line {name}{dash}" d="M{x:g} 44h14"/>'
        else:
            yield f'<rect class="{name}" x="{x:g}" y="39" width="14" height="10"/>'
        yield _text(x + 19, 48, text, "muted")
        x += 38 + 6.4 * len(text)


# -- scales -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all panels share: the scales (seconds → x; seconds of wait → a part of the height), and the order
    of models."""

    end: float
    longest: float
    places: Mapping[str, int]

    def x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at / self.end, 0.0), 1.0)

    def height(self, wait: float) -> float:
        return log1p(wait) / log1p(self.longest) if self.longest else 0.0

    def ticks(self) -> list[float]:
        """Moments for the axis of time, five or so."""
        units = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800)
        step = next((unit for unit in units if self.end / unit <= 9), 86400.0 * ceil(self.end / 6 / 86400))
        return [number * step for number in range(int(self.end / step) + 1)]

    def waits(self) -> list[float]:
        ticks = [wait for wait in (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if wait <= self.longest]
        return [float(wait) for wait in ticks]


def _moment(seconds: float, end: float) -> str:
    if end < 300:
        return f"{seconds:g} s"
    if end < 7200:
        return f"{seconds / 60:g} min"
    return f"{seconds / 3600:g} h" if end < 172800 else f"{seconds / 86400:g} d"


# -- one strategy -----------------------------------------------------------------------------------------


class _Panel:
    """What one strategy did, from `top` down to `bottom`."""

    def __init__(self, run: Run, frame: _Frame, target: float, top: float) -> None:
        self._run = run
        self._frame = frame
        self._target = target
        self.bottom = top

    def drawn(self) -> list[str]:
        run = self._run
        told = (
            f"{run.loads:,} loads, {100 * run.within(self._target):.1f} % within {self._target:g} s, "
            f"wait p99 {run.wait(0.99):.1f} s, {run.refused.total():,} refused"
        )
        self.bottom += 20
        parts = [
            _text(16, self.bottom, run.strategy, "name"),
            _text(WIDTH - RIGHT, self.bottom, told, "muted", "end"),
        ]
        self.bottom += 8
        for device in run.scene.devices:
            stays = [stay for stay in run.stays if device.id in stay.charges]
            if stays:
                parts += self._residency(device.id, stays)
                parts += self._memory(device.id, device.budget)
        parts += self._waits()
        parts += self._axis()
        self.bottom += 26
        return parts

    def _residency(self, device: str, stays: Sequence[Stay]) -> list[str]:
        """A row for each model; those that find no row share the last one."""
        models = sorted({stay.model for stay in stays}, key=self._frame.places.__getitem__)
        alone = models if len(models) <= ROWS else models[: ROWS - 1]
        rows = {model: number for number, model in enumerate(alone)}
        count = len(alone) + (len(models) > len(alone))
        top = self.bottom + 6
        parts = [
            f'<rect class="stripe" x="{LEFT}" y="{top + ROW * number:g}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{ROW}"/>'
            for number in range(0, count, 2)
        ]
        names = [*alone, *([f"{len(models) - len(alone)} others"] if count > len(alone) else [])]
        for number, name in enumerate(names):
            short = name if len(name) <= 22 else f"{name[:21]}…"
            parts.append(_text(LEFT - 6, top + ROW * number + 9.5, short, "muted small", "end"))
        parts.append(_text(16, top + 9.5, device, "small"))
        for state in ("ready", "leaving", "loading"):  # what is short lies on top
            spans = (
                (rows.get(stay.model, count - 1), *span)
                for stay in stays
                for span in self._spans(stay, state)
            )
            parts.append(f'<path class="{state}" d="{self._boxes(spans, top)}"/>')
        self.bottom = top + ROW * count
        return parts

    def _spans(self, stay: Stay, state: str) -> Iterator[tuple[float, float]]:
        end = self._run.end
        over = stay.until(end)
        leaves = min(x for x in (stay.drain, stay.stop, over) if x is not None)
        ready = min(stay.ready if stay.ready is not None else leaves, leaves)
        start, until = {"loading": (stay.start, ready), "ready": (ready, leaves), "leaving": (leaves, over)}[
            state
        ]
        if start < min(until, end):
            yield start, min(until, end)

    def _boxes(self, spans: Iterable[tuple[int, float, float]], top: float) -> str:
        """Boxes as one path; those that touch on the picture are one."""
        merged: list[list[float]] = []
        for row, start, end in sorted(spans):
            x, until = self._frame.x(start), self._frame.x(end)
            if merged and merged[-1][0] == row and x - merged[-1][2] < 0.3:
                merged[-1][2] = max(merged[-1][2], until)
            else:
                merged.append([row, x, until])
        return "".join(
            f"M{x:.1f} {top + ROW * row + 1.5:g}h{max(0.6, until - x):.1f}v{ROW - 3}H{x:.1f}z"
            for row, x, until in merged
        )

    def _memory(self, device: str, budget: int) -> list[str]:
        top = self.bottom + 10
        base, x = top + MEMORY, self._frame.x
        most = max(budget, self._run.peak_memory(device))
        d = f"M{x(0):.1f} {base:g}"
        for at, size in thinned(self._run.memory[device], 2 * WIDTH):
            if at <= self._run.end:
                d += f"H{x(at):.1f}V{base - MEMORY * size / most:.1f}"
        d += f"H{x(self._run.end):.1f}V{base:g}z"
        line = base - MEMORY * budget / most
        self.bottom = base
        return [
            f'<path class="used" d="{d}"/>',
            f'<path class="line budget dash" d="M{LEFT} {line:.1f}H{WIDTH - RIGHT}"/>',
            f'<path class="line grid" d="M{LEFT} {base:g}H{WIDTH - RIGHT}"/>',
            _text(LEFT - 6, line + 9, f"{budget / 1e9:.3g} GB", "muted small", "end"),
            _text(LEFT - 6, base, "0", "muted small", "end"),
            _text(16, top + 9.5, f"memory of {device}", "small"),
        ]

    def _waits(self) -> list[str]:
        top = self.bottom + 14
        base, frame = top + WAITS, self._frame
        count = max(1, min(BINS, len(self._run.records) // PER_BIN))
        width = frame.end / count
        bins: dict[int, list[float]] = {}
        refused: set[int] = set()
        for record in self._run.records:
            number = min(count - 1, int(record.job.at / width))
            if record.wait is not None:
                bins.setdefault(number, []).append(record.wait)
            elif record.refused:
                refused.add(number)
        wide = (WIDTH - LEFT - RIGHT) / count
        most, lines = "", {"p95": "", "p50": ""}
        for number, waits in sorted(bins.items()):
            waits.sort()
            x = LEFT + wide * number
            high = WAITS * frame.height(waits[-1])
            most += f"M{x:.1f} {base:g}v{-high:.1f}h{wide + 0.3:.1f}v{high:.1f}z"
            for name, share in (("p95", 0.95), ("p50", 0.5)):
                y = base - WAITS * frame.height(percentile(waits, share))
                lines[name] += f"{'L' if number - 1 in bins else 'M'}{x + wide / 2:.1f} {y:.1f}h.1"
        self.bottom = base
        parts = [f'<path class="most" d="{most}"/>', *self._wait_grid(base)]
        parts += [f'<path class="line {name}" d="{d}"/>' for name, d in lines.items()]
        boxes = "".join(
            f"M{LEFT + wide * number:.1f} {top - 5:g}h{wide:.1f}v4h{-wide:.1f}z" for number in sorted(refused)
        )
        if boxes:
            parts.append(f'<path class="refused" d="{boxes}"/>')
        return [*parts, _text(16, top + 9.5, "waits", "small")]

    def _wait_grid(self, base: float) -> Iterator[str]:
        for wait in self._frame.waits():
            y = base - WAITS * self._frame.height(wait)
            yield f'<path class="line grid thin" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            yield _text(LEFT - 6, y + 3, f"{wait:g} s", "muted small", "end")
        y = base - WAITS * self._frame.height(self._target)
        yield f'<path class="line target dash" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'

    def _axis(self) -> Iterator[str]:
        self.bottom += 14
        for at in self._frame.ticks():
            x = self._frame.x(at)
            yield f'<path class="line grid" d="M{x:.1f} {self.bottom - 14:g}v4"/>'
            yield _text(x, self.bottom, _moment(at, self._frame.end), "muted small", "middle")


def _text(x: float, y: float, text: str, style: str, anchor: str = "") -> str:
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{style}" x="{x:g}" y="{y:g}"{where}>{escape(text)}</text>'
