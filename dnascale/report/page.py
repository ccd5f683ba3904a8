"""The page: style, chart library, numbers and script in one HTML file that opens from disk, without a network."""

import html
import json
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from dnascale import __version__
from dnascale.files import explained, write_whole
from dnascale.report.read import read_run


def page_data(folders: list[Path], live_every: int | None = None) -> dict[str, Any]:
    """What the page's script draws. `live_every`: seconds between its looking for newer numbers. Raises UsageError."""
    return {
        "runs": [read_run(folder) for folder in folders],
        "live": live_every is not None,
        "every": live_every,
        "written": _last_change(folders),
    }


def page(data: dict[str, Any]) -> str:
    """The HTML of `page_data`."""
    assets = files("dnascale.report") / "assets"
    read = {name: (assets / name).read_text() for name in ("page.html", "page.css", "page.js", "uPlot.min.css", "uPlot.iife.min.js")}  # fmt: skip
    parts = {
        "title": html.escape(" · ".join(run["name"] for run in data["runs"])),
        "style": read["uPlot.min.css"] + read["page.css"],
        "version": __version__,
        # Names in it come from others: nothing in it may end the script element.
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "library": read["uPlot.iife.min.js"],
        "script": read["page.js"],
    }
    out = []
    for piece in read["page.html"].split("{{"):
        name, found, rest = piece.partition("}}")
        out.append(parts[name] + rest if found else piece)
    return "".join(out)


def write_report(folders: list[Path], out: Path) -> None:
    """Raises UsageError where a folder holds no run, or `out` cannot be written; SpaceError on a full disk."""
    content = page(page_data(folders)).encode()
    try:
        write_whole(out, content, durable=False)
    except OSError as error:
        raise explained(error, out) from error


def _last_change(folders: list[Path]) -> str:
    """When the newest number was written, so that the same run gives the same page."""
    times = [path.stat().st_mtime for folder in folders if (path := folder / "metrics.jsonl").is_file()]
    return datetime.fromtimestamp(max(times)).strftime("%Y-%m-%d %H:%M:%S") if times else "no numbers yet"
