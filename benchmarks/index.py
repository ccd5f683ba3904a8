"""What opening a very large data set costs: an index of 10^5 shards and 10^13 tokens, without the shards.

usage: python benchmarks/index.py [--shards 100000] [--tokens 1e13] [--context 512]

The index is made of random digests in a temporary folder. A process of its own then opens it, and finds the windows at random
positions of random epochs: seconds, and memory before and after (anonymous memory, and all that is resident).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dnascale.data.shards import BLOCK_ROW, BLOCK_TOKENS, SHARD_ROW, Dataset, Index, Split, block_offset
from dnascale.vocab import CHARACTER


def write(folder: Path, shards: int, tokens: int) -> None:
    """A data set whose index says that it has `shards` shards of tokens / shards tokens each."""
    random = np.random.default_rng(0)
    each = tokens // shards
    blocks = -(-each // BLOCK_TOKENS)
    shard_rows = np.zeros(shards, dtype=SHARD_ROW)
    shard_rows["tokens"], shard_rows["blocks"], shard_rows["records"] = each, blocks, 1
    shard_rows["bytes"] = each + 512 * blocks + -each % 512 + 1024
    shard_rows["sha256"] = random.integers(0, 256, (shards, 32), dtype=np.uint8)
    block_rows = np.zeros(shards * blocks, dtype=BLOCK_ROW)
    block_rows["offset"] = np.tile([block_offset(k) for k in range(blocks)], shards)
    block_rows["tokens"] = np.tile([BLOCK_TOKENS] * (blocks - 1) + [each - (blocks - 1) * BLOCK_TOKENS], shards)
    block_rows["crc32"] = random.integers(0, 1 << 32, len(block_rows), dtype=np.uint32)
    index = Index("train/shard-%06d.tar", shard_rows, block_rows)
    split = Split(1, tokens - 1, shards * each, tokens - 1, 0, {}, index)
    Dataset(folder, "synthetic", "benchmark", CHARACTER, False, [], {}, {}, {}, {"train": split}).save(folder)


def measure(folder: Path, context: int) -> None:
    """Runs in a process of its own."""
    from dnascale.data.shards import load_dataset
    from dnascale.data.stream import Order, WindowReader

    before = memory()
    began = time.perf_counter()
    dataset = load_dataset(folder)
    loaded = time.perf_counter()
    reader = WindowReader(dataset, "train", context)
    order = Order(reader.grids(), seed=0)
    order.windows(np.zeros(1, dtype=np.int64))
    opened = time.perf_counter()
    split = dataset.split("train")
    print(f"{len(split.shards):,} shards, {len(split.shards.blocks):,} blocks, {split.tokens:,} tokens, "
          f"{order.epoch_windows:,} windows of {context} an epoch")  # fmt: skip
    print(f"index on disk                  {sum(f.stat().st_size for f in folder.rglob('*')) / 1e6:8.1f} MB")
    print(f"read and checked               {loaded - began:8.3f} s")
    print(f"first window found after       {opened - began:8.3f} s")
    rng = np.random.default_rng(1)
    positions = rng.integers(0, 3 * order.epoch_windows, 300)
    times = []
    for position in positions:
        began = time.perf_counter()
        order.windows(np.array([position]))
        times.append(time.perf_counter() - began)
    print(
        f"a random position, median      {np.median(times) * 1e6:8.0f} us   (of three epochs; worst {max(times) * 1e3:.1f} ms)"
    )
    began = time.perf_counter()
    order.windows(np.arange(1 << 15))
    print(f"32,768 positions               {(time.perf_counter() - began) * 1e3:8.1f} ms")
    after = memory()
    for name, what in (("RssAnon", "anonymous memory, grown by"), ("VmRSS", "resident memory, grown by")):
        print(f"{what:30} {(after[name] - before[name]) / 1e3:8.1f} MB")


def memory() -> dict[str, int]:
    """kB by name, from /proc (Linux)."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) for words in lines if words[0] in ("RssAnon:", "VmRSS:")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--tokens", type=float, default=1e13)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.context)
    else:
        with tempfile.TemporaryDirectory() as work:
            write(Path(work), asked.shards, int(asked.tokens))
            subprocess.run([sys.executable, __file__, "--measure", work, "--context", str(asked.context)], check=True)
