"""Sequences to shards. Used by `dnascale prepare`.

    plan     which inputs, which options                                           plan.py, options.py
    read     a task an input: records, cleaned and grouped, into sorted runs       read.py, runs.py
    settle   once: the split of each group, the order, the place of every record   settle.py
    write    a task an output shard: its stretch of the token stream, into a tar   write.py
    finish   the index, dataset.json, one rename                                   finish.py

Every task is a pure function of the plan and leaves a marker when it is done, in the work folder `OUT.preparing`: so it runs
anywhere, in any order, and what was killed goes on from the markers (run.py, pool.py). The bytes of the data set depend on
inputs and options alone.
"""

from dnascale.data.prepare.options import SPLITS, PrepareOptions
from dnascale.data.prepare.plan import Plan
from dnascale.data.prepare.run import Crew, Unfinished, carry_out_plan, prepare

__all__ = ["SPLITS", "Crew", "Plan", "PrepareOptions", "Unfinished", "carry_out_plan", "prepare"]
