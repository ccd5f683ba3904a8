"""Tars as WebDataset reads them: which members are a sample, and where their bytes lie. Nothing is unpacked."""

import mmap
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from dnascale.data.shards import TAR_HEADER
from dnascale.data.sources import alphabet
from dnascale.errors import DataError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset.tariterators.base_plus_ext
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset.tariterators.tar_file_iterator leaves out

shown = partial(alphabet.shown, most=100)  # names of members are paths

Sample = dict[str, tarfile.TarInfo]  # members by suffix


def samples(path: Path, mapped: mmap.mmap, noted: Counter[str]) -> Iterator[tuple[str, Sample]]:
    """The samples of a tar as WebDataset has them: members that follow each other and have one key. Raises DataError.

    What WebDataset leaves out is left out, and counted in `noted` if it may have been meant as data.
    """
    key, sample = "", Sample()
    for member in members(path, mapped):
        if not member.isreg():
            if member.issym() or member.islnk():
                noted["links were left out, as WebDataset does"] += 1
        elif not _META.match(member.name):
            parts = _KEY.match(member.name)
            if parts is None:
                noted["members were left out, as WebDataset does, for their names have no suffix"] += 1
                continue
            suffix = parts[2].lower()
            if parts[1] != key:
                if sample:
                    yield key, sample
                key, sample = parts[1], {}
            if suffix in sample:
                raise DataError(
                    f"{where_is(path, member)} is there twice in one sample: write the tar again, each once."
                )
            sample[suffix] = member
    if not key:
        raise DataError(f"{path} has no samples (members named KEY.SUFFIX): is it the right file?")
    yield key, sample


def members(path: Path, mapped: mmap.mmap) -> Iterator[tarfile.TarInfo]:
    """The members of a tar. Raises DataError for what is no whole tar, or is more than one."""
    size, at = len(mapped), 0  # `at`: of the next header
    try:
        tar: Any = tarfile.TarFile(fileobj=mapped, tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
        while (member := tar.next()) is not None:
            if member.size < 0 or tar.offset <= at:
                raise ValueError("a negative size")
            at = tar.offset
            tar.members.clear()
            if in_one_piece(member) and (end := member.offset_data + member.size) > size:
                raise DataError(
                    f"{path} ends at byte {size:,}, within member {shown(member.name)}, whose end is byte {end:,}: the "
                    "tar is truncated, fetch or write it again."
                )
            yield member
    except (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError) as error:
        if not at:
            raise DataError(_no_tar(path, mapped)) from None
        raise DataError(
            f"{path}: no whole header at byte {at:,} ({error}): the tar is truncated or damaged, fetch or write it "
            "again."
        ) from None
    rest = np.frombuffer(mapped, dtype=np.uint8)[tar.offset :]
    if len(rest) < TAR_HEADER:
        raise DataError(
            f"{path} ends at byte {size:,} without the zero bytes that end a tar: it is truncated, or was not closed by "
            "its writer; fetch or write it again."
        )
    if rest[:TAR_HEADER].any():
        raise DataError(
            f"{path}: the header at byte {tar.offset:,} does not match its checksum, or is cut off: the tar is truncated or damaged, fetch "
            "or write it again."
        )
    if rest.any():
        raise DataError(
            f"{path} goes on at byte {tar.offset + int((rest != 0).argmax()):,}, after the end of the tar at byte "
            f"{tar.offset:,}, and no reader would see that: join tars with `tar --concatenate`, or give each alone."
        )


class _Header(tarfile.TarInfo):
    """As Python's, but of headers of the usual kind only what is needed is read, in a fraction of the time."""

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        name, size, checksum, kind = buf[:100].partition(b"\0")[0], buf[124:135], buf[148:154], buf[156:157]
        ends = buf[135:136] + buf[154:156] in (b"\0\0 ", b" \0 ")
        if (
            len(buf) != TAR_HEADER
            or not ends
            or kind not in (b"0", b"x")
            or buf[345]
            or not (size + checksum).isdigit()
        ):
            return super().frombuf(buf, encoding, errors)
        # The sum of all bytes, with spaces for the checksum's own. Adler-32 holds one more than the sum, modulo 65521.
        total = (zlib.adler32(buf) & 0xFFFF) - (zlib.adler32(buf[148:156]) & 0xFFFF) + sum(b" " * 8)
        if (total - int(checksum, 8)) % 65521:
            return super().frombuf(buf, encoding, errors)
        header = cls(str(name, encoding, errors))
        header.size, header.type = int(size, 8), bytes(kind)
        return header


def in_one_piece(member: tarfile.TarInfo) -> bool:
    """Whether the content lies in the tar as it is. A sparse file has holes."""
    parts: Any = member.sparse
    return parts is None or [part for part in parts if part[1]] == [(0, member.size)]


def _no_tar(path: Path, mapped: mmap.mmap) -> str:
    for magic, name in _COMPRESSED.items():
        if mapped[: len(magic)] == magic:
            return f"{path} is compressed with {name}, which cannot be read in place: decompress it first."
    return f"{path} is no tar: its first {TAR_HEADER} bytes are no header; is it the right file?"


def mapped_file(path: Path) -> mmap.mmap:
    """A file as memory, closed when nothing refers to it any more. Raises DataError."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise DataError(f"{path} is empty: fetch or write it again.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def where_is(path: Path, member: tarfile.TarInfo) -> str:
    return f"{path}: member {shown(member.name)}"
