"""The training of the book's chapter 2 beside ours: the same sequences, the same cores, in turns in one run.

    python benchmarks/book.py human_cds.fasta.gz --minutes 20 --ours book --ours nano --out rows.jsonl
    python benchmarks/book.py --table rows.jsonl

`book` is what chapter 2 of "Biological language models" does, with what today's libraries need changed: Hugging Face's Trainer,
sequences tokenised by character and cut or padded to 512, batches of 32, AdamW at 5e-4 falling linearly, 5 % masked, fp32. `--ours`
trains a preset, with overrides after a comma (`book,optimizer.name=muon`). Each has `--minutes` of training of its own, in turns of
`--turn` seconds in which the others stand still, and a schedule that ends with them.

Both are scored on the same held-out windows, of genes that nobody trains on: 512 bases without padding or separators, the first of each
record (what the book trains on) and one from inside it. A seventh of the bases is hidden, the same ones for all.

What today's libraries need: `processing_class` in place of `tokenizer`, no `overwrite_output_dir`, special token ids inside the
vocabulary (ModernBERT's defaults are not), and no wandb account.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

CONTEXT, BATCH = 512, 32
#: The book's vocabulary: its letters in its order, then its special tokens.
LETTERS = "ATCGNUiRYKMSWBDHV-"
SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", nargs="?", help="FASTA of coding sequences, or builtin:human-cds")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each")
    parser.add_argument("--ours", action="append", default=[], help="PRESET[,KEY=VALUE...]; default: book")
    parser.add_argument(
        "--our-minutes", type=float, action="append", default=[], help="of the n-th of --ours, if not --minutes"
    )
    parser.add_argument("--turn", type=float, default=20.0, help="seconds")
    parser.add_argument("--score", type=int, default=256, help="held-out windows of each kind")
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-book"))
    parser.add_argument("--out", type=Path, help="JSON lines to append to: one a score, one a summary")
    parser.add_argument("--table", type=Path, help="rows of an earlier run, as a table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(as_table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    if options.child:
        take_turns(json.loads(options.child))
        os._exit(0)  # the Trainer's thread may still be waiting
    data = prepared(options.sequences, options.work)
    ours = options.ours or ["book"]
    minutes = options.our_minutes + [options.minutes] * (len(ours) - len(options.our_minutes))
    tasks = [{"name": "the book", "minutes": options.minutes}]
    tasks += [{"name": f"ours: {one}", "ours": one, "minutes": m} for one, m in zip(ours, minutes, strict=True)]
    rows = race(
        [task | {"data": str(data), "score": options.score, "turn": options.turn} for task in tasks], options.out
    )
    print(as_table(rows))


def prepared(sequences: str, work: Path) -> Path:
    """The data set, a tenth of the genes held out, near-duplicates on one side."""
    from dnascale.data.prepare import PrepareOptions, prepare

    name = "".join(c if c.isalnum() else "-" for c in Path(sequences).name)
    if not (work / name / "dataset.json").is_file():
        prepare([sequences], work / name, PrepareOptions(valid=0.1, cluster=0.2))
    return work / name


# --- turns ---


def race(tasks: list[dict[str, Any]], out: Path | None) -> list[dict[str, Any]]:
    """Gets one after the other ready, then lets them train in turns. Returns all rows."""
    children = []
    for task in tasks:
        child = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(task)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"},
        )  # fmt: skip
        print(f"{task['name']}: {answer(child)['ready']}", flush=True)
        children.append((task["name"], child))
    rows: list[dict[str, Any]] = []
    while children:
        for name, child in list(children):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            row = {"name": name} | answer(child)
            rows.append(row)
            print(
                f"{name:<30} {row['seconds']:>7.1f} s  {row['tokens_per_second']:>9,.0f} tokens/s  "
                f"first 512: {row['begin']:.4f}  inside: {row['inside']:.4f}", flush=True
            )  # fmt: skip
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if row["done"]:
                children.remove((name, child))
                child.wait(30)
    return rows


def answer(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next JSON line of a child; what else it prints is for nobody."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("ROW "):
            found: dict[str, Any] = json.loads(line[4:])
            return found
    raise SystemExit(f"a process of the benchmark ended with code {child.wait()}: see what it said above")


def take_turns(task: dict[str, Any]) -> None:
    """In a child: trains for a turn each time it is told to, and says how it stands. Scoring is not on its clock."""
    contender = (OursContender if "ours" in task else BookContender)(task)
    score = Scorer(Path(task["data"]), task["score"])
    steps = contender.steps()
    say({"ready": contender.description} | contender.facts)
    seconds, tokens, bases, done = 0.0, 0, 0, False
    while not done:
        sys.stdin.readline()
        begin = time.monotonic()
        while time.monotonic() - begin < task["turn"] and not done:
            step = next(steps, None)
            if step is None:
                done = True
            else:
                tokens, bases = tokens + step[0], bases + step[1]
        seconds += time.monotonic() - begin
        with torch.no_grad():
            losses = score(contender.logits)
        say(
            {
                "seconds": seconds, "tokens": tokens, "bases": bases, "tokens_per_second": tokens / seconds,
                "useful_bases_per_second": bases / seconds, "done": done, **losses, **contender.facts,
            }
        )  # fmt: skip


def say(row: dict[str, Any]) -> None:
    print("ROW " + json.dumps(row), flush=True)


class Scorer:
    """Held-out loss in nats per base, on windows of the valid split that hold nothing but bases of one record."""

    def __init__(self, data: Path, most: int) -> None:
        from dnascale.data.read import split_records
        from dnascale.data.shards import load_dataset

        records = [record for record in split_records(load_dataset(data), "valid") if len(record) >= CONTEXT]
        records = records[:: max(1, len(records) // most)][:most]
        at = {"begin": lambda n: 0, "inside": lambda n: (n - CONTEXT) * 2 // 3}
        self.windows = {
            kind: torch.from_numpy(np.stack([record[place(len(record)) :][:CONTEXT] for record in records]))
            for kind, place in at.items()
        }

    def __call__(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """`logits`: ids of our character vocabulary int64 [B, 512] -> [B, 512, >= 4], A, C, G, T first."""
        from dnascale.data.masking import mask_group
        from dnascale.evaluate.loss import GROUPS
        from dnascale.vocab import CHARACTER

        losses = {}
        for kind, windows in self.windows.items():
            nats = bases = 0.0
            for first in range(0, len(windows), BATCH):
                tokens = windows[first : first + BATCH]
                keys = torch.arange(first, first + len(tokens))
                ids, predicted = mask_group(tokens, keys, 0, GROUPS, CHARACTER)
                log_p = logits(ids).float().log_softmax(-1)
                nats -= float(log_p.gather(-1, tokens.long()[..., None])[..., 0][predicted].sum())
                bases += int(predicted.sum())
            losses[kind] = nats / bases
        return losses


# --- ours ---


class OursContender:
    def __init__(self, task: dict[str, Any]) -> None:
        from dnascale.config import load_config
        from dnascale.train import loop
        from dnascale.train.assemble import assemble

        preset, *overrides = task["ours"].split(",")
        self.loop = loop
        self.job = assemble(
            load_config(
                preset,
                [
                    f"data.path={task['data']}", f"train.minutes={task['minutes']}", "train.engine=plain",
                    f"run.dir={tempfile.mkdtemp()}/run", *overrides,
                ],
            )
        )  # fmt: skip
        config = self.job.config
        self.facts = {
            "precision": config.train.precision,
            "parameters": sum(p.numel() for p in self.job.engine.module.parameters()),
        }
        self.description = f"{self.job.state.total_steps:,} steps of {config.train.global_batch_tokens:,} tokens, {config.train.precision}"

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.job.engine.module.logits(ids.to(self.job.accelerator.device)).cpu()

    def steps(self) -> Iterator[tuple[int, int]]:
        """Tokens and bases of step after step."""
        from dnascale.train.assemble import enter
        from dnascale.train.schedules import learning_rate, stage_at

        job, meter = self.job, self.loop.open_meter(self.job)
        config, state = job.config, job.state
        with self.loop.without_garbage_collection():
            while state.step < state.total_steps:
                if (stage := stage_at(job.stages, state.position)) is not job.stage:
                    enter(job, stage)
                rate = learning_rate(state.step, state.total_steps, config.optimizer.learning_rate, config.schedule)
                self.loop.take_step(job, meter, rate, None)
                if state.step % config.log.every == 0:
                    meter.line(state, job.order.epoch_windows)
                    job.guard.require_patience()
                tokens = job.stage.global_batch_tokens
                yield tokens, round(tokens * job.speed.bases_per_token)


# --- the book's ---


class BookContender:
    def __init__(self, task: dict[str, Any]) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

        from dnascale.data.read import split_records
        from dnascale.data.shards import load_dataset
        from dnascale.vocab import CHARACTER

        ids = {token: number for number, token in enumerate((*LETTERS, *SPECIAL))}
        characters = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
        characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        names = dict(zip(("unk_token", "pad_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, **names)
        self.records = [CHARACTER.decode(record) for record in split_records(load_dataset(Path(task["data"])), "train")]
        config = ModernBertConfig(
            vocab_size=len(ids), hidden_size=256, num_hidden_layers=8, num_attention_heads=8, intermediate_size=512,
            max_position_embeddings=CONTEXT, pad_token_id=ids["[PAD]"], bos_token_id=ids["[CLS]"], eos_token_id=ids["[SEP]"],
            cls_token_id=ids["[CLS]"], sep_token_id=ids["[SEP]"],
        )  # fmt: skip
        self.model = ModernBertForMaskedLM(config)
        self.ids = torch.tensor([ids.get(token, ids["[UNK]"]) for token in CHARACTER.tokens])  # by our ids
        self.facts = {"precision": "fp32", "parameters": sum(p.numel() for p in self.model.parameters())}
        each = self._seconds_a_step(ModernBertForMaskedLM(config))
        self.most_steps = max(3, int(task["minutes"] * 60 / each))
        self._turn: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._go: queue.Queue[None] = queue.Queue(maxsize=1)
        self._bases: list[int] = []  # in each batch that was made: one more than were trained on
        self.trainer = self._trainer(self.model, self.most_steps, self._hand_over())
        self.description = f"{self.most_steps:,} steps of {BATCH} x {CONTEXT} tokens, fp32"

    def _rows(self) -> Any:
        from datasets import Dataset

        def tokenise(rows: dict[str, Any]) -> Any:
            return self.tokenizer(rows["sequence"], truncation=True, padding="max_length", max_length=CONTEXT)

        return Dataset.from_dict({"sequence": self.records}).map(tokenise, batched=True, remove_columns=["sequence"])

    def _trainer(self, model: Any, most_steps: int, callback: Any) -> Any:
        from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), logging_steps=1, save_strategy="no", per_device_train_batch_size=BATCH,
            max_steps=most_steps, learning_rate=5e-4, weight_decay=0.01, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokenizer=self.tokenizer, mlm=True, mlm_probability=0.05)
        trainer = Trainer(
            model=model, args=arguments, train_dataset=self._rows(), processing_class=self.tokenizer, data_collator=collator,
            callbacks=[callback],
        )  # fmt: skip
        trainer.log = lambda *_args, **_kwargs: None  # said nowhere; its cost is ours to spare
        return trainer

    def _seconds_a_step(self, model: Any) -> float:
        from transformers import TrainerCallback

        times: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
                times.append(time.monotonic())

        self._trainer(model, 5, Clock()).train()
        return float(np.median(np.diff(times)[1:]))

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """In our ids, from its own. Letters that are not A, C, G, T keep their place behind."""
        training = self.model.training
        self.model.eval()
        device = self.model.device
        found = self.model(input_ids=self.ids[ids].to(device)).logits.cpu()
        self.model.train(training)
        first = self.ids[:4]
        rest = torch.tensor([n for n in range(found.shape[-1]) if n not in first.tolist()])
        return found[..., torch.cat([first, rest])]

    def _hand_over(self) -> Any:
        from transformers import TrainerCallback

        turn, go = self._turn, self._go

        class HandOver(TrainerCallback):
            def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
                turn.put(None)
                go.get()

        return HandOver()

    def steps(self) -> Iterator[tuple[int, int]]:
        """The Trainer runs in a thread and hands over after each step."""
        collate = self.trainer.data_collator

        def counting(rows: list[dict[str, Any]]) -> Any:
            self._bases.append(sum(sum(row["attention_mask"]) for row in rows))
            return collate(rows)

        self.trainer.data_collator = counting

        def work() -> None:
            self._go.get()
            try:
                self.trainer.train()
                self._turn.put(StopIteration())
            except Exception as error:
                self._turn.put(error)

        threading.Thread(target=work, daemon=True).start()
        while True:
            self._go.put(None)
            told = self._turn.get()
            if isinstance(told, StopIteration):
                return
            if told is not None:
                raise told
            yield BATCH * CONTEXT, self._bases.pop(0)


# --- the table ---


def as_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: where each ends, and how much sooner ours reach the book's best."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    of = {name: [row for row in rows if row["name"] == name] for name in names}
    target = min(row["begin"] for row in of[names[0]])
    when = first_at(of[names[0]], target)
    lines = [
        f"| | parameters | minutes | tokens/s | useful bases/s | first 512 | inside | reaches {target:.4f} after | times sooner |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        last, reached = of[name][-1], first_at(of[name], target)
        sooner = f"{when / reached:.1f}" if reached and when else "not reached"
        lines.append(
            f"| {name} | {last['parameters']:,} | {last['seconds'] / 60:.1f} | {last['tokens_per_second']:,.0f} | "
            f"{last['useful_bases_per_second']:,.0f} | {last['begin']:.4f} | {last['inside']:.4f} | "
            f"{f'{reached:.0f} s' if reached else '-'} | {sooner} |"
        )
    return "\n".join(lines)


def first_at(rows: list[dict[str, Any]], target: float) -> float | None:
    """Seconds at which the loss first is at `target`, in a line between two scores."""
    before: dict[str, Any] | None = None
    for row in rows:
        if row["begin"] <= target:
            if before is None or before["begin"] == row["begin"]:
                return float(row["seconds"])
            share = (before["begin"] - target) / (before["begin"] - row["begin"])
            return float(before["seconds"] + share * (row["seconds"] - before["seconds"]))
        before = row
    return None


if __name__ == "__main__":
    main()
