"""Figures, drawn with matplotlib where it is installed. No display is needed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.evaluate.consequence import CONSEQUENCES
from dnascale.evaluate.variants.alleles import Allele

_COLORS = dict(zip(CONSEQUENCES, ("#2b8cbe", "#f0a202", "#d7301f", "#7b3294", "#5e3c99"), strict=True)) | {
    "all": "#555555"
}
_DPI = 150
_MOST_ROWS = 6


def possible() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def by_consequence(consequences: Sequence[str] | None, scores: dict[str, np.ndarray], path: Path) -> None:
    """A violin of the scores [n] for each consequence, one panel a scorer."""
    kinds = np.array(consequences) if consequences is not None else np.full(len(next(iter(scores.values()))), "all")
    here = [kind for kind in (*CONSEQUENCES, "all") if (kinds == kind).sum() > 1]
    figure, panels = _figure(1, len(scores), 1.3 * len(here) * len(scores) + 1.5, 4)
    for panel, (name, values) in zip(panels, scores.items(), strict=True):
        groups = [values[(kinds == kind) & np.isfinite(values)] for kind in here]
        parts = panel.violinplot(groups, showmedians=True, widths=0.85)
        for body, kind in zip(parts["bodies"], here, strict=True):
            body.set_facecolor(_COLORS[kind])
            body.set_alpha(0.6)
        panel.axhline(0, color="#999999", linewidth=0.8)
        panel.set_xticks(range(1, len(here) + 1), [f"{k}\n{len(g):,}" for k, g in zip(here, groups, strict=True)])
        panel.set_title(name, fontsize=10)
    panels[0].set_ylabel("log-likelihood ratio (nats)")
    _save(figure, path)


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
    panels[0].legend(fontsize=8, markerscale=2, ncols=5, loc="lower right")
    panels[-1].set_xlabel("position (from 1)")
    _save(figure, path)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=False, squeeze=False)
    return figure, list(panels.flat)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
