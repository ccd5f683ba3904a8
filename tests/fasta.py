"""FASTA files for tests."""

from __future__ import annotations

import random
from pathlib import Path

Fasta = list[tuple[str, str]]  # header, bases


def random_fasta(seed: int, count: int = 300, genes: int = 120, longest: int = 80, letters: str = "ACGTacgtN") -> Fasta:
    """Records with a gene each, some of them empty."""
    rng = random.Random(seed)
    return [
        (f"rec{i} gene=G{rng.randrange(genes)}", "".join(rng.choices(letters, k=max(0, rng.randint(-5, longest)))))
        for i in range(count)
    ]


def write(path: Path, records: Fasta) -> str:
    path.write_text("".join(f">{header}\n{bases}\n" for header, bases in records))
    return str(path)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
