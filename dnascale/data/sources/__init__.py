"""Readers of sequences: `find` names the inputs, `read` gives the records of one, strictly checked."""

from dnascale.data.sources.formats import read
from dnascale.data.sources.input import Input
from dnascale.data.sources.locate import find, resolve_all
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import Problem, ReadOptions, ReadReport

__all__ = [
    "Input",
    "Problem",
    "ReadOptions",
    "ReadReport",
    "Record",
    "find",
    "read",
    "resolve_all",
]
