"""`dnascale probe`: what a linear model reads off embeddings, cross-validated over groups."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dnascale.errors import DataError, UsageError
from dnascale.evaluate.statistics import Estimate, auroc, bootstrap
from dnascale.evaluate.table import read_table

#: Strengths of regularisation among which each fold chooses by itself, on its own training rows.
_STRENGTHS = np.logspace(-4, 3, 8)
_INNER_FOLDS = 3
#: How tables write that a value is missing.
_NO_LABEL = ("", "na", "n/a", "nan", "null", "none", ".")


@dataclass(frozen=True)
class Probe:
    """What held-out rows were predicted as. Every row was held out once, together with all of its group."""

    task: Literal["classes", "numbers"]
    rows: int
    groups: int
    folds: int
    classes: list[str]  # empty for numbers
    scores: dict[str, Estimate]  # with 95 % intervals by bootstrap over groups
    strengths: list[float]  # that each fold chose: larger is less regularised for classes, more for numbers

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"scores": {name: score.to_dict() for name, score in self.scores.items()}}


def read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and float32 [n, H], as `dnascale embed --per sequence` writes them: .parquet, or .npy with its .tsv beside it.

    Raises UsageError or DataError for files that are not such, and for several vectors of one name.
    """
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path, columns=["name", "embedding"])
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{path} holds no embeddings of `dnascale embed`: {error}") from None
        names = table["name"].to_pylist()
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        values = flat.reshape(len(names), -1) if names else np.empty((0, 0), np.float32)
    elif path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
            lines = path.with_suffix(".tsv").read_text().splitlines()[1:]
        except (OSError, ValueError) as error:
            raise DataError(f"{path} and its .tsv hold no embeddings of `dnascale embed`: {error}") from None
        names = [line.partition("\t")[0] for line in lines]
        if len(names) != len(values):
            raise DataError(f"{path} has {len(values):,} rows, {path.with_suffix('.tsv')} names {len(names):,}.")
    else:
        raise UsageError(f"{path} is neither .parquet nor .npy.")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(
            f"{path} has several vectors of {twice}: make it with --per sequence, and give sequences different names."
        )
    return names, values


def read_labels(path: Path, label: str, group: str | None) -> dict[str, tuple[str, str]]:
    """Label and group of each name, from a table (.tsv, .csv, .parquet) with the columns `name`, `label` and, if said, `group`.

    Without one, each name is a group of its own. Rows without a label are left out. Raises UsageError or DataError.
    """
    if path.suffix not in (".tsv", ".csv", ".parquet"):
        raise UsageError(f"{path} is none of .tsv, .csv, .parquet.")
    table = read_table(path)
    missing = [column for column in ("name", label, group) if column is not None and column not in table.column_names]
    if missing:
        raise UsageError(f"{path} has no column {', '.join(missing)}: it has {', '.join(table.column_names)}.")
    names, labels = table["name"].to_pylist(), table[label].to_pylist()
    groups = table[group].to_pylist() if group is not None else names
    found: dict[str, tuple[str, str]] = {}
    for name, value, of in zip(names, labels, groups, strict=True):
        if value is None or str(value).strip().lower() in _NO_LABEL:
            continue
        if of is None or str(of).strip().lower() in _NO_LABEL:
            raise DataError(f"{path} has no {group} for {name}: what is held out together must be known of every row.")
        if str(name) in found:
            raise DataError(f"{path} has {name} twice.")
        found[str(name)] = str(value), str(of)
    return found


def probe(values: np.ndarray, labels: Sequence[str], groups: Sequence[str], folds: int = 5, seed: int = 0) -> Probe:
    """Logistic regression for classes, ridge regression where every label is a number and there are more than two, on
    standardised embeddings float32 [n, H].

    Whole groups are held out, by turns; the regularisation is chosen inside of each training part. Raises DataError when there are
    too few rows or groups, or a value is not finite.
    """
    if not np.isfinite(values).all():
        raise DataError(
            f"{int((~np.isfinite(values)).any(axis=1).sum()):,} embeddings are not finite (of sequences without A, C, G, T?)."
        )
    number = np.unique(np.array(groups), return_inverse=True)[1]
    if int(number.max(initial=-1)) + 1 < folds:
        raise DataError(f"{len(set(groups))} groups cannot be divided into {folds} folds.")
    numbers = _numbers(labels)
    if numbers is not None and len(set(labels)) > 2:
        return _regress(values, numbers, number, folds, seed)
    return _classify(values, np.array(labels), number, folds, seed)


def _numbers(labels: Sequence[str]) -> np.ndarray | None:
    """None where a label is no number. Raises DataError for one that is not finite."""
    try:
        numbers = np.array([float(label) for label in labels])
    except ValueError:
        return None
    if not np.isfinite(numbers).all():
        label = labels[int(np.flatnonzero(~np.isfinite(numbers))[0])]
        raise DataError(f"the label {label} is no finite number: nothing can be fitted to it. Leave that row out.")
    return numbers


def _classify(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Probe:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.preprocessing import StandardScaler

    classes, truth = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"all {len(labels):,} labels are {classes[0] if len(classes) else 'missing'}: there is nothing to tell apart."
        )
    largest = int(np.bincount(truth).max())
    if largest < folds:
        raise DataError(
            f"no class has more than {largest:,} sequences, fewer than {folds} folds: fewer folds, or fewer classes."
        )
    said, strengths = np.zeros((len(values), len(classes))), []
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(values, truth, groups):
        if len(np.unique(truth[train])) < len(classes):
            raise DataError(
                "a class is in one group, or in so few that a fold has none of it to learn from: fewer folds, or other groups."
            )
        scaler = StandardScaler().fit(values[train])
        most = int(np.bincount(truth[train]).max())  # what scikit-learn asks for
        inner = _inner(StratifiedGroupKFold, values[train], truth[train], groups[train], most)
        model = LogisticRegressionCV(
            Cs=_STRENGTHS,
            cv=inner,
            scoring="neg_log_loss",
            max_iter=2000,
            use_legacy_attributes=False,
            l1_ratios=(0.0,),
        )
        model.fit(scaler.transform(values[train]), truth[train])
        said[test] = model.predict_proba(scaler.transform(values[test]))
        strengths.append(float(np.mean(model.C_)))
    best = said.argmax(axis=1)
    scores = {"accuracy": bootstrap(lambda rows: float((best[rows] == truth[rows]).mean()), groups)}
    if len(classes) == 2:
        above = said[:, 1]
        scores = {
            "AUROC": bootstrap(lambda rows: auroc(above[rows][truth[rows] == 1], above[rows][truth[rows] == 0]), groups)
        } | scores
    else:
        scores["balanced accuracy"] = bootstrap(lambda rows: _balanced(best[rows], truth[rows]), groups)
    return Probe("classes", len(values), int(groups.max()) + 1, folds, classes.tolist(), scores, strengths)


def _inner(
    kind: Any, values: np.ndarray, truth: np.ndarray, groups: np.ndarray, most: int = _INNER_FOLDS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds within a training part, of those there can be, but not above `most`."""
    folds = min(_INNER_FOLDS, most, len(np.unique(groups)))
    if folds < 2:
        raise DataError(
            "a training part has a single group or one sequence of each class, so nothing can be chosen inside of it: fewer folds, "
            "or more groups."
        )
    return [(one, other) for one, other in kind(folds).split(values, truth, groups) if len(other)]


def _balanced(said: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the classes there are of the share that was found."""
    return float(np.mean([(said[truth == one] == one).mean() for one in np.unique(truth)]))


def _regress(values: np.ndarray, truth: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Probe:
    from scipy.stats import spearmanr
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler

    said, strengths = np.zeros(len(values)), []
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(values, truth, groups):
        scaler = StandardScaler().fit(values[train])
        inner = _inner(GroupKFold, values[train], truth[train], groups[train])
        model = RidgeCV(alphas=len(train) * _STRENGTHS, cv=inner).fit(scaler.transform(values[train]), truth[train])
        said[test] = model.predict(scaler.transform(values[test]))
        strengths.append(float(model.alpha_))

    def explained(rows: np.ndarray) -> float:
        spread = ((truth[rows] - truth[rows].mean()) ** 2).sum()
        return float(1 - ((truth[rows] - said[rows]) ** 2).sum() / spread) if spread else float("nan")

    scores = {
        "R2": bootstrap(explained, groups),
        "Spearman": bootstrap(lambda rows: float(spearmanr(truth[rows], said[rows]).statistic), groups),
    }
    return Probe("numbers", len(values), int(groups.max()) + 1, folds, [], scores, strengths)
