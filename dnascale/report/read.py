"""What a run's folder says of it, as one JSON object: what the page shows, and nothing else."""

import contextlib
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dnascale.errors import UsageError
from dnascale.files import read_tree

#: Of a train line, what is drawn.
_KEYS = ("step", "tokens", "seconds", "nats_per_base", "learning_rate", "gradient_norm", "tokens_per_second", "mfu", "share_of_matmul",
         "data_wait_max", "memory_gb", "loss_a", "loss_c", "loss_g", "loss_t")  # fmt: skip
#: More lines than a screen has pixels are thinned to at most this many: the page stays under a megabyte a run.
MAX_LINES = 3000


def read_run(folder: Path) -> dict[str, Any]:
    """Raises UsageError when `folder` holds no run. A file that is missing, torn or damaged is left out, as is a run's torn last line."""
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} holds no run (no config.yaml): name the run.dir of a training.")
    config = read_tree(folder / "config.yaml")
    lines = _lines(folder / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    every = math.ceil(len(train) / MAX_LINES) or 1
    drawn = train[::every] if (len(train) - 1) % every == 0 else [*train[::every], train[-1]]
    evaluations = read_evaluations(folder.glob("evaluation-*.json"))[::-1]
    return {
        "name": folder.resolve().name,
        "folder": str(folder),
        "train": {key: [_finite(line.get(key)) for line in drawn] for key in _KEYS if any(key in line for line in drawn)}
        or {"step": []},
        "thinned": every,
        "valid": {key: [_finite(line[key]) for line in valid] for key in ("step", "valid_loss")},
        "events": _events(lines, folder),
        "summary": _summary(train, valid, evaluations, config),
        "evaluations": evaluations,
        "config": _flat(config),
        "environment": _flat(read_json(folder / "environment.json")),
        "data": _cards(config, folder),
    }  # fmt: skip


def read_evaluations(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """What `dnascale eval` wrote, by name of the files. Somebody's own files of such names are left out, and damaged ones."""
    return [one for path in sorted(paths) if _is_evaluation(one := read_json(path))]


def _is_evaluation(one: dict[str, Any]) -> bool:
    baselines = one.get("baselines")
    if not {"step", "split"} <= one.keys() or not isinstance(baselines, list):
        return False
    return _has_loss(one.get("model")) and all(_has_loss(rival) and "name" in rival for rival in baselines)


def _has_loss(score: Any) -> bool:
    value = score.get("nats_per_base") if isinstance(score, dict) else None
    return isinstance(value, int | float) and math.isfinite(value)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; an empty one where it holds none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines alone: the last one may be being written, or torn by a kill."""
    found = []
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line and "step" in line:
            found.append(line)
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite is shown as a gap."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _events(lines: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What interrupted, secured or changed the run, by step."""
    events = []
    for line in lines:
        if line["kind"] == "skip":
            norm = "" if line.get("gradient_norm") is None else f" to {line['gradient_norm']:.3g}"
            last = line["position"] + line["windows"] - 1
            shuffled = "" if line.get("parts", 1) == 1 else "parts of windows around "
            text = f"left out: {line['reason']}{norm} ({shuffled}windows {line['position']:,} to {last:,})"
            events.append({"kind": "skip", "step": line["step"], "text": text})
        elif line["kind"] == "straggler":
            text = f"rank {line['rank']} held up the others: {line['section']}, {line['times']:.1f} times the median"
            events.append({"kind": "straggler", "step": line["step"], "text": text})
        elif line["kind"] == "stop":
            events.append({"kind": "stop", "step": line["step"], "text": f"stopped by {line['reason']}, and saved"})
        elif line["kind"] == "resume":
            text = f"resumed on {line['processes']} process{'' if line['processes'] == 1 else 'es'}, {line['engine']}"
            events.append({"kind": "resume", "step": line["step"], "text": text})
    saved = {line["step"] for line in lines if line["kind"] == "checkpoint"}
    saved |= {
        int(path.parent.name.rpartition("-")[2]) for path in (folder / "checkpoints").glob("step-*/MANIFEST.json")
    }
    events += [{"kind": "checkpoint", "step": step, "text": "checkpoint"} for step in saved]
    for before in folder.glob("config-until-step-*.yaml"):
        step = int(before.stem.rpartition("-")[2])
        events.append({"kind": "change", "step": step, "text": f"went on with a changed configuration (before: {before.name})"})  # fmt: skip
    return sorted(events, key=lambda event: event["step"])


def _summary(
    train: list[dict[str, Any]], valid: list[dict[str, Any]], evaluations: list[dict[str, Any]], config: dict[str, Any]
) -> dict[str, Any]:
    """Of all lines, thinned or not. Speeds are medians: the first line has the compiler in it."""
    last = train[-1] if train else {}

    def known(key: str) -> list[float]:
        return [line[key] for line in train if isinstance(line.get(key), int | float) and math.isfinite(line[key])]

    baselines = [b["nats_per_base"] for one in evaluations[:1] for b in one["baselines"]]
    median = {
        key: statistics.median(values)
        for key in ("tokens_per_second", "mfu", "data_wait_max")
        if (values := known(key))
    }
    return median | {
        "loss": _finite(last.get("nats_per_base")),
        "valid_loss": _finite(valid[-1]["valid_loss"]) if valid else None,
        "best_baseline": min(baselines, default=None),
        "step": last.get("step", 0),
        "total_steps": config.get("train", {}).get("steps"),
        "tokens": last.get("tokens"),
        "memory_gb": max(known("memory_gb"), default=None),
        "seconds": last.get("seconds"),
    }  # fmt: skip


def _flat(tree: Any, above: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys, values as text; lists of plain values in one line."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{above}{key}.")
        elif isinstance(value, list) and not any(isinstance(one, dict) for one in value):
            flat[f"{above}{key}"] = " ".join(map(str, value))
        else:
            flat[f"{above}{key}"] = (
                "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)
            )
    return flat


def _cards(config: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Of each data set that is still where it was, or in the run's folder: what it holds. Nothing is fetched."""
    data = config.get("data", {})
    places = (
        {"data": data["path"]} if data.get("path") else {n: s["path"] for n, s in (data.get("sources") or {}).items()}
    )
    cards = []
    for name, place in places.items():
        for path in (Path(place), folder / "data"):
            card = read_json(path / "dataset.json")
            with contextlib.suppress(KeyError, TypeError, AttributeError):  # of another program, or damaged
                cards.append({"name": card.get("name", name), "facts": _facts(card, place)})
                break
    return cards


def _facts(card: dict[str, Any], place: str) -> list[tuple[str, str]]:
    facts = [("place", place), ("vocabulary", card["vocabulary"]["name"]), ("made by", card["created_by"])]
    for name, split in card["splits"].items():
        facts.append((name, f"{split['records']:,} records, {split['bases']:,} bases, {split['tokens']:,} tokens, longest record {split['longest_record']:,}"))  # fmt: skip
        counted = split.get("composition") or {}
        if total := sum(counted.values()):
            facts.append((f"{name}, composition", ", ".join(f"{base} {n / total:.1%}" for base, n in counted.items())))
    facts += [
        ("source", f"{one['name']}: {one['records']:,} records, {one['bases']:,} bases") for one in card["sources"][:20]
    ]
    if (cleaning := card.get("cleaning")) is not None:
        facts.append(("cleaning", f"{cleaning['records_in']:,} records in, {cleaning['records_out']:,} out"))
        facts += [(f"dropped, {reason}", str(count)) for reason, count in cleaning.get("dropped", {}).items()]
    return [*facts, ("fingerprint", card["fingerprint"])]
