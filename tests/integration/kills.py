"""Kills training at random moments, hundreds of times, and looks whether anything is lost.

    python tests/integration/kills.py --kills 200 --out build/kills.jsonl

Runs on one process, DistributedDataParallel and ZeRO are killed with SIGKILL, one rank or all, at a moment anywhere between start and
end, started again, killed again, until they are complete. Each must then have the numbers of a run that nobody touched, to
the bit; no committed checkpoint may be gone or damaged on the way, and no process may wait for one that is dead.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs import Job, command_line, metrics, numbers, train, train_words

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import newest_valid

CREWS = (("plain", 1), ("plain", 2), ("zero1", 2), ("zero3", 2))
LENGTH = ("train.steps=60", "checkpoint.every=4", "checkpoint.keep=2")
#: Seconds that the ranks that are left have to notice.
PATIENCE = 30.0


@dataclass
class Tally:
    """What happened to one crew."""

    engine: str
    processes: int
    kills: int = 0
    runs: int = 0  # completed
    equal: int = 0  # of these, to the bit
    lost: int = 0  # checkpoints that had been committed, and were gone or damaged after a kill
    hangs: int = 0
    left_to_launcher: int = 0  # one of two was killed before they had met: the launcher ends the other
    resumed_at: int = 0  # kills after which a checkpoint was there to go on from


def sweep(engine: str, processes: int, kills: int, data: Dataset, folder: Path, rng: random.Random) -> Tally:
    tally = Tally(engine, processes)
    whole = numbers(train(folder / "whole", data, *LENGTH, processes=processes, engine=engine))
    begin = time.monotonic()
    train(folder / "again", data, *LENGTH, processes=processes, engine=engine)
    duration = time.monotonic() - begin
    while tally.kills < kills:
        run = folder / f"run-{tally.runs}"
        step = 0
        while True:
            job = Job(command_line, (train_words(run, data, *LENGTH, engine=engine),), processes, {})
            if not _kill_somewhere(job, rng, duration, tally):
                break
            found, rejected = newest_valid(run / "checkpoints")
            reached = found.state.step if found else 0
            tally.lost += bool(rejected) + (reached < step)
            tally.resumed_at += reached > 0
            step = max(step, reached)
        tally.runs += 1
        tally.equal += numbers(metrics(run)) == whole
        shutil.rmtree(run)
        print(json.dumps(asdict(tally)), flush=True)
    return tally


def _kill_somewhere(job: Job, rng: random.Random, duration: float, tally: Tally) -> bool:
    """False if the job came to its end before that."""
    moment = time.monotonic() + rng.uniform(0, duration)
    while time.monotonic() < moment:
        if all(code is not None for code in job.codes()):
            assert not any(job.codes()), job.output()
            return False
        time.sleep(0.001)
    met = "\nrun " in job.output()  # the header, which follows many collectives
    ranks = list(range(len(job.codes())))
    for rank in ranks if rng.random() < 0.5 else [rng.choice(ranks)]:
        if job.codes()[rank] is None:
            job.signal(rank, signal.SIGKILL)
    tally.kills += 1
    job.wait(PATIENCE if met else 2.0)
    if met and time.monotonic() - moment > PATIENCE:
        tally.hangs += 1
        print(job.output()[-2000:], flush=True)
    tally.left_to_launcher += not met and len(ranks) > 1
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines to append to: one a crew")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    tallies = []
    with tempfile.TemporaryDirectory() as name:
        data = prepare(["builtin:human-cds"], Path(name) / "data", PrepareOptions(valid=0.1))
        for number, (engine, processes) in enumerate(CREWS):
            share = options.kills * (number + 1) // len(CREWS) - options.kills * number // len(CREWS)
            tallies.append(sweep(engine, processes, share, data, Path(name) / f"{engine}-{processes}", rng))
    for tally in tallies:
        if options.out:
            with options.out.open("a") as out:
                out.write(json.dumps({"date": time.strftime("%Y-%m-%d"), "seed": options.seed} | asdict(tally)) + "\n")
    print("engine  processes  kills  complete runs  equal to the bit  lost checkpoints  hangs")
    for tally in tallies:
        print(
            f"{tally.engine:<8}{tally.processes:>9}{tally.kills:>7}{tally.runs:>15}{tally.equal:>18}{tally.lost:>18}{tally.hangs:>7}"
        )
    if any(tally.lost or tally.hangs or tally.equal < tally.runs for tally in tallies):
        sys.exit("something was lost")


if __name__ == "__main__":
    main()
