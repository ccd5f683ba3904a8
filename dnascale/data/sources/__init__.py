"""Readers of sequences: `find` names the inputs, `read` gives the records of one, strictly checked."""

from dnascale.data.sources.fasta import read_fasta
from dnascale.data.sources.formats import read
from dnascale.data.sources.input import Input
from dnascale.data.sources.locate import BUILTIN, find, resolve, resolve_all
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import Problem, ReadOptions, ReadReport

__all__ = [
    "BUILTIN",
    "Input",
    "Problem",
    "ReadOptions",
    "ReadReport",
    "Record",
    "find",
    "read",
    "read_fasta",
    "resolve",
    "resolve_all",
]
