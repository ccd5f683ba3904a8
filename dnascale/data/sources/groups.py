"""The group that a record is split with: its gene, if its header tells."""

from __future__ import annotations

import re

from dnascale.data.sources.alphabet import shown
from dnascale.data.sources.record import Record
from dnascale.errors import DataError, UsageError

# `gene:ID` is Ensembl's; of its own ids the version goes (ENSG00000139618.15), and the _PAR_Y of a copy.
_ENSEMBL_TAG = re.compile(r"(?<!\S)gene:(ENS[A-Z]*G\d{11}|\S+)")
_GENE_TAG = re.compile(r"\[gene=([^\]]+)\]|(?<![^\s;|])gene=([^\s;|\]]+)")
_ENSEMBL_ID = re.compile(r"(?<![A-Za-z0-9])(ENS[A-Z]*G\d{11})(?!\d)")
_GROUP_RULES = (("ensembl-gene", _ENSEMBL_TAG), ("gene-tag", _GENE_TAG), ("ensembl-id", _ENSEMBL_ID))


def group_of(record: Record, pattern: re.Pattern[str] | None) -> tuple[str, str]:
    """The group that a record is split with (its gene, if the header tells), and the rule that found it.

    With a pattern: its first capture group in the header (name, one space, description). Without, the rules:
    `ensembl-gene` (gene:ID), `gene-tag` ([gene=NAME] or gene=NAME), `ensembl-id` (an Ensembl gene id
    anywhere), `name` (the record's own).

    Raises:
        UsageError: the pattern has no capture group.
        DataError: the pattern does not match, or captures nothing.
    """
    header = f"{record.name} {record.description}".rstrip(" ")
    if pattern is not None:
        about = f"the group pattern {pattern.pattern!r}"
        if not pattern.groups:
            raise UsageError(f"{about} has no capture group; put ( ) around what names the gene.")
        match = pattern.search(header)
        if match is None or not match[1]:
            raise DataError(f"{about} finds nothing in record {shown(record.name)} (line {record.line}).")
        return match[1], "pattern"
    for rule, known in _GROUP_RULES:
        if match := known.search(header):
            return next(group for group in match.groups() if group), rule
    return record.name, "name"
