"""What the README and the documentation tell to type, typed: blocks behind a line `<!-- run -->`, page by page, in one folder each.

Training is cut to a few steps of a tiny model, by overrides at the end of its command; all else runs as it stands.
"""

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import TINY, environment

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^<!-- run -->\n```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if BLOCK.search(page.read_text())
]
SHORT = [*TINY, "train.steps=2", "train.precision=fp32", "evaluation.windows=2"]
SHIM = f"""#!/usr/bin/env bash
case "$1" in
  train) exec "{sys.executable}" -m dnascale "$@" {" ".join(SHORT)} ;;
  *) exec "{sys.executable}" -m dnascale "$@" ;;
esac
"""


def inputs(folder: Path) -> None:
    """The files that the pages name: a few real genes, and a made-up chromosome with two variants."""
    lines = gzip.decompress((ROOT / "dnascale" / "resources" / "human-cds.fasta.gz").read_bytes()).splitlines(
        keepends=True
    )
    headers = [number for number, line in enumerate(lines) if line.startswith(b">")]
    genes = b"".join(lines[: headers[150]])
    (folder / "genes.fa.gz").write_bytes(gzip.compress(genes))
    (folder / "genome.fa.gz").write_bytes(gzip.compress(genes))
    bases = "ACGTTGCA" * 40
    (folder / "genome.fa").write_text(f">chr1\n{bases}\n")
    vcf = "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    vcf += "".join(
        f"chr1\t{at}\t.\t{bases[at - 1]}\t{'C' if bases[at - 1] != 'C' else 'T'}\t.\t.\t.\n" for at in (100, 205)
    )
    (folder / "variants.vcf.gz").write_bytes(gzip.compress(vcf.encode()))


def test_pages_have_blocks_that_run() -> None:
    assert {"README.md", "ten-minutes.md"} <= {page.name for page in PAGES}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "dnascale").write_text(SHIM)
    (commands / "dnascale").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    inputs(work)
    env = environment(
        PATH=f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
        CUDA_VISIBLE_DEVICES="",
    )
    for language, text in BLOCK.findall(page.read_text()):
        words = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(words, cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
