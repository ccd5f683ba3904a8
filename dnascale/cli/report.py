"""`dnascale report`: runs as a page."""

from pathlib import Path
from typing import Annotated

import typer

from dnascale.cli.arguments import written_here


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are laid over each other.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            callback=written_here, help="File to make; RUN/report.html for one run, report.html here for several."
        ),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Show it on this machine, refreshed while training.")] = False,
    port: Annotated[int, typer.Option(help="Port of --serve; 0 takes a free one.")] = 8765,
) -> None:
    """Runs as one HTML page: curves beside baselines, speed, events, configuration, data, evaluation. Opens without a network."""
    if serve:
        from dnascale.report.serve import open_server

        with open_server(runs, port) as server:
            print(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        return
    from dnascale.report.page import write_report

    target = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    write_report(runs, target)
    print(target)
