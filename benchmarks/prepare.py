"""Prepare, measured beside the book's way of tokenising: one run, in rounds of fresh processes.

python benchmarks/prepare.py CHROMOSOME.fa.bgz CDS.fa.gz --rounds 3 --out docs/benchmarks/prepare.jsonl
python benchmarks/prepare.py --table docs/benchmarks/prepare.jsonl > docs/benchmarks/prepare.md

The chromosome is given to `prepare` plain, as one gzip member, and as BGZF; four copies of it (with other names) to one and to two
worker processes; and a million records of 150 bases cut from it. Reading, checking, tokenising, shuffling, writing, checksums and the
final fsync are all in the time, importing is not. The book's way is `datasets.map` over the same vocabulary as a Hugging Face
tokenizer, whole sequences, saved to disk; both do the same coding sequences, and their tokens are compared.

benchmarks/README.md says more.
"""

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]

SHORT_RECORDS, SHORT_BASES = 1_000_000, 150
COPIES = 4
#: The least that any way would do with a file: read it, SHA-256 of it, write as much, fsync. Tells how fast the machine is.
MACHINE = "the machine: read, SHA-256, write, fsync"
#: What the goal of each case is, in million bases a second.
GOALS = {"chromosome, plain": 500, "chromosome, gzip": 300, "chromosome, BGZF": 300}


def inputs(folder: Path, chromosome: Path, cds: Path) -> dict[str, tuple[list[Path], int]]:
    """Files and number of workers of every case."""
    folder.mkdir(parents=True)
    plain = folder / "chromosome.fa"
    plain.write_bytes(gzip.decompress(chromosome.read_bytes()))
    text = plain.read_bytes()
    with gzip.GzipFile(folder / "chromosome.fa.gz", "wb", 6, mtime=0) as packed:
        packed.write(text)
    header, _, lines = text.partition(b"\n")
    copies = []
    for number in range(COPIES):
        copies.append(folder / f"copy{number}.fa")
        copies[-1].write_bytes(header.split()[0] + b"copy%d\n" % number + lines)
    bases, rng = lines.replace(b"\n", b""), random.Random(0)
    with (folder / "short.fa").open("wb") as short:
        for number in range(SHORT_RECORDS):
            start = rng.randrange(len(bases) - SHORT_BASES)
            short.write(b">r%d\n%b\n" % (number, bases[start : start + SHORT_BASES]))
    return {
        MACHINE: ([plain], 1),
        "chromosome, plain": ([plain], 1),
        "chromosome, gzip": ([folder / "chromosome.fa.gz"], 1),
        "chromosome, BGZF": ([chromosome], 1),
        f"{COPIES} chromosomes, plain, 1 worker": (copies, 1),
        f"{COPIES} chromosomes, plain, 2 workers": (copies, 2),
        "10^6 records of 150 bases": ([folder / "short.fa"], 1),
        "coding sequences": ([cds], 1),
        "coding sequences, the book's way": ([cds], 1),
    }


def ours(paths: list[Path], workers: int, out: Path) -> tuple[int, int]:
    """Bases, and the largest memory of a worker in bytes."""
    from dnascale.data.prepare import PrepareOptions, prepare
    from dnascale.data.prepare.tasks import Progress

    class Peak(Progress):
        bytes = 0

        def finish(self, _task: object, _size: int, peak_bytes: int) -> None:
            self.bytes = max(self.bytes, peak_bytes)

    peak = Peak()
    # No split, and so no audit, in which the book's way has no part.
    made = prepare([str(path) for path in paths], out, PrepareOptions(valid=0), workers=workers, progress=peak)
    return int(made.cleaning["bases_out"]), peak.bytes


def machine(paths: list[Path], out: Path) -> int:
    """One pass over the bytes, in pieces that stay in the cache. Gives their number, headers and line ends too."""
    out.mkdir(parents=True)
    digest = hashlib.sha256()
    with paths[0].open("rb", buffering=0) as source, (out / "copy").open("wb", buffering=0) as copy:
        while piece := source.read(1 << 18):
            digest.update(piece)
            copy.write(piece)
        os.fsync(copy.fileno())
        return copy.tell()


def books(paths: list[Path], out: Path) -> int:
    """Tokens of whole sequences by `map`, as in the book but not cut to 512, saved to disk."""
    import datasets

    from dnascale.data.sources import Input, read
    from dnascale.vocab import CHARACTER

    datasets.disable_progress_bars()
    tokenizer = CHARACTER.tokenizer(1 << 30)
    sequences = [record.bases[:].decode().upper() for record in read(Input.of(paths[0]))]
    table = datasets.Dataset.from_dict({"sequence": sequences})
    tokens = table.map(lambda batch: {"input_ids": tokenizer(batch["sequence"])["input_ids"]}, batched=True,
                       remove_columns=["sequence"], load_from_cache_file=False)  # fmt: skip
    tokens.save_to_disk(str(out))
    return sum(map(len, sequences))


def tokens_of(case: str, out: Path) -> Counter[bytes]:
    """Every record's tokens, however they are stored."""
    import numpy as np

    if case.endswith("book's way"):
        import datasets

        rows = datasets.load_from_disk(str(out))["input_ids"]
        return Counter(np.array(row, dtype=np.uint8).tobytes() for row in rows)
    from dnascale.data.read import split_records
    from dnascale.data.shards import load_dataset

    return Counter(record.tobytes() for record in split_records(load_dataset(out), "train"))


def work(task: Row) -> None:
    """Does one case in this process, and prints what it took as JSON."""
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from dnascale.data.prepare.tasks import peak_bytes

    paths, out = [Path(path) for path in task["paths"]], Path(task["out"])
    if task["case"].endswith("book's way"):
        import datasets  # noqa: F401
        import transformers  # noqa: F401
    else:
        import dnascale.data.prepare  # noqa: F401
    before, began = _cpu(), time.perf_counter()
    workers = 0
    if task["case"] == MACHINE:
        bases = machine(paths, out)
    elif task["case"].endswith("book's way"):
        bases = books(paths, out)
    else:
        bases, workers = ours(paths, task["workers"], out)
    wall = time.perf_counter() - began
    peak = max(peak_bytes(), workers) / 1e6
    print(json.dumps({"bases": bases, "wall_s": wall, "cpu_s": _cpu() - before, "peak_mb": peak}))


def _cpu() -> float:
    """Seconds of this process and of those it has started and waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def bench(chromosome: Path, cds: Path, rounds: int, rows: Path) -> None:
    with tempfile.TemporaryDirectory(dir=rows.parent) as name:
        folder = Path(name)
        cases = inputs(folder / "inputs", chromosome.absolute(), cds.absolute())
        found: dict[str, Counter[bytes]] = {}
        for number in range(rounds):
            for case, (paths, workers) in cases.items():
                for path in paths:  # the page cache is warm for all
                    path.read_bytes()
                out = folder / "out" / "data"
                task = {"case": case, "paths": list(map(str, paths)), "workers": workers, "out": str(out)}
                command = [sys.executable, __file__, "--work", json.dumps(task)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = {"case": case, "workers": workers, "round": number} | json.loads(done.stdout) | _where()
                if case.startswith("coding sequences") and not number:
                    found[case] = tokens_of(case, out)
                with rows.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(f"{case:38} {row['bases'] / row['wall_s'] / 1e6:8.1f} million bases/s {row['peak_mb']:6.0f} MB")
                subprocess.run(["rm", "-rf", str(out)], check=True)
        one, other = found.values()
        assert one == other, "the two ways do not give the same tokens"
        print(f"the tokens of {one.total():,} coding sequences are the same both ways")


def _where() -> Row:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    names = ("numpy", "pyarrow", "isal", "datasets", "tokenizers")
    return {
        "date": datetime.now(UTC).date().isoformat(), "commit": commit.stdout.strip(), "machine": _machine(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
    }  # fmt: skip


def _machine() -> str:
    import psutil

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), model
        )
    return f"{psutil.cpu_count()} CPUs ({model}), {psutil.virtual_memory().total / 1e9:.0f} GB, {platform.system()}"


def table(rows: Iterable[Row]) -> str:
    """The page, of the rows of the last day in them."""
    every = list(rows)
    last = [row for row in every if row["date"] == every[-1]["date"] and row["commit"] == every[-1]["commit"]]
    of_case: dict[str, list[Row]] = {}
    for row in last:
        of_case.setdefault(row["case"], []).append(row)
    versions = ", ".join(f"{name} {version}" for name, version in last[-1]["versions"].items())
    lines = [
        "# Prepare, measured",
        "",
        f"{last[-1]['date']}, commit {last[-1]['commit']}, {last[-1]['machine']}, {versions}. Page cache warm, every figure from a fresh process;",
        "[what is measured and how](../../benchmarks/README.md); the rows are in [prepare.jsonl](prepare.jsonl).",
        "",
        f"Medians of {len(of_case[next(iter(of_case))])} rounds, and (least to most). Reading, checking, tokenising, shuffling, writing, checksums and fsync.",
        "",
        "| case | million bases | million bases/s | wall s | CPU s | million bases/CPU s | peak memory MB | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    speeds = {}
    for case, found in of_case.items():
        speed = [row["bases"] / row["wall_s"] / 1e6 for row in found]
        speeds[case] = median(speed)
        cpu = median(row["cpu_s"] for row in found)
        goal = f"{GOALS[case]} million bases/s" if case in GOALS else ""
        lines.append(
            f"| {case} | {found[0]['bases'] / 1e6:,.1f} | {speeds[case]:,.1f} ({min(speed):,.1f} to {max(speed):,.1f}) | "
            f"{median(row['wall_s'] for row in found):.2f} | {cpu:.2f} | {found[0]['bases'] / cpu / 1e6:,.1f} | "
            f"{max(row['peak_mb'] for row in found):,.0f} | {goal} |"
        )
    if MACHINE in speeds:
        share = speeds["chromosome, plain"] / speeds[MACHINE]
        lines += [
            "",
            f"The chromosome, plain, is prepared at {share:.0%} of what the machine does in one pass ({MACHINE.partition(': ')[2]}).",
        ]
    if "coding sequences, the book's way" in speeds:
        times = speeds["coding sequences"] / speeds["coding sequences, the book's way"]
        most = speeds["chromosome, plain"] / speeds["coding sequences, the book's way"]
        lines += [
            "",
            f"The same coding sequences: {times:,.0f} times the book's way; the chromosome: {most:,.0f} times (goal: 50).",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chromosome", nargs="?", type=Path, help="FASTA of one chromosome, BGZF")
    parser.add_argument("cds", nargs="?", type=Path, help="FASTA of coding sequences, gzip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("prepare.jsonl"), help="rows are added here")
    parser.add_argument("--table", type=Path, help="print the page of these rows")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work))
    elif options.table:
        print(table(map(json.loads, options.table.read_text().splitlines())), end="")
    elif options.chromosome and options.cds:
        bench(options.chromosome, options.cds, options.rounds, options.out.absolute())
    else:
        parser.error("give a chromosome and coding sequences, or --table ROWS")


if __name__ == "__main__":
    main()
