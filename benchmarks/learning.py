"""Held-out loss against time, of runs on the same genes, as a picture beside what counting achieves.

    python benchmarks/learning.py docs/benchmarks/learning.jsonl --out docs/benchmarks/learning.png

Each run is the rows that have the same preset, recipe and device; rows without `seconds` of training are left out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

#: Nats per base of rivals on the same held-out bases (docs/explanation/recipes.md), in which the codon phase is given or not.
RIVALS = {"counts, 4 bases to each side": 1.2737, "the same, told the codon phase": 1.2249}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    draw([row for row in rows if "preset" in row and "seconds" in row], options.out)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(f"{row['preset']}, {row.get('recipe', 'as it is')}, {row['device']}", []).append(row)
    for name, of_run in runs.items():
        minutes = [row["seconds"] / 60 for row in of_run]
        panel.plot(minutes, [row["valid_nats_per_base"] for row in of_run], marker="o", markersize=3, label=name)
    for name, nats in RIVALS.items():
        panel.axhline(nats, color="#888888", linewidth=0.8, linestyle="--")
        panel.text(0.3, nats, f"{name} {nats:.4f}", fontsize=8, color="#555555", ha="left", va="bottom",
                   transform=panel.get_yaxis_transform())  # fmt: skip
    panel.set_xscale("log")
    panel.set_xticks(minutes := [0.5, 1, 2, 5, 10, 20, 50, 100], [f"{one:g}" for one in minutes])
    panel.set_xlabel("minutes of training")
    panel.set_ylabel("held-out nats per base")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
