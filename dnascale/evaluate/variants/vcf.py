"""VCF in and out, as text: every byte of the input stays, and INFO gets two more fields."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from dnascale import __version__
from dnascale.data.sources.input import Input
from dnascale.data.sources.lines import BYTE_ORDER_MARK, without_mark
from dnascale.data.sources.opened import Source
from dnascale.data.sources.report import ReadReport
from dnascale.errors import DataError, UsageError
from dnascale.evaluate.variants.alleles import Allele, Status

LLR, STATUS = "DNASCALE_LLR", "DNASCALE_STATUS"
_COLUMNS = 8  # CHROM POS ID REF ALT QUAL FILTER INFO
_INFO = 7
_PACKED = (".gz", ".bgz")


def is_vcf(path: Path) -> bool:
    """Whether the file, compressed or not, begins as VCF does. Raises DataError when it cannot be read, or is BCF."""
    source = Source(Input.of(path), ReadReport(str(path)))
    with source._stream:
        head = source.head
    if not head:
        raise DataError(f"{path} is empty.")
    if head.startswith(b"BCF"):
        raise DataError(
            f"{path} is BCF, which is not read: convert it with `bcftools view -O z -o variants.vcf.gz {path}`."
        )
    return head.removeprefix(BYTE_ORDER_MARK).startswith((b"##", b"#CHROM\tPOS\tID"))


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, decompressed, without a byte order mark. Raises DataError when it is damaged."""
    with Source(Input.of(path), ReadReport(str(path))) as source:
        yield from without_mark(source.file())


def read_alleles(path: Path) -> list[Allele]:
    """Every alternative allele, in the order of the file. Raises DataError naming the line of the first that is not VCF."""
    found: list[Allele] = []
    titled = False
    for number, line in enumerate(lines(path), start=1):
        if line.startswith(b"#"):
            if f"ID={LLR},".encode() in line:
                raise DataError(
                    f"{path} has scores of dnascale already ({LLR}): give the original, or remove them with "
                    f"`bcftools annotate -x INFO/{LLR},INFO/{STATUS}`."
                )
            titled = titled or line.startswith(b"#CHROM")
            continue
        if not line.strip():
            continue
        if not titled:
            raise DataError(
                f"{path}:{number}: no line of column names (#CHROM POS ID REF ALT ...) comes before the first variant."
            )
        fields = line.split(b"\t", _COLUMNS)
        if len(fields) < _COLUMNS:
            raise DataError(
                f"{path}:{number}: {len(fields)} columns, VCF has at least {_COLUMNS}, separated by tabs; is the file cut off?"
            )
        try:
            start = int(fields[1]) - 1
        except ValueError:
            raise DataError(
                f"{path}:{number}: the position {fields[1].decode(errors='replace')!r} is no number."
            ) from None
        contig = fields[0].decode(errors="replace")
        found += [Allele(number, contig, start, fields[3], alt) for alt in fields[4].split(b",")]
    if not titled:
        raise DataError(f"{path} has no line of column names (#CHROM POS ID REF ALT ...): it is no VCF, or cut off.")
    return found


def write_scored(path: Path, alleles: list[Allele], out: IO[bytes], how: str) -> None:
    """Copies the VCF `path` to `out` with the scores of `alleles`, which are those of `read_alleles` in its order."""
    scored = iter(alleles)
    for line in lines(path):
        if line.startswith(b"#CHROM"):
            end = line[len(line.rstrip(b"\r\n")) :]
            for added in _header(how):
                out.write(added.encode() + end)
        if line.startswith(b"#") or not line.strip():
            out.write(line)
            continue
        body = line.rstrip(b"\r\n")
        fields = body.split(b"\t", _COLUMNS)
        mine = [next(scored) for _ in fields[4].split(b",")]
        values = [f"{LLR}=" + ",".join(_number(allele) for allele in mine)]
        if any(allele.status is not Status.scored for allele in mine):
            values.append(f"{STATUS}=" + ",".join(allele.status for allele in mine))
        info = ";".join(values).encode()
        fields[_INFO] = info if fields[_INFO] in (b".", b"") else fields[_INFO] + b";" + info
        out.write(b"\t".join(fields) + line[len(body) :])


def require_writable(final: Path) -> None:
    """Raises UsageError when `final` is to be compressed, and pysam, which does that, is not there."""
    if final.suffix in _PACKED and find_spec("pysam") is None:
        raise UsageError(
            f"{final.name} is to be compressed, which needs pysam: pip install 'dnascale[biology]', or name a .vcf."
        )


@contextmanager
def opened_for_writing(path: Path, final: Path) -> Iterator[IO[bytes]]:
    """The file `path` to write VCF into; BGZF, which tabix indexes, where `final` ends with .gz or .bgz."""
    if final.suffix not in _PACKED:
        with path.open("wb") as plain:
            yield plain
        return
    from pysam import BGZFile

    with BGZFile(str(path), "wb", None) as packed:
        yield packed


def _header(how: str) -> list[str]:
    quoted = how.replace("\\", "\\\\").replace('"', '\\"')
    return [
        f'##INFO=<ID={LLR},Number=A,Type=Float,Description="Log-likelihood ratio of the alternative and the reference allele '
        f'(nats; below 0: the model finds the alternative less likely)",Source="dnascale",Version="{__version__}">',
        f'##INFO=<ID={STATUS},Number=A,Type=String,Description="scored, or why an allele has no score; absent when all are '
        f'scored",Source="dnascale",Version="{__version__}">',
        f'##dnascale_score="{quoted}"',
    ]


def _number(allele: Allele) -> str:
    return f"{allele.llr:.6g}" if allele.status is Status.scored else "."
