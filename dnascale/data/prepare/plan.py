"""The plan: everything that the bytes of the data set depend on, and the folder in which it is carried out."""

import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from dnascale import __version__
from dnascale.data.prepare.options import PrepareOptions
from dnascale.data.shards import BLOCK_TOKENS
from dnascale.data.sources import Input, find
from dnascale.data.sources.expect import Expected
from dnascale.data.split import sampling_for
from dnascale.data.writer import SHARD_BLOCKS
from dnascale.errors import UsageError
from dnascale.files import json_digest, sync, write_whole
from dnascale.vocab import Vocabulary, load_vocabulary

#: Changes whenever the files of the work folder do: what another version left is not used.
LAYOUT = 1


@dataclass(frozen=True)
class Plan:
    """Inputs in order, options and the layout of shards. Two equal plans give the same data set, to the byte."""

    inputs: tuple[Input, ...]
    stamps: tuple[tuple[int, int], ...]  # of each input: bytes, and time of change in nanoseconds
    options: PrepareOptions
    beside: tuple[tuple[int, int], ...] = ()  # the same of the files that options name
    block_tokens: int = BLOCK_TOKENS
    shard_blocks: int = SHARD_BLOCKS
    left_out: tuple[str, ...] = field(default=(), compare=False)  # files of folders that are no inputs

    @classmethod
    def of(
        cls,
        sources: Sequence[str],
        options: PrepareOptions,
        block_tokens: int = BLOCK_TOKENS,
        shard_blocks: int = SHARD_BLOCKS,
    ) -> "Plan":
        """Finds the inputs. Raises DataError when one is missing or named twice."""
        left_out: list[str] = []
        inputs = tuple(find(sources, left_out))
        if options.expect and Expected.load(options.expect).lengths and len(inputs) > 1:
            raise UsageError(
                f"--expect {options.expect} lists the records of one input, and there are {len(inputs)}: prepare them one "
                "by one, or give a list of checksums."
            )
        beside = tuple(stamp(file) for file in options.files)
        plan = cls(
            inputs,
            tuple(stamp(i.location, i.bytes) for i in inputs),
            options,
            beside,
            block_tokens,
            shard_blocks,
            tuple(left_out),
        )
        _ = plan.vocabulary  # raises if there is none such
        return plan

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return load_vocabulary(self.options.tokenizer)

    @cached_property
    def sampled(self) -> int | None:
        """One 31-mer in how many is noted of each record; None: none is."""
        if not self.options.splitting.needs_sample:
            return None
        known = all(input.bytes is not None for input in self.inputs)
        size = sum(size for size, _ in self.stamps) if known else None
        return sampling_for(size, finer=self.options.cluster is not None)

    @property
    def about_left_out(self) -> str:
        """What to say of files that lie in the folders given and are no inputs. Empty if there are none."""
        names = [name.rstrip("/").rpartition("/")[2] for name in self.left_out]
        shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
        return (
            f"left out of the folders, because their names are not those of sequences: {shown} ({len(names):,} in all)"
            if names
            else ""
        )

    @property
    def shard_tokens(self) -> int:
        return self.block_tokens * self.shard_blocks

    @cached_property
    def digest(self) -> str:
        return json_digest(self.to_dict())

    @cached_property
    def read_digests(self) -> list[str]:
        """Of each read task: of all that its result depends on. It names the task's folder."""
        of_all = {
            "layout": LAYOUT, "version": __version__, "options": self.options.of_reading(),
            "beside": [list(stamp) for stamp in self.beside], "sampled": self.sampled, "vocabulary": self.vocabulary.digest,
        }  # fmt: skip
        return [
            json_digest(of_all | {"input": asdict(input), "stamp": list(stamp)})[:24]
            for input, stamp in zip(self.inputs, self.stamps, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "layout": LAYOUT,
            "version": __version__,
            "inputs": [asdict(input) for input in self.inputs],
            "stamps": [list(stamp) for stamp in self.stamps],
            "options": self.options.to_dict(),
            "beside": [list(stamp) for stamp in self.beside],
            "vocabulary": self.vocabulary.digest,
            "block_tokens": self.block_tokens,
            "shard_blocks": self.shard_blocks,
        }

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> "Plan":
        return cls(
            inputs=tuple(Input(**input) for input in body["inputs"]),
            stamps=tuple((size, changed) for size, changed in body["stamps"]),
            options=PrepareOptions(**body["options"]),
            beside=tuple((size, changed) for size, changed in body["beside"]),
            block_tokens=body["block_tokens"],
            shard_blocks=body["shard_blocks"],
        )


def stamp(location: str, size: int | None = None) -> tuple[int, int]:
    """Size and time of change of a file; of what is no file (a URL, a pipe) the `size` that is known."""
    with suppress(OSError):
        status = os.stat(location)
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            return status.st_size, status.st_mtime_ns
    return size or 0, 0


def work_folder(out: Path) -> Path:
    """Where what is done for the data set `out` is kept."""
    return out.with_name(f"{out.name}.preparing")


@dataclass(frozen=True)
class Work:
    """The work folder of a plan: where each task writes, and the marker that says that it is done."""

    folder: Path
    plan: Plan

    @classmethod
    def beside(cls, out: Path, plan: Plan) -> "Work":
        return cls(work_folder(out), plan)

    @classmethod
    def load(cls, folder: Path) -> "Work":
        """As it was begun: for worker processes."""
        return cls(folder, Plan.from_dict(json.loads((folder / "plan.json").read_bytes())))

    def begun(self) -> dict[str, Any] | None:
        """The plan that the folder was begun with; None where there is none."""
        with suppress(OSError, ValueError):
            return cast(dict[str, Any], json.loads((self.folder / "plan.json").read_bytes()))
        return None

    def begin(self, alone: bool) -> str | None:
        """Makes the folder, or goes on with what is there. Gives a sentence when that belongs to another plan.

        What no longer fits is removed if this process is `alone` in the folder; if not, raises UsageError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        body, found = self.plan.to_dict(), self.begun()
        restarted = self._restarted()
        why = "before this machine was started again" if restarted else ""
        if found is not None and not why and found != body:
            why = f"with {_difference(found, body)}"
        if why and not alone:
            raise UsageError(
                f"{self.folder} was begun {why}: give all parts of one run the same, or stop all and remove the folder to start anew."
            )
        if why:
            self._keep_only([] if restarted else [self.read(number).name for number in range(len(self.plan.inputs))])
        if found != body:
            write_whole(self.folder / "plan.json", json.dumps(body, indent=1).encode(), durable=False)
        self._note_start()
        return (
            f"{self.folder} was begun {why}: what does not depend on it is kept, the rest is done anew."
            if why
            else None
        )

    def _restarted(self) -> bool:
        """Whether this machine was started again since it wrote here: what it had not yet brought to the disk is lost."""
        noted = self.folder / f".start-{socket.gethostname()}"
        return noted.exists() and noted.read_text() != _start_of_machine()

    def _note_start(self) -> None:
        noted = self.folder / f".start-{socket.gethostname()}"
        if not noted.exists() or self._restarted():
            write_whole(noted, _start_of_machine().encode())
            sync(self.folder)  # all else in it may be lost in a power cut: this tells that there was one

    def _keep_only(self, fitting: list[str]) -> None:
        for path in [self.settled, self.shards, self.written]:
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "read").iterdir() if (self.folder / "read").exists() else ():
            if path.name not in fitting:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def settled(self) -> Path:
        return self.folder / "settled"

    @property
    def shards(self) -> Path:
        """What becomes the data set."""
        return self.folder / "shards"

    @property
    def written(self) -> Path:
        """Markers of the written shards."""
        return self.folder / "written"

    def read(self, number: int) -> Path:
        """Folder of a read task."""
        return self.folder / "read" / self.plan.read_digests[number]

    @contextmanager
    def reading(self, number: int) -> Iterator[Path]:
        """A folder to write in, which becomes that of the read task when the block ends and goes when it fails."""
        done = self.read(number)
        staging = done.with_name(f"{done.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            shutil.rmtree(done, ignore_errors=True)
            staging.replace(done)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def is_read(self, number: int) -> bool:
        try:
            report = self.report(number)
        except FileNotFoundError:
            return False
        return "skipped" not in report["source"] or self.plan.options.skip_bad_files

    def report(self, number: int) -> dict[str, Any]:
        """What a finished read task says of its input."""
        body: dict[str, Any] = json.loads((self.read(number) / "done.json").read_bytes())
        return body

    def problems(self, number: int) -> Path:
        """Where a read task that failed says why: a list of sentences."""
        return self.folder / "read" / f"{self.plan.read_digests[number]}.problems.json"

    def has_results(self) -> bool:
        """Whether anything is there that a rerun would not have to do again."""
        return any((self.folder / "read").glob("*/done.json"))


def _start_of_machine() -> str:
    """Another text after each start of the machine, where it tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _difference(found: dict[str, Any], body: dict[str, Any]) -> str:
    """What of another plan is not as in this one, in a few words."""
    if found.get("version") != body["version"] or found.get("layout") != body["layout"]:
        return f"dnascale {found.get('version')}"
    locations = [[input["location"] for input in one["inputs"]] for one in (found, body)]
    if locations[0] != locations[1]:
        return "other inputs"
    old, new = (zip(one["stamps"], one["inputs"], strict=True) for one in (found, body))
    for (stamp_before, before), (stamp_now, now) in zip(old, new, strict=True):
        if (stamp_before, before["version"]) != (stamp_now, now["version"]):
            return f"another version of {now['name']}"
    if found["vocabulary"] != body["vocabulary"]:
        return "another tokenizer"
    if found["beside"] != body["beside"]:
        return "another version of a file that its options name"
    options = [name for name, value in body["options"].items() if found["options"].get(name) != value]
    return "other options (" + ", ".join(f"--{name.replace('_', '-')}" for name in options) + ")"
