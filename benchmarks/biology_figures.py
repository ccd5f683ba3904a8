"""The figures of benchmarks/biology.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnascale.evaluate.statistics import Estimate

_COLORS = ("#2b8cbe", "#f0a202", "#888888", "#7b3294", "#d7301f")
_DPI = 150


def _errors(estimates: Sequence[Estimate]) -> tuple[np.ndarray, np.ndarray]:
    """(values [n], lengths of the interval below and above [2, n]); rounding may put an end on the wrong side of a value."""
    mean = np.array([e.value for e in estimates])
    sides = np.array([mean - [e.low for e in estimates], [e.high for e in estimates] - mean])
    return mean, np.maximum(sides, 0)


def _bars(panel: Axes, groups: Sequence[str], values: dict[str, list[Estimate]]) -> None:
    """Bars with intervals, one group of bars beside the other."""
    width = 0.8 / len(values)
    for number, (name, estimates) in enumerate(values.items()):
        at = np.arange(len(groups)) + (number - (len(values) - 1) / 2) * width
        mean, error = _errors(estimates)
        panel.bar(at, mean, width * 0.92, yerr=error, color=_COLORS[number], label=name, error_kw={"linewidth": 0.8})
    panel.set_xticks(range(len(groups)), groups)
    panel.spines[["top", "right"]].set_visible(False)


def losses(found: dict[str, tuple[Estimate, Estimate]], path: Path) -> None:
    """Held-out loss of each predictor, best at the top."""
    names = sorted(found, key=lambda name: -found[name][0].value)
    figure = Figure(figsize=(8, 0.34 * len(names) + 1.1), layout="constrained")
    panel = figure.subplots()
    mean, error = _errors([found[name][0] for name in names])
    colors = [_COLORS[0] if name == "model" else "#bbbbbb" for name in names]
    panel.barh(names, mean, xerr=error, color=colors, error_kw={"linewidth": 0.8})
    panel.set_xlim(mean.min() - 0.08, mean.max() + 0.03)
    panel.set_xlabel("nats per base (the axis does not begin at 0)")
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def codons(
    position: dict[str, list[Estimate]],
    period: dict[str, tuple[np.ndarray, np.ndarray]],
    stops: dict[str, list[Estimate]],
    path: Path,
) -> None:
    """Loss by codon position, its periodogram, and the probability of making a stop in each frame."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    places, spectrum, frames = figure.subplots(1, 3)
    _bars(places, ["1", "2", "3"], position)
    lowest = min(e.low for estimates in position.values() for e in estimates)
    places.set_ylim(lowest - 0.1, None)
    places.set_xlabel("codon position")
    places.set_ylabel("nats per base (axis not from 0)")
    for color, (name, (at, power)) in zip(_COLORS, period.items(), strict=False):
        spectrum.plot(at, power, color=color, label=name, linewidth=1)
    spectrum.set_xscale("log")
    spectrum.set_xticks([2, 3, 5, 10, 30, 100], ["2", "3", "5", "10", "30", "100"])
    spectrum.minorticks_off()
    spectrum.set_xlabel("period of the loss, bases")
    spectrum.set_ylabel("power / median power")
    spectrum.spines[["top", "right"]].set_visible(False)
    _bars(frames, ["of the codons", "+1", "+2"], stops)
    frames.set_xlabel("frame")
    frames.set_ylabel("mean p of the base that makes a stop")
    for panel in (places, spectrum, frames):
        panel.margins(y=0.25)
        panel.legend(fontsize=7, loc="upper right", frameon=False)
    for panel in (spectrum, frames):
        panel.set_ylim(0, None)
    places.set_ylim(lowest - 0.1, max(e.high for estimates in position.values() for e in estimates) + 0.2)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def operating_curves(
    scores: dict[str, np.ndarray], positive: np.ndarray, areas: dict[str, Estimate], path: Path
) -> None:
    """Receiver operating characteristic of each scorer."""
    from sklearn.metrics import roc_curve

    figure = Figure(figsize=(5, 4.8), layout="constrained")
    panel = figure.subplots()
    for color, (name, values) in zip(_COLORS, scores.items(), strict=False):
        false, true, _ = roc_curve(positive, values)
        panel.plot(false, true, color=color, linewidth=1.4, label=f"{name}: {areas[name]}")
    panel.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8)
    panel.set_aspect("equal")
    panel.set_xlabel("non-coding windows called coding")
    panel.set_ylabel("coding windows found")
    panel.legend(fontsize=8, loc="lower right", title="AUROC", frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def against_function(llr: np.ndarray, function: np.ndarray, kinds: Sequence[str], path: Path) -> None:
    """The model's LLR against the measured function of each variant."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    panel = figure.subplots()
    names = np.array(kinds)
    for kind, color in (("missense", "#f0a202"), ("synonymous", "#2b8cbe"), ("nonsense", "#d7301f")):
        mine = names == kind
        panel.scatter(llr[mine], function[mine], s=5, color=color, label=kind, linewidths=0, alpha=0.5)
    panel.set_xlabel("log-likelihood ratio of the model (nats)")
    panel.set_ylabel("measured function (log2 of day 14 over day 5)")
    panel.legend(fontsize=8, markerscale=2, frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
