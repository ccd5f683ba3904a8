"""Compares the data stream with other loaders: one run, the same tokens, in rounds of fresh processes.

python benchmarks/stream.py --tokens 200_000_000 --rounds 5 --out docs/benchmarks/stream.jsonl
python benchmarks/stream.py --table docs/benchmarks/stream.jsonl

benchmarks/README.md says what is measured and how.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from stream_peers import BATCH, PEERS, Peer

LENGTHS = (512, 8192)
CHECK_TOKENS = 8 * BATCH * max(LENGTHS)
#: The environments besides the one that this script runs in. torch comes first and alone, so that nothing replaces it.
TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "peers": (
        "numpy==2.4.6", "pyarrow==26.0.1", "webdataset==1.0.2", "litdata==0.2.76", "datasets==5.2.0", "grain==0.2.18",
        "array-record==0.8.6",
    ),
    "mosaic": ("numpy==2.1.3", "transformers==4.57.6", "huggingface-hub==0.36.2", "mosaicml-streaming==0.13.0"),
}  # fmt: skip
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
TASK_SECONDS = 600

#: The rate is taken over an epoch and no less than the first of these, but no more than the second. Seconds.
LEAST, MOST = 1.0, 10.0
#: A reader is stopped after half an epoch, or after this time when it is slower. Seconds.
MOST_BEFORE_STOP = 5.0
LOOK_EVERY = 0.05

Result = dict[str, Any]


class Memory:
    """Peak growth of what is in memory and is not a page of a file, in bytes."""

    def __init__(self) -> None:
        self.begin, self.peak = self._now(), 0

    def look(self) -> None:
        self.peak = max(self.peak, self._now() - self.begin)

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024


def write(peer: type[Peer], folder: Path, length: int, tokens: Path) -> Result:
    values = np.fromfile(tokens, dtype=np.uint8)
    begin = time.perf_counter()
    peer.write(values, folder, length)
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"write_mb_per_second": len(values) / 1e6 / seconds, "bytes_per_base": size / len(values)}


def check(peer: type[Peer], folder: Path, length: int, tokens: Path) -> Result:
    """Every batch of an epoch is a copy of windows of the stream, no two overlap, and together they are all of it.

    The stream is uint32 numbers that count up, so that a window tells where it is from.
    """
    stream = np.fromfile(tokens, dtype=np.uint8)
    for variant in peer.variants:
        starts = []
        for batch in peer(folder, length, variant).epoch(0):
            _require_batch(batch, length)
            if _is_mapped(batch):
                raise ValueError("a batch was not copied: it lies in a mapped file")
            starts.append(_places(batch, stream))
        start = np.sort(np.concatenate(starts))
        overlapping, missing = int((np.diff(start) < length).sum()), len(stream) // length - len(start)
        if overlapping + abs(missing) > peer.strays:
            raise ValueError(f"{overlapping} windows of an epoch overlap, {missing} are missing")
    return {}


def _require_batch(batch: np.ndarray, length: int) -> None:
    if batch.shape != (BATCH, length) or batch.dtype != np.uint8:
        raise ValueError(f"a batch is {batch.dtype} {batch.shape}")


def _is_mapped(batch: np.ndarray) -> bool:
    """Whether the first byte lies in a mapped file."""
    address = batch.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if begin <= address < end:
            return line.split()[4] != "0"
    return False


def _places(batch: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """Where the rows of a batch are in the stream, int64 [64]. Raises ValueError for a row that is not."""
    place = np.full(len(batch), -1)
    for lead in range(4):  # bytes of a row before its first whole number
        number = np.ascontiguousarray(batch[:, lead : lead + 4]).view(np.uint32)[:, 0].astype(np.int64)
        guess = np.clip(number * 4 - lead, 0, len(stream) - batch.shape[1])
        same = (stream[guess[:, None] + np.arange(batch.shape[1])] == batch).all(axis=1)
        place[same] = guess[same]
    if (place < 0).any():
        raise ValueError("a batch holds what is no window of the stream")
    return place


def read(peer: type[Peer], folder: Path, length: int, tokens: Path) -> Result:
    epoch = tokens.stat().st_size // (BATCH * length)
    memory = Memory()
    rates = [(_rate(peer, folder, length, variant, epoch, memory), variant) for variant in peer.variants]
    best, variant = max(rates, key=lambda rate: rate[0]["samples_per_second"])
    found: Result = best | {"variant": variant, "anonymous_mb": memory.peak / 1e6}
    return found | _resume(peer, folder, length, variant, epoch // 2)


def _rate(peer: type[Peer], folder: Path, length: int, variant: Any, epoch: int, memory: Memory) -> dict[str, float]:
    gc.collect()
    opened = time.perf_counter()
    reader = peer(folder, length, variant)
    batches = chain.from_iterable(reader.epoch(number) for number in count())
    next(batches)
    begin = now = look = time.perf_counter()
    done = 0
    while now - begin < MOST and (now - begin < LEAST or done < epoch):
        batch = next(batches)
        done += 1
        now = time.perf_counter()
        if now >= look:
            _require_batch(batch, length)
            memory.look()
            look = now + LOOK_EVERY
    samples = done * BATCH / (now - begin)
    return {
        "first_batch_seconds": begin - opened,
        "samples_per_second": samples,
        "tokens_per_second": samples * length,
    }


def _resume(peer: type[Peer], folder: Path, length: int, variant: Any, half: int) -> Result:
    """Stops a reader in the middle of an epoch: how long another takes to its next batch, and whether it is the same."""
    gc.collect()
    reader = peer(folder, length, variant)
    batches = reader.epoch(0)
    deadline = time.perf_counter() + MOST_BEFORE_STOP
    done = 0
    while done < half and time.perf_counter() < deadline:
        next(batches)
        done += 1
    state, expected = reader.state(done), next(batches).copy()
    del batches, reader
    gc.collect()
    begin = time.perf_counter()
    got = next(peer(folder, length, variant).epoch(0, state))
    seconds = time.perf_counter() - begin
    scale = half / done if peer.resumes == "replay" else 1.0
    return {
        "resume_seconds": seconds * scale,
        "resume_scaled": scale > 1,
        "resume_exact": bool(np.array_equal(got, expected)),
        "resumes": peer.resumes,
    }


TASKS: dict[str, Callable[[type[Peer], Path, int, Path], Result]] = {"write": write, "check": check, "read": read}


def work(task: Result) -> None:
    """What a fresh process does: one task of one peer. The result goes to a file, since libraries print."""
    peer = PEERS[task["peer"]]
    begin = time.perf_counter()
    peer.load()
    imported = time.perf_counter() - begin
    result = TASKS[task["do"]](peer, Path(task["folder"]), task["length"], Path(task["tokens"]))
    versions = {name: importlib.metadata.version(name) for name in {peer.package, "numpy"}}
    result |= {"import_seconds": imported, "versions": versions | {"python": platform.python_version()}}
    Path(task["result"]).write_text(json.dumps(result))
    os._exit(0)  # some libraries leave threads behind that never end


class Bench:
    """The folder of a benchmark, and the processes that work in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)

    def python(self, environment: str) -> Path:
        """The interpreter of an environment, which is made when it is missing or out of date."""
        if environment == "main":
            return Path(sys.executable)
        place = self.folder / "environments" / environment
        interpreter, made = place / "bin" / "python", place / "requirements.txt"
        wanted = "\n".join((TORCH, *ENVIRONMENTS[environment])) + "\n"
        if not made.exists() or made.read_text() != wanted:
            print(f"installing {environment}", file=sys.stderr)
            venv.create(place, with_pip=True, clear=True, symlinks=True)
            for packages in ([TORCH], wanted.split()):
                subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *packages], check=True)
            made.write_text(wanted)
        return interpreter

    def tokens(self, name: str, values: np.ndarray) -> Path:
        values.tofile(path := self.folder / f"{name}.bin")
        return path

    def store(self, name: str, length: int, tokens: Path) -> Path:
        """Where a peer has these tokens."""
        return self.folder / tokens.stem / name / ("any" if PEERS[name].any_length else str(length))

    def run(self, do: str, name: str, length: int, tokens: Path) -> Result:
        """One task in a fresh process: its result, or the error. What it reads is in the page cache."""
        folder, result = self.store(name, length, tokens), self.folder / "result.json"
        result.unlink(missing_ok=True)
        if do == "write":
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        else:
            for path in folder.rglob("*"):
                if path.is_file():
                    path.read_bytes()
        task = {
            "do": do,
            "peer": name,
            "folder": str(folder),
            "length": length,
            "tokens": str(tokens),
            "result": str(result),
        }
        command = [str(self.python(PEERS[name].environment)), __file__, "--task", json.dumps(task)]
        caches = {"HF_HOME": str(self.folder / "cache"), "DATA_OPTIMIZER_CACHE_FOLDER": str(self.folder / "cache")}
        try:
            done = subprocess.run(
                command, env=os.environ | OFFLINE | caches, capture_output=True, text=True, timeout=TASK_SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"error": f"{do}: more than {TASK_SECONDS} s"}
        if result.exists():
            return dict(json.loads(result.read_text()))
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"error": f"{do}: {last[0] if last else f'exit code {done.returncode}'}"}


def dna(count: int) -> np.ndarray:
    """Random bases, 0 to 3, and a separator, 21, after each 1,500 or so: uint8 [count]"""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, count, dtype=np.uint8)
    ends = np.cumsum(rng.integers(1000, 2001, count // 1000))
    tokens[ends[ends < count]] = 21
    return tokens


def bench(folder: Path, names: list[str], tokens: int, rounds: int, out: Path) -> None:
    """Writes, checks and reads everything; a line of JSON for each peer, window length and round."""
    here = Bench(folder)
    for environment in {PEERS[name].environment for name in names}:
        here.python(environment)
    small = here.tokens("check", np.arange(CHECK_TOKENS // 4, dtype=np.uint32).view(np.uint8))
    tokens -= tokens % (BATCH * max(LENGTHS))
    large = here.tokens("stream", dna(tokens))
    written: dict[Path, Result] = {}
    for name in names:
        for length in LENGTHS:
            if (place := here.store(name, length, large)) not in written:
                here.run("write", name, length, small)
                written[place] = here.run("write", name, length, large)
            if "error" not in written[place]:
                written[place] |= {k: v for k, v in here.run("check", name, length, small).items() if k == "error"}
            _tell(name, length, written[place])
    os.sync()
    run = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit(), "hardware": _hardware()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as lines:
        for length in LENGTHS:
            for turn in range(rounds):
                results = {}
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    before = written[here.store(name, length, large)]
                    results[name] = before if "error" in before else before | here.run("read", name, length, large)
                    _tell(name, length, results[name])
                for name in names:
                    row = {"peer": name, "length": length, "round": turn} | results[name] | _ratios(name, results)
                    lines.write(json.dumps(row | {"tokens": tokens, "batch": BATCH} | run) + "\n")
                lines.flush()


def _ratios(name: str, results: dict[str, Result]) -> Result:
    """This peer's rate over that of `raw`, and over that of the fastest other package, in the same round."""
    rate = {peer: result["samples_per_second"] for peer, result in results.items() if "error" not in result}
    if name not in rate:
        return {}
    best = max((rate[peer] for peer in rate if peer != "raw" and PEERS[peer].package != "dnascale"), default=None)
    return {
        "ratio_to_raw": rate[name] / rate["raw"] if "raw" in rate else None,
        "ratio_to_fastest_peer": rate[name] / best if best else None,
    }


def _tell(name: str, length: int, result: Result) -> None:
    """A line of progress."""
    if "error" in result:
        found = result["error"]
    elif "samples_per_second" in result:
        found = f"{result['samples_per_second']:,.0f} samples/s"
    else:
        found = f"written at {result['write_mb_per_second']:,.0f} MB/s"
    print(f"{name:20} {length:5} {found}", file=sys.stderr, flush=True)


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware() -> Result:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(memory / 1e9, 1)}


def table(rows: Iterable[Result]) -> str:
    """Markdown: for each window length the peers, fastest first."""
    rows = list(rows)
    head = (
        "| peer | samples/s | M tokens/s | × raw | × fastest peer | first batch s | resume s | exact | memory MB "
        "| import s | write MB/s | bytes/base |"
    )
    rounds = 1 + max(row["round"] for row in rows)
    out = [f"Medians of {rounds} rounds, and (least to most). A resume with * is scaled up from a shorter replay.\n"]
    for length in sorted({row["length"] for row in rows}):
        out += [f"Windows of {length:,} tokens:\n", head, "|---" * head.count(" | ") + "|---|"]
        of_peer: dict[str, list[Result]] = {}
        for row in rows:
            if row["length"] == length:
                of_peer.setdefault(row["peer"], []).append(row)
        lines = {name: _table_line(name, found) for name, found in of_peer.items()}
        out += [line for _, line in sorted(lines.values(), key=lambda rate_line: -rate_line[0])] + [""]
    return "\n".join(out)


def _table_line(name: str, rows: list[Result]) -> tuple[float, str]:
    """(median rate, line)"""
    good = [row for row in rows if "error" not in row]
    if not good:
        return 0.0, f"| {name} | {rows[0]['error']} |"

    def middle(key: str, form: str = ".3g", times: float = 1) -> str:
        values = [row[key] * times for row in good if row[key] is not None]
        return format(median(values), form) if values else "–"

    rates = sorted(row["samples_per_second"] for row in good)
    scaled = "*" if any(row["resume_scaled"] for row in good) else ""
    cells = (
        name,
        f"{median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})",
        middle("tokens_per_second", ",.1f", 1e-6),
        middle("ratio_to_raw"),
        middle("ratio_to_fastest_peer"),
        middle("first_batch_seconds"),
        f"{middle('resume_seconds')}{scaled} ({good[0]['resumes']})",
        "yes" if all(row["resume_exact"] for row in good) else "no",
        middle("anonymous_mb", ",.0f"),
        middle("import_seconds", ".1f"),
        middle("write_mb_per_second", ",.0f"),
        middle("bytes_per_base", ".3f"),
    )
    return median(rates), f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200_000_000, help="how many are written and read")
    parser.add_argument("--rounds", type=int, default=5, help="how often every peer is measured")
    parser.add_argument("--only", help=f"some of: {','.join(PEERS)}")
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-stream"), help="environments and data")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/stream.jsonl"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the results in FILE as Markdown, and no more")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)}")
    if options.tokens < CHECK_TOKENS:
        parser.error(f"--tokens must be at least {CHECK_TOKENS:,}")
    if options.task:
        work(options.task)
    elif options.table:
        print(table(json.loads(line) for line in options.table.read_text().splitlines()))
    else:
        bench(options.work, names, options.tokens, options.rounds, options.out)


if __name__ == "__main__":
    main()
