"""Short trainings with different tokenizers on the built-in human coding sequences: held-out loss per base, side by side.

usage: python benchmarks/vocabularies.py [--minutes 3] [--folder FOLDER] [TOKENIZER...]

A tokenizer is character, kmer:K, kmer:K:overlap or bpe:SIZE. All runs have the same preset (nano), genes held out and wall time.
Minutes of training on a CPU say little of what large models reach. Prints a Markdown table, and appends to tokenizers.jsonl.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOKENIZERS = ["character", "kmer:6", "kmer:3:overlap", "bpe:512", "bpe:4096"]


def dnascale(*words: str | Path) -> str:
    """Runs a command and returns what it prints. Raises CalledProcessError."""
    command = [sys.executable, "-m", "dnascale", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def prepared(folder: Path, tokenizer: str, valid: float) -> Path:
    """The data set of a tokenizer; learned ones are learned from the training split of characters."""
    data = folder / tokenizer.replace(":", "-")
    if (data / "dataset.json").is_file():
        return data
    spec: str | Path = tokenizer
    if tokenizer.startswith("bpe:"):
        spec = folder / f"tokenizer-{tokenizer.partition(':')[2]}"
        if not spec.is_dir():
            size = tokenizer.partition(":")[2]
            dnascale("tokenizer", "train", prepared(folder, "character", valid), "--vocab-size", size, "--out", spec)
    dnascale("prepare", "builtin:human-cds", "--valid", str(valid), "--tokenizer", spec, "--out", data)
    return data


def measured(folder: Path, tokenizer: str, minutes: float, valid: float, device: str) -> dict[str, Any]:
    data = prepared(folder, tokenizer, valid)
    run = folder / f"run-{tokenizer.replace(':', '-')}"
    dnascale("train", "nano", f"data.path={data}", f"run.dir={run}", f"train.minutes={minutes}", f"train.device={device}",
             "evaluation.every=1000000", "evaluation.windows=8")  # fmt: skip
    result = json.loads(dnascale("eval", run, "--device", device, "--json"))
    about = json.loads((data / "dataset.json").read_text())
    train = about["splits"]["train"]
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    done = next(line for line in reversed(last) if line["kind"] == "train")
    bases_per_token = train["bases"] / (train["tokens"] - train["records"])
    return {
        "tokenizer": tokenizer, "tokens": len(about["vocabulary"]["tokens"]), "bases_per_token": bases_per_token,
        "steps": done["step"], "minutes": done["seconds"] / 60, "bases_seen": done["tokens"] * bases_per_token,
        "nats_per_base": result["model"]["nats_per_base"], "bases_scored": result["model"]["bases"],
        "baselines": {b["name"]: b["nats_per_base"] for b in result["baselines"]},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tokenizers", nargs="*", default=TOKENIZERS)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--valid", type=float, default=0.03, help="share of the genes held out")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="tokenizers-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for tokenizer in given.tokenizers:
        rows.append(measured(folder, tokenizer, given.minutes, given.valid, given.device))
        with (folder / "tokenizers.jsonl").open("a") as file:
            file.write(json.dumps({"machine": platform.processor() or platform.machine(), **rows[-1]}) + "\n")
    print("| tokenizer | tokens | bases a token | steps | minutes | million bases seen | nats per base |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row["nats_per_base"]):
        print(
            f"| {row['tokenizer']} | {row['tokens']:,} | {row['bases_per_token']:.2f} | {row['steps']:,} | "
            f"{row['minutes']:.1f} | {row['bases_seen'] / 1e6:.1f} | {row['nats_per_base']:.4f} |"
        )
    for name, nats in rows[0]["baselines"].items():
        print(f"| {name} | | | | | | {nats:.4f} |")
    print(f"\n{rows[0]['bases_scored']:,} held-out bases; {folder}")


if __name__ == "__main__":
    main()
