"""Which group a record is split with: its gene, chromosome, species, or what the user says names it.

A group goes into one split as a whole. Every rule that finds a group has a name, and what found how many is
reported: a data set in which the gene was found for none of the records should not go unnoticed.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dnascale.data.sources.alphabet import shown
from dnascale.errors import DataError, UsageError
from dnascale.files import unreadable

if TYPE_CHECKING:
    from dnascale.data.sources import Record

#: What `--group` takes by name; else `column:NAME`, `table:FILE`, or a regular expression with ( ).
NAMED = ("gene", "chromosome", "species", "file", "record")

Found = tuple[str, str]  # a group, and the rule that found it


class Rule(NamedTuple):
    """How a group is found in a header. `needs` is in every header that matches, and much faster to look for."""

    name: str
    needs: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Grouping:
    """How records are grouped. Picklable; a table is read when it is first needed.

    Attributes:
        by: `gene`, `chromosome`, `species`, `file`, `record`, `column`, `table` or `pattern`.
        argument: the column's name, the table's path, or the regular expression.
        otherwise: one of NAMED, for records in which `column`, `table` or `pattern` finds nothing; None: an error.
    """

    by: str = "gene"
    argument: str = ""
    otherwise: str | None = None

    @classmethod
    def parse(cls, text: str | None, otherwise: str | None = None) -> "Grouping":
        """The grouping that `--group TEXT` asks for; None: by gene. Raises UsageError: it asks for nothing known."""
        if otherwise is not None and otherwise not in NAMED:
            raise UsageError(f"--group-otherwise {otherwise!r} is not one of {', '.join(NAMED)}.")
        if text is None or text in NAMED:
            if otherwise is not None:
                raise UsageError(
                    f"--group-otherwise is for records in which a column, table or expression finds nothing; --group {text or 'gene'} "
                    "finds a group for every record."
                )
            return cls(text or "gene")
        kind, colon, argument = text.partition(":")
        if colon and kind in ("column", "table"):
            if not argument:
                raise UsageError(f"--group {text} lacks what comes after the colon: the {kind}'s name.")
            return cls(kind, argument, otherwise)
        try:
            groups = re.compile(text).groups
        except re.error as error:
            raise UsageError(f"--group {text!r} is not a regular expression: {error}.") from None
        if not groups:
            near = difflib.get_close_matches(text, NAMED, 1)
            hint = f"did you mean {near[0]}? A" if near else f"give {', '.join(NAMED)}, column:NAME, table:FILE; a"
            raise UsageError(
                f"--group {text!r} needs a group in parentheses ({hint} regular expression has ( ) around what names "
                r"the group, e.g. 'locus=(\w+)')."
            )
        return cls("pattern", text, otherwise)

    def of(self, record: "Record", source: str) -> Found:
        """The group of a record of the input named `source`, never empty, and the rule that found it.

        Raises:
            DataError: nothing was found and nothing is to be done otherwise, or the table is no table.
        """
        if self.by not in ("column", "table", "pattern"):
            return _BY_NAME[self.by](record, source)
        group = self._asked_for(record, source)
        if group:
            return group, self.by
        if self.otherwise:
            return _BY_NAME[self.otherwise](record, source)
        where = f"{source}:{record.line}: record {shown(record.name)}"
        what = {
            "column": f"has no {shown(self.argument)} (it has {', '.join(record.fields) or 'no other columns'})",
            "table": f"is not in {self.argument}",
            "pattern": f"does not match {shown(self.argument)}, or the parentheses match nothing",
        }[self.by]
        raise DataError(
            f"{where} {what}: without a group nothing keeps it from leaking. Complete the "
            f"{self.by}, or give --group-otherwise record."
        )

    def _asked_for(self, record: "Record", source: str) -> str | None:
        if self.by == "column":
            if self.argument not in record.fields and not self.otherwise:
                near = difflib.get_close_matches(self.argument, record.fields, 1)
                hint = f"; did you mean {shown(near[0])}?" if near else "."
                known = ", ".join(record.fields) or "none"
                raise DataError(f"{source}: there is no column {shown(self.argument)} (columns: {known}){hint}")
            return record.fields.get(self.argument)
        if self.by == "table":
            return self._table.get(record.name)
        match = self._pattern.search(_header(record))
        return match[1] if match else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.argument)

    @cached_property
    def _table(self) -> dict[str, str]:
        return read_table(Path(self.argument))

    def __getstate__(self) -> dict[str, str | None]:
        return {"by": self.by, "argument": self.argument, "otherwise": self.otherwise}


def read_table(path: Path) -> dict[str, str]:
    """Record name to group, of a file with two columns and a tab between; lines that begin with # are comments.

    Raises:
        DataError: it cannot be read, has no lines, or a line is not a name and a group; or a name has two groups. The
            message starts with `path:line`.
    """
    groups: dict[str, str] = {}
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.startswith("#"):
                    continue
                fields = line.rstrip("\r\n").split("\t")
                if len(fields) != 2 or not all(fields) or fields != [field.strip() for field in fields]:
                    raise DataError(
                        f"{path}:{number}: not a record's name, one tab and its group: {shown(line.rstrip())}."
                    )
                name, group = fields
                if groups.setdefault(name, group) != group:
                    raise DataError(
                        f"{path}:{number}: record {shown(name)} is in group {shown(group)} here and in "
                        f"{shown(groups[name])} before; a record has one group."
                    )
    except OSError as error:
        raise unreadable(error, path, "it should name the group of each record") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}:{number + 1}: not UTF-8 text; give a name, a tab and a group a line.") from None
    if not groups:
        raise DataError(f"{path} names no group; give a name, a tab and a group a line.")
    return groups


# `gene:ID` is Ensembl's; of its own ids the version goes (ENSG00000139618.15), and the _PAR_Y of a copy.
_ENSEMBL_TAG = re.compile(r"(?<!\S)gene:(ENS[A-Z]*G\d{11}|\S+)")
_GENE_TAG = re.compile(r"\[gene=([^\]]+)\]|(?<![^\s;|])gene=([^\s;|\]]+)")
_ENSEMBL_ID = re.compile(r"(?<![A-Za-z0-9])(ENS[A-Z]*G\d{11})(?!\d)")
_GENE_RULES = (
    Rule("ensembl-gene", "gene:", _ENSEMBL_TAG),
    Rule("gene-tag", "gene=", _GENE_TAG),
    Rule("ensembl-id", "ENS", _ENSEMBL_ID),
)
_GENE_FIELDS = ("gene_id", "gene", "gene_name", "locus_tag")


def by_gene(record: "Record", _source: str) -> Found:
    """`field` (gene_id, gene, gene_name or locus_tag of the record), else from the header `ensembl-gene` (gene:ID),
    `gene-tag` ([gene=NAME], gene=NAME), `ensembl-id` (an Ensembl gene id anywhere), else `name`, the record's own."""
    if gene := _first_of(record.fields, _GENE_FIELDS):
        ensembl = _ENSEMBL_ID.match(gene)
        return (ensembl[1] if ensembl else gene), "field"
    return _first_match(_GENE_RULES, _header(record)) or (record.name, "name")


_CHROMOSOME_FIELDS = ("chrom", "chromosome", "seqid", "seqname")
_CHROMOSOME_RULES = (
    # Ensembl: chromosome:GRCh38:20:1:64444167:1, also scaffold:..., primary_assembly:...
    Rule("ensembl-location", ":", re.compile(r"(?<!\S)[a-z_]*(?:chromosome|scaffold|contig|assembly|plasmid):[^\s:]+:([^\s:]+):\d")),
    # bedtools, UCSC and others: chr20:100-200(+), NAME::chr20:100-200, range=chr20:1-100, loc=2R:join(1..9)
    Rule("location", ":", re.compile(r"(?:^|[\s=]|::)([^\s=:]+):(?:complement\(|join\()*\d[\d,]*(?:-|\.\.)\d")),
    # NCBI's coding sequences: lcl|NC_000913.3_cds_NP_414542.1_1
    Rule("ncbi-cds", "_", re.compile(r"^(?:lcl\|)?([A-Z]{2}_?[A-Z0-9]+\.\d+)_(?:cds|gene|mrna|trna|rrna|ncrna)_")),
    # NCBI's chromosomes: NC_000020.11 Homo sapiens chromosome 20, GRCh38.p14 Primary Assembly
    Rule("ncbi-title", "chromosome ", re.compile(r"^N[CTW]_\d+\.\d+ .*?\bchromosome ([0-9A-Za-z]+)\b")),
    # SGD: YAL001C TFC3 SGDID:S000000001, Chr I from 151006-147594
    Rule("sgd-location", "Chr ", re.compile(r"(?<!\S)Chr ([0-9A-Za-z]+) from \d")),
    # UCSC: chr1_KI270706v1_random, chr6_GL000250v2_alt and chr6_apd_hap1 are parts or copies of a chromosome
    Rule("ucsc-part", "chr", re.compile(r"^(chr[0-9A-Za-z]+)_\S+_(?:random|alt|fix|hap\d+)(?!\S)")),
)  # fmt: skip


def by_chromosome(record: "Record", _source: str) -> Found:
    """`field` (chrom, chromosome, seqid or seqname), else from the header `ensembl-location`, `location`, `ncbi-cds`,
    `ncbi-title`, `sgd-location`, `ucsc-part`, else `name`: the record is a chromosome."""
    if chromosome := _first_of(record.fields, _CHROMOSOME_FIELDS):
        return chromosome, "field"
    return _first_match(_CHROMOSOME_RULES, _header(record)) or (record.name, "name")


_SPECIES_FIELDS = ("organism", "species")
_SPECIES_RULES = (
    Rule("os-tag", "OS=", re.compile(r"(?<!\S)OS=(.+?)(?= [A-Z]{2}=|$)")),
    Rule("species-tag", "=", re.compile(r"\[(?:organism|species)=([^\]]+)\]|(?<!\S)(?:organism|species)=(\S+)")),
    Rule("brackets", "]", re.compile(r"\[([A-Z][a-z]+ [a-z]+[^\[\]=]*)\]$")),
)
_BINOMIAL = re.compile(r"[A-Z][a-z]+ [a-z]{2,}(?![.\w])")  # not "Bacillus sp. X1": what follows is its name


def by_species(record: "Record", source: str) -> Found:
    """`field` (organism or species), else from the header `os-tag` (OS=), `species-tag` (species=, [organism=]),
    `brackets` (a binomial in brackets at the end), else `file`: one file is one species. Strains are left out."""
    field = _first_of(record.fields, _SPECIES_FIELDS)
    found = (field, "field") if field else _first_match(_SPECIES_RULES, _header(record))
    if not found:
        return by_file(record, source)
    binomial = _BINOMIAL.match(found[0])
    return (binomial[0] if binomial else found[0]), found[1]


def by_file(_record: "Record", source: str) -> Found:
    """`file`: the input's name without its folder, so that a moved file stays in its split."""
    return source.rpartition("/")[2] or source, "file"


def by_record(record: "Record", _source: str) -> Found:
    """`name`: each record is a group of its own."""
    return record.name, "name"


_BY_NAME: Mapping[str, Callable[["Record", str], Found]] = {
    "gene": by_gene, "chromosome": by_chromosome, "species": by_species, "file": by_file, "record": by_record,
}  # fmt: skip


def _first_of(fields: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((fields[name] for name in names if fields.get(name)), None) if fields else None


def _first_match(rules: tuple[Rule, ...], header: str) -> Found | None:
    for rule, needs, pattern in rules:
        if needs in header and (match := pattern.search(header)):
            return next(group for group in match.groups() if group), rule
    return None


def _header(record: "Record") -> str:
    return f"{record.name} {record.description}".rstrip(" ")
