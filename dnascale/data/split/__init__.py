"""Splits without leakage: groups, holdouts, duplicates, clusters, and an audit of what the splits share.

Stage 1 of prepare, for each record that is kept (all of it is a function of that record and the options):

    grouping = Grouping.parse(group, otherwise)         # --group, --group-otherwise
    name, rule = grouping.of(record, input.name)        # count the rules, they are reported
    key = group_key(name)                               # uint64
    digest = content_digest(record.codes, length)       # 16 bytes, if options.drop_duplicates
    sketcher.add(record.codes(0, length))               # Sketcher(every), if options.needs_sample; long records in parts
    ...
    values, counts = sketcher.finish()                  # uint64 [m], uint32 [records]

`every = sampling_for(bases)` is one number for the data set, from the size of all inputs. Then, once, with one `Table` an input in the order of the inputs:

    settled = settle(tables, SplitOptions(holdouts, ...), every)
    settled.splits[i]                                   # int8 [records]: index into SPLITS, or DROPPED
    settled.leakage.check(options.max_leakage)          # raises DataError
"""

from dnascale.data.split.duplicates import content_digest
from dnascale.data.split.groups import Grouping
from dnascale.data.split.holdout import SPLITS, Holdout, Holdouts, group_key
from dnascale.data.split.leakage import Leakage
from dnascale.data.split.samples import Sample
from dnascale.data.split.settle import DROPPED, Settled, SplitOptions, Table, settle
from dnascale.data.split.sketch import Sketcher, sampling_for

__all__ = [
    "DROPPED",
    "SPLITS",
    "Grouping",
    "Holdout",
    "Holdouts",
    "Leakage",
    "Sample",
    "Settled",
    "Sketcher",
    "SplitOptions",
    "Table",
    "content_digest",
    "group_key",
    "sampling_for",
    "settle",
]
