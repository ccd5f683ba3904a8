"""A sweep over recipes: what to mask, how fast to learn, which optimizer, which schedule.

    python benchmarks/recipes.py DATA --tokens 4_000_000 --out rows.jsonl "base" "masking.rate=0.15" \\
        "optimizer.name=muon optimizer.learning_rate=2e-3"
    python benchmarks/recipes.py DATA --tokens 4_000_000 --out rows.jsonl --grid masking.rate=0.05,0.15,0.2,0.3 \\
        --grid optimizer.learning_rate=5e-4,1e-3,2e-3
    python benchmarks/recipes.py --table rows.jsonl

Each recipe is a preset with overrides, trained from nothing on the same number of tokens, so that a machine that others use too
changes how long it takes and not what comes out. `base` is the preset as it is. `--grid` options are multiplied with each other.
The score is the held-out loss over all windows of the valid split, a seventh of the bases of each, the same ones for all recipes.

Recipes whose row is in the file are not run again: a sweep that was stopped, or has new recipes, goes on with the same command.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: Small sweeps that answer one question each. Loss differences below the spread over seeds mean nothing.
SWEEPS: dict[str, list[str]] = {
    "masking": [f"masking.rate={rate}" for rate in (0.05, 0.15, 0.2, 0.3, 0.4)],
    "shown": [
        "masking.replace_with_mask=0.8 masking.replace_with_random=0.1",
        "masking.replace_with_mask=1.0 masking.replace_with_random=0.0",
    ],
    "rate": [f"optimizer.learning_rate={rate}" for rate in ("5e-4", "1e-3", "2e-3", "4e-3", "8e-3")],
    "optimizer": [
        *(f"optimizer.name=adamw optimizer.learning_rate={rate}" for rate in ("5e-4", "1e-3", "2e-3")),
        "optimizer.name=stable_adamw optimizer.learning_rate=1e-3 optimizer.gradient_clip=0",
        *(f"optimizer.name=muon optimizer.learning_rate={rate}" for rate in ("5e-4", "1e-3", "2e-3", "4e-3")),
        *(f"optimizer.name=adafactor optimizer.learning_rate={rate}" for rate in ("5e-4", "1e-3", "2e-3")),
    ],
    "schedule": [
        *(f"schedule.shape={shape}" for shape in ("wsd", "wsd-sqrt", "cosine", "linear", "constant")),
        *(f"schedule.shape=wsd schedule.decay={decay}" for decay in (0.1, 0.4, 0.6)),
    ],
    "strand": [f"masking.reverse_complement={on}" for on in ("false", "true")],
    "repeats": [f"masking.repeat_weight={weight}" for weight in (1.0, 0.5, 0.1, 0.0)],
    "batch": [f"train.global_batch_tokens={n} train.micro_batch_tokens={n}" for n in (2048, 4096, 8192, 16384)],
    "weights": [f"model.initializer_range={size}" for size in (0.02, 0.04, 0.06, 0.1)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="data set folder")
    parser.add_argument(
        "recipes", nargs="*", help="'base', or overrides in one word: 'masking.rate=0.3 optimizer.name=muon'"
    )
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--tokens", type=int, default=4_000_000, help="of training, for each")
    parser.add_argument("--grid", action="append", default=[], help="KEY=VALUE,VALUE,...")
    parser.add_argument("--sweep", action="append", default=[], choices=SWEEPS, help="one of the sweeps of this file")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--override", action="append", default=[], help="KEY=VALUE for all recipes")
    parser.add_argument("--out", type=Path, default=Path("recipes.jsonl"))
    parser.add_argument(
        "--work", type=Path, default=Path("build/benchmark-recipes"), help="folder of the runs, which are removed"
    )
    parser.add_argument("--table", type=Path, help="rows of an earlier sweep, as a table")
    options = parser.parse_intermixed_args()
    if options.table:
        print(as_table(read(options.table)))
        return
    if options.data is None:
        parser.error("which data set?")
    recipes = [
        *options.recipes,
        *(recipe for sweep in options.sweep for recipe in SWEEPS[sweep]),
        *product(options.grid),
    ]
    runs = [
        identity(options, recipe, seed)
        for recipe in dict.fromkeys(recipes or ["base"])
        for seed in range(options.seeds)
    ]
    done = {key_of(row) for row in read(options.out)}
    todo = [run for run in runs if key_of(run) not in done]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them in {options.out}", flush=True)
    for number, run in enumerate(todo, start=1):
        row = train_and_score(run, options.work)
        if number == 1 and not any("baselines" in other for other in read(options.out)):
            row["baselines"] = baselines(run["data"])
        with options.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(f"{number}/{len(todo)} {line(row)}", flush=True)
    print(as_table(read(options.out)))


def product(grid: list[str]) -> list[str]:
    axes = [
        [f"{key}={value}" for value in values.split(",")] for key, _, values in (one.partition("=") for one in grid)
    ]
    return [" ".join(point) for point in itertools.product(*axes)] if axes else []


def identity(options: argparse.Namespace, recipe: str, seed: int) -> dict[str, Any]:
    """What makes a run this run."""
    return {
        "data": str(Path(options.data).resolve()), "preset": options.preset, "tokens": options.tokens, "recipe": recipe, "seed": seed,
        "all": sorted(options.override),
    }  # fmt: skip


def key_of(row: dict[str, Any]) -> str:
    return json.dumps([row[key] for key in ("data", "preset", "tokens", "recipe", "seed", "all")])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []


def train_and_score(run: dict[str, Any], work: Path) -> dict[str, Any]:
    """The row of one run. A recipe that cannot be trained has a row that says why."""
    from dnascale.config import load_config
    from dnascale.errors import DnascaleError
    from dnascale.train.schedules import stages, steps_within

    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [
        f"data.path={run['data']}", f"run.dir={folder}", f"train.seed={run['seed']}", *run["all"],
        *([] if run["recipe"] == "base" else run["recipe"].split()),
    ]  # fmt: skip
    try:
        of_run = stages(load_config(run["preset"], [*overrides, "train.steps=1"]))
    except DnascaleError as error:
        return run | {"error": str(error)}
    steps = steps_within(of_run, run["tokens"], [stage.global_batch_tokens for stage in of_run])
    # One evaluation, at the end, over all windows of the split.
    score = (f"evaluation.every={steps}", "evaluation.windows=1000000000", f"checkpoint.every={steps}")
    begin = time.monotonic()
    trained = dnascale("train", run["preset"], *overrides, f"train.steps={steps}", *score)
    row = run | {"steps": steps, "seconds": round(time.monotonic() - begin, 1)}
    if trained.returncode:
        return row | {"error": (trained.stderr.strip().splitlines() or ["?"])[-1]}
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    training = [one for one in lines if one["kind"] == "train"]
    if "masking.repeat_weight" in run["recipe"] and dnascale("eval", str(folder)).returncode == 0:
        parts = json.loads((folder / "evaluation-valid.json").read_text())["detail"]["parts"]["repeats (soft-masked)"]
        row |= {f"nats_{part['name']}_repeats": part["nats_per_base"] for part in parts}
    shutil.rmtree(folder, ignore_errors=True)
    return row | {
        "nats_per_base": [one["valid_loss"] for one in lines if one["kind"] == "valid"][-1],
        "train_nats_per_base": training[-1]["nats_per_base"],
        "tokens_per_second": round(statistics.median(one["tokens_per_second"] for one in training)),
        "curve": [[one["tokens"], round(one["nats_per_base"], 5)] for one in training[:: max(1, len(training) // 50)]],
    }  # fmt: skip


def baselines(data: str) -> dict[str, float]:
    """Nats per base of models that need no training, fitted and scored on the same splits."""
    from dnascale.data.read import split_records
    from dnascale.data.shards import load_dataset
    from dnascale.evaluate.baselines import fit_and_score
    from dnascale.evaluate.run import MAX_FIT_TOKENS

    dataset = load_dataset(Path(data))
    scored = fit_and_score(split_records(dataset, "train", MAX_FIT_TOKENS), split_records(dataset, "valid"))
    return {one.name: one.nats_per_base for one in scored}


def dnascale(*words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "dnascale", *words], capture_output=True, text=True, env=environment)


def line(row: dict[str, Any]) -> str:
    end = row["error"] if "error" in row else f"{row['nats_per_base']:.4f} nats per base in {row['seconds']:.0f} s"
    return f"{row['recipe']} (seed {row['seed']}): {end}"


def as_table(rows: list[dict[str, Any]]) -> str:
    """Markdown, best first; seeds of a recipe together."""
    groups: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(
            (row["data"], row["preset"], row["tokens"], " ".join([*row["all"], row["recipe"]])), []
        ).append(row)
    lines = [
        "| preset | tokens | recipe | held-out nats per base | over seeds | tokens/s |",
        "|---|---|---|---|---|---|",
    ]

    def loss(of_recipe: list[dict[str, Any]]) -> float:
        scored = [row["nats_per_base"] for row in of_recipe if "error" not in row]
        return statistics.mean(scored) if scored else float("inf")

    for (_, preset, tokens, recipe), of_recipe in sorted(groups.items(), key=lambda item: (item[0][:3], loss(item[1]))):
        scored = [row["nats_per_base"] for row in of_recipe if "error" not in row]
        if not scored:
            lines.append(f"| {preset} | {tokens:,} | {recipe} | {of_recipe[0]['error']} | | |")
            continue
        spread = f"{min(scored):.4f} to {max(scored):.4f} ({len(scored)})" if len(scored) > 1 else ""
        rate = statistics.median(row["tokens_per_second"] for row in of_recipe if "error" not in row)
        lines.append(f"| {preset} | {tokens:,} | {recipe} | {loss(of_recipe):.4f} | {spread} | {rate:,.0f} |")
    known = next((row["baselines"] for row in rows if "baselines" in row), {})
    lines += [f"| | | *{name}* | {value:.4f} | | |" for name, value in known.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
