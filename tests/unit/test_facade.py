"""The windows for other people's loops: the same ones, in the same global batches, with the same masks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dnascale.config import load_config
from dnascale.data.facade import MaskingCollator, WindowDataset
from dnascale.data.masking import Masking
from dnascale.data.read import split_stream
from dnascale.data.shards import Dataset
from dnascale.data.stream import TrainStream
from dnascale.vocab import CHARACTER

CONTEXT, BATCH = 64, 16
MASKING = Masking(CHARACTER, 0.3, 0.8, 0.1, True, 1.0)


@pytest.fixture(scope="module")
def windows(human_cds: Dataset) -> WindowDataset:
    return WindowDataset.open(human_cds.folder, CONTEXT, epochs=2, seed=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loader_gives_the_batches_of_the_stream(
    human_cds: Dataset, windows: WindowDataset, workers: int
) -> None:
    stream = TrainStream.open(human_cds.folder, CONTEXT, BATCH, seed=3)
    loader = DataLoader(windows, batch_size=BATCH, num_workers=workers)
    for number, batch in enumerate(loader):
        (expected,) = stream.next_step()
        assert torch.equal(batch["tokens"], expected.tokens)
        assert torch.equal(batch["key"], expected.keys)
        if number == 100:
            break


def test_items_are_found_by_position_over_all_epochs_and_nowhere_else(windows: WindowDataset) -> None:
    each = windows.order.epoch_windows
    assert len(windows) == 2 * each
    picked = [0, 5, each - 1, each, 2 * each - 1]
    for position, item in zip(picked, windows.__getitems__(picked), strict=True):
        alone = windows[position]
        assert torch.equal(alone["tokens"], item["tokens"])
        assert int(alone["key"]) == int(item["key"])
    assert torch.equal(windows[-1]["tokens"], windows[2 * each - 1]["tokens"])
    for outside in (2 * each, -2 * each - 1):
        with pytest.raises(IndexError):
            windows[outside]
    assert windows.__getitems__([]) == []


def test_masks_are_those_of_training(windows: WindowDataset) -> None:
    items = windows.__getitems__(range(BATCH))
    batch = MaskingCollator(MASKING)(items)
    tokens, keys = torch.stack([i["tokens"] for i in items]), torch.stack([i["key"] for i in items])
    masked = MASKING(tokens, keys, torch.from_numpy(CHARACTER.complement_table).long())
    assert torch.equal(batch["input_ids"], masked.input_ids)
    for row in range(BATCH):
        expected = torch.full((CONTEXT,), -100)
        for place, label, weight in zip(masked.positions[row], masked.labels[row], masked.weights[row], strict=True):
            expected[place] = label if weight else -100
        assert torch.equal(batch["labels"][row], expected)


def test_the_hugging_face_trainer_sees_the_global_batches_of_the_stream(
    human_cds: Dataset, windows: WindowDataset, tmp_path: Path
) -> None:
    from transformers import Trainer, TrainingArguments

    from dnascale.model.modernbert import build

    settings = ["data.path=x", "train.steps=1", "model.hidden_size=64", "model.layers=2", "model.context=64"]
    collator, seen = MaskingCollator(MASKING), []

    def spy(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        seen.append(torch.stack([item["key"] for item in items]))
        return collator(items)

    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=BATCH, train_sampling_strategy="sequential",
        dataloader_drop_last=True, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no",
    )  # fmt: skip
    model = build(load_config("nano", settings).model, CHARACTER)
    result = Trainer(model, arguments, data_collator=spy, train_dataset=windows).train()
    assert np.isfinite(result.training_loss)
    stream = TrainStream.open(human_cds.folder, CONTEXT, BATCH, seed=3)
    for keys in seen[:4]:
        assert torch.equal(keys, stream.next_step()[0].keys)
    assert len(seen) >= 4


def test_the_documented_reader_of_forty_lines_agrees(human_cds: Dataset) -> None:
    import hashlib

    script = Path(__file__).parents[2] / "docs" / "reference" / "read_format.py"
    assert sum(1 for line in script.read_text().splitlines() if line.strip()) <= 40
    done = subprocess.run([sys.executable, script, human_cds.folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        split, tokens, digest = line.split()
        stream = split_stream(human_cds, split)
        assert len(stream) == int(tokens)
        assert hashlib.sha256(stream.tobytes()).hexdigest() == digest
    assert len(done.stdout.splitlines()) == len(human_cds.splits)
