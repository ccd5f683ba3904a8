"""Figures, drawn with matplotlib where it is installed. No display is needed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.evaluate.consequence import CONSEQUENCES
from dnascale.evaluate.variants.alleles import Allele

_COLORS = dict(zip(CONSEQUENCES, ("#2b8cbe", "#f0a202", "#d7301f", "#7b3294", "#1b7837"), strict=True)) | {
    "all": "#555555"
}
_DPI = 150
_MOST_ROWS = 6
#: Values that make a violin; fewer are drawn one by one.
_FEWEST = 20


def possible() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def by_consequence(consequences: Sequence[str] | None, scores: dict[str, np.ndarray], path: Path) -> None:
    """A violin of the scores [n] for each consequence, one panel a scorer."""
    kinds = np.array(consequences) if consequences is not None else np.full(len(next(iter(scores.values()))), "all")
    here = [kind for kind in (*CONSEQUENCES, "all") if (kinds == kind).any()]
    columns = min(2, len(scores))
    rows = -(-len(scores) // columns)
    figure, panels = _figure(rows, columns, (1.1 * len(here) + 0.8) * columns, 3.2 * rows)
    for panel, (name, values) in zip(panels, scores.items(), strict=False):
        groups = [values[(kinds == kind) & np.isfinite(values)] for kind in here]
        for place, (kind, group) in enumerate(zip(here, groups, strict=True), start=1):
            _violin(panel, place, group, _COLORS[kind])
        panel.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        panel.set_xticks(range(1, len(here) + 1), [f"{k}\n{len(g):,}" for k, g in zip(here, groups, strict=True)])
        panel.tick_params(axis="x", labelsize=8)
        panel.set_title(name, fontsize=10)
        panel.set_ylabel("log-likelihood ratio (nats)", fontsize=9)
    for panel in panels[len(scores) :]:
        panel.set_visible(False)
    _save(figure, path)


def held_out(evaluation: dict[str, Any], path: Path) -> None:
    """An evaluation's loss beside its baselines, and what it is of parts of the bases; as in its JSON."""
    lines = [("this model", evaluation["model"]["nats_per_base"])]
    lines += [(one["name"], one["nats_per_base"]) for one in evaluation["baselines"]]
    lines.sort(key=lambda line: -line[1])
    detail = evaluation["detail"]
    parts = {} if detail is None else detail["parts"]
    figure, panels = _figure(1, 1 + len(parts), 5 + 2.6 * len(parts), 4.2)
    first = panels[0]
    colors = ["#d7301f" if name == "this model" else "#9ab8c8" for name, _ in lines]
    error = None
    if detail is not None and detail["loss"]["low"] is not None:
        error = [[value - detail["loss"]["low"] if name == "this model" else 0 for name, value in lines],
                 [detail["loss"]["high"] - value if name == "this model" else 0 for name, value in lines]]  # fmt: skip
    first.barh([name for name, _ in lines], [value for _, value in lines], color=colors, xerr=error)
    least = min(value for _, value in lines)
    first.set_xlim(least - 0.3 * (lines[0][1] - least) - 0.005, lines[0][1])
    first.set_xlabel("nats per base (lower is better)")
    first.tick_params(labelsize=8)
    for panel, (title, members) in zip(panels[1:], parts.items(), strict=True):
        places = range(len(members))
        panel.plot(places, [part["nats_per_base"] for part in members], "o-", color="#2b8cbe")
        panel.axhline(evaluation["model"]["nats_per_base"], color="#999999", linewidth=0.8, zorder=0)
        panel.set_xticks(places, [f"{part['name']}\n{part['bases']:,}" for part in members], fontsize=7)
        panel.set_title(title, fontsize=9)
        panel.tick_params(axis="y", labelsize=8)
        panel.margins(x=0.25, y=0.25)
    _save(figure, path)


def _violin(panel: Any, place: int, values: np.ndarray, color: str) -> None:
    """A violin with its quartiles and median; the values themselves where they are too few for a shape."""
    if len(values) < _FEWEST:
        panel.scatter(np.full(len(values), place), values, s=12, color=color, linewidths=0, alpha=0.7)
    elif len(values):
        body = panel.violinplot(values, [place], widths=0.85, showextrema=False)["bodies"][0]
        body.set_facecolor(color)
        body.set_alpha(0.6)
        panel.vlines(place, *np.quantile(values, [0.25, 0.75]), color="#333333", linewidth=4)
    if len(values):
        panel.hlines(np.median(values), place - 0.2, place + 0.2, color="black", linewidth=1.5)


def along_sequences(alleles: Sequence[Allele], llr: np.ndarray, consequences: Sequence[str] | None, path: Path) -> None:
    """Every score at its position, and the mean of each position's changes over 15 neighbours; the first six sequences."""
    names = list(dict.fromkeys(allele.contig for allele in alleles))[:_MOST_ROWS]
    kinds = np.array(consequences) if consequences is not None else np.full(len(alleles), "all")
    contigs, at = np.array([a.contig for a in alleles]), np.array([a.start + 1 for a in alleles])
    figure, panels = _figure(len(names), 1, 11, 2.6 * len(names) + 0.8)
    for panel, name in zip(panels, names, strict=True):
        for kind in (*CONSEQUENCES, "all"):
            mine = (contigs == name) & (kinds == kind)
            if mine.any():
                panel.scatter(at[mine], llr[mine], s=5, color=_COLORS[kind], label=kind, linewidths=0, alpha=0.6)
        own = contigs == name
        positions, member = np.unique(at[own], return_inverse=True)
        mean = np.bincount(member, llr[own]) / np.bincount(member)
        width = min(15, len(mean))
        smooth = np.convolve(mean, np.ones(width) / width, mode="valid")
        panel.plot(positions[width // 2 : width // 2 + len(smooth)], smooth, color="black", linewidth=1)
        panel.axhline(0, color="#999999", linewidth=0.8)
        panel.set_title(name, fontsize=10)
        panel.set_ylabel("LLR (nats)")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        fontsize=8,
        markerscale=2,
        ncols=6,
        loc="outside upper right",
        frameon=False,
    )
    panels[-1].set_xlabel("position (from 1)")
    _save(figure, path)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=False, squeeze=False)
    return figure, list(panels.flat)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
