"""Saving a checkpoint: reserve, copy, write and hash, and one rename when all ranks have succeeded.

The copy to host memory is taken between two steps. Writing may go on in a thread while training does; the commit comes when
all ranks have written, between two later steps, in the thread that trains: collectives stay in one order.
"""

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from dnascale import __version__
from dnascale.errors import CheckpointError, NumericsError, SpaceError
from dnascale.faults import fault
from dnascale.files import json_digest, no_space, room, sync
from dnascale.train.checkpoint import FORMAT, VERSION, Identity
from dnascale.train.distributed import from_main, together
from dnascale.train.state import TrainState

if TYPE_CHECKING:
    import torch

    from dnascale.train.engines import Engine

T = TypeVar("T")
#: A file and its entries for the manifest.
Written = tuple[dict[str, Any], list[dict[str, Any]]]
_CHUNK = 1 << 23  # bytes written and hashed at a time, while they are in the processor's cache


def save(folder: Path, engine: "Engine", state: TrainState, identity: Identity) -> Path:
    """Commits a checkpoint of `state` under `folder`. Collective.

    Raises SpaceError or CheckpointError on every rank if any rank failed; older checkpoints are untouched then.
    """
    return Saving(folder, engine, state, identity, background=False).commit()


class Saving:
    """A checkpoint on its way. All methods are collective but those that begin with an underscore."""

    def __init__(self, folder: Path, engine: "Engine", state: TrainState, identity: Identity, background: bool) -> None:
        """Copies the state to host memory; writes it now, or in the `background`. Raises as `save` does."""
        self._engine, self._identity = engine, identity
        self._state = replace(state, norms=list(state.norms))
        self._folder = folder
        self._final = folder / f"step-{state.step:08d}"
        self._work = folder / f".{self._final.name}.partial"
        rank, world = engine.accelerator.process_index, engine.accelerator.num_processes
        self._file = f"rank-{rank:05d}-of-{world:05d}.safetensors"
        self._outcome: Written | Exception | None = None
        from_main(engine.accelerator, lambda: self._plainly(self._reserve))
        tensors = together(engine.accelerator, self._copy)
        self._thread = threading.Thread(target=self._write, args=(tensors,), daemon=True)
        if background:
            self._thread.start()
        else:
            self._write(tensors)

    def written(self) -> bool:
        """Whether all ranks are done writing, or have failed: `commit` will not wait."""
        import torch

        accelerator = self._engine.accelerator
        busy = torch.tensor([float(self._thread.is_alive())], device=accelerator.device)
        return not float(accelerator.reduce(busy, reduction="sum"))

    def commit(self) -> Path:
        """Waits until all ranks have written, and makes the checkpoint exist. Raises as `save` does."""
        from accelerate.utils import gather_object

        accelerator = self._engine.accelerator
        if self._thread.ident is not None:
            self._thread.join()
        gathered = gather_object([together(accelerator, self._own)])
        files = [file for file, _ in gathered]
        fragments = [fragment for _, part in gathered for fragment in part]
        from_main(accelerator, lambda: self._plainly(lambda: self._publish(files, fragments)))
        return self._final

    def _own(self) -> Written:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def _reserve(self) -> None:
        fault("ckpt.reserve", self._state.step)
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        needed = sum(4 * math.prod(shape) for kinds in self._engine.kinds.values() for shape in kinds.values())
        if (free := shutil.disk_usage(self._work).free) < needed:
            self._work.rmdir()
            raise SpaceError(
                f"no space left for the checkpoint {self._final}: it takes {needed:,} bytes, {free:,} are free. Older checkpoints are "
                "untouched; free space and run the same command to continue."
            )

    def _copy(self) -> "list[tuple[dict[str, Any], torch.Tensor]]":
        """This rank's fragments, as the manifest describes them, and their values in host memory. Raises NumericsError."""
        import torch

        copies = []
        for fragment in self._engine.owned():
            value = self._engine.get(fragment).detach()
            if not torch.isfinite(value).all():
                raise NumericsError(
                    f"{fragment.kind} of {fragment.parameter} is not finite: such a checkpoint is not written."
                )
            entry = {
                "file": self._file,
                "key": f"{fragment.kind}/{fragment.parameter}@{fragment.start}",
                **asdict(fragment),
            }
            copies.append((entry, value.to("cpu", torch.float32, copy=True).contiguous()))
        return copies

    def _write(self, tensors: "list[tuple[dict[str, Any], torch.Tensor]]") -> None:
        try:
            self._outcome = self._plainly(lambda: self._write_rank(tensors))
        except Exception as error:
            self._outcome = error

    def _write_rank(self, tensors: "list[tuple[dict[str, Any], torch.Tensor]]") -> Written:
        step = self._state.step
        fault("ckpt.write", step)
        with (self._work / self._file).open("xb") as out:
            size, digest = write_safetensors(out, ((entry["key"], value) for entry, value in tensors))
            out.flush()
            fault("ckpt.fsync", step)
            os.fsync(out.fileno())
        return {"name": self._file, "bytes": size, "sha256": digest}, [entry for entry, _ in tensors]

    def _publish(self, files: list[dict[str, Any]], fragments: list[dict[str, Any]]) -> None:
        step = self._state.step
        fault("ckpt.manifest", step)
        with (self._work / "MANIFEST.json").open("x") as out:
            out.write(json.dumps(self._manifest(files, fragments), indent=1) + "\n")
            out.flush()
            os.fsync(out.fileno())
        sync(self._work)
        fault("ckpt.rename", step)
        if self._final.exists():  # a damaged one of the same step, which this run did not load
            self._final.rename(self._folder / f".{self._final.name}.replaced-{os.getpid()}")
        self._work.rename(self._final)
        fault("ckpt.sync", step)
        sync(self._folder)

    def _manifest(self, files: list[dict[str, Any]], fragments: list[dict[str, Any]]) -> dict[str, Any]:
        engine = self._engine
        body = {
            "format": FORMAT,
            "version": VERSION,
            "created_by": f"dnascale {__version__}",
            "state": self._state.to_dict(),
            "engine": engine.name,
            "optimizer": engine.config.optimizer.name,
            "world_size": engine.accelerator.num_processes,
            "identity": asdict(self._identity),
            "parameters": [
                {
                    "name": name,
                    "shape": list(shape),
                    "dtype": "float32",
                    "kinds": {k: list(s) for k, s in engine.kinds[name].items()},
                }
                for name, shape in engine.shapes.items()
            ],
            "fragments": fragments,
            "files": files,
        }
        return body | {"sha256": json_digest(body)}

    def _plainly(self, action: Callable[[], T]) -> T:
        """Runs `action`; turns a full disk or an unwritable folder into a sentence."""
        try:
            return action()
        except OSError as error:
            if no_space(error):
                raise SpaceError(
                    f"no space left for the checkpoint {self._final}: {room(error, self._folder.parent)}. Older checkpoints are "
                    "untouched; free space and run the same command to continue."
                ) from error
            raise CheckpointError(
                f"the checkpoint {self._final} cannot be written: {error.strerror or error}."
            ) from error


def write_safetensors(out: BinaryIO, tensors: "Iterable[tuple[str, torch.Tensor]]") -> tuple[int, str]:
    """Flat fp32 tensors in host memory, as a safetensors file. Returns its size in bytes and its SHA-256, taken on the way.

    The format: https://huggingface.co/docs/safetensors. Its own writer would have to be read again for the digest.
    """
    named = list(tensors)
    header: dict[str, Any] = {}
    size = 0
    for key, value in named:
        header[key] = {"dtype": "F32", "shape": [value.numel()], "data_offsets": [size, size + 4 * value.numel()]}
        size += 4 * value.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()

    def put(part: bytes | memoryview) -> None:
        out.write(part)
        digest.update(part)

    put(len(text).to_bytes(8, "little") + text)
    for _, value in named:
        content = memoryview(value.numpy()).cast("B")
        for begin in range(0, len(content), _CHUNK):
            put(content[begin : begin + _CHUNK])
    return 8 + len(text) + size, digest.hexdigest()
