"""From every engine and number of processes to every other: what is equal after loading, and how the run goes on.

    python tests/integration/pairs.py --out build/pairs.md

Each source trains four steps and saves. Each target loads that and saves again at once: every fp32 tensor must be the same to
the bit. Then it takes three more steps, whose losses are compared with those of the source, which went on untouched.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import reshard
import torch
from jobs import execute, metrics, train
from test_reshard import state

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import require_newest

SOURCES = (("plain", 1), ("plain", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("zero3_offload", 2))
TARGETS = (("plain", 1), ("plain", 2), ("zero1", 1), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("zero3_offload", 1))
SAVED, MORE = 4, 3
LENGTH = (f"train.steps={SAVED + MORE}", f"checkpoint.every={SAVED}", "checkpoint.keep=2")


def label(engine: str, processes: int) -> str:
    return f"{'DDP' if (engine, processes) == ('plain', 2) else engine} on {processes}"


def one_pair(source: Path, data: Dataset, engine: str, processes: int, folder: Path) -> str:
    """Cells of the table: tensors, how many equal, whether the windows are the same, largest difference of a loss."""
    arguments = (str(source), str(folder / "again"), engine, str(data.folder))
    outcome = execute(reshard.main, *arguments, processes=processes)
    assert outcome.code == 0, outcome.output
    expected = state(require_newest(source))
    (folder / "again").rename(folder / "checkpoints")
    found = state(require_newest(folder))
    equal = (
        sum(torch.equal(found[name], value) for name, value in expected.items()) if set(found) == set(expected) else 0
    )
    run = folder / "run"
    shutil.copytree(source, run)
    lines = train(run, data, *LENGTH, processes=processes, engine=engine)[SAVED:]
    whole = metrics(source.with_name("whole"))[SAVED:]
    same = [line["windows_digest"] for line in lines] == [line["windows_digest"] for line in whole]
    apart = max(abs(one["loss"] / other["loss"] - 1) for one, other in zip(lines, whole, strict=True))
    return f"{len(expected)} | {equal} | {'yes' if same else 'NO'} | {apart:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to as well")
    options = parser.parse_args()
    table = "| from | to | tensors | equal to the bit | same windows | largest relative difference of a loss |\n|---|---|---|---|---|---|\n"
    print(table, end="")
    with tempfile.TemporaryDirectory() as name:
        data = prepare(["builtin:human-cds"], Path(name) / "data", PrepareOptions(valid=0.1))
        for engine, processes in SOURCES:
            folder = Path(name) / f"{engine}-{processes}"
            train(folder / "whole", data, *LENGTH, processes=processes, engine=engine)
            source = folder / "source"
            shutil.copytree(folder / "whole", source)
            shutil.rmtree(source / "checkpoints" / f"step-{SAVED + MORE:08d}")
            for number, (to_engine, to_processes) in enumerate(TARGETS):
                (folder / str(number)).mkdir()
                cells = one_pair(source, data, to_engine, to_processes, folder / str(number))
                row = f"| {label(engine, processes)} | {label(to_engine, to_processes)} | {cells} |\n"
                print(row, end="", flush=True)
                table += row
    if options.out:
        options.out.write_text(table)


if __name__ == "__main__":
    main()
