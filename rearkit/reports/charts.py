"""The report's charts: log lines become small SVG drawings that take their colours from the page.

Charts are drawn in placeholder colours, which are then replaced by CSS variables (``--series-1``, …) and
``currentColor``, so that one drawing is readable on a light and on a dark page.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from rearkit.training.logs import JOIN
from rearkit.training.validation import HELD_OUT

# Longer curves are averaged down to about so many points: more would not show at this size, and make pages slow.
POINTS = 300
SERIES = 6  # colours that page.css.j2 defines; further series start again at the first, dashed
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
SPARSE = 25  # curves with at most so many points have each of them marked
SIZE = (3.7, 2.2)  # inches, at 72 dots each; the page scales it
# Placeholder colours: any values do that matplotlib puts nowhere else, since they are replaced in the SVG's text.
INK = "#010203"
# Of files, which can't know the page around them: each has a contrast of 3 or more with white and with black.
FILE_SIZE = (6.4, 3.8)
FILE_INK = "#767676"
FILE_COLOURS = ("#d2603a", "#3d87b8", "#6f8a1f", "#9b6bc4", "#a8800f", "#c2558a")
COLOURS = tuple(f"#0a0b{index:02x}" for index in range(1, SERIES + 1))

# Left out of the SVG, so that drawing the same run twice gives the same bytes.
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

Lines = Sequence[Mapping[str, float]]

WORDS = {
    "loss": ("Total loss", "nats plus weighted regularizer terms"),
    "cross_entropy": ("Cross-entropy", "nats per token"),
    "accuracy": ("Accuracy", "share of tokens whose likeliest code is right"),
    "noise_level": ("Noise level", "mean probability that a context token is replaced"),
    "lr": ("Learning rate", "AdamW’s step size"),
    "grad_norm": ("Gradient norm", "L2, before clipping"),
    "samples_per_second": ("Throughput", "samples per second, since start or resumption"),
}
FIT_WORDS = {
    "loss": ("Total loss", "weighted sum of what is fitted; an adversarial term may make it negative"),
    "reconstruction": ("Reconstruction error", "squared plus absolute error, pixels in 0 to 1"),
    "commitment": ("Commitment", "squared distance of features to their codes"),
    "codes_used": ("Codes in use", "share of the codebook"),
    "perceptual": ("Perceptual distance", "before its weight"),
    "adversarial": ("Adversarial term", "minus the discriminator’s mean opinion of reconstructions, before its weight"),
    "adversarial_weight": (
        "Weight of the adversarial term",
        "[tokenizer.fit.adversarial] weight times the ratio of gradients",
    ),
    "discriminator": ("Discriminator’s loss", "hinge; 1 where it cannot tell"),
    "discriminator_right": ("Discriminator is right", "share of patches of images and reconstructions"),
    "discriminator_skipped": ("Discriminator’s skipped steps", "so far, for gradients that were not finite"),
}
SHARES = ("accuracy", "codes_used", "discriminator_right", "noise_level")


@attrs.frozen
class Series:
    """One curve: values at steps.

    Attributes:
        name: shown in the legend.
        steps: ascending.
        values: one for each step.
        averaged: most log lines that one value is the mean of.
        left_out: number of values left out because they were infinite or NaN.
        deviations: standard deviation around each value, drawn as a band; empty if there is none.
    """

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    averaged: int = 1
    left_out: int = 0
    deviations: tuple[float, ...] = ()

    @classmethod
    def mean(cls, name: str, steps: Sequence[float], columns: Iterable[Sequence[float]]) -> Series:
        """Return the mean of several runs' values, with their deviation (divisor n - 1) if there are two at least.

        Args:
            name: shown in the legend.
            steps: ascending.
            columns: for each step, a value for each run.
        """
        columns = list(columns)
        several = bool(columns) and min(map(len, columns)) > 1
        deviations = tuple(statistics.stdev(column) for column in columns) if several else ()
        return cls(name, tuple(steps), tuple(map(statistics.fmean, columns)), deviations=deviations)


@attrs.frozen
class Chart:
    """Curves over optimizer steps, or over another quantity.

    Attributes:
        title: in plain words.
        unit: of the values.
        series: the curves. One without points stays in the list, so that the others keep their colours.
        share: True if the values are shares, shown in percent.
        over: what the x axis shows.
        over_share: True if that is a share too.
        marks: where a line is drawn across: training went on by a changed recipe.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    share: bool = False
    over: str = "optimizer step"
    over_share: bool = False
    marks: tuple[float, ...] = ()

    @property
    def averaged(self) -> int:
        """Most log lines that one point is the mean of."""
        return max(series.averaged for series in self.series)

    @property
    def left_out(self) -> int:
        """Number of values left out because they were infinite or NaN."""
        return sum(series.left_out for series in self.series)

    @property
    def alt(self) -> str:
        """The chart in words, for screen readers: first and last value of each curve."""
        told = (
            f"{s.name} from {_number(s.values[0], self.share)} at {self._where(s.steps[0])} "
            f"to {_number(s.values[-1], self.share)} at {self._where(s.steps[-1])}"
            for s in self.series
            if s.steps
        )
        joins = "".join(f"; changed {self._where(mark)}" for mark in self.marks)
        return f"{self.title}, {self.unit}: {'; '.join(told)}{joins}"

    def _where(self, x: float) -> str:
        return f"{x:.0%} {self.over}" if self.over_share else f"{self.over.split()[-1]} {x:,.0f}"


def training_charts(log: Lines) -> list[Chart]:
    """Make the charts of a training log, one for each measurement; held-out values share the chart of training's."""
    names = list(dict.fromkeys(name for line in log for name in line))
    charts = []
    for key, (title, unit) in WORDS.items():
        pairs = [(key, "training"), (f"{HELD_OUT}{key}", "held-out")]
        charts.append(_chart(log, title, unit, pairs, key in SHARES))
    terms: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if name.startswith("regularizer/"):
            regularizer, _, term = name.removeprefix("regularizer/").rpartition("/")
            terms.setdefault(regularizer, []).append((name, term))
    # After total loss and cross-entropy, the first two of WORDS: the terms are parts of the loss.
    for index, (regularizer, pairs) in enumerate(terms.items()):
        charts.insert(2 + index, _chart(log, f"Regularizer {regularizer}", "loss terms, before weighting", pairs))
    marks = tuple(line["step"] for line in log if line.get(JOIN))
    return [attrs.evolve(chart, marks=marks) for chart in charts if chart.series]


def fit_charts(history: Lines) -> list[Chart]:
    """Make the charts of a tokenizer's fit: one for each number that it logged."""
    # Tokenizers of plugins may log numbers that are not in FIT_WORDS; they get a title made from their name.
    names = [name for name in dict.fromkeys(name for line in history for name in line) if name != "step"]
    charts = []
    for name in names:
        title, unit = FIT_WORDS.get(name, (name.replace("_", " ").capitalize(), "as the tokenizer logs it"))
        charts.append(_chart(history, title, unit, [(name, "training")], name in SHARES))
    return [chart for chart in charts if chart.series]


def drawn(charts: Iterable[Chart]) -> list[dict[str, Any]]:
    """Draw charts for a page's template: for each its ``chart`` and its ``svg``."""
    return [{"chart": chart, "svg": draw(chart)} for chart in charts]


def draw(chart: Chart) -> str:
    """Draw a chart as an ``<svg>`` element in the page's colours; the page has title and legend."""
    return _of_the_page(_drawn(chart, SIZE))


def draw_file(chart: Chart) -> str:
    """Draw a chart as a whole SVG file, with title, unit and legend, in colours that show on light and on dark."""
    svg = _drawn(chart, FILE_SIZE, alone=True).replace(INK, FILE_INK)
    for placeholder, colour in zip(COLOURS, FILE_COLOURS, strict=True):
        svg = svg.replace(placeholder, colour)
    return svg


def _drawn(chart: Chart, size: tuple[float, float], alone: bool = False) -> str:
    # Imported here, since matplotlib takes long to import. pyplot is avoided: it keeps global state.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    style = {
        # Text stays text: it takes the page's font and can be searched.
        "svg.fonttype": "none",
        # A fixed salt makes ids, which are random otherwise, the same in every drawing of the same chart.
        "svg.hashsalt": "rearkit",
        "font.size": 10,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.4,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", width=0.6, length=3)
        for index, (series, colour) in enumerate(zip(chart.series, COLOURS * len(chart.series), strict=False)):
            marker = "o" if len(series.steps) <= SPARSE else "None"
            # Not clipped: a marker at the edge would be cut in half.
            (line,) = axes.plot(series.steps, series.values, label=series.name, clip_on=False)
            line.set(color=colour, linestyle="--" if index >= SERIES else "-", marker=marker, markersize=2.6)
            if series.deviations:
                below, above = (
                    [value + sign * sd for value, sd in zip(series.values, series.deviations, strict=True)]
                    for sign in (-1, 1)
                )
                axes.fill_between(series.steps, below, above, color=colour, alpha=0.18, linewidth=0)
        for mark in chart.marks:
            axes.axvline(mark, color=INK, alpha=0.5, linewidth=0.8, linestyle=":")
        if chart.share:
            # matplotlib's margins would reach below 0% and above 100%.
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, 0.0), min(high, 1.0))
        axes.set_xlabel(chart.over)
        if alone:
            axes.set_title(f"{chart.title}, {chart.unit}", color=INK, fontsize=10, wrap=True)
            figure.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=INK)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=not chart.over_share, steps=STEPS))
        shares = FuncFormatter(lambda x, _: f"{100 * x:.4g}%")
        axes.xaxis.set_major_formatter(shares if chart.over_share else EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%" if chart.share else f"{y:.4g}"))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    return buffer.getvalue()


def _of_the_page(svg: str) -> str:
    """Turn a whole SVG file into an element of the page: without XML prologue, in the page's colours."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for index, colour in enumerate(COLOURS, start=1):
        svg = svg.replace(colour, f"var(--series-{index})")
    return svg


def _chart(log: Lines, title: str, unit: str, pairs: Sequence[tuple[str, str]], share: bool = False) -> Chart:
    series = (_series(log, key, name) for key, name in pairs)
    return Chart(title, unit, tuple(one for one in series if one is not None), share)


def _series(log: Lines, key: str, name: str) -> Series | None:
    """Return a key's values, one for each step, averaged down to about `POINTS`; None if no finite value was logged."""
    # A resumed training repeats the steps since its checkpoint; of a step logged twice the later line counts.
    logged = {line["step"]: float(line[key]) for line in log if key in line}
    points = {step: value for step, value in logged.items() if math.isfinite(value)}
    if not points:
        return None
    steps = sorted(points)
    # Means of equal groups rather than every n-th point, which would hide spikes between them.
    size = math.ceil(len(steps) / POINTS)
    groups = [steps[start : start + size] for start in range(0, len(steps), size)]
    return Series(
        name,
        tuple(sum(group) / len(group) for group in groups),
        tuple(sum(points[step] for step in group) / len(group) for group in groups),
        averaged=size,
        left_out=len(logged) - len(points),
    )


def _number(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.4g}"
