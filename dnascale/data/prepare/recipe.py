"""A recipe: several sources with options of their own, prepared into one data set each, and mixed in training.

    sources:
      human: {inputs: "human/*.fa.gz", group: chromosome, valid: chr20, weight: 3}
      yeast: {inputs: [yeast.fa.gz], annotation: yeast.gtf.gz, weight: 1}
    options: {soft_mask: true}          # of all sources

DATA gets a folder a source, and `mixture.yaml`, so that DATA stands for the mixture: `dnascale train book data.path=DATA`.
"""

import difflib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dnascale.data.mixture import MIXTURE, Mixture, MixtureSource
from dnascale.data.prepare.options import PrepareOptions
from dnascale.data.prepare.plan import Plan, work_folder
from dnascale.data.prepare.run import Crew, Unfinished, carry_out_plan, finished
from dnascale.data.prepare.tasks import Progress
from dnascale.data.shards import Dataset, load_dataset
from dnascale.data.together import check_together
from dnascale.errors import DataError, UsageError
from dnascale.files import check_new_folder, explained, hold, sync, write_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_OPTIONS = [field.name for field in fields(PrepareOptions)]
#: Sources that are mixed must agree in these.
_OF_ALL = ("tokenizer", "soft_mask")


@dataclass(frozen=True)
class Source:
    """One source: what is read, how, and its share of the mixture."""

    inputs: tuple[str, ...]
    options: PrepareOptions
    weight: float | None


@dataclass(frozen=True)
class Recipe:
    """Sources by name. Weights of all or of none; without, a source's is its number of tokens ^ (1 / temperature)."""

    sources: dict[str, Source]
    temperature: float = 1.0


def is_recipe(sources: list[str]) -> bool:
    """Whether what is to be prepared is a recipe and not sequences."""
    return len(sources) == 1 and sources[0].endswith((".yaml", ".yml"))


def load_recipe(path: Path) -> Recipe:
    """Raises UsageError: no such file, no YAML, unknown keys, options that cannot be."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        _refuse_twice(yaml.compose(text, yaml.SafeLoader))
        body = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as a recipe: {' '.join(str(error).split())}") from None
    _check_keys(body, str(path), ["sources", "options", "temperature"], needed=["sources"])
    common = body.get("options") or {}
    _check_keys(common, f"{path}: options", _OPTIONS)
    _check_types(f"{path}: options", common)
    named = body["sources"]
    if not isinstance(named, dict) or not named:
        raise UsageError(
            f"{path}: sources must be names, each with its inputs: `sources: {{human: {{inputs: FILE}}}}`."
        )
    sources = {str(name): _source(f"{path}: sources.{name}", str(name), given, common) for name, given in named.items()}
    weighted = [name for name, source in sources.items() if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        raise UsageError(f"{path}: give every source a weight, or none of them.")
    return Recipe(sources, _positive(f"{path}: temperature", body.get("temperature", 1.0), bool(weighted)))


def _refuse_twice(node: Any) -> None:
    """Raises YAMLError for a key that is there twice, of which YAML's reader would take the last."""
    import yaml

    waiting, looked_at = [node], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in looked_at:
            continue
        looked_at.add(id(node))  # an alias may lead back to where it stands
        parts = node.value if isinstance(node, yaml.MappingNode) else [(None, value) for value in node.value]
        waiting += [value for _, value in parts]
        keys = [key for key, _ in parts if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if sum(other.value == key.value for other in keys) > 1:
                line, column = key.start_mark.line + 1, key.start_mark.column + 1
                raise yaml.YAMLError(f"line {line}, column {column}: the key '{key.value}' is there twice.")


def _source(where: str, name: str, given: Any, common: dict[str, Any]) -> Source:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: a source's name becomes a folder: letters, digits, - and _ alone.")
    _check_keys(given, where, ["inputs", "weight", *_OPTIONS], needed=["inputs"])
    for key in _OF_ALL:
        if key in given:
            raise UsageError(f"{where}: {key} must be the same for all sources: write it under `options:`.")
    inputs = given["inputs"]
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, list) or not inputs or not all(isinstance(text, str) for text in inputs):
        raise UsageError(f"{where}.inputs must be a file, glob or URL, or a list of them.")
    options = common | {key: value for key, value in given.items() if key not in ("inputs", "weight")}
    _check_types(where, options)
    weight = given.get("weight")
    if weight is not None:
        weight = _positive(f"{where}.weight", weight, False)
    try:
        return Source(tuple(inputs), PrepareOptions(**options), weight)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _check_keys(body: Any, where: str, known: list[str], needed: Sequence[str] = ()) -> None:
    """Raises UsageError for what is no mapping, for unknown keys, with the nearest right one, and for missing ones."""
    if not isinstance(body, dict):
        raise UsageError(f"{where} must be keys and values, with {', '.join(needed or known[:3])} in it.")
    for key in body:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise UsageError(
                f"{where}: unknown key '{key}'"
                + (f" (did you mean '{near[0]}'?)." if near else f"; known: {', '.join(known)}.")
            )
    for key in needed:
        if key not in body:
            raise UsageError(f"{where}: '{key}' is missing.")


def _check_types(where: str, options: dict[str, Any]) -> None:
    """Raises UsageError for a value of another type than its option has."""
    from pydantic import TypeAdapter, ValidationError

    types: dict[str, Any] = {field.name: field.type for field in fields(PrepareOptions)}
    for name, value in options.items():
        try:
            TypeAdapter(types[name]).validate_python(value, strict=isinstance(value, bool | str))
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise UsageError(f"{where}.{name}={value!r}: {message[0].lower()}{message[1:]}.") from None


def _positive(where: str, value: Any, weighted: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UsageError(f"{where}={value!r} must be a number above 0.")
    if weighted and value != 1.0:
        raise UsageError(f"{where} is for sources without weights.")
    return float(value)


def carry_out_recipe(recipe: Recipe, out: Path, crew: Crew, progress: Progress) -> dict[str, Dataset | Unfinished]:
    """Prepares every source, and makes `out` appear with all of them and mixture.yaml when each is whole.

    What is done is kept in `out`.preparing, a data set or the work of one for each source. Raises as `carry_out_plan`.
    """
    plans = {name: Plan.of(source.inputs, source.options) for name, source in recipe.sources.items()}
    if crew.part and (out / MIXTURE).exists():
        return {name: finished(plan, out / name) for name, plan in plans.items()}
    check_new_folder(out)
    work = work_folder(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with hold(work, shared=crew.world > 1), _kept(work, crew):
            done = {name: _one(name, plan, work, crew, progress) for name, plan in plans.items()}
            if any(isinstance(one, Unfinished) for one in done.values()):
                return done
            with hold(work, "finish", wait=True):
                if not (out / MIXTURE).exists():  # by another rank
                    _compare(recipe, work, progress)
                    _finish(recipe, work, out)
    except OSError as error:
        if not (crew.part and (out / MIXTURE).exists()):
            raise explained(error, out, f"What is done is kept in {work}") from error
    return {name: load_dataset(out / name) for name in recipe.sources}


@contextmanager
def _kept(work: Path, crew: Crew) -> Iterator[None]:
    """Removes the work folder when the block fails before there is anything in it that a rerun could use."""
    try:
        yield
    except BaseException:
        if crew.world == 1 and not any(path.is_dir() for path in work.iterdir()):
            shutil.rmtree(work, ignore_errors=True)
        raise


def _one(name: str, plan: Plan, work: Path, crew: Crew, progress: Progress) -> Dataset | Unfinished:
    """One source: as it was prepared by an earlier call with the same plan, or prepared now."""
    folder, said = work / name, work / f"{name}.plan"
    with hold(work, name, wait=True):  # another rank may be as far
        # The folder appears by one rename: where it is, and this plan was said before, it is whole.
        if not said.exists() or said.read_text() != plan.digest:
            said.unlink(missing_ok=True)
            if folder.exists():
                shutil.rmtree(folder)
            write_whole(said, plan.digest.encode())
    if (folder / "dataset.json").exists():
        return load_dataset(folder)
    try:
        return carry_out_plan(plan, folder, crew, progress)
    except (DataError, UsageError) as error:
        error.args = (f"sources.{name}: {error}",)
        raise


def _compare(recipe: Recipe, work: Path, progress: Progress) -> None:
    """Raises DataError when held-out records of a source stand in the training split of another."""
    datasets = {name: load_dataset(work / name) for name in recipe.sources}
    most = {name: source.options.max_leakage for name, source in recipe.sources.items()}
    asked = {name: limit for name, limit in most.items() if limit is not None}
    progress.begin("comparing", len(datasets), sum(s.tokens for d in datasets.values() for s in d.splits.values()))
    for sentence in check_together(datasets, asked, work, progress.advance):
        progress.note(sentence)


def _finish(recipe: Recipe, work: Path, out: Path) -> None:
    sources = {name: MixtureSource(name, source.weight) for name, source in recipe.sources.items()}
    write_whole(work / MIXTURE, Mixture(sources, recipe.temperature).to_yaml().encode())
    named = {MIXTURE, *recipe.sources}
    for path in work.iterdir():
        if path.name not in named and path.is_dir():
            shutil.rmtree(path)
    sync(work)
    work.replace(out)
    sync(out.parent)
    for path in out.iterdir():  # what says of which plan each is, which a kill before would have needed; and locks
        if path.name not in named:
            path.unlink()


def report(done: dict[str, Dataset | Unfinished]) -> str:
    """All data sets in one JSON object, by source."""
    bodies = {
        name: json.loads(one.to_json()) if isinstance(one, Dataset) else asdict(one) for name, one in done.items()
    }
    return json.dumps(bodies, indent=1)
