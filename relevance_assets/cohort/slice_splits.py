"""Which slices train, validate and test a classifier of slices.

Belongs here: dividing slices by patient, by block or as published, and the slices left out at borders between sets.
Does not belong here: which slices there are (`slices.py`), the splits of people with labels of their own (`splits.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl

from relevance_assets.cohort.slices import slice_order
from relevance_assets.cohort.splits import SplitError

__all__ = ["BUFFER", "SETS", "SHARES", "How", "resolve_split", "split_slices"]

How = Literal["auto", "patient", "block", "published"]
SETS = ("train", "validation", "test")
LEFT_OUT = "buffer"
SHARES = (0.70, 0.15, 0.15)  # of the published split
#: Slices at each side of a border; 12 in all. A tumour of 7 cm is seen in 10 slices 7 mm apart (6 mm, gap 1 mm).
BUFFER = 6
PUBLISHED_SEED = 42


def resolve_split(frame: pl.DataFrame, how: How) -> How:
    """What `auto` comes to: `patient` where every slice has one, `block` where none has; others stay as they are.

    Parameters
    ----------
    frame : DataFrame
        Column patient, null where none is known; rows with a problem do not count.
    how : str

    Returns
    -------
    str
        patient, block or published.

    Raises
    ------
    SplitError
        `auto`, and no slice can be used, or some have a patient and some have none.
    """
    if how != "auto":
        return how
    slices = _sound(frame)
    _refuse_mixed(slices)
    return "block" if slices["patient"].null_count() else "patient"


def split_slices(
    frame: pl.DataFrame,
    how: How,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    buffer: int = BUFFER,
    folds: tuple[int, int] | None = None,
) -> pl.DataFrame:
    """Divide slices into sets for training, validation and test.

    `auto`: as `resolve_split` says.

    `patient`: people are shuffled within the class of most of their slices, and each class is divided by `shares`
    (at least one person each). With `folds`, the published fold of a slice decides instead.

    `block`: as `patient`, by blocks of neighbouring numbers. Only at a border between two sets, the last `buffer`
    numbers before and the first `buffer` after it are left out (set `buffer`): kept slices of different sets are more
    than 2 x `buffer` numbers apart. It is done here and not in the index, because borders within a set do no harm.
    Blocks are not patients, see `slices.py`.

    `published`: LRP-model-investigation's split of single slices, scikit-learn's `train_test_split` with 0.30, then
    0.5, random_state 42, over slices sorted by number (its own order was that of the disk). A patient's slices are on
    several sides; column `leaking` says so, slice by slice.

    The result depends on the seed and on the content of `frame`, not on the order of rows. Rows with a problem are
    left out.

    Parameters
    ----------
    frame : DataFrame
        Columns scan, participant_id, slice_id, class, patient; fold for `folds`; others are ignored.
    how : str
    shares : (3,) floats
        Train, validation, test; their sum is 1. Not for `published`, nor with `folds`.
    seed : int
        Not for `published`.
    buffer : int
        For `block` only.
    folds : (validation, test), optional
        For `patient` only: folds of `cvind.mat`; the others are for training.

    Returns
    -------
    DataFrame, sorted by scan
        scan, participant_id, set (train, validation, test or buffer), leaking (whether the person is in another of
        the three sets as well).

    Raises
    ------
    SplitError
        No slices, a scan twice; shares that are none; people unknown for `patient`, known for `block`, or known of
        some slices only; too few people or slices; a set that lacks a class; somebody in two folds.
    """
    slices = _usable(frame)
    how = resolve_split(slices, how)
    _check(slices, how, shares, buffer, folds)
    if how == "published":
        sides = _published(slices)
    elif folds is not None:
        sides = _by_fold(slices, *folds)
    else:
        sides = _by_person(slices, shares, seed)
    if how == "block":
        sides = _leave_out(slices, sides, buffer)
    result = slices.select("scan", "participant_id", "class").with_columns(pl.Series("set", sides, dtype=pl.String))
    kept = result.filter(pl.col("set") != LEFT_OUT)
    torn = kept.group_by("participant_id").agg(pl.col("set").n_unique()).filter(pl.col("set") > 1)["participant_id"]
    leaking = pl.col("participant_id").is_in(torn.to_list()) & (pl.col("set") != LEFT_OUT)
    assert how == "published" or torn.is_empty(), f"on two sides: {', '.join(torn)}"
    _check_sets(kept, how)
    return result.select("scan", "participant_id", "set", leaking=leaking).sort("scan")


def _sound(frame: pl.DataFrame) -> pl.DataFrame:
    sound = frame.filter(pl.col("problem").is_null()) if "problem" in frame.columns else frame
    if sound.is_empty():
        raise SplitError("no slice can be used; see the problems of the index")
    return sound


def _refuse_mixed(slices: pl.DataFrame) -> None:
    unknown = slices["patient"].null_count()
    if 0 < unknown < slices.height:
        first = slices.filter(pl.col("patient").is_null())["scan"].sort()[0]
        raise SplitError(
            f"{unknown} of {slices.height} slices have no patient ({first} is one), so slices.split.how can be neither "
            "patient nor block; add their patients or take them out"
        )


def _usable(frame: pl.DataFrame) -> pl.DataFrame:
    """Slices without a problem, sorted by number."""
    sound = _sound(frame)
    doubled = sound.filter(pl.col("scan").is_duplicated())
    if not doubled.is_empty():
        raise SplitError(f"{doubled['scan'].sort()[0]} is listed more than once; list it once")
    ids = sound["slice_id"].cast(pl.String).to_list()
    order = sorted(range(len(ids)), key=lambda row: slice_order(ids[row]))
    return sound.with_columns(pl.Series("slice_id", ids))[order]


def _check(slices: pl.DataFrame, how: How, shares: Sequence[float], buffer: int, folds: tuple[int, int] | None) -> None:
    if how not in ("patient", "block", "published"):
        raise SplitError(f"slices.split.how: {how!r} is not known; choose auto, patient, block or published")
    if len(shares) != len(SETS) or not min(shares) > 0 or not abs(sum(shares) - 1) < 1e-6:
        raise SplitError(f"shares {list(shares)} are not three positive numbers with sum 1; see {list(SHARES)}")
    if buffer < 0:
        raise SplitError(f"a buffer of {buffer} slices is none; take 0 or more")
    if folds is not None and how != "patient":
        raise SplitError(f"published folds are by patient; by {how} leave slices.split.folds out")
    if how == "published":
        return
    _refuse_mixed(slices)
    known = slices["patient"].null_count() == 0
    if how == "patient" and not known:
        raise SplitError("no slice has a patient; add patients or set slices.split.how to auto or block")
    if how == "block" and known:
        raise SplitError("patients are known, so blocks are not needed; set slices.split.how to auto or patient")


def _by_person(slices: pl.DataFrame, shares: Sequence[float], seed: int) -> list[str]:
    """A set for each slice: from each class of people its share, remainders to the sets that are owed most."""
    counts = slices.group_by("participant_id", "class").len().sort(["participant_id", "len", "class"])
    kind = dict(counts.group_by("participant_id", maintain_order=True).agg(pl.col("class").last()).iter_rows())
    generator = np.random.default_rng(seed)
    side: dict[str, str] = {}
    for each in sorted(set(kind.values())):
        people = generator.permutation(sorted(person for person in kind if kind[person] == each)).tolist()
        if len(people) < len(SETS):
            raise SplitError(_too_few(each, len(people), by_block=slices["patient"].null_count() > 0))
        bounds = np.cumsum(_numbers(len(people), shares))
        side |= dict(zip(people, np.repeat(SETS, np.diff(bounds, prepend=0)).tolist(), strict=True))
    return [side[person] for person in slices["participant_id"]]


def _too_few(kind: str, people: int, *, by_block: bool) -> str:
    who, remedy = ("blocks", "lower slices.block") if by_block else ("patients", "add slices of other patients")
    return f"class {kind} has {people} {who}, and {len(SETS)} sets need one each; {remedy}, or lower slices.every"


def _numbers(people: int, shares: Sequence[float]) -> np.ndarray:
    """How many people each set gets (3,): the largest remainders, at least one; their sum is `people`."""
    exact = people * np.asarray(shares, dtype=np.float64)
    take = np.floor(exact + 1e-9).astype(int)
    owed = np.argsort(take - exact, kind="stable")
    take[owed[: people - int(take.sum())]] += 1
    while take.min() < 1:
        take[take.argmin()] += 1
        take[take.argmax()] -= 1
    return take


def _by_fold(slices: pl.DataFrame, validation: int, test: int) -> list[str]:
    numbers = slices["fold"].to_list()
    if None in numbers:
        first = slices["scan"][numbers.index(None)]
        raise SplitError(f"{first} has no published fold; add cvind.mat or leave slices.split.folds out")
    if validation == test or not {validation, test} <= set(numbers):
        raise SplitError(
            f"slices.split.folds: {validation} and {test} are not two of {sorted(set(numbers))}; choose two"
        )
    torn = slices.group_by("participant_id").agg(pl.col("fold").n_unique()).filter(pl.col("fold") > 1)
    if not torn.is_empty():
        raise SplitError(f"{torn['participant_id'].sort()[0]} is in more than one fold; leave slices.split.folds out")
    return ["validation" if fold == validation else "test" if fold == test else "train" for fold in numbers]


def _leave_out(slices: pl.DataFrame, sides: list[str], buffer: int) -> list[str]:
    """The same sets without the slices at borders between them; `slices` are sorted by number."""
    ids = np.array([int(slice_id) for slice_id in slices["slice_id"]])
    kept = list(sides)
    for last in range(len(ids) - 1):
        if sides[last] != sides[last + 1]:
            border = (ids[last] + ids[last + 1]) / 2  # where numbers are missing, fewer slices need to go
            for row in np.flatnonzero(np.abs(ids - border) <= buffer):
                kept[row] = LEFT_OUT
    return kept


def _published(slices: pl.DataFrame) -> list[str]:
    from sklearn.model_selection import train_test_split

    if slices.height < 4:
        raise SplitError(f"{slices.height} slices are too few for the published split; it needs 4")
    train, rest = train_test_split(np.arange(slices.height), test_size=0.30, random_state=PUBLISHED_SEED)
    validation, _ = train_test_split(rest, test_size=0.5, random_state=PUBLISHED_SEED)
    side = np.full(slices.height, "test", dtype=object)
    side[train], side[validation] = "train", "validation"
    return side.tolist()


def _check_sets(kept: pl.DataFrame, how: How) -> None:
    """Each set has each class; the published split of few slices may lack one."""
    classes = set(kept["class"])
    for name in SETS:
        there = set(kept.filter(pl.col("set") == name)["class"])
        if not there or (how != "published" and there != classes):
            lacking = ", ".join(sorted(classes - there)) or "anything"
            raise SplitError(f"the {name} set lacks {lacking}; take another seed, a smaller buffer or more slices")
