"""What metrics and logging cost a step: steps with them and without, by turns, in one process.

    python benchmarks/metrics_cost.py DATA --preset nano --rounds 20

With: sums of the loss by group, windows counted, a line of metrics.jsonl every ten steps and the screen told, as `dnascale train` does by
default. Without: the same batches, forward, backward and update, and nothing else. The cost is the median over rounds of the ratio of
the times of one round's two halves; their order alternates.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set folder")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--override", action="append", default=[], help="key=value")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="in each half of a round")
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(options, Path(folder))
    if options.out:
        with options.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
    print(
        f"{row['preset']}, {row['tokens']:,} tokens a step on {row['machine']}: metrics and logging cost {row['cost']:+.2%} of a step "
        f"(rounds: {row['lowest']:+.2%} to {row['highest']:+.2%}; quartiles {row['quartiles'][0]:+.2%}, {row['quartiles'][1]:+.2%})"
    )


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    from dnascale.config import load_config
    from dnascale.hardware import wait_for
    from dnascale.train import loop
    from dnascale.train.assemble import assemble
    from dnascale.train.batching import to_device
    from dnascale.train.metrics import MetricsFile, Recorder

    words = [
        f"data.path={options.data}",
        f"run.dir={work / 'run'}",
        "train.steps=1000000000",
        "data.verify=size",
        *options.override,
    ]
    config = load_config(options.preset, words)
    job = assemble(config)
    job.run.mkdir(parents=True, exist_ok=True)
    recorder, meter = Recorder(MetricsFile(job.run / "metrics.jsonl", 0)), loop.open_meter(job)

    def with_all(steps: int) -> None:
        for _ in range(steps):
            loop.take_step(job, meter, 1e-4, None)
            if job.state.step % config.log.every == 0:
                line, _ = meter.line(job.state, job.order.epoch_windows)
                assert line is not None
                recorder.write("train", **line)
                job.screen.step(job.state, line, None)

    def bare(steps: int) -> None:
        for _ in range(steps):
            batches = job.stream.next_step()
            for micro, batch in enumerate(batches):
                inputs = to_device(batch, job.engine.module, job.accelerator.device)
                job.engine.backward(*inputs, last=micro == job.batching.accumulation - 1)
            job.engine.step(1e-4, job.guard)

    def timed(half: Any) -> float:
        wait_for(job.accelerator.device)
        begin = time.perf_counter()
        half(options.steps)
        wait_for(job.accelerator.device)
        return time.perf_counter() - begin

    with loop.without_garbage_collection():
        with_all(10)
        bare(10)
        ratios = []
        for number in range(options.rounds):
            halves = (with_all, bare) if number % 2 else (bare, with_all)
            seconds = {half: timed(half) for half in halves}
            ratios.append(seconds[with_all] / seconds[bare] - 1)
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "preset": options.preset, "tokens": job.stage.global_batch_tokens, "cost": statistics.median(ratios), "lowest": min(ratios),
        "highest": max(ratios), "quartiles": [quarters[0], quarters[2]], "rounds": options.rounds, "steps": options.steps,
        "machine": f"{os.cpu_count()} CPUs ({platform.machine()})", "device": str(job.accelerator.device), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


if __name__ == "__main__":
    main()
