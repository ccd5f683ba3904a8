"""The training step on this device: tokens a second, MFU and memory, beside Hugging Face's Trainer on the same windows.

    python benchmarks/step.py DATA book@512:ours,trainer base@1024:ours,zero1 --out rows.jsonl

Every row is a process of its own. `ours` is the step of `dnascale train` itself, data included; `trainer` is the Trainer
as a careful user writes it (SDPA, bf16, fused AdamW, pinned batches made by eight workers), `trainer-compiled` has
torch_compile=True besides; zero1, zero2 and zero3 are ours with that engine. Both see the same windows of DATA, without padding, and
have AdamW, whatever the preset says.
What one lever does is a variant with an override behind a plus sign, such as ours+optimizer.name=muon or ours+train.compile=layers; or, of what
is no setting, a variant without it behind a minus sign (uncompiled): ours-head has the head on all positions and not on the predicted ones alone,
ours-blocks has local attention under a dense mask, ours-tiles (on a CPU) has torch's attention and Hugging Face's layers, ours-memory (on a CPU)
lets the C library give back what a step frees.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

#: Tokens of a micro-batch for each preset, where none are asked for. The global batch is one micro-batch.
MICRO = {"nano": 65_536, "book": 262_144, "base": 65_536, "large": 32_768}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set folder")
    parser.add_argument(
        "rows", nargs="*", help="PRESET@CONTEXT[@MICRO_BATCH_TOKENS]:VARIANT[,VARIANT...], e.g. book@512:ours,trainer"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=12, help="steps")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds until a row is ready, compilation included")
    parser.add_argument(
        "--together", type=int, default=1, help="rows that start and compile at the same time; each is measured alone"
    )
    parser.add_argument("--profile", type=Path, help="folder for a table of the kernels of each row of ours")
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--override", action="append", default=[], help="key=value for ours, e.g. train.compile=false")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.child:
        print("\n" + json.dumps(measure(options, json.loads(options.child))), flush=True)
        os._exit(0)  # the Trainer's thread goes on
    rows = [row for asked in options.rows for row in expand(asked)]
    for first in range(0, len(rows), options.together):
        children = [Child(row, options.limit) for row in rows[first : first + options.together]]
        for child in children:
            child.wait_until_ready()
        for child in children:
            row = child.finish()
            print(as_line(row), flush=True)
            if options.out:
                with options.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")


def expand(asked: str) -> list[dict[str, Any]]:
    what, _, variants = asked.partition(":")
    preset, context, *micro = what.split("@")
    size = int(micro[0]) if micro else MICRO[preset]
    return [
        {"preset": preset, "context": int(context), "variant": variant, "micro_batch_tokens": size}
        for variant in (variants or "ours").split(",")
    ]


class Child:
    """A row that is measured in a process of its own: it gets ready, then waits for its turn."""

    def __init__(self, row: dict[str, Any], limit: float) -> None:
        self.row = row
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 it lives as long as the process
        environment = os.environ | {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, "--child", json.dumps(row)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, start_new_session=True,
        )  # fmt: skip
        self.timer = threading.Timer(limit, self.kill)
        self.timer.start()

    def kill(self) -> None:
        """Its workers too, which would keep its output open."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "READY\n":
                break
        self.timer.cancel()

    def finish(self) -> dict[str, Any]:
        """The row with its figures, or with why there are none."""
        try:
            output, _ = self.process.communicate("go\n", timeout=120)
            return self.row | json.loads(output.splitlines()[-1])
        except (subprocess.TimeoutExpired, BrokenPipeError, IndexError, ValueError):
            self.kill()
            self.errors.seek(0)
            why = " | ".join(self.errors.read().strip().splitlines()[-3:])[-600:]
            return self.row | {"error": why or f"not ready in time (exit code {self.process.poll()})"}


def measure(options: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    from dnascale.config import load_config
    from dnascale.data.masking import Masking
    from dnascale.data.stream import TrainStream
    from dnascale.device import settle_precision
    from dnascale.hardware import measured_flops, peak_flops
    from dnascale.model.flops import record_lengths, train_flops_per_token
    from dnascale.vocab import CHARACTER

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    config = load_config(row["preset"], [
        f"data.path={options.data}", f"model.context={row['context']}", "train.steps=1000000", f"run.dir=/nowhere/{os.getpid()}",
        f"train.global_batch_tokens={row['micro_batch_tokens']}", f"train.micro_batch_tokens={row['micro_batch_tokens']}",
        f"train.engine={row['variant'].split('+')[0] if row['variant'].startswith('zero') else 'plain'}",
        "optimizer.name=adamw",  # as the Trainer's
        *options.override,
        *row["variant"].split("+")[1:],
    ])  # fmt: skip
    lever = "" if "trainer" in row["variant"] else row["variant"].split("+")[0].partition("-")[2]
    windows = row["micro_batch_tokens"] // row["context"]
    sample = TrainStream.open(options.data, row["context"], windows).next_step()[0].tokens.numpy() & 0x7F
    masked = Masking(CHARACTER, **config.masking.model_dump()).count(row["context"]) / row["context"]
    flops = train_flops_per_token(config.model, len(CHARACTER), masked, record_lengths(sample, CHARACTER.sep))

    begin = time.perf_counter()
    steps = (
        trainer_steps(config, options.data, windows, row) if "trainer" in row["variant"] else our_steps(config, lever)
    )
    first = next(steps)  # the rows that only one variant can tell
    for _ in range(options.warm_up):
        next(steps)
    wait(device)
    ready = time.perf_counter() - begin
    print("READY", flush=True)
    sys.stdin.readline()
    rates, each = [], 0.0
    count = 3
    for _ in range(options.rounds):
        begin = time.perf_counter()
        for _ in range(count):
            next(steps)
        wait(device)
        each = (time.perf_counter() - begin) / count
        rates.append(row["micro_batch_tokens"] / each)
        count = max(3, int(options.seconds / each))
    rate = statistics.median(rates)
    result = first | {
        "tokens_per_second": round(rate), "lowest": round(min(rates)), "highest": round(max(rates)),
        "flops_per_token": flops, "tflops": round(rate * flops / 1e12, 2), "seconds_to_ready": round(ready, 1),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
    }  # fmt: skip
    if (peak := peak_flops(device)) is not None:
        result["mfu"] = round(rate * flops / peak, 4)
    if options.profile and cuda and "trainer" not in row["variant"]:
        options.profile.mkdir(parents=True, exist_ok=True)
        name = f"{row['preset']}-{row['context']}-{row['variant']}.txt"
        (options.profile / name).write_text(profile(steps))
    bf16 = "trainer" in row["variant"] or settle_precision(config, device.type).train.precision == "bf16"
    matmul = measured_flops(device, torch.bfloat16 if bf16 else torch.float32)
    result |= {"measured_matmul_tflops": round(matmul / 1e12, 3), "share_of_matmul": round(rate * flops / matmul, 4)}
    return result


def without(lever: str) -> None:
    """Takes one lever out of our step, which computes the same without it."""
    import torch

    from dnascale.model import attention
    from dnascale.model.modernbert import MaskedLanguageModel

    if lever == "blocks":
        attention.BLOCKED_FROM = 1 << 40
    elif lever == "tiles":
        from dnascale.model import cpu

        choose = attention.Attention.choose
        cpu.adapt = lambda hf: None
        attention.Attention.choose = lambda device, dtype, *rest: choose(device, torch.float32, *rest)  # type: ignore[method-assign]
    elif lever == "memory":
        from dnascale.train import assemble

        assemble.keep_freed_memory = lambda: None
    elif lever == "head":
        end = MaskedLanguageModel._end

        def on_all(self: Any, hidden: Any, batch: Any) -> Any:
            head, decoder = self.hf.head, self.hf.decoder
            logits = decoder(head(hidden))
            self.hf.head = self.hf.decoder = torch.nn.Identity()
            try:
                return end(self, logits, batch)
            finally:
                self.hf.head, self.hf.decoder = head, decoder

        MaskedLanguageModel._end = on_all  # type: ignore[method-assign]
    elif lever:
        raise SystemExit(f"there is no lever {lever}: head, blocks, tiles, memory")


def our_steps(config: Any, lever: str) -> Any:
    """Yields what the header says, then after each step of the training loop."""
    from dnascale.bench.throughput import steps
    from dnascale.train.assemble import assemble

    without(lever)
    job = assemble(config)
    yield {"attention": str(job.engine.module.attention), "compiled": job.engine.compiled, "engine": job.engine.name}
    yield from steps(job)


def trainer_steps(config: Any, data: str, windows: int, row: dict[str, Any]) -> Any:
    """The same, by Hugging Face's Trainer, which runs in a thread and hands over after each step."""
    import queue

    import torch
    from transformers import (
        DataCollatorForLanguageModeling,
        ModernBertForMaskedLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from dnascale.model.modernbert import modernbert_config
    from dnascale.vocab import CHARACTER

    turn: queue.Queue[Any] = queue.Queue(maxsize=1)
    go: queue.Queue[None] = queue.Queue(maxsize=1)

    class HandOver(TrainerCallback):
        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            turn.put(None)
            go.get()

    class Windows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """Windows already in memory as int64: no time is spent on reading or tokenising."""

        def __init__(self) -> None:
            from dnascale.data.stream import TrainStream

            stream = TrainStream.open(data, row["context"], 4 * windows)
            self.tokens = stream.next_step()[0].tokens.numpy().copy() & 0x7F

        def __len__(self) -> int:
            return 10**7

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": torch.from_numpy(self.tokens[index % len(self.tokens)]).long()}

    hf_config = modernbert_config(config.model, CHARACTER)
    hf_config._attn_implementation = "sdpa"
    model = ModernBertForMaskedLM(hf_config)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=windows, max_steps=10**6, bf16=True,
        optim="adamw_torch_fused", dataloader_num_workers=8 if torch.cuda.is_available() else 0,
        dataloader_pin_memory=torch.cuda.is_available(), dataloader_prefetch_factor=4 if torch.cuda.is_available() else None,
        logging_steps=100, save_strategy="no", report_to=[], disable_tqdm=True,
        torch_compile=row["variant"] == "trainer-compiled", use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Windows(), callbacks=[HandOver()],
        data_collator=DataCollatorForLanguageModeling(CHARACTER.tokenizer(row["context"]), mlm_probability=config.masking.rate),
    )  # fmt: skip

    def work() -> None:
        try:
            trainer.train()
        except Exception as error:
            turn.put(error)

    threading.Thread(target=work, daemon=True).start()
    yield {"attention": "sdpa", "compiled": row["variant"] == "trainer-compiled", "engine": "trainer"}
    while True:
        if isinstance(error := turn.get(), Exception):
            raise error
        yield None
        go.put(None)


def profile(steps: Any) -> str:
    """The kernels of five steps, by the time they took, and how much of the wall time the device worked."""
    import torch
    from torch.profiler import ProfilerActivity

    begin = time.perf_counter()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            next(steps)
        torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    events = profiler.key_averages()
    busy = sum(event.self_device_time_total for event in events if event.device_type.name == "CUDA") / 1e6
    table = events.table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=110)
    return f"5 steps: {wall * 1e3:.1f} ms of wall time under the profiler, {busy * 1e3:.1f} ms of kernels\n{table}\n"


def wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def as_line(row: dict[str, Any]) -> str:
    head = f"{row['preset']}@{row['context']:<6} micro {row['micro_batch_tokens']:>8,} {row['variant']:<17}"
    if "error" in row:
        return f"{head} {row['error']}"
    mfu = f"  MFU {row['mfu']:.1%}" if "mfu" in row else ""
    mfu += f"  {row['share_of_matmul']:.1%} of a matrix product"
    memory = f"  {row['memory_gb']:.1f} GB" if row["memory_gb"] else ""
    return (
        f"{head} {row['tokens_per_second']:>10,} tokens/s ({row['lowest']:,} to {row['highest']:,})  {row['tflops']:.1f} TFLOP/s"
        f"{mfu}{memory}  ready in {row['seconds_to_ready']:.0f} s"
    )


if __name__ == "__main__":
    main()
