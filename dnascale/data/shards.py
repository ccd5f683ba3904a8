"""The data set on disk: `dataset.json`, an index of shards and blocks, and plain WebDataset tars that hold the tokens.

A split is described by two arrays, `shards.npy` (a row a tar file) and `blocks.npy` (a row a tar member), so that a
reader finds any token without parsing a tar and knows the checksum of whatever it reads. Of two layouts,

    blocks    what `dnascale prepare` writes: members of 2^20 tokens, separators included, at computed offsets
    records   tars that others made: one member a record, after each of which a separator is implied

docs/reference/format.md has every byte.
"""

import difflib
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np

from dnascale.data.cache import Lease
from dnascale.data.remote import RemoteFile, RemoteFolder, default_cache, is_remote
from dnascale.errors import DataError
from dnascale.files import json_digest, write_whole
from dnascale.vocab import Vocabulary, vocabulary_from_json

FORMAT = "dnascale-dataset"
VERSION = 1
BLOCK_TOKENS = 1 << 20
TAR_HEADER = 512
SHARD_NAME = "shard-%06d.tar"

SHARD_ROW = np.dtype([("bytes", "<u8"), ("tokens", "<u8"), ("records", "<u8"), ("blocks", "<u8"), ("sha256", "u1", 32)])
BLOCK_ROW = np.dtype([("offset", "<u8"), ("tokens", "<u4"), ("crc32", "<u4")])

#: Index files of more bytes are mapped, and not read into memory.
_MAPPED_FROM = 1 << 25

Layout = Literal["blocks", "records"]


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar file: where it is, how many tokens it holds, and the digests that prove its content."""

    name: str  # relative to the data set folder, e.g. train/shard-000000.tar; or an absolute path
    bytes: int
    sha256: str
    tokens: int
    records: int
    blocks: np.ndarray  # BLOCK_ROW [blocks]


@dataclass(frozen=True, eq=False)
class Index(Sequence[Shard]):
    """The shards of a split, as two arrays that are mapped and not parsed: a row a shard, a row a block."""

    names: str | tuple[str, ...]  # one for each shard, or a pattern such as train/shard-%06d.tar
    shards: np.ndarray  # SHARD_ROW [shards]
    blocks: np.ndarray  # BLOCK_ROW [blocks], in the order of shards

    @classmethod
    def of(cls, shards: Sequence[Shard], names: str | None = None) -> "Index":
        """An index of these shards; `names` is a pattern that gives the same names, if there is one."""
        rows = np.zeros(len(shards), dtype=SHARD_ROW)
        for row, shard in zip(rows, shards, strict=True):
            row["bytes"], row["tokens"], row["records"] = shard.bytes, shard.tokens, shard.records
            row["blocks"], row["sha256"] = len(shard.blocks), np.frombuffer(bytes.fromhex(shard.sha256), np.uint8)
        blocks = np.concatenate([shard.blocks for shard in shards]) if shards else np.zeros(0, dtype=BLOCK_ROW)
        return cls(names or tuple(shard.name for shard in shards), rows, blocks)

    @cached_property
    def tokens(self) -> np.ndarray:
        """int64 [shards]"""
        return self.shards["tokens"].astype(np.int64)

    @cached_property
    def first_block(self) -> np.ndarray:
        """int64 [shards + 1]: row of each shard's first block."""
        return np.concatenate([[0], np.cumsum(self.shards["blocks"].astype(np.int64))])

    def name(self, number: int) -> str:
        return self.names % number if isinstance(self.names, str) else self.names[number]

    def blocks_of(self, number: int) -> np.ndarray:
        """BLOCK_ROW [blocks of the shard]"""
        return self.blocks[self.first_block[number] : self.first_block[number + 1]]

    def file(self, number: int) -> RemoteFile:
        row = self.shards[number]
        return RemoteFile(self.name(number), int(row["bytes"]), row["sha256"].tobytes().hex())

    def __len__(self) -> int:
        return len(self.shards)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        row = self.shards[number]
        return Shard(
            self.name(number), int(row["bytes"]), row["sha256"].tobytes().hex(), int(row["tokens"]),
            int(row["records"]), self.blocks_of(number),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.files("") == other.files("") and self.names == other.names

    def files(self, split: str) -> dict[str, bytes]:
        """The index as files, by name: what is written, and what dataset.json has the digests of."""
        return {f"{split}/shards.npy": _npy(self.shards), f"{split}/blocks.npy": _npy(self.blocks)}


@dataclass(frozen=True)
class LocalFile:
    """The lease of a file that is here anyway."""

    path: Path

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(frozen=True)
class Split:
    """One of train, valid, test."""

    records: int
    bases: int
    tokens: int  # bases plus one separator a record
    longest_record: int
    soft_masked: int  # bases in lower case
    composition: dict[str, int]
    shards: Index


@dataclass(frozen=True)
class Dataset:
    """The content of `dataset.json` and its index, and where they were read from."""

    folder: Path  # of a remote data set, its mirror in the cache
    name: str
    created_by: str
    vocabulary: Vocabulary
    soft_mask_bit: bool
    sources: list[dict[str, Any]]
    options: dict[str, Any]
    cleaning: dict[str, Any]
    groups: dict[str, int]
    splits: dict[str, Split]
    block_tokens: int = BLOCK_TOKENS
    layout: Layout = "blocks"
    translate: bytes | None = None  # 256 token ids, one for each byte of a member; None: members hold ids
    splitting: dict[str, Any] = field(default_factory=dict)  # what prepare says of the splits
    remote: RemoteFolder | None = field(default=None, compare=False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary, the layout and every shard digest: two data sets train alike when it is equal."""
        digest = hashlib.sha256(self.vocabulary.digest.encode())
        digest.update(self.layout.encode() + (self.translate or b""))
        for name in sorted(self.splits):
            index = self.splits[name].shards
            digest.update(name.encode() + index.shards["sha256"].tobytes())
            if self.layout == "records":  # which of a tar's members are the sequences
                digest.update(index.blocks.tobytes())
        return digest.hexdigest()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of stored tokens."""
        return self.vocabulary.dtype

    @property
    def location(self) -> str:
        """Folder or URL, for messages."""
        return self.remote.url if self.remote else str(self.folder)

    def split(self, name: str) -> Split:
        """Raises DataError when the data set has no such split."""
        if name not in self.splits:
            if near := difflib.get_close_matches(name, self.splits, n=1):
                raise DataError(f"{self.location} has no split '{name}' (did you mean '{near[0]}'?).")
            if name not in ("valid", "test"):
                raise DataError(f"{self.location} has no split '{name}', it has: {', '.join(self.splits)}.")
            how = f"prepare the data with --{name} SHARE" if self.layout == "blocks" else f"index it with --{name} TARS"
            raise DataError(f"{self.location} has no split '{name}', it has: {', '.join(self.splits)}; {how}.")
        return self.splits[name]

    def lease(self, file: RemoteFile) -> "Lease | LocalFile":
        """The file's local path, which stays until the lease is closed; a remote file is downloaded and checked first."""
        return self.remote.lease(file) if self.remote else LocalFile(self.folder / file.name)

    def to_json(self) -> str:
        body = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "created_by": self.created_by,
            "dtype": self.dtype.name,
            "vocabulary": self.vocabulary.to_json(),
            "separator": self.vocabulary.sep,
            "layout": self.layout,
            "block_tokens": self.block_tokens,
            "translate": self.translate.hex() if self.translate else None,
            "soft_mask_bit": 8 * self.dtype.itemsize - 1 if self.soft_mask_bit else None,
            "sources": self.sources,
            "options": self.options,
            "cleaning": self.cleaning,
            "groups": self.groups,
            "splitting": self.splitting,
            "splits": {name: _split_to_json(name, split) for name, split in self.splits.items()},
            "fingerprint": self.fingerprint,
        }
        return json.dumps(body | {"sha256": json_digest(body)}, indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Writes the index and then `dataset.json` into `folder`, where the shards are. Who has mapped old ones keeps them."""
        for name, split in self.splits.items():
            for file, content in split.shards.files(name).items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                write_whole(folder / file, content)
        write_whole(folder / "dataset.json", self.to_json().encode())


def load_dataset(location: str | Path, cache: Path | None = None, cache_limit: int | None = None) -> Dataset:
    """Reads `dataset.json` and the index, from a folder or a URL, and compares them with their digests.

    The files of a URL go through `cache` (default: the user's), which is kept under `cache_limit` bytes. Raises DataError
    when something is missing, damaged or of a newer format.
    """
    if is_remote(str(location)):
        remote = RemoteFolder(str(location), cache or default_cache(), cache_limit)
        with remote.lease(RemoteFile("dataset.json", None, None)) as lease:
            return _parse(lease.path, remote)
    folder = Path(location)
    path = folder / "dataset.json"
    make = "Make one with `dnascale prepare SOURCE --out DATA`, or of tars with `dnascale data index TARS --out DATA`."
    if not folder.is_dir():
        raise DataError(f"{folder}: no such data set folder. {make}")
    if (folder / "mixture.yaml").is_file():
        raise DataError(f"{folder} is a mixture of data sets, each in a folder of its own: name one of these folders.")
    if not path.is_file():
        raise DataError(f"{path} is missing: {folder} is not a finished data set. {make}")
    return _parse(path, None)


def block_offset(block: Any, block_tokens: int = BLOCK_TOKENS, token_bytes: int = 1) -> Any:
    """Byte offset of a block's first token in a tar of layout `blocks`, of one block (int) or many (int64 [n])."""
    return block * (block_tokens * token_bytes + TAR_HEADER) + TAR_HEADER


def _parse(path: Path, remote: RemoteFolder | None) -> Dataset:
    where = f"{remote.url}/dataset.json" if remote else str(path)
    again = "Copy it again, or prepare the data again."
    try:
        body = json.loads(path.read_bytes())
        if body.get("format") != FORMAT:
            raise DataError(f"{where} is not a dnascale data set (format {body.get('format')!r}).")
        if body["version"] > VERSION:
            raise DataError(
                f"{where} has format version {body['version']}, this dnascale reads up to {VERSION}: upgrade dnascale."
            )
        if body.pop("sha256") != json_digest(body):
            raise DataError(f"{where} does not match its own digest: it was edited or damaged. {again}")
        vocabulary = vocabulary_from_json(body["vocabulary"], where)
        if body["dtype"] != vocabulary.dtype.name:
            raise DataError(
                f"{where} says dtype {body['dtype']!r}, its vocabulary needs {vocabulary.dtype.name}. {again}"
            )
        dataset = Dataset(
            folder=path.parent,
            name=body["name"],
            created_by=body["created_by"],
            vocabulary=vocabulary,
            soft_mask_bit=body["soft_mask_bit"] is not None,
            sources=body["sources"],
            options=body["options"],
            cleaning=body["cleaning"],
            groups=body["groups"],
            splitting=body.get("splitting", {}),
            splits={},
            block_tokens=body["block_tokens"],
            layout=body["layout"],
            translate=bytes.fromhex(body["translate"]) if body["translate"] else None,
            remote=remote,
        )
        for name, split in body["splits"].items():
            index = split.pop("index")
            rows = {what: _load_rows(dataset, **index[what]) for what in ("shards", "blocks")}
            names = index["names"] if isinstance(index["names"], str) else tuple(index["names"])
            if isinstance(names, tuple) and len(names) != len(rows["shards"]):
                raise ValueError(f"{len(names)} names of {len(rows['shards'])} shards of split '{name}'")
            dataset.splits[name] = Split(**split, shards=Index(names, rows["shards"], rows["blocks"]))
        if dataset.fingerprint != body["fingerprint"]:
            raise DataError(f"{where} and the index beside it do not belong together (another fingerprint). {again}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is damaged ({type(error).__name__}: {error}). {again}") from error
    return dataset


def _load_rows(dataset: Dataset, file: str, bytes: int, sha256: str) -> np.ndarray:
    """A mapped array of the index. Raises DataError when it is missing or is not what dataset.json says."""
    wanted = RemoteFile(file, bytes, sha256)
    lease = dataset.lease(wanted)
    found = _digest_of(lease.path)
    if found != sha256 and dataset.remote is not None:  # of a copy in the cache
        lease.close()
        dataset.remote.reject(wanted)
        lease = dataset.lease(wanted)
        found = _digest_of(lease.path)
    if found != sha256:
        raise DataError(
            f"{lease.path} does not match its digest in dataset.json: it is damaged. Copy it again, or prepare the data "
            "again."
        )
    # What is mapped stays, also if the cache drops the file; but it must not be cut off, and most are small.
    rows = np.load(lease.path, mmap_mode="r" if bytes > _MAPPED_FROM else None)
    lease.close()
    return cast(np.ndarray, rows)


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; dataset.json beside it lists it. Copy it again, or prepare the data again."
        ) from None


def _split_to_json(name: str, split: Split) -> dict[str, Any]:
    index: dict[str, Any] = {"names": split.shards.names}
    for what, (file, content) in zip(("shards", "blocks"), split.shards.files(name).items(), strict=True):
        index[what] = {"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {
        "records": split.records,
        "bases": split.bases,
        "tokens": split.tokens,
        "longest_record": split.longest_record,
        "soft_masked": split.soft_masked,
        "composition": split.composition,
        "index": index,
    }


def _npy(rows: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(rows), version=(1, 0), allow_pickle=False)
    return out.getvalue()
