"""Whatever byte of a data set is changed or lost, training reads the right tokens or an error: never others, and no crash."""

import faulthandler
import hashlib
import io
import json
import random
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnascale.data.order import Windows
from dnascale.data.read import WindowReader
from dnascale.data.shards import BLOCK_ROW, Dataset, Index, Shard, Split, load_dataset
from dnascale.data.writer import ShardWriter
from dnascale.errors import DataError
from dnascale.vocab import CHARACTER

pytestmark = pytest.mark.faults

BLOCK = 512  # tokens; the smallest whole number of tar blocks
CONTEXT = 24
TRIALS = 10_000
#: What was done to which bytes, and what came of it.
Outcomes = dict[tuple[str, str], int]


def of_blocks(folder: Path) -> np.ndarray:
    """A data set of two shards, of two blocks and of one and a short one; returns its stream, uint8 [tokens]."""
    stream = np.random.default_rng(0).integers(0, 5, 3 * BLOCK + 200, dtype=np.uint8)
    stream[[0, 77, 500, 1024, 1300, -1]] = CHARACTER.sep
    with ShardWriter(folder, "train", block_tokens=BLOCK, shard_blocks=2) as writer:
        writer.write(stream[: writer.room])
        writer.write(stream[writer.room :])
        save(folder, writer.index())
    return stream


def of_records(folder: Path) -> np.ndarray:
    """The same for tars that others made, of letters: two shards, a record in each of their blocks."""
    rng = np.random.default_rng(1)
    shards, stream = [], []
    for name, lengths in {"a.tar": (100, 700, 1), "b.tar": (512, 47)}.items():
        letters = [bytes(rng.choice(list(b"ACGTNacgt"), length).tolist()) for length in lengths]
        with tarfile.open(folder / name, "w") as tar:
            for number, content in enumerate(letters):
                member = tarfile.TarInfo(f"{number}.seq")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        with tarfile.open(folder / name) as tar:
            offsets = [member.offset_data for member in tar]
        rows = [(at, len(content), zlib.crc32(content)) for at, content in zip(offsets, letters, strict=True)]
        content = (folder / name).read_bytes()
        tokens = sum(lengths) + len(lengths)
        digest = hashlib.sha256(content).hexdigest()
        shards.append(Shard(name, len(content), digest, tokens, len(rows), np.array(rows, dtype=BLOCK_ROW)))
        stream += [part.translate(CHARACTER.byte_table) + bytes([CHARACTER.sep]) for part in letters]
    save(folder, Index.of(shards), layout="records", translate=CHARACTER.byte_table)
    return np.frombuffer(b"".join(stream), dtype=np.uint8)


def save(folder: Path, index: Index, **more: Any) -> None:
    split = Split(0, 0, int(index.tokens.sum()), 0, 0, {}, index)
    (folder / "train").mkdir(exist_ok=True)
    Dataset(folder, "tiny", "a test", CHARACTER, False, [], {}, {}, {}, {"train": split}, BLOCK, **more).save(folder)


@dataclass
class Sample:
    """A data set that is damaged and restored, beside another one that stays as it is."""

    folder: Path
    other: Dataset
    windows: Windows  # all there are, of both
    tokens: torch.Tensor  # uint8 [windows, CONTEXT], what is right

    @classmethod
    def of(cls, folders: list[Path], streams: list[np.ndarray]) -> "Sample":
        """The first folder is the one to be damaged."""
        rows: list[np.ndarray] = []
        shards: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        for folder, stream in zip(folders, streams, strict=True):
            sizes = load_dataset(folder).split("train").shards.tokens
            for part in np.split(stream, np.cumsum(sizes)[:-1]):
                rows.append(np.lib.stride_tricks.sliding_window_view(part, CONTEXT))
                starts.append(np.arange(len(rows[-1])))
                shards.append(np.full(len(rows[-1]), len(shards)))
        shard, start = np.concatenate(shards), np.concatenate(starts)
        windows = Windows(np.zeros_like(shard), shard, start, np.arange(len(shard)))
        return cls(folders[0], load_dataset(folders[1]), windows, torch.from_numpy(np.concatenate(rows)))

    def reader(self) -> WindowReader:
        return WindowReader([load_dataset(self.folder), self.other], "train", CONTEXT)

    def is_right(self, reader: WindowReader) -> bool:
        return torch.equal(reader.read(self.windows), self.tokens)

    def outcome(self) -> str:
        """What a new process would get: "right", "wrong", or "refused" by an error that names the data set."""
        try:
            return "right" if self.is_right(self.reader()) else "wrong"
        except DataError as error:
            return "refused" if str(self.folder) in str(error) else f"refused without a place: {error}"

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def tokens_in(self, file: Path) -> np.ndarray:
        """Whether a byte of the file is a token, bool [bytes]."""
        inside = np.zeros(file.stat().st_size, dtype=bool)
        for shard in load_dataset(self.folder).split("train").shards:
            for begin, tokens, _ in shard.blocks.tolist():
                inside[begin : begin + tokens] |= self.folder / shard.name == file
        return inside


@contextmanager
def damaged(file: Path, place: int, xor: int) -> Iterator[bytes]:
    """The file with another byte at `place`, for a while; with `xor` 0, cut off there. Gives what is then its content."""
    good = file.read_bytes()
    changed = good[:place] + bytes([good[place] ^ xor]) + good[place + 1 :] if xor else good[:place]
    with file.open("r+b", buffering=0) as opened:  # written in place, which is faster than anew
        opened.write(changed)
        opened.truncate()
        try:
            yield changed
        finally:
            opened.seek(0)
            opened.write(good)


def both_ways(folder: Path) -> list[Sample]:
    folders = [folder / "blocks", folder / "records"]
    folders[1].mkdir(parents=True)
    streams = [of_blocks(folders[0]), of_records(folders[1])]
    return [Sample.of(folders, streams), Sample.of(folders[::-1], streams[::-1])]


# --- what runs in a process of its own ---


def damage_everywhere(folder: Path) -> Outcomes:
    """A change of every byte of `dataset.json`, the index, and all tokens; then 10,000 changes and cuts of any file."""
    faulthandler.enable()
    draw = random.Random(0)
    samples = both_ways(folder)
    files = [(sample, file) for sample in samples for file in sample.files()]
    tokens = {file: sample.tokens_in(file) for sample, file in files}
    trials: list[tuple[Sample, Path, int, int]] = []  # place, and XOR of the byte
    for sample, file in files:
        every = np.flatnonzero(tokens[file]) if file.suffix == ".tar" else np.arange(len(tokens[file]))
        trials += [(sample, file, place, draw.randrange(1, 256)) for place in every.tolist()]
    for _ in range(TRIALS):
        sample, file = draw.choice(files)
        xor = draw.choice((0, draw.randrange(1, 256)))
        trials.append((sample, file, draw.randrange(len(tokens[file])), xor))
    outcomes: Outcomes = Counter()
    with (folder / "trial").open("wb", buffering=0) as log:
        for sample, file, place, xor in trials:
            log.seek(0)
            log.write(f"{file}: byte {place} xor {xor}".ljust(500).encode())
            with damaged(file, place, xor) as content:
                outcome = sample.outcome()
            if outcome == "right" and file.suffix == ".json":
                assert json.loads(content) == json.loads(file.read_bytes())
            what = "cut off" if not xor else "token" if tokens[file][place] else "changed"
            outcomes[f"{file.suffix}: {what}", outcome] += 1
    assert [sample.outcome() for sample in samples] == ["right", "right"]
    return dict(outcomes)


def cut_while_mapped(folder: Path) -> Outcomes:
    """Shards that become shorter after they have been read."""
    faulthandler.enable()
    outcomes: Outcomes = Counter()
    for sample in both_ways(folder):
        for file in sample.files():
            if file.suffix == ".tar":
                size = file.stat().st_size
                for left in (*range(0, size, size // 16), size - 1):
                    reader = sample.reader()
                    assert sample.is_right(reader)
                    with damaged(file, left, xor=0):
                        try:
                            outcomes["cut off", "right" if sample.is_right(reader) else "wrong"] += 1
                        except DataError:
                            outcomes["cut off", "refused"] += 1
    return dict(outcomes)


def alone(work: Callable[[Path], Outcomes], folder: Path) -> Outcomes:
    """Runs `work` where a crash ends no more than it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(work, folder).result()
        except BrokenProcessPool:
            trial = folder / "trial"
            pytest.fail(f"the process was killed ({trial.read_text() if trial.exists() else 'at once'})")


# --- the tests ---


def test_ten_thousand_kinds_of_damage_are_refused_or_do_no_harm(tmp_path: Path) -> None:
    outcomes = alone(damage_everywhere, tmp_path)
    print(outcomes)
    assert {outcome for _, outcome in outcomes} == {"refused", "right"}
    # Headers and padding, which nobody reads; one white space for another; the line end of dataset.json.
    assert {what for what, outcome in outcomes if outcome == "right"} <= {
        ".tar: changed",
        ".json: changed",
        ".json: cut off",
    }
    assert (".tar: changed", "refused") not in outcomes
    assert outcomes[".tar: token", "refused"] > 3000
    assert sum(outcomes.values()) > TRIALS + 7000


def test_shards_that_become_shorter_while_they_are_mapped_are_refused(tmp_path: Path) -> None:
    outcomes = alone(cut_while_mapped, tmp_path)
    assert {outcome for _, outcome in outcomes} == {"refused"}
