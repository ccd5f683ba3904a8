"""The inputs behind a URL: one file, the files that match its pattern, or those of its folder."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from dnascale.data.sources.folders import chosen
from dnascale.data.sources.given import hidden
from dnascale.data.sources.input import Input
from dnascale.data.sources.urls import Location, is_web, located, mark_of
from dnascale.data.transport import Retry, without_secrets
from dnascale.errors import DataError


def inputs_of(url: str, left_out: list[str], retry: Retry | None = None) -> list[Input]:
    """What `url` names; it is a folder if it ends with '/'. Files of a folder that are no inputs are added to `left_out`.

    Raises:
        DataError: there is nothing, or the server does not say what there is.
        UsageError: the scheme is not known, or its package is not installed.
    """
    place, web = located(url, retry), is_web(url)
    pattern = any(sign in url for sign in ("*[" if web else "*?["))  # in the address of a page, '?' begins the query
    if not pattern and not url.endswith("/"):
        return [_one(place, web)]
    found: dict[str, dict[str, Any]] = place.ask(lambda _: _listed(place, pattern, web))
    paths = sorted(found)
    if not pattern:
        paths, others = chosen(found)
        left_out += [without_secrets(_url_of(place, path)) for path in others]
    if not paths:
        what = "no file matches" if pattern else "there are no files of sequences in"
        raise DataError(f"{what} {place.shown}; check the URL.")
    return [_input(_url_of(place, path), found[path]) for path in paths]


def _one(place: Location, web: bool) -> Input:
    """The file itself. A web server may not answer the question for its size; it is asked once."""
    info: dict[str, Any] = {}
    if web:
        with suppress(Exception):
            info = place.info(place.retry.stall / 6)
    else:
        info = place.ask(place.info)
        if info["type"] == "directory":
            raise DataError(f"{place.shown} is a folder: end it with '/' to take the files in it.")
    return _input(place.address(""), info)


def _input(url: str, info: dict[str, Any]) -> Input:
    return Input(hidden(url), without_secrets(url), info.get("size"), version=mark_of(info) or None)


def _listed(place: Location, pattern: bool, web: bool) -> dict[str, dict[str, Any]]:
    """The files, by their paths. Links of a web page with a query are its own, for other orders of the same list."""
    files = place.files
    files.invalidate_cache()
    infos: dict[str, dict[str, Any]] = (files.glob if pattern else files.find)(place.path, detail=True)
    return {path: info for path, info in infos.items() if info["type"] == "file" and not (web and "?" in path)}


def _url_of(place: Location, path: str) -> str:
    return str(place.files.unstrip_protocol(path))
