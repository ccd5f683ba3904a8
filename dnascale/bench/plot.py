"""Rows of `dnascale bench` as a picture: tokens a second and their spread, a bar a row."""

import html
import io
from pathlib import Path
from typing import Any

from dnascale.bench.throughput import devices_of
from dnascale.errors import UsageError
from dnascale.files import explained, write_whole

KINDS = (".png", ".svg", ".html")
_COLORS = ("#2b8cbe", "#f0a202", "#1b7837", "#7b3294", "#d7301f", "#5e3c99")


def plot(rows: list[dict[str, Any]], out: Path, table: list[list[str]]) -> None:
    """Draws rows that have a rate to `out`. An .html holds the picture and, below it, `table`, whose first line are the heads.

    Raises UsageError without matplotlib, for another suffix, or where nothing was measured; SpaceError on a full disk.
    """
    if out.suffix not in KINDS:
        raise UsageError(f"{out} is none of {', '.join(KINDS)}.")
    measured = [row for row in rows if "error" not in row]
    if not measured:
        raise UsageError("no row has a rate: nothing to draw.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install 'dnascale[biology]'.") from None
    devices = list(dict.fromkeys(devices_of(row) for row in measured))
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(measured)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(measured):
        color, rate = _COLORS[devices.index(devices_of(row)) % len(_COLORS)], row["tokens_per_second"]
        axes.barh(
            place,
            rate,
            color=color,
            height=0.7,
            xerr=[[rate - row["lowest"]], [row["highest"] - rate]],
            ecolor="#333333",
        )
        share = (
            f"{row['mfu']:.0%} MFU" if row["mfu"] is not None else f"{row['share_of_matmul']:.0%} of a matrix product"
        )
        axes.annotate(
            f"{rate:,.0f}   {share}",
            (row["highest"], place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(measured)), [row["name"] for row in measured], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("tokens a second: median of the rounds; the line is from the slowest to the fastest")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [mpl.patches.Patch(color=_COLORS[n % len(_COLORS)], label=name) for n, name in enumerate(devices)]
    figure.legend(handles=handles, loc="outside upper left", fontsize=8, frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png" if out.suffix == ".png" else "svg", dpi=150)
    content = drawn.getvalue()
    try:
        write_whole(out, _page(content.decode(), table).encode() if out.suffix == ".html" else content, durable=False)
    except OSError as error:
        raise explained(error, out) from error


def _page(svg: str, table: list[list[str]]) -> str:
    cells = [[html.escape(cell) for cell in line] for line in table]
    head = "".join(f"<th>{cell}</th>" for cell in cells[0])
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in cells[1:])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>dnascale bench</title>
<style>
 body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; background: #fff }}
 svg {{ max-width: 100%; height: auto }}
 div {{ overflow-x: auto }}
 table {{ border-collapse: collapse; white-space: nowrap }}
 th, td {{ text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #ddd }}
 th:first-child, td:first-child {{ text-align: left }}
</style>
<h1>dnascale bench</h1>
{svg[svg.index("<svg") :]}
<div><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>
</html>
"""
