"""The page over HTTP on this machine alone, with numbers that follow the run."""

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dnascale.errors import UsageError, first_line
from dnascale.report.page import page, page_data

EVERY = 5  # seconds between looks of the page for newer numbers


def open_server(folders: list[Path], port: int, every: int = EVERY) -> ThreadingHTTPServer:
    """Listens on 127.0.0.1; `port` 0 takes a free one. Raises UsageError when a folder holds no run or the port is taken."""
    page_data(folders)

    def answers() -> dict[str, tuple[str, Callable[[], str]]]:
        return {
            "/": ("text/html; charset=utf-8", lambda: page(page_data(folders, every))),
            "/data.json": ("application/json", lambda: json.dumps(page_data(folders, every), allow_nan=False)),
        }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Pages of other sites that have their own name lead here must not read the numbers.
            if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            found = answers().get(self.path.partition("?")[0])
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            kind, make = found
            try:
                body = make().encode()
            except Exception as error:  # the next look may find it whole again
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=first_line(error))
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent: one line a look would fill the terminal."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--port {port}: cannot listen there ({error}); another --port, or 0 for a free one."
        ) from None
