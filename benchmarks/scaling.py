"""One process and two, on this machine: tokens a second, efficiency, and the share of time that exchanging data takes.

    python benchmarks/scaling.py DATA --preset book --batch 4096 --rounds 5 --out rows.jsonl
    python benchmarks/scaling.py --predict             the model of larger clusters alone

On a quiet machine: with others' work beside it, what is compared is their work.

Each row is `dnascale train` itself. For each engine three runs, in turn, `--rounds` times: `one` process with the whole global batch;
`two` with half of it each; and `apart`: two at the same time that do the work of one of the two each and know nothing of each
other. What `two` takes longer than `apart` is the time of communication that is not hidden. Efficiency is `two` over twice `one`; with
CPUs that share memory and clock, `apart` over twice `one` is what it could be at best.

The bytes that each engine sends and the link that `dnascale doctor` measures between the processes predict the same time; the model
then says what 8, 64 and 512 GPUs would need, for bandwidths that are stated.
"""

import argparse
import json
import math
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dnascale.bench.communication import ENGINES, Cluster, Link, fit, step_seconds

#: What the predictions stand on. Bandwidths are a device's, in one direction, as all-reduces reach them: 8 GPUs with NVLink 4 and
#: NVSwitch (450 GB/s by the data sheet, two thirds of it), and one 400 Gb/s port a GPU between nodes (50 GB/s, four fifths of it).
INSIDE, BETWEEN = Link(300e9, 5e-6), Link(40e9, 20e-6)
#: (Preset, parameters, tokens/s of one GPU alone, global batch, tokens of a micro-batch): rates measured on an H200
#: (docs/benchmarks/step.md); the batches are the presets'.
MODELS = [("base", 111e6, 279_924, 524_288, 32_768), ("large", 344e6, 181_281, 1_048_576, 16_384)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="data set folder")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, default=60, help="of each run; the first half warms up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16_384, help="tokens of the global batch")
    parser.add_argument("--micro", type=int, default=2_048, help="tokens of a micro-batch")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--predict", action="store_true", help="only the model of larger clusters")
    options = parser.parse_args()
    if not options.predict:
        if options.data is None:
            parser.error("DATA is missing")
        link = this_link()
        print(f"link between two processes here: {link.bandwidth / 1e9:.2f} GB/s, {link.latency * 1e6:.0f} us\n")
        rows = [compare(options, engine, link) for engine in options.engines.split(",")]
        print(table(rows))
        if options.out:
            with options.out.open("a") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)
    print(predictions())


def this_link() -> Link:
    """Between two processes on this machine, as `dnascale doctor` measures it."""
    from dnascale.launch.doctor.communication import communication

    return fit(communication("cpu", 2)[0].numbers["rows"], 2)


def compare(options: argparse.Namespace, engine: str, link: Link) -> dict[str, Any]:
    """Seconds of a step alone, of two together and of two apart, the median of the rounds; the modes take turns."""
    seconds: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    parameters = 0
    for _ in range(options.rounds):
        for mode, found in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                took, parameters = train(options, engine, mode, Path(folder))
                found.append(took)
    one, two, apart = (statistics.median(seconds[mode]) for mode in ("one", "two", "apart"))
    accumulation = max(1, options.batch // 2 // options.micro)
    here = Cluster(1, 2, link, BETWEEN)
    return {
        "engine": engine, "preset": options.preset, "precision": options.precision, "batch": options.batch,
        "micro": options.micro, "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "one": options.batch / one, "two": options.batch / two, "apart": options.batch / apart,
        "efficiency": one / two / 2, "best": one / apart / 2, "communication": two - apart, "share": 1 - apart / two,
        "predicted": step_seconds(engine, parameters, accumulation, options.precision == "bf16", here),
        "rounds": seconds, "date": time.strftime("%F"),
    }  # fmt: skip


def train(options: argparse.Namespace, engine: str, mode: str, folder: Path) -> tuple[float, int]:
    """(Median seconds of a step in the second half, parameters) of the slowest process."""
    alone = mode != "two"
    count, batch = (1 if mode == "one" else 2), (options.batch // 2 if mode == "apart" else options.batch)
    if engine == "ddp" and alone:
        engine = "plain"
    processes = []
    for rank in range(count):
        run = folder / (f"run{rank}" if mode == "apart" else "run")
        words = [
            "train", options.preset, f"data.path={options.data}", f"run.dir={run}", "train.device=cpu", f"train.steps={options.steps}",
            f"train.engine={'plain' if engine == 'ddp' else engine}", f"train.global_batch_tokens={batch}", "log.every=1",
            f"train.micro_batch_tokens={options.micro}", f"train.precision={options.precision}", "evaluation.every=1000000",
            "optimizer.name=adamw",
        ]  # fmt: skip
        group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        group["MASTER_PORT"] = processes[0][2] if processes else _free_port()
        env = os.environ | {"OMP_NUM_THREADS": "1"} | (group if mode == "two" else {})
        process = subprocess.Popen(
            [sys.executable, "-m", "dnascale", *words],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append((process, run, group["MASTER_PORT"]))
    slowest, parameters = 0.0, 0
    for process, run, _ in processes:
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{engine}, {mode}: {output}")
        if mode == "two" and run != processes[0][1]:
            continue
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if line["kind"] == "train"][options.steps // 2 :]
        slowest = max(slowest, statistics.median(batch / line["tokens_per_second"] for line in lines))
        manifest = json.loads(next((run / "checkpoints").glob("step-*/MANIFEST.json")).read_text())
        parameters = sum(math.prod(parameter["shape"]) for parameter in manifest["parameters"])
    return slowest, parameters


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def table(rows: list[dict[str, Any]]) -> str:
    head = (
        "| engine | one process, tokens/s | two, tokens/s | efficiency | at best | communication a step, ms | predicted, ms | share of time |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {r['engine']} | {r['one']:,.0f} | {r['two']:,.0f} | {r['efficiency']:.0%} | {r['best']:.0%} | {r['communication'] * 1e3:.1f} | "
        f"{r['predicted'] * 1e3:.1f} | {max(0.0, r['share']):.0%} |\n"
        for r in rows
    )


def predictions() -> str:
    """Milliseconds of computing and of communication in a step, and efficiency from nothing hidden to all that can be."""
    lines = [
        f"8 GPUs a node, {INSIDE.bandwidth / 1e9:.0f} GB/s inside, {BETWEEN.bandwidth / 1e9:.0f} GB/s a GPU between nodes; bf16; "
        "efficiency if nothing is hidden, and if all is that the last backward pass can hide\n",
        "| model | engine | GPUs | computing, ms | communication, ms | efficiency |\n|---|---|---|---|---|---|",
    ]
    for preset, parameters, rate, batch, micro in MODELS:
        for engine in ENGINES:
            for gpus in (8, 64, 512):
                share = batch / gpus
                accumulation = max(1, round(share / micro))
                computing = share / rate
                cluster = Cluster(max(1, gpus // 8), 8, INSIDE, BETWEEN)
                moving = step_seconds(engine, int(parameters), accumulation, True, cluster)
                hidden = computing * 2 / 3 / (accumulation if engine in ("ddp", "zero1") else 1)
                worst, best = computing / (computing + moving), computing / (computing + max(0.0, moving - hidden))
                lines.append(
                    f"| {preset} | {engine} | {gpus} | {computing * 1e3:.1f} | {moving * 1e3:.2f} | {worst:.0%} to {best:.0%} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
