"""What saving costs: seconds and MB/s beside the disk's own, the pace of training meanwhile, and how soon a run goes on.

    python benchmarks/checkpoint.py DATA --preset base --rounds 3 --out docs/benchmarks/checkpoint.jsonl
    python benchmarks/checkpoint.py --table docs/benchmarks/checkpoint.jsonl

`disk`: a bare write and fsync of as many bytes. `save`: the whole save, training waits. `background`: what training waits for when the
rest is written in the background, and the pace of steps until the commit, against steps with nothing beside them.
`resume`: from the start of the process to the end of its first step, the checkpoint verified; compilation included where there is any.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="data set folder")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--override", action="append", default=[], help="key=value")
    parser.add_argument("--work", type=Path, help="folder on the disk that is measured; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--table", type=Path, help="rows of an earlier run, as a table")
    options = parser.parse_args()
    if options.table:
        print(as_table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        row = measure(options, Path(name))
    if options.out:
        with options.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
    print(as_table([row]))


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    import torch

    from dnascale.config import load_config
    from dnascale.train import loop
    from dnascale.train.assemble import assemble
    from dnascale.train.saving import Saving

    words = [
        f"data.path={options.data}", f"run.dir={work / 'run'}", "train.steps=1000000", "data.verify=size",
        "train.global_batch_tokens=1024", "train.micro_batch_tokens=1024", *options.override,
    ]  # fmt: skip
    config = load_config(options.preset, words)
    job = assemble(config)
    meter = loop.open_meter(job)
    device = job.accelerator.device

    def steps(count: int) -> float:
        """Seconds each."""
        begin = time.perf_counter()
        for _ in range(count):
            loop.take_step(job, meter, 1e-4, None)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count

    folder = work / "run" / "checkpoints"
    folder.mkdir(parents=True)
    steps(3)
    rounds: dict[str, list[float]] = {key: [] for key in ("disk", "save", "copy", "alone", "beside", "until_commit")}
    size = 0
    for _ in range(options.rounds):
        begin = time.perf_counter()
        path = Saving(folder, job.engine, job.state, job.identity, background=False).commit()
        rounds["save"].append(time.perf_counter() - begin)
        size = sum(file.stat().st_size for file in path.iterdir())
        rounds["disk"].append(bare_write(work / "bare", size))
        rounds["alone"].append(steps(5))
        begin = time.perf_counter()
        saving = Saving(folder, job.engine, job.state, job.identity, background=True)
        rounds["copy"].append(time.perf_counter() - begin)
        paces = []
        while not saving.written():
            paces.append(steps(1))
        saving.commit()
        rounds["until_commit"].append(time.perf_counter() - begin)
        rounds["beside"].append(statistics.median(paces) if paces else float("nan"))
        shutil.rmtree(folder)
        folder.mkdir()
    row = {f"{key}_seconds": statistics.median(values) for key, values in rounds.items()} | {
        f"{key}_spread": [min(values), max(values)] for key, values in rounds.items()
    }
    parameters = sum(torch.Size(shape).numel() for shape in job.engine.shapes.values())
    row |= {
        "preset": options.preset, "parameters": parameters, "bytes": size, "rounds": options.rounds, "overrides": options.override,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPUs ({platform.machine()})",
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "resume_seconds": resume(options, words, work),
    }  # fmt: skip
    return row


def bare_write(path: Path, size: int) -> float:
    chunk = memoryview(os.urandom(1 << 23))
    begin = time.perf_counter()
    with path.open("wb") as out:
        for start in range(0, size, len(chunk)):
            out.write(chunk[: min(len(chunk), size - start)])
        out.flush()
        os.fsync(out.fileno())
    seconds = time.perf_counter() - begin
    path.unlink()
    return seconds


def resume(options: argparse.Namespace, words: list[str], work: Path) -> float:
    """Seconds from the start of a process to its first step after a checkpoint."""
    run = work / "again"
    short = [one for one in words if not one.startswith(("run.dir", "train.steps"))]
    short += [
        f"run.dir={run}",
        "log.every=1",
        "evaluation.every=1000000",
        "run.allow_change=true",
        "schedule.shape=constant",
    ]
    command = [sys.executable, "-m", "dnascale", "train", options.preset, *short]
    subprocess.run([*command, "train.steps=1"], check=True, stdout=subprocess.DEVNULL)
    begin = time.time()
    process = subprocess.Popen([*command, "train.steps=1000"], stdout=subprocess.DEVNULL)
    metrics = run / "metrics.jsonl"
    while len([line for line in metrics.read_text().splitlines() if '"train"' in line]) < 2:
        if process.poll() is not None:
            sys.exit("the run did not go on")
        time.sleep(0.01)
    seconds = time.time() - begin
    process.kill()
    process.wait()
    return seconds


def as_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | bytes | device | bare write | save | MB/s | share of the bare write | waits for, in the background | step alone | step beside | resume |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['preset']} ({row['parameters'] / 1e6:.0f} M) | {row['bytes'] / 1e9:.2f} GB | {row['device']} | {row['disk_seconds']:.2f} s | "
            f"{row['save_seconds']:.2f} s | {row['bytes'] / row['save_seconds'] / 1e6:,.0f} | {row['disk_seconds'] / row['save_seconds']:.0%} | "
            f"{row['copy_seconds']:.2f} s | {row['alone_seconds'] * 1e3:,.0f} ms | {row['beside_seconds'] * 1e3:,.0f} ms | {row['resume_seconds']:.1f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
