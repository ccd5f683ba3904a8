"""The readers that benchmarks/stream.py compares: how each writes a token stream, and reads shuffled batches of windows.

Libraries are imported where they are used, since no environment has them all. Each peer is used through its public
interface, in the fastest way of those tried, in one process, without workers.
"""

import importlib
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

BATCH = 64
BLOCK = 1 << 20
SHARD_BYTES = 64 << 20


class Peer:
    """One reader, from opening its files on. It is asked for an epoch, and along the way for its state."""

    environment: ClassVar[str] = "peers"
    package: ClassVar[str] = "numpy"  # the distribution whose version is reported
    modules: ClassVar[tuple[str, ...]] = ()
    resumes: ClassVar[Literal["index", "state", "replay"]] = "index"
    any_length: ClassVar[bool] = False  # whether one copy of the data serves all window lengths
    strays: ClassVar[int] = 0  # windows of an epoch that may be missing or overlap
    variants: ClassVar[tuple[Any, ...]] = (None,)  # ways to read the same files; the fastest counts

    def __init__(self, folder: Path, length: int, variant: Any = None) -> None:
        self.folder, self.length, self.variant = folder, length, variant

    @classmethod
    def load(cls) -> None:
        """Imports the library."""
        for module in cls.modules:
            importlib.import_module(module)

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        """Stores uint8 [n] in an empty folder."""
        raise NotImplementedError

    def epoch(self, number: int, state: Any = None) -> Iterator[np.ndarray]:
        """The batches of an epoch, uint8 [64, length]; those after `state`, if it is given. One may reuse another's memory."""
        raise NotImplementedError

    def state(self, done: int) -> Any:
        """What `epoch` needs to continue after `done` batches."""
        return done


def write_flat(tokens: np.ndarray, folder: Path, length: int) -> None:
    tokens.tofile(folder / "tokens.bin")


def map_flat(folder: Path, length: int) -> np.ndarray:
    """uint8 [windows, length]"""
    return np.memmap(folder / "tokens.bin", dtype=np.uint8, mode="r").reshape(-1, length)


class Raw(Peer):
    """The limit: rows of a mapped file, gathered in random order into the same memory again and again."""

    environment = "main"
    any_length = True
    variants = (0, 4 << 20)  # bytes gathered at once, but no less than a batch
    write = staticmethod(write_flat)

    def __init__(self, folder: Path, length: int, variant: Any = None) -> None:
        super().__init__(folder, length, variant)
        self.rows = map_flat(folder, length)

    def epoch(self, number: int, state: int | None = None) -> Iterator[np.ndarray]:
        order = np.random.default_rng(number).permutation(len(self.rows))
        chunk = max(BATCH, self.variant // self.length)
        out = np.empty((chunk, self.length), dtype=np.uint8)
        for begin in range((state or 0) * BATCH, len(order), chunk):
            index = order[begin : begin + chunk]
            np.take(self.rows, index, axis=0, out=out[: len(index)], mode="clip")
            for row in range(0, len(index), BATCH):
                yield out[row : row + BATCH]


class Dnascale(Peer):
    """This package: a training stream over its own shards."""

    environment = "main"
    package = "dnascale"
    modules = ("dnascale.data.stream",)
    resumes = "state"
    any_length = True
    strays = 4  # the grid of windows shifts in each epoch, and the last batch goes on in the next one

    def __init__(self, folder: Path, length: int, variant: Any = None) -> None:
        from dnascale.data.stream import TrainStream

        super().__init__(folder, length, variant)
        self.stream = TrainStream.open(folder, length, BATCH)

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        from dnascale.data.shards import Dataset, Split
        from dnascale.data.writer import ShardWriter
        from dnascale.vocab import CHARACTER

        with ShardWriter(folder, "train") as writer:
            left = tokens
            while len(left):
                piece, left = left[: writer.room], left[writer.room :]
                writer.write(piece)
            split = Split(1, len(tokens), len(tokens), len(tokens), 0, {}, writer.index())
        Dataset(folder, "benchmark", "benchmark", CHARACTER, False, [], {}, {}, {}, {"train": split}).save(folder)

    def epoch(self, number: int, state: Any = None) -> Iterator[np.ndarray]:
        if state:
            self.stream.load_state_dict(state)
        elif self.stream.epoch != number:
            self.stream.set_epoch(number)
        for batch in self.stream:
            yield batch.tokens.numpy()

    def state(self, done: int) -> Any:
        return self.stream.state_dict()


class DnascaleOneThread(Dnascale):
    """The same with one thread of PyTorch, as `torchrun` sets it."""

    @classmethod
    def load(cls) -> None:
        import torch

        super().load()
        torch.set_num_threads(1)


class WebDataset(Peer):
    """A tar member for each window, a shuffle buffer of 1,000."""

    package = "webdataset"
    modules = ("webdataset",)
    resumes = "replay"

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        import webdataset

        # Without `mtime` each member gets a second header for the fraction of a second: 2 bytes more a base at 512.
        limits = {"maxcount": 1 << 40, "maxsize": SHARD_BYTES}
        with webdataset.ShardWriter(f"{folder}/%06d.tar", mtime=0, verbose=0, **limits) as writer:
            for number, row in enumerate(tokens[i : i + length] for i in range(0, len(tokens), length)):
                writer.write({"__key__": f"{number:09d}", "bin": row.tobytes()})

    def samples(self, epoch: int) -> Any:
        import webdataset

        shards = sorted(map(str, self.folder.glob("*.tar")))
        return webdataset.WebDataset(shards, shardshuffle=len(shards), seed=epoch)

    def epoch(self, number: int, state: int | None = None) -> Iterator[np.ndarray]:
        windows = self.samples(number).shuffle(1000, seed=number).slice((state or 0) * BATCH, None)
        yield from windows.map(_bytes_of).batched(BATCH, collation_fn=np.stack)


def _bytes_of(sample: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(sample["bin"], dtype=np.uint8)


class WebDatasetBlocks(WebDataset):
    """A tar member for each MiB; the windows of 16 members at a time are shuffled."""

    any_length = True
    pool = 16

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        WebDataset.write(tokens, folder, BLOCK)

    def epoch(self, number: int, state: int | None = None) -> Iterator[np.ndarray]:
        first, row = divmod((state or 0) * BATCH, self.pool * BLOCK // self.length)
        blocks = iter(self.samples(number).slice(first * self.pool, None).map(_bytes_of))
        for turn in count(first):
            pool = list(islice(blocks, self.pool))
            if not pool:
                return
            rows = np.concatenate(pool).reshape(-1, self.length)
            order = np.random.default_rng((number, turn)).permutation(len(rows))
            for begin in range(row, len(order), BATCH):
                yield np.take(rows, order[begin : begin + BATCH], axis=0)
            row = 0


class Mosaic(Peer):
    """MDS shards of one uint8 array a sample, order py1e."""

    environment = "mosaic"
    package = "mosaicml-streaming"
    modules = ("streaming",)
    resumes = "state"
    operators: ClassVar[Any] = None

    @classmethod
    def load(cls) -> None:
        import torch

        try:
            import torchvision  # noqa: F401
        except RuntimeError:  # its wheel on PyPI is for CUDA; without, it misses operators that nothing here calls
            cls.operators = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                cls.operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        super().load()

    def __init__(self, folder: Path, length: int, variant: Any = None) -> None:
        from streaming import StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        super().__init__(folder, length, variant)
        clean_stale_shared_memory()
        dataset = StreamingDataset(local=str(folder), shuffle=True, shuffle_algo="py1e", batch_size=BATCH)
        # A batch must be a dict: of anything else the loader takes the length of the first row for the number of samples.
        self.loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=_stack_tokens)

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        from streaming import MDSWriter

        columns = {"tokens": f"ndarray:uint8:{length}"}
        with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
            for begin in range(0, len(tokens), length):
                writer.write({"tokens": tokens[begin : begin + length]})

    def epoch(self, number: int, state: Any = None) -> Iterator[np.ndarray]:
        if state:
            self.loader.load_state_dict(state)
        for batch in self.loader:
            yield batch["tokens"]

    def state(self, done: int) -> Any:
        return self.loader.state_dict()


def _stack_tokens(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {"tokens": np.stack([sample["tokens"] for sample in samples])}


class LitData(Peer):
    """An array for each window, litdata's own loader."""

    package = "litdata"
    modules = ("litdata",)
    resumes = "state"

    def __init__(self, folder: Path, length: int, variant: Any = None) -> None:
        import litdata

        super().__init__(folder, length, variant)
        dataset = litdata.StreamingDataset(str(folder), shuffle=True, item_loader=self.item_loader(length))
        self.loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=np.stack)

    @staticmethod
    def item_loader(length: int | None) -> Any:
        return None

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        _optimize(tokens, folder, length, None)

    def epoch(self, number: int, state: Any = None) -> Iterator[np.ndarray]:
        if state:
            self.loader.load_state_dict(state)
        yield from self.loader

    def state(self, done: int) -> Any:
        return self.loader.state_dict()


def _optimize(tokens: np.ndarray, folder: Path, item: int, item_loader: Any) -> None:
    """litdata's writer, in the one process that it insists on starting. Each item is `item` tokens."""
    import litdata
    import torch

    def items(begin: int) -> Iterator[Any]:
        for at in range(begin, min(begin + BLOCK, len(tokens)), item):
            values = tokens[at : at + item]
            yield torch.from_numpy(values) if item_loader else values

    litdata.optimize(
        items, list(range(0, len(tokens), BLOCK)), str(folder), chunk_bytes=SHARD_BYTES, num_workers=1,
        item_loader=item_loader, start_method="fork", verbose=False,
    )  # fmt: skip


class LitDataTokens(LitData):
    """The same with its loader of token streams, which cuts windows when they are read."""

    any_length = True

    @staticmethod
    def item_loader(length: int | None) -> Any:
        import litdata

        return litdata.TokensLoader(block_size=length)

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        _optimize(tokens, folder, BLOCK, LitDataTokens.item_loader(None))


class Datasets(Peer):
    """Hugging Face datasets, Arrow files, rows by index."""

    package = "datasets"
    modules = ("datasets",)
    variants = ("numpy", "arrow")  # the format that rows are asked for in

    def __init__(self, folder: Path, length: int, variant: Any = None) -> None:
        import datasets

        super().__init__(folder, length, variant)
        options = {"dtype": np.uint8} if variant == "numpy" else {}
        self.rows = datasets.load_from_disk(folder).with_format(variant, **options)

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        import datasets
        import pyarrow

        windows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(tokens), length)
        datasets.Dataset(pyarrow.table({"tokens": windows})).save_to_disk(folder, max_shard_size=SHARD_BYTES)

    def epoch(self, number: int, state: int | None = None) -> Iterator[np.ndarray]:
        order = np.random.default_rng(number).permutation(len(self.rows))
        for begin in range((state or 0) * BATCH, len(order), BATCH):
            tokens = self.rows[order[begin : begin + BATCH]]["tokens"]
            yield tokens if self.variant == "numpy" else _array_of(tokens, self.length)


def _array_of(column: Any, length: int) -> np.ndarray:
    """An Arrow column of lists -> uint8 [rows, length]"""
    tokens: np.ndarray = column.combine_chunks().flatten().to_numpy().reshape(-1, length)
    return tokens


class DatasetsIterable(Peer):
    """The same files as a stream, a shuffle buffer of 1,000."""

    package = "datasets"
    modules = ("datasets",)
    resumes = "state"
    write = staticmethod(Datasets.write)

    def __init__(self, folder: Path, length: int, variant: Any = None) -> None:
        import datasets

        super().__init__(folder, length, variant)
        files = sorted(map(str, folder.glob("data-*.arrow")))
        self.files = datasets.load_dataset("arrow", data_files=files, split="train", streaming=True)

    def epoch(self, number: int, state: Any = None) -> Iterator[np.ndarray]:
        self.stream = self.files.shuffle(seed=number, buffer_size=1000).with_format("arrow")
        if state:
            self.stream.load_state_dict(state)
        for batch in self.stream.iter(BATCH):
            yield _array_of(batch["tokens"], self.length)

    def state(self, done: int) -> Any:
        return self.stream.state_dict()


class Grain(Peer):
    """Grain over a mapped flat file, an element at a time."""

    package = "grain"
    modules = ("grain",)
    resumes = "state"
    any_length = True
    write = staticmethod(write_flat)

    def __init__(self, folder: Path, length: int, variant: Any = None) -> None:
        super().__init__(folder, length, variant)
        self.source = self.open()

    def open(self) -> Any:
        return map_flat(self.folder, self.length)

    def epoch(self, number: int, state: Any = None) -> Iterator[np.ndarray]:
        import grain

        batches = grain.MapDataset.source(self.source).shuffle(seed=number).batch(BATCH, batch_fn=self.stack)
        self.iterator = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        if state:
            self.iterator.set_state(state)
        yield from self.iterator

    def state(self, done: int) -> Any:
        return self.iterator.get_state()

    @staticmethod
    def stack(elements: Any) -> np.ndarray:
        return np.stack(elements)


class GrainArrayRecord(Grain):
    """Grain over ArrayRecord, its own format."""

    any_length = False

    @staticmethod
    def write(tokens: np.ndarray, folder: Path, length: int) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(folder / "tokens.array_record"), "group_size:1,uncompressed")
        for begin in range(0, len(tokens), length):
            writer.write(tokens[begin : begin + length].tobytes())
        writer.close()

    def open(self) -> Any:
        import grain

        return grain.sources.ArrayRecordDataSource(str(self.folder / "tokens.array_record"))

    @staticmethod
    def stack(elements: Any) -> np.ndarray:
        return np.stack([np.frombuffer(element, dtype=np.uint8) for element in elements])


PEERS: dict[str, type[Peer]] = {
    "raw": Raw,
    "dnascale": Dnascale,
    "dnascale-1-thread": DnascaleOneThread,
    "webdataset": WebDataset,
    "webdataset-blocks": WebDatasetBlocks,
    "mosaicml-streaming": Mosaic,
    "litdata": LitData,
    "litdata-tokens": LitDataTokens,
    "datasets": Datasets,
    "datasets-iterable": DatasetsIterable,
    "grain": Grain,
    "grain-arrayrecord": GrainArrayRecord,
}
