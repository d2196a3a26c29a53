"""Tables and comparisons as PNG files."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UsageError
from hwnas.files import write_atomic
from hwnas.latency.calibration import Array, measured_networks
from hwnas.latency.comparison import Comparison
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.space import OpSignature

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by colour-blind readers; Okabe and Ito, jfly.uni-koeln.de/color, without yellow."""

MARKERS = "osD^vPX"
NUM_LISTED = 6
GREY = "#777777"

NOTABLE = 0.01
"""Operators whose ratio is this close to the median ratio do not disagree."""

MANY = 1000
"""From here on points are small and pale."""


def draw_table(table: LatencyTable, models: Sequence[LatencyModel], path: Path | str) -> Path:
    """Latency against multiply-adds, and for calibrated spaces predictions against measured networks.

    Operators are coloured by kind; a line goes up to the 90th percentile of the runs. Where hwnas knows no operator of
    the table, the horizontal axis counts the values that the operators read and write.

    Args:
        table: What to draw.
        models: Models of the spaces whose networks were measured with the table.
        path: The PNG to write.

    Raises:
        UsageError: The path does not end in ``.png``, or the table has no measured operator.
        OutputError: The file cannot be written.
    """
    measured = [s for s, entry in table.entries.items() if entry.usable]
    if not measured:
        raise UsageError(f"{table.name} has no measured operator to draw. Profile again.")
    figure, axes = _figure(1 + len(models), f"{table.name}\n{table.environment}")
    _draw_operators(figure, axes[0], table, measured)
    for panel, model in zip(axes[1:], models, strict=True):
        _draw_networks(panel, model, *measured_networks(table.calibrations[model.space.fingerprint]))
    return _write(figure, path)


def draw_comparison(comparison: Comparison, path: Path | str) -> Path:
    """One table against the other, and where they disagree.

    Args:
        comparison: The two tables.
        path: The PNG to write.

    Raises:
        UsageError: The path does not end in ``.png``.
        OutputError: The file cannot be written.
    """
    a, b = comparison.a, comparison.b
    figure, (left, right) = _figure(2, f"A: {a.name}, {a.environment}\nB: {b.name}, {b.environment}")
    a_ms, b_ms = comparison.ms
    for chosen, style in _kinds(comparison.signatures):
        left.scatter(a_ms[chosen], b_ms[chosen], **style)
        right.scatter(a_ms[chosen], comparison.ratio[chosen], **style)
    ends = np.asarray([min(a_ms.min(), b_ms.min()) / 1.3, max(a_ms.max(), b_ms.max()) * 1.3])
    left.plot(ends, ends, color=GREY, linewidth=1, label="equal")
    left.plot(ends, ends / comparison.overall_ratio, color=GREY, linestyle="--", label="median ratio")
    left.set(xlabel="A, ms", ylabel="B, ms", xlim=ends, ylim=ends)
    _logarithmic(left)
    correlations = ", ".join(f"{name} {value:.3f}" for name, value in comparison.rank_correlations().items())
    left.set_title(f"{len(a_ms):,} operators in both" + (f"; {correlations}" if correlations else ""))
    _legend(left, len(a_ms))
    right.axhline(1, color=GREY, linewidth=1)
    right.axhline(comparison.overall_ratio, color=GREY, linestyle="--")
    right.set(xlabel="A, ms", ylabel="A / B")
    _logarithmic(right)
    right.set_title(
        f"median ratio {comparison.overall_ratio:.3g}; "
        f"median entry differs by {comparison.difference:.1%}, scaled {comparison.difference_in_shape:.1%}"
    )
    farthest = [s for s, relative in comparison.farthest(NUM_LISTED) if abs(relative - 1) > NOTABLE]
    for number, signature in enumerate(farthest, start=1):
        at = comparison.signatures.index(signature)
        right.annotate(
            str(number), (a_ms[at], comparison.ratio[at]), textcoords="offset points", xytext=(5, 3), fontsize=9
        )
    if farthest:
        _caption(
            figure, "They disagree most, numbered on the right:", [f"{n}: {s}" for n, s in enumerate(farthest, start=1)]
        )
    return _write(figure, path)


def _figure(num_panels: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * num_panels if num_panels > 1 else 9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(fill(line, 85 * num_panels) for line in title.splitlines()), fontsize=11)
    axes = list(figure.subplots(1, num_panels, squeeze=False)[0])
    for panel in axes:
        panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _write(figure: Figure, path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".png":
        raise UsageError(f"'{path}' is not a picture; expected a name that ends in .png.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return write_atomic(path, buffer.getvalue())


def _caption(figure: Figure, heading: str, lines: Sequence[str]) -> None:
    text = "\n".join([heading, *(shorten(line, 150, placeholder=" …") for line in lines)])
    figure.supxlabel(text, fontsize=8, x=0.01, ha="left")


def _legend(axes: Axes, num_points: int) -> None:
    axes.legend(fontsize=8, loc="upper left", markerscale=3.0 if num_points > MANY else 1.0)


def _logarithmic(axes: Axes, *, first_x: float = 0.0) -> None:
    """Both axes logarithmic with few, plain numbers; none on the horizontal axis below ``first_x``."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set(xscale="log", yscale="log")
    for axis, (low, high), first in ((axes.xaxis, axes.get_xlim(), first_x), (axes.yaxis, axes.get_ylim(), 0.0)):
        if high / low < 5:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e4 else (1.0,)))
        written = EngFormatter(sep="") if high > 1e4 else "{:g}".format
        axis.set_major_formatter(FuncFormatter(lambda x, _, w=written, first=first: w(x) if x >= first else ""))
        axis.set_minor_formatter(NullFormatter())


def _kinds(signatures: Sequence[OpSignature]) -> list[tuple[Array, dict[str, Any]]]:
    """Mask and look of every kind of operator: family and kernel, or coarser where those are too many."""
    by_kernel = [f"{s.op} k{s.attribute('k')}" if s.attribute("k") else s.op for s in signatures]
    named = by_kernel if len(set(by_kernel)) <= len(COLOURS) else [s.op for s in signatures]
    frequent = [name for name, _ in Counter(named).most_common(len(COLOURS))]
    if len(set(named)) > len(COLOURS):
        frequent[-1] = "other"
        named = [name if name in frequent else "other" for name in named]
    many = len(signatures) > MANY
    look = {"s": 6 if many else 26, "alpha": 0.5 if many else 0.85, "linewidths": 0}
    looks = zip(sorted(frequent), COLOURS, MARKERS, strict=False)
    return [
        (np.asarray([each == name for each in named]), {"label": name, "color": colour, "marker": marker, **look})
        for name, colour, marker in looks
    ]


def _draw_operators(figure: Figure, axes: Axes, table: LatencyTable, measured: Sequence[OpSignature]) -> None:
    frame = table.frame()
    frame = frame[frame["status"] != "failed"]
    work, what = frame["macs"].to_numpy(dtype=np.float64), "multiply-adds"
    if np.isnan(work).all():
        work, what = np.asarray([_values(s) for s in measured]), "values read and written"
    ms, p90 = frame["ms"].to_numpy(), frame["p90_ms"].to_numpy()
    positive = work[work > 0]
    nothing = positive.min() / 4 if positive.size else 1.0
    if (work == 0).any():
        axes.axvline(nothing, color=GREY, linestyle=":", linewidth=1)
        across = axes.get_xaxis_transform()
        axes.text(nothing, 0.5, f"no {what}", transform=across, color=GREY, rotation=90, ha="right", va="center")
    x = np.where(work == 0, nothing, work)
    for chosen, style in _kinds(measured):
        axes.vlines(x[chosen], ms[chosen], p90[chosen], color=style["color"], linewidth=0.8, alpha=0.5)
        axes.scatter(x[chosen], ms[chosen], **style)
    axes.set(xlabel=f"{what} of one image", ylabel=f"ms at batch {table.environment.batch}")
    _logarithmic(axes, first_x=2 * nothing if (work == 0).any() else 0.0)
    axes.set_title(f"{len(measured):,} operators" + ("; lines reach the 90th percentile" if (p90 > ms).any() else ""))
    _legend(axes, len(measured))
    unknown = int(np.isnan(work).sum())
    failed = [f"{s}: {entry.error}" for s, entry in table.entries.items() if not entry.usable]
    notes = failed[:NUM_LISTED] + ([f"and {len(failed) - NUM_LISTED:,} more"] if len(failed) > NUM_LISTED else [])
    notes += [f"{unknown:,} operators with unknown multiply-adds are not drawn"] if unknown else []
    if notes:
        _caption(figure, f"{len(failed):,} failed", notes)


def _values(signature: OpSignature) -> float:
    return float(np.prod(signature.in_shape) + np.prod(signature.out_shape))


def _draw_networks(axes: Axes, model: LatencyModel, indices: Any, measured: Array) -> None:
    predicted = model.exact_ms_many(indices)
    low, high = min(predicted.min(), measured.min()), max(predicted.max(), measured.max())
    ends = np.asarray([low - 0.08 * (high - low), high + 0.08 * (high - low)])
    axes.fill_between(ends, 0.95 * ends, 1.05 * ends, color="#eeeeee", label="within 5 %")
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.scatter(measured, predicted, s=26, color=COLOURS[0], linewidths=0)
    axes.set(xlabel="measured, ms", ylabel="predicted, ms", xlim=ends, ylim=ends)
    error = f"held-out MAPE {model.error.mape:.1f} %" if model.error else "error unknown"
    axes.set_title(f"{len(measured)} networks of '{model.space.name}', seen by the fit\n{error}")
    axes.legend(fontsize=8, loc="upper left")
