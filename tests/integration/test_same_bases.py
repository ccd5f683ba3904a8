"""One genome in several formats: the same bases, the same soft masks, the same data set to the byte."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from fasta import tree
from formats import embl, genbank, twobit_of

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.sources import Record, find, read

GENOMES = Path(__file__).parents[3] / "shared" / "data"


def genome(name: str) -> str:
    """The path of a file that is not in the repository."""
    if not (GENOMES / name).exists():
        pytest.skip(f"{GENOMES / name} is not there")
    return str(GENOMES / name)


def records_of(path: str | Path) -> list[Record]:
    return list(read(find([str(path)])[0]))


def named(path: str | Path) -> list[tuple[str, bytes]]:
    return [(record.name, record.bases[:]) for record in records_of(path)]


def shards(source: str | Path, out: Path) -> dict[str, bytes]:
    """The shards and what is beside them of a data set of `source`, but not dataset.json, which names the source."""
    prepare([str(source)], out, PrepareOptions(valid=0.0, soft_mask=True))
    return {name: content for name, content in tree(out).items() if "/" in name}


def test_mycoplasma_is_the_same_from_fasta_and_genbank(tmp_path: Path) -> None:
    fasta, flat = genome("mycoplasma_genitalium.fa.gz"), genome("mycoplasma_genitalium.gb.gz")
    (one,), (other,) = records_of(fasta), records_of(flat)
    assert (one.name, one.description, one.bases[:]) == (other.name, other.description, other.bases[:])
    assert len(one.bases) == 580_076
    assert other.fields["organism"] == "Mycoplasmoides genitalium G37"
    assert shards(fasta, tmp_path / "fasta") == shards(flat, tmp_path / "genbank")


def test_genbank_agrees_with_biopython() -> None:
    seqio = pytest.importorskip("Bio.SeqIO")
    path = genome("mycoplasma_genitalium.gb.gz")
    with gzip.open(path, "rt") as file:
        theirs = [(record.id, bytes(record.seq)) for record in seqio.parse(file, "genbank")]
    assert named(path) == theirs


def test_hg38_is_the_same_from_fasta_and_2bit_with_equal_soft_masks(tmp_path: Path) -> None:
    fasta, twobit = genome("cgp_hg38.fa.gz"), genome("cgp_hg38.2bit")
    (one,), (other,) = records_of(fasta), records_of(twobit)
    assert (one.name, one.bases[:]) == (other.name, other.bases[:])
    masked = sum(letter >= 97 for letter in other.bases[:])
    assert (len(other.bases), round(masked / len(other.bases), 2)) == (210_155, 0.41)
    assert np.array_equal(one.codes(), other.codes())
    assert shards(fasta, tmp_path / "fasta") == shards(twobit, tmp_path / "2bit")


def made(seed: int) -> Iterator[tuple[str, bytes]]:
    """Chromosomes with repeats in lower case and gaps of N."""
    random = np.random.default_rng(seed)
    for number in range(3):
        lengths = random.integers(1, 400, 60)
        kinds = random.choice([b"ACGT", b"acgt", b"N", b"n"], 60, p=[0.6, 0.3, 0.05, 0.05])
        yield (
            f"chr{number}.1",
            b"".join(
                random.choice(list(kind), n).astype(np.uint8).tobytes() for kind, n in zip(kinds, lengths, strict=True)
            ),
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One made-up genome in every format that keeps lower case."""
    folder, sequences = tmp_path_factory.mktemp("formats"), list(made(7))
    table = pa.table({"name": [name for name, _ in sequences], "sequence": [bases.decode() for _, bases in sequences]})
    rows = table.to_pylist()
    (folder / "fasta").write_bytes(b"".join(b">%s\n%s\n" % (name.encode(), bases) for name, bases in sequences))
    (folder / "fastq").write_bytes(
        b"".join(b"@%s\n%s\n+\n%s\n" % (name.encode(), bases, b"I" * len(bases)) for name, bases in sequences)
    )
    (folder / "2bit").write_bytes(twobit_of(sequences))
    pq.write_table(table, folder / "parquet")
    with pa.ipc.new_file(folder / "arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "csv").write_text("name,sequence\n" + "".join(f"{row['name']},{row['sequence']}\n" for row in rows))
    (folder / "jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["fastq", "2bit", "parquet", "arrow", "csv", "jsonl"])
def test_every_format_gives_the_data_set_of_the_fasta(files: dict[str, Path], form: str, tmp_path: Path) -> None:
    assert named(files[form]) == named(files["fasta"]) == list(made(7))
    assert shards(files[form], tmp_path / "other") == shards(files["fasta"], tmp_path / "fasta")


@pytest.mark.parametrize("write", [genbank, embl])
def test_flat_files_give_the_bases_of_the_fasta_without_its_case(
    write: object, files: dict[str, Path], tmp_path: Path
) -> None:
    assert callable(write)
    path = tmp_path / "flat"
    path.write_text("".join(write(name.removesuffix(".1"), bases.decode().lower()) for name, bases in made(7)))
    assert named(path) == [(name, bases.upper()) for name, bases in named(files["fasta"])]
