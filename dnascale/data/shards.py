"""The data set on disk: plain WebDataset tar shards of token blocks, and `dataset.json` that describes them.

A shard is an uncompressed USTAR file whose members hold 2^20 tokens each (the last may hold fewer), one
byte a token. Every member is 512 bytes of header and its tokens, so block k starts at k * (2^20 + 512) + 512
and the file is read by mapping it; nothing parses the tar. docs/reference/format.md has every byte.
"""

import hashlib
import json
import tarfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.errors import DataError
from dnascale.files import json_digest
from dnascale.vocab import SOFT_MASK_BIT, Vocabulary

FORMAT = "dnascale-dataset"
VERSION = 1
BLOCK_TOKENS = 1 << 20
SHARD_BLOCKS = 128
_TAR_HEADER = 512


@dataclass(frozen=True)
class Shard:
    """One tar file: where it is, how many tokens it holds, and the digests that prove its content."""

    name: str  # relative to the data set folder, e.g. train/shard-000000.tar
    bytes: int
    sha256: str
    tokens: int
    records: int
    crc32: list[int]  # zlib.crc32 of each block's tokens


@dataclass(frozen=True)
class Split:
    """One of train, valid, test."""

    records: int
    bases: int
    tokens: int  # bases plus one separator a record
    longest_record: int
    soft_masked: int  # bases in lower case
    composition: dict[str, int]
    shards: list[Shard]


@dataclass(frozen=True)
class Dataset:
    """The content of `dataset.json`, and the folder it was read from."""

    folder: Path
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
    fingerprint: str = ""

    def split(self, name: str) -> Split:
        """Raises DataError when the data set has no such split."""
        if name not in self.splits:
            raise DataError(
                f"{self.folder} has no split '{name}', it has: {', '.join(self.splits)}; prepare the data with --{name} SHARE."
            )
        return self.splits[name]

    def to_json(self) -> str:
        body = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "created_by": self.created_by,
            "dtype": "uint8",
            "vocabulary": {
                "name": self.vocabulary.name,
                "tokens": list(self.vocabulary.tokens),
                "bases": self.vocabulary.bases,
                "sha256": self.vocabulary.digest,
            },
            "separator": self.vocabulary.sep,
            "block_tokens": self.block_tokens,
            "soft_mask_bit": 7 if self.soft_mask_bit else None,
            "sources": self.sources,
            "options": self.options,
            "cleaning": self.cleaning,
            "groups": self.groups,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "fingerprint": fingerprint(self.vocabulary, self.splits),
        }
        return json.dumps(body | {"sha256": json_digest(body)}, indent=1) + "\n"


def fingerprint(vocabulary: Vocabulary, splits: dict[str, Split]) -> str:
    """SHA-256 over the vocabulary and every shard digest: two data sets train alike exactly when it is equal."""
    digest = hashlib.sha256(vocabulary.digest.encode())
    for name in sorted(splits):
        digest.update(name.encode())
        for shard in splits[name].shards:
            digest.update(shard.sha256.encode())
    return digest.hexdigest()


def load_dataset(folder: Path) -> Dataset:
    """Reads `dataset.json`. Raises DataError when it is missing, damaged or of a newer format."""
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such data set folder. Make one with: dnascale prepare SOURCE --out {folder}")
    if not path.is_file():
        raise DataError(f"{path} is missing: {folder} is not a finished data set (dnascale prepare writes it last).")
    try:
        body = json.loads(path.read_text())
        if body.get("format") != FORMAT:
            raise DataError(f"{path} is not a dnascale data set (format {body.get('format')!r}).")
        if body["version"] > VERSION:
            raise DataError(
                f"{path} has format version {body['version']}, this dnascale reads up to {VERSION}: upgrade dnascale."
            )
        if body.pop("sha256") != json_digest(body):
            raise DataError(
                f"{path} does not match its own digest: it was edited or damaged. Restore it, or prepare the data again."
            )
        vocabulary = Vocabulary(
            body["vocabulary"]["name"], tuple(body["vocabulary"]["tokens"]), body["vocabulary"]["bases"]
        )
        splits = {
            name: Split(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
            for name, split in body["splits"].items()
        }
        dataset = Dataset(
            folder=folder,
            name=body["name"],
            created_by=body["created_by"],
            vocabulary=vocabulary,
            soft_mask_bit=body["soft_mask_bit"] is not None,
            sources=body["sources"],
            options=body["options"],
            cleaning=body["cleaning"],
            groups=body["groups"],
            splits=splits,
            block_tokens=body["block_tokens"],
            fingerprint=body["fingerprint"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}). Restore it, or prepare the data again."
        ) from error
    return dataset


def block_offset(block: int, block_tokens: int = BLOCK_TOKENS) -> int:
    """Byte offset of a block's first token in its tar file."""
    return block * (block_tokens + _TAR_HEADER) + _TAR_HEADER


class ShardReader:
    """The token stream of one shard, read from the mapped file.

    The size is checked here, because a mapped file that is too short kills the process on access.
    Raises DataError for a missing file or another size.
    """

    def __init__(self, dataset: Dataset, shard: Shard) -> None:
        self.path = dataset.folder / shard.name
        self.info = shard
        self.block_tokens = dataset.block_tokens
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            raise DataError(f"{self.path} is missing; {dataset.folder}/dataset.json lists it.") from None
        if size != shard.bytes:
            raise DataError(
                f"{self.path} has {size:,} bytes, dataset.json says {shard.bytes:,}: the copy is incomplete or changed."
            )
        self._file = np.memmap(self.path, dtype=np.uint8, mode="r")

    def read(self, start: int, out: np.ndarray) -> None:
        """Copies tokens [start, start + len(out)) of the stream into `out` (uint8 [n])."""
        done = 0
        while done < len(out):
            block, offset = divmod(start + done, self.block_tokens)
            length = min(len(out) - done, self.block_tokens - offset)
            at = block_offset(block, self.block_tokens) + offset
            out[done : done + length] = self._file[at : at + length]
            done += length

    def tokens(self) -> np.ndarray:
        """The whole stream, uint8 [tokens]."""
        out = np.empty(self.info.tokens, dtype=np.uint8)
        self.read(0, out)
        return out

    def verify(self) -> None:
        """Compares every block with its checksum. Raises DataError naming shard, block and byte range."""
        for block, expected in enumerate(self.info.crc32):
            at = block_offset(block, self.block_tokens)
            length = min(self.block_tokens, self.info.tokens - block * self.block_tokens)
            if zlib.crc32(self._file[at : at + length].data) != expected:
                raise DataError(
                    f"{self.path}: block {block} (bytes {at:,} to {at + length:,}) does not match its checksum; "
                    "the file is damaged. Copy or prepare it again."
                )

    def verify_file(self) -> None:
        """Compares the whole file, headers included, with its SHA-256. Raises DataError."""
        self.verify()
        if hashlib.sha256(self._file.data).hexdigest() != self.info.sha256:
            raise DataError(f"{self.path}: its tokens are right but its tar headers are damaged (SHA-256 differs).")


@dataclass
class ShardWriter:
    """Writes one split's token stream as shards. Byte-identical for the same tokens, wherever it runs."""

    folder: Path
    split: str
    block_tokens: int = BLOCK_TOKENS
    shard_blocks: int = SHARD_BLOCKS
    shards: list[Shard] = field(default_factory=list)
    _pending: list[np.ndarray] = field(default_factory=list)
    _pending_tokens: int = 0

    def __post_init__(self) -> None:
        (self.folder / self.split).mkdir(parents=True, exist_ok=True)
        self._file: Any = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of an unfinished shard; `close` is what finishes it."""
        if self._file:
            self._file.close()

    @property
    def position(self) -> tuple[int, int]:
        """(shard, token) where the next token goes."""
        done = self._tokens + self._pending_tokens if self._file else self._pending_tokens
        return len(self.shards), done

    @property
    def room(self) -> int:
        """Tokens that the current shard still takes."""
        return self.block_tokens * self.shard_blocks - self.position[1]

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens (uint8 [n], n <= room) to the current shard, and closes it when full."""
        self._pending.append(tokens)
        self._pending_tokens += len(tokens)
        if self._pending_tokens >= self.block_tokens:
            stream = np.concatenate(self._pending)
            whole = len(stream) - len(stream) % self.block_tokens
            for start in range(0, whole, self.block_tokens):
                self._write_block(stream[start : start + self.block_tokens])
            self._pending, self._pending_tokens = [stream[whole:].copy()], len(stream) - whole
        if self._file and not self.room:
            self._close_shard()

    def close(self) -> list[Shard]:
        """Writes what is pending and returns the shards (`records` is filled in by the caller)."""
        if self._pending_tokens:
            self._write_block(np.concatenate(self._pending))
            self._pending, self._pending_tokens = [], 0
        if self._file:
            self._close_shard()
        return self.shards

    def _write_block(self, tokens: np.ndarray) -> None:
        if self._file is None:
            self._name = f"{self.split}/shard-{len(self.shards):06d}.tar"
            self._file = (self.folder / self._name).open("xb")
            self._sha256, self._bytes, self._tokens, self._crc32 = hashlib.sha256(), 0, 0, list[int]()
        header = tarfile.TarInfo(f"{len(self.shards):06d}-{len(self._crc32):06d}.bin")
        header.size = len(tokens)
        payload = tokens.tobytes()
        self._put(header.tobuf(tarfile.USTAR_FORMAT))
        self._put(payload)
        self._put(bytes(-len(payload) % 512))
        self._crc32.append(zlib.crc32(payload))
        self._tokens += len(tokens)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)

    def _close_shard(self) -> None:
        self._put(bytes(1024))  # two zero blocks end a tar archive
        self._file.close()
        self._file = None
        self.shards.append(Shard(self._name, self._bytes, self._sha256.hexdigest(), self._tokens, 0, self._crc32))


def split_stream(dataset: Dataset, split: str, max_tokens: int | None = None) -> np.ndarray:
    """The token stream of a split without soft-mask bits, uint8 [tokens] (at most `max_tokens`, whole shards)."""
    parts: list[np.ndarray] = []
    for shard in dataset.split(split).shards:
        parts.append(ShardReader(dataset, shard).tokens() & ~np.uint8(SOFT_MASK_BIT))
        if max_tokens is not None and sum(map(len, parts)) >= max_tokens:
            break
    return np.concatenate(parts)[:max_tokens]


def split_records(dataset: Dataset, split: str, max_tokens: int | None = None) -> list[np.ndarray]:
    """The records of a split, each uint8 [bases]. `max_tokens` bounds the memory; the last record may be cut."""
    stream = split_stream(dataset, split, max_tokens)
    separator = dataset.vocabulary.sep
    parts = np.split(stream, np.flatnonzero(stream == separator) + 1)
    return [part[part != separator] for part in parts if len(part) > 1]
