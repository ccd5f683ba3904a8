"""The audit and clusters, against exact set counts, and the settling of many tables into splits."""

from __future__ import annotations

import pickle
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from dnascale.data.sources import Input, Record, read, resolve_all
from dnascale.data.split import (
    DROPPED,
    SPLITS,
    Grouping,
    Holdout,
    Holdouts,
    Sample,
    Settled,
    Sketcher,
    SplitOptions,
    Table,
    content_digest,
    group_key,
    settle,
)
from dnascale.data.split import cluster as cluster_module
from dnascale.data.split import samples as samples_module
from dnascale.data.split.cluster import join
from dnascale.data.split.leakage import LEAKED_RECORD
from dnascale.data.split.samples import by_value
from dnascale.errors import DataError, UsageError

Records = list[tuple[str, str]]  # group, bases
PAIRS = str.maketrans("ACGT", "TGCA")


def random_dna(rng: random.Random, length: int) -> str:
    return "".join(rng.choices("ACGT", k=length))


def mutated(rng: random.Random, text: str, changes: int) -> str:
    letters = list(text)
    for at in rng.sample(range(len(letters)), changes):
        letters[at] = rng.choice([x for x in "ACGT" if x != letters[at]])
    return "".join(letters)


def table_of(records: Records, every: int = 1) -> Table:
    """What stage 1 would note of these records."""
    sketcher = Sketcher(every)
    digests = np.zeros((len(records), 16), np.uint8)
    for row, (_, bases) in enumerate(records):
        record = Record("x", "", bases.encode(), 1)
        sketcher.add(record.codes())
        digests[row] = np.frombuffer(content_digest(record.codes, len(bases)), np.uint8)
    names = [group for group, _ in records]
    keys = np.array([group_key(name) for name in names], dtype=np.uint64)
    return Table(keys, names.__getitem__, digests, Sample(*sketcher.finish()))


def kmers(bases: str) -> set[str]:
    found = (bases[i : i + 31] for i in range(len(bases) - 30))
    return {min(kmer, kmer.translate(PAIRS)[::-1]) for kmer in found if set(kmer) <= set("ACGT")}


def splits_by_group(tables: Sequence[Records], settled: Settled) -> dict[str, set[str]]:
    found = defaultdict(set)
    for records, splits in zip(tables, settled.splits, strict=True):
        for (group, _), split in zip(records, splits.tolist(), strict=True):
            found[group].add(SPLITS[split] if split != DROPPED else "dropped")
    return dict(found)


def human(count: int) -> Records:
    (path,) = resolve_all(["builtin:human-cds"])
    grouping = Grouping()
    return [
        (grouping.of(record, "")[0], bytes(record.bases[:]).decode())
        for record, _ in zip(read(Input.of(path)), range(count), strict=False)
    ]


VALID_TEST = Holdouts(Holdout(0.2), Holdout(0.2))


@pytest.fixture(params=[1 << 22, 500])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """All 31-mers in memory at once, or a few hundred a pass."""
    monkeypatch.setattr(samples_module.by_value, "__defaults__", (request.param,))
    return int(request.param)


# -------------------------------------------------------------------------------------------------------------- audit


def test_the_audit_counts_what_sets_of_31_mers_count(at_once: int) -> None:
    rng = random.Random(0)
    shared = [random_dna(rng, 120) for _ in range(6)]
    records = [(f"g{i}", random_dna(rng, 60) + shared[rng.randrange(6)] + random_dna(rng, 90)) for i in range(60)]
    records += [("g1", records[5][1]), ("short", "ACGT"), ("none", "N" * 100)]
    settled = settle([table_of(records[:25]), table_of([]), table_of(records[25:])], SplitOptions(VALID_TEST))
    leakage = settled.leakage
    assert leakage is not None

    split_of = {group: VALID_TEST.split_of(group) for group, _ in records}
    of_split = {
        split: set().union(*(kmers(bases) for group, bases in records if split_of[group] == split)) for split in SPLITS
    }
    expected = [
        (a, b, len(of_split[a]), len(of_split[a] & of_split[b]))
        for a, b in (("valid", "train"), ("test", "train"), ("valid", "test"))
    ]
    assert [(o.split, o.other, o.kmers, o.shared) for o in leakage.overlaps] == expected
    assert all(shared > 90 for *_, shared in expected)

    for leaked in leakage.leaked:
        sets = [kmers(bases) for group, bases in records if split_of[group] == leaked.split]
        sets = [found for found in sets if found]
        bad = [found for found in sets if len(found & of_split["train"]) > LEAKED_RECORD * len(found)]
        assert (leaked.records, leaked.leaked) == (len(sets), len(bad))
        assert (leaked.kmers, leaked.leaked_kmers) == (sum(map(len, sets)), sum(map(len, bad)))

    held_out = {group for group in split_of if split_of[group] != "train"}
    weights = {}
    for group in held_out:
        sets = [kmers(bases) for name, bases in records if name == group]
        both, all_ = sum(len(s & of_split["train"]) for s in sets), sum(map(len, sets))
        weights[group] = (both * both / max(all_, 1), both, all_, len(sets))
    assert len(leakage.worst) == 10
    for group in leakage.worst:
        assert (group.shared, group.kmers, group.records) == weights[group.name][1:]
        assert group.split == split_of[group.name]
    assert [weights[g.name][0] for g in leakage.worst] == sorted((w[0] for w in weights.values()), reverse=True)[:10]


def test_the_audit_does_not_depend_on_the_order_of_tables_and_records(at_once: int) -> None:
    rng = random.Random(1)
    shared = random_dna(rng, 200)
    records = [(f"g{i // 2}", random_dna(rng, 80) + shared[: rng.randrange(200)]) for i in range(80)]
    one = settle([table_of(records)], SplitOptions(VALID_TEST, cluster=0.3))
    rng.shuffle(records)
    parts = [records[:10], records[10:11], records[11:]]
    other = settle([table_of(part) for part in parts], SplitOptions(VALID_TEST, cluster=0.3))
    assert replace(one, splits=[]) == replace(other, splits=[])
    assert one.leakage is not None
    assert one.leakage.worst


def test_isoforms_split_by_record_are_found_and_refused_and_by_gene_they_pass() -> None:
    rng = random.Random(2)
    genes = {f"G{i}": random_dna(rng, 1500) for i in range(60)}
    isoforms = [(gene, name, bases[: rng.randrange(900, 1500)]) for gene, bases in genes.items() for name in "ab"]
    every = 16
    by_record = settle([table_of([(gene + name, b) for gene, name, b in isoforms], every)], SplitOptions(), every)
    assert by_record.leakage is not None
    (leaked,) = by_record.leakage.leaked
    expected = [
        name + gene
        for gene, name, _ in isoforms
        if Holdouts().split_of(gene + name) == "valid"
        if Holdouts().split_of(gene + ("a" if name == "b" else "b")) == "train"
    ]
    assert leaked.leaked == len(expected) > 5
    with pytest.raises(DataError, match=r"the valid split leaks: .* of it \(\d+ of \d+ records\) .*worst: G\d+"):
        by_record.leakage.check(0.1)
    with pytest.raises(DataError, match=r"\(--group; groups now: 39 by gene-tag, 1 by name\)"):
        by_record.leakage.check(0.1, {"gene-tag": 39, "name": 1})
    by_record.leakage.check(1.0)

    by_gene = settle([table_of([(gene, b) for gene, _, b in isoforms], every)], SplitOptions(), every)
    assert by_gene.leakage is not None
    assert by_gene.leakage.overlaps[0].shared == 0
    by_gene.leakage.check(0.0)
    clustered = settle(
        [table_of([(gene + name, b) for gene, name, b in isoforms], every)], SplitOptions(cluster=0.3), every
    )
    assert clustered.leakage is not None
    assert clustered.units == 60
    clustered.leakage.check(0.0)


def test_real_human_genes_pass_and_the_same_genes_by_halves_do_not() -> None:
    records = human(500)
    real = settle([table_of(records, 16)], SplitOptions(), 16)
    assert real.leakage is not None
    real.leakage.check(SplitOptions().max_leakage or 0)
    halves = [
        (f"{gene}/{half}", bases[i : len(bases) // 2 + i]) for gene, bases in records for half, i in ((1, 0), (2, 60))
    ]
    cut = settle([table_of(halves, 16)], SplitOptions(), 16)
    assert cut.leakage is not None
    with pytest.raises(DataError, match=r"--cluster 0\.2"):
        cut.leakage.check(SplitOptions().max_leakage or 0)


# ------------------------------------------------------------------------------------------------------------ cluster


def naive_join(sets: list[set[str]], share: float) -> list[int]:
    root = list(range(len(sets)))

    def find(i: int) -> int:
        return i if root[i] == i else find(root[i])

    for a, b in combinations(range(len(sets)), 2):
        if sets[a] and sets[b] and len(sets[a] & sets[b]) >= share * min(len(sets[a]), len(sets[b])):
            one, other = sorted((find(a), find(b)))
            root[other] = one
    return [find(i) for i in range(len(sets))]


@pytest.mark.parametrize("pairs_at_once", [1 << 22, 300])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 1.0])
def test_groups_are_joined_as_exact_sets_say(
    share: float, pairs_at_once: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_PAIRS_AT_ONCE", pairs_at_once)
    rng = random.Random(3)
    records: Records = []
    for group in range(40):
        kind = rng.randrange(4)
        base = rng.choice(records)[1] if records and kind else random_dna(rng, rng.randrange(20, 300))
        bases = base if kind < 2 else mutated(rng, base, min(len(base), rng.randrange(8)))
        if kind == 3:
            bases = bases[rng.randrange(len(bases)) :] + random_dna(rng, 100)
        records.append((str(group), bases))
    records += [(str(rng.randrange(40)), random_dna(rng, 50)) for _ in range(10)]
    sets = [set().union(*(kmers(bases) for name, bases in records if name == str(group))) for group in range(40)]
    sample = table_of(records).sample
    assert sample is not None
    groups = np.array([int(name) for name, _ in records], dtype=np.int32)
    expected = naive_join(sets, share)
    assert join([sample], groups, 40, share).tolist() == expected
    assert 40 > len(set(expected)) > 5


def test_planted_near_duplicates_go_into_one_split_named_by_the_smallest_group() -> None:
    rng = random.Random(4)
    families = [random_dna(rng, 1200) for _ in range(50)]
    records = [(f"f{f}-{c}", mutated(rng, family, 6)) for f, family in enumerate(families) for c in "cab"]
    settled = settle([table_of(records, 4)], SplitOptions(VALID_TEST, cluster=0.3), 4)
    assert settled.units == 50
    for group, splits in splits_by_group([records], settled).items():
        assert splits == {VALID_TEST.split_of(group.split("-")[0] + "-a")}
    assert settled.groups == {
        split: 3 * sum(VALID_TEST.split_of(f"f{f}-a") == split for f in range(50)) for split in SPLITS
    }
    assert {(unit.groups, unit.records) for unit in settled.largest} == {(3, 3)}
    assert [unit.name for unit in settled.largest] == sorted(f"f{f}-a" for f in range(50))[:10]


def test_a_repeat_of_many_groups_joins_what_is_nothing_else_and_not_what_contains_it() -> None:
    rng = random.Random(5)
    repeat = random_dna(rng, 300)
    chromosomes = [(f"chr{i}", random_dna(rng, 2000) + repeat + random_dna(rng, 2000)) for i in range(60)]
    alone = [("alu", repeat)]
    settled = settle([table_of(chromosomes + alone)], SplitOptions(VALID_TEST, cluster=0.5))
    assert settled.units == 0
    genomes = [(f"virus{i:03}", mutated(rng, repeat + repeat[::-1], 2)) for i in range(100)]
    settled = settle([table_of(chromosomes + genomes)], SplitOptions(VALID_TEST, cluster=0.5))
    assert [(unit.name, unit.groups) for unit in settled.largest] == [("virus000", 100)]


def test_two_chromosomes_with_a_short_common_part_are_not_joined_and_two_assemblies_of_one_are() -> None:
    rng = random.Random(6)
    common = random_dna(rng, 400)
    chr1, chr2 = random_dna(rng, 4000) + common, random_dna(rng, 5000) + common
    records = [("chr1", chr1), ("chr2", chr2), ("1", mutated(rng, chr1, 4))]
    settled = settle([table_of(records)], SplitOptions(Holdouts(Holdout(names=("1",))), cluster=0.5))
    assert settled.units == 1
    assert splits_by_group([records], settled) == {"chr1": {"valid"}, "1": {"valid"}, "chr2": {"train"}}


# ------------------------------------------------------------------------------------------------------------- settle


def test_adding_records_never_moves_a_group() -> None:
    rng = random.Random(7)
    records = [(f"g{rng.randrange(300)}", random_dna(rng, 40)) for _ in range(600)]
    options = SplitOptions(VALID_TEST, drop_duplicates=True, max_leakage=None)
    few = splits_by_group([records[:100]], settle([table_of(records[:100])], options))
    parts = [records[350:], records[:350]]
    many = splits_by_group(parts, settle([table_of(part) for part in parts], options))
    assert set(few) < set(many)
    assert all(many[group] == splits for group, splits in few.items())
    assert all(splits == {VALID_TEST.split_of(group)} for group, splits in many.items())


def test_of_equal_records_the_first_is_kept_whatever_the_strand_and_the_table() -> None:
    rng = random.Random(8)
    one, two = random_dna(rng, 90), random_dna(rng, 90)
    tables = [[("a", one), ("b", two)], [], [("c", one.translate(PAIRS)[::-1]), ("a", two.lower()), ("d", one + "A")]]
    options = SplitOptions(Holdouts(Holdout(names=("c",))), drop_duplicates=True)
    settled = settle([table_of(records) for records in tables], options)
    assert [splits.tolist() for splits in settled.splits] == [[0, 0], [], [DROPPED, DROPPED, 0]]
    assert settled.groups == {"train": 3, "valid": 0}
    kept = settle([table_of(records) for records in tables], replace(options, drop_duplicates=False))
    assert [splits.tolist() for splits in kept.splits] == [[0, 0], [], [1, 0, 0]]
    assert kept.leakage is not None
    assert [(o.kmers, o.shared) for o in kept.leakage.overlaps] == [(60, 60)]


def test_a_named_holdout_that_matches_nothing_is_an_error_that_names_near_groups() -> None:
    records = [("chr19", "ACGT"), ("chr20", "ACGT"), ("chrX", "ACGT")]
    tables = [table_of(records[:1]), table_of(records[1:])]
    with pytest.raises(UsageError, match=r"--test Chr20: no record .*near it are chr20"):
        settle(tables, SplitOptions(Holdouts(Holdout(names=("chrX",)), Holdout(names=("Chr20",)))))


def test_a_unit_whose_groups_are_named_for_both_splits_is_refused() -> None:
    bases = random_dna(random.Random(9), 300)
    tables = [table_of([("a", bases), ("b", bases), ("c", bases[::-1])])]
    options = SplitOptions(Holdouts(Holdout(names=("a",)), Holdout(names=("b",))), cluster=0.5)
    with pytest.raises(UsageError, match=r"joins groups that --valid and --test name .*\(a and 1 more\)"):
        settle(tables, options)


def test_the_sample_is_only_needed_for_clusters_and_for_an_audit_of_two_splits() -> None:
    nothing = Holdouts(Holdout(0.0))
    assert SplitOptions().needs_sample
    assert not SplitOptions(max_leakage=None).needs_sample
    assert not SplitOptions(nothing).needs_sample
    assert SplitOptions(nothing, cluster=0.5).needs_sample
    table = replace(table_of([("a", "ACGT" * 20)]), sample=None, digests=None)
    assert settle([table], SplitOptions(nothing)).leakage is None
    with pytest.raises(ValueError, match="lacks"):
        settle([table], SplitOptions())
    assert settle([], SplitOptions()).splits == []


def test_options_out_of_range_are_refused_and_good_ones_go_to_other_processes() -> None:
    for share in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(UsageError, match="--cluster"):
            SplitOptions(cluster=share)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="--max-leakage"):
            SplitOptions(max_leakage=share)
    options = SplitOptions(VALID_TEST, True, 0.3, 0.2)
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_ranges_of_values_give_every_pair_once_in_order(at_once: int) -> None:
    rng = np.random.default_rng(at_once)
    values = rng.integers(0, 2**64, 40, dtype=np.uint64)
    values[:3] = 0, 1, 2**64 - 1
    samples = []
    for size in (30, 0, 50):
        counts = (
            rng.multinomial(size * 4, np.full(size, 1 / size)).astype(np.uint32) if size else np.zeros(0, np.uint32)
        )
        samples.append(Sample(rng.choice(values, int(counts.sum())), counts))
    owners = rng.integers(-1, 20, 80).astype(np.int32)
    everything = np.concatenate([np.repeat(owners, np.concatenate([s.counts for s in samples]))])
    expected = sorted(
        {
            (int(v), int(o))
            for v, o in zip(np.concatenate([s.values for s in samples]), everything, strict=True)
            if o >= 0
        }
    )
    found = [pair for v, o in by_value(samples, owners, at_once) for pair in zip(v.tolist(), o.tolist(), strict=True)]
    assert found == expected
