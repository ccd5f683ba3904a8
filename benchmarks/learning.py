"""Held-out loss against time, of runs on the same genes, as a picture beside what counting achieves; or against the size of the model.

    python benchmarks/learning.py docs/benchmarks/learning.jsonl --out docs/benchmarks/learning.png
    python benchmarks/learning.py docs/benchmarks/learning.jsonl --sizes --out docs/benchmarks/sizes.png
    python benchmarks/learning.py docs/benchmarks/book.jsonl --out docs/benchmarks/book.png        # rows of benchmarks/book.py

Each run is the rows that have the same preset, recipe and device, or the same name; rows without `seconds` of training are left out.
Those of `book.py` are scored on other windows, so the rivals' lines are not in their picture. --sizes takes the rows that end a run of so many minutes
(`budget_minutes`).
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

#: Nats per base of counts of so many bases to each side, on the same held-out bases (docs/explanation/recipes.md), and where it is written.
RIVALS = {
    "counts, 3 + 3": (1.2790, 0.16), "counts, 4 + 4": (1.2737, 0.3),
    "3 + 3, told the codon phase": (1.2288, 0.16), "4 + 4, told the codon phase": (1.2249, 0.3),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--sizes", action="store_true", help="loss against parameters, for each budget of time")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    if options.sizes:
        ends = [row for row in rows if "budget_minutes" in row]
        if not ends:
            parser.error(f"{options.rows} has no rows that end a run of so many minutes (budget_minutes).")
        draw_sizes(ends, options.out)
        return
    draw([row for row in rows if "seconds" in row and ("preset" in row or "name" in row)], options.out)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = row["name"] if "name" in row else f"{row['preset']}, {row.get('recipe', 'as it is')}, {row['device']}"
        runs.setdefault(name, []).append(row)
    for name, of_run in runs.items():
        minutes = [row["seconds"] / 60 for row in of_run]
        nats = [row.get("valid_nats_per_base", row.get("begin")) for row in of_run]
        panel.plot(minutes, nats, marker="o", markersize=3, label=name)
    for name, (nats, place) in RIVALS.items() if "preset" in rows[0] else ():
        panel.axhline(nats, color="#888888", linewidth=0.8, linestyle="--")
        panel.text(place, nats, f"{name}: {nats:.4f}", fontsize=8, color="#555555", ha="left", va="bottom",
                   transform=panel.get_yaxis_transform())  # fmt: skip
    panel.set_ylim(top=min(panel.get_ylim()[1], math.log(4)))
    panel.set_xscale("log")
    longest = max(row["seconds"] for row in rows) / 60
    panel.set_xticks(
        minutes := [one for one in (0.5, 1, 2, 5, 10, 20, 50, 100) if one < 1.2 * longest],
        [f"{one:g}" for one in minutes],
    )
    panel.set_xlabel("minutes of training")
    panel.set_ylabel("held-out nats per base")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def draw_sizes(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    for budget in sorted({row["budget_minutes"] for row in rows}):
        ends = sorted((row for row in rows if row["budget_minutes"] == budget), key=lambda row: row["parameters"])
        millions, nats = [row["parameters"] / 1e6 for row in ends], [row["valid_nats_per_base"] for row in ends]
        panel.plot(millions, nats, marker="o", markersize=5, label=f"{budget} minutes")
        for row, x, y in zip(ends, millions, nats, strict=True):
            panel.annotate(
                f"{y:.4f}, {row['tokens'] / 1e6:.0f} M tokens", (x, y), (6, -12), textcoords="offset points", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
    panel.margins(y=0.1)
    for name, (nats, _) in RIVALS.items():
        if nats < panel.get_ylim()[1]:
            panel.axhline(nats, color="#888888", linewidth=0.8, linestyle="--")
            panel.text(1, nats, f"{name}: {nats:.4f}", fontsize=8, color="#555555", ha="right", va="bottom",
                       transform=panel.get_yaxis_transform())  # fmt: skip
    panel.set_xscale("log")
    sizes = sorted({row["parameters"] / 1e6 for row in rows})
    panel.set_xticks(sizes, [f"{size:.1f} M" for size in sizes])
    panel.minorticks_off()
    panel.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.9)
    panel.set_xlabel("parameters")
    panel.set_ylabel("held-out nats per base")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=4)
    figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
