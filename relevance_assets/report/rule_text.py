"""Which rule explains best, in words: one paragraph made only from the numbers of `statistics/rule_selection.py`.

Belongs here: sentences about one choice, and when a difference may be called one. Does not belong here: the numbers,
pictures (`figures_rules.py`).

A difference, from another cell or method or from chance, is claimed only where its interval leaves out 0, its p holds
after correction, and it rests on at least 6 people; else the text says that it cannot be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from relevance_assets.statistics.rule_images import KEYS

__all__ = ["BLOCKS", "METHODS", "PEOPLE", "RANDOM_WEIGHTS", "SCORES", "answer", "cell", "method_name", "score_name"]

SCORES = {
    "iou": "IoU",
    "dice": "Dice",
    "precision": "pixel precision",
    "recall": "pixel recall",
    "accuracy": "pixel accuracy",
    "f1": "F1",
    "relevance_mass_accuracy": "relevance mass accuracy",
    "relevance_rank_accuracy": "relevance rank accuracy",
    "pointing_game": "pointing game",
    "auc": "area under the ROC curve",
}
RANDOM_WEIGHTS = "random_weights"
METHODS = {
    "lrp_0": "LRP-0",
    "gradient_x_input": "gradient x input",
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
    "published_cell": "the published cell",
    RANDOM_WEIGHTS: "random weights",
}
#: Where the p of a difference, and of the gain over chance, is found.
CORRECTED = {"difference": "p_corrected", "gain": "gain_p_corrected"}
#: Parts of the grid: what they are called, and the parts that are beside them.
GAMMA = {"best_gamma_negative": "γ < 0", "best_gamma_not_negative": "γ ≥ 0"}
EPSILON = {"best_epsilon_negative": "ε < 0", "best_epsilon_zero": "ε = 0", "best_epsilon_positive": "ε > 0"}

PEOPLE, BLOCKS = "people", "blocks (not patients)"
#: One of them, several, and several that were named before.
UNITS = {PEOPLE: ("person", PEOPLE, PEOPLE), BLOCKS: ("block (not a patient)", BLOCKS, "blocks")}
#: Fewer cannot give a p below 0.05 by flips of signs: of n people the smallest is 2 / 2^n.
FEWEST = 6


def score_name(score: str, quantile: float | None) -> str:
    """What a score is called, with the quantile of its mask."""
    name = SCORES.get(score, score)
    return name if quantile is None else f"{name} of the {quantile:g} quantile mask"


def method_name(method: str) -> str:
    """What a method is called; its own name where we have no other."""
    return METHODS.get(method, method)


def cell(row: Mapping[str, Any]) -> str:
    """A cell of the grid, such as 'γ = −20, ε = 0'."""
    return f"γ = {row['gamma']:g}, ε = {row['epsilon']:g}".replace("-", "−")


def answer(
    cells: pl.DataFrame,
    comparison: pl.DataFrame,
    *,
    confidence: float = 0.95,
    leaking: bool = False,
    unit: str = PEOPLE,
) -> str:
    """One paragraph about one choice.

    Parameters
    ----------
    cells, comparison : frame
        Those of a `Selection`, of one explained class, score and quantile.
    confidence
        Of the intervals.
    leaking
        Whether single images were divided, so that people are in several sets: the text then says so.
    unit
        What a `participant_id` stands for: "people", or "blocks (not patients)" where no patient is known.

    Returns
    -------
    str
        Which cell was chosen, of which, and how surely, its score on test images beside chance and ceiling, against the
        published cell and the other methods, whether the signs of γ and ε matter, by class and prediction, and what
        cannot be told.

    Raises
    ------
    ValueError
        Rows of no choice, or of several; another unit.
    """
    if unit not in UNITS:
        raise ValueError(f"answer: unit {unit!r}; it is {' or '.join(map(repr, UNITS))}")
    choices = comparison.select(KEYS).unique().rows()
    if len(choices) != 1 or cells.select(KEYS).unique().rows() != choices:
        raise ValueError(f"answer: rows of one explained class, score and quantile are needed, not of {len(choices)}")
    overall = comparison.filter(pl.col("stratum_kind") == "all").rows(named=True)
    chosen = _role(overall, "chosen")
    if chosen is None:
        raise ValueError("answer: no row has the role 'chosen'; give the comparison as `select_rule` made it")
    said = [*_choice(cells, unit), *_warnings(leaking, unit), *_test(chosen, confidence, leaking, unit)]
    if chosen["n"]:
        said += [*_published(overall, chosen, confidence), *_references(overall, confidence)]
        said += [*_sides(overall, GAMMA, "γ", confidence), *_sides(overall, EPSILON, "ε", confidence)]
        said += [*_cheating(overall), *_strata(comparison)]
    said.append("Nothing here tells whether another network, another split or other images would give the same cell.")
    return " ".join(said)


def _choice(cells: pl.DataFrame, unit: str) -> Iterable[str]:
    validation = cells.filter(pl.col("set") == "validation")
    could = validation.filter("is_candidate")
    row = could.row(by_predicate=pl.col("is_chosen"), named=True)
    without = len(validation) - len(could)
    yield (
        f"Of {_count(len(could), 'cell')} of the grid{' that could be chosen' if without else ''}, {cell(row)} had the "
        f"largest mean {score_name(row['score'], row['quantile'])} ({_number(row['value'])}; the {row['explained']} "
        f"class explained) on {_count(row['n'], 'validation image')} of {_people(row['people'], unit)}."
    )
    if len(could) > 1:
        yield _sureness(could, row, unit, "every other one of these cells" if without else "every other cell")
    if without:
        yield (
            f"{_count(without, 'other cell')} had no say for want of a value on some of these images, where "
            f"{'its map' if without == 1 else 'their maps'} did not add up or the score is undefined."
        )


def _sureness(could: pl.DataFrame, row: Mapping[str, Any], unit: str, others: str) -> str:
    """How surely the cell of this row is the best of those that could be chosen."""
    one, _, these = UNITS[unit]
    if row["wins"] is None:
        return f"How sure this choice is cannot be told from one {one}."
    alike = int((~could["is_distinguishable"].fill_null(False)).sum()) - 1
    found = f"{_count(alike, 'other cell')} cannot be told from it." if alike else f"{others} is worse."
    return f"It is also the one chosen in {_percent(row['wins'])} of the resamples of these {these}; {found}"


def _warnings(leaking: bool, unit: str) -> Iterable[str]:
    """Why all that follows is too good."""
    if leaking:
        whose = "Patients" if unit == PEOPLE else "Blocks"
        yield (
            f"{whose} are in several sets, as single images were divided at random: the network and the choice have "
            "seen the test images' neighbours, and everything here, intervals and p too, is too good for new patients."
        )
    if unit == BLOCKS:
        yield (
            "No patient is known; a patient's images may lie in several blocks and sets, which makes intervals too "
            "narrow and results too good."
        )


def _test(chosen: Mapping[str, Any], confidence: float, leaking: bool, unit: str) -> Iterable[str]:
    apart = "" if leaking else ", which had no part in the choice,"
    if not chosen["n"]:
        yield "No test image has a value: nothing can be said about it on images that had no part in the choice."
        return
    said = (
        f"On {_count(chosen['n'], 'test image')} of {_people(chosen['people'], unit)}{apart} it scores "
        f"{_number(chosen['value'])}"
    )
    if chosen["ci_low"] is not None:
        said += f" ({confidence * 100:g} % interval {_number(chosen['ci_low'])} to {_number(chosen['ci_high'])})"
    if chosen["chance"] is not None:
        said += f"; chance is {_number(chosen['chance'])}"
    if chosen["ceiling"] is not None:
        said += f" and the most that the sizes allow {_number(chosen['ceiling'])}"
    yield said + "."
    if chosen["gain_low"] is None:
        yield "Whether that is more than chance cannot be told."
        return
    difference = f"difference {_number(chosen['gain'])}, {_between(chosen, 'gain')}"
    if chosen["people"] < FEWEST:
        yield (
            f"Whether that is more than chance cannot be told from fewer than {FEWEST} {UNITS[unit][1]} ({difference})."
        )
        return
    verb = ("cannot be told from", "is more than", "is less than")[_sign(chosen, confidence, "gain")]
    yield f"That {verb} chance ({difference}{_but(chosen, confidence, 'gain')})."


def _published(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], confidence: float) -> Iterable[str]:
    row = _role(rows, "published")
    if row is None:  # of a grid in which it does not lie
        return
    if not row["n"]:
        yield f"The published cell ({cell(row)}) has no value on these images."
    elif (row["gamma"], row["epsilon"]) == (chosen["gamma"], chosen["epsilon"]):
        yield "It is the published cell."
    else:
        verb = ("cannot be told from", "scores higher than", "scores lower than")[_sign(row, confidence)]
        yield f"It {verb} {_named(f'the published cell ({cell(row)})', row, confidence)}."


def _references(rows: Sequence[Mapping[str, Any]], confidence: float) -> Iterable[str]:
    found: dict[int, list[str]] = {1: [], -1: [], 0: []}
    doubt = False
    for row in rows:
        if row["role"] == "reference" and not row["n"]:
            yield f"There are no test images with {method_name(row['method'])}."
        elif row["role"] == "reference":
            sign = _sign(row, confidence)
            found[sign].append(_named(method_name(row["method"]), row, confidence))
            doubt |= row["method"] == RANDOM_WEIGHTS and sign <= 0
    for sign, said in ((1, "It scores higher than"), (-1, "It scores lower than"), (0, "It cannot be told from")):
        if found[sign]:
            yield f"{said} {', '.join(found[sign])}."
    if doubt:
        yield (
            "As it is not shown to score higher than the same rule on a network with random weights, the score does "
            "not show what the network has learnt."
        )


def _sides(rows: Sequence[Mapping[str, Any]], parts: Mapping[str, str], name: str, confidence: float) -> Iterable[str]:
    """Whether the sign matters: the chosen cell against the best cell of each other part of the grid."""
    best = {role: row for role in parts if (row := _role(rows, role)) is not None}
    if len(best) < 2:
        only = " or ".join(parts[role] for role in best)
        yield f"Cells with {only} alone had a part: whether the sign of {name} matters is open."
        return
    others = {role: row for role, row in best.items() if row["difference"] is not None and row["n"]}
    said = []
    for role, row in sorted(others.items(), key=lambda item: _sign(item[1], confidence) == 0):
        verb = ("cannot be told from it", "scores lower", "scores higher")[_sign(row, confidence)]
        said.append(f"{_named(f'the best cell with {parts[role]} ({cell(row)})', row, confidence)} {verb}")
    if said:
        matters = any(_sign(row, confidence) for row in others.values())
        yield f"That the sign of {name} matters is {'' if matters else 'not '}shown: {' and '.join(said)}."


def _cheating(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    row = _role(rows, "best_on_test")
    if row is None:
        return
    if row["difference"] is None:
        yield "A choice on the test images, among the same cells, would have fallen on this one too."
    else:
        yield (
            f"A choice on the test images would have been cheating: {cell(row)} with {_number(row['value'])}, "
            f"{_number(-row['difference'])} more than an honest choice."
        )


def _strata(comparison: pl.DataFrame) -> Iterable[str]:
    for kind, said in (("class", "By class it scores"), ("prediction", "By the network's prediction it scores")):
        rows = comparison.filter(pl.col("stratum_kind") == kind, pl.col("role") == "chosen", pl.col("n") > 0)
        parts = []
        for row in rows.iter_rows(named=True):
            between = (
                "no interval" if row["ci_low"] is None else f"{_number(row['ci_low'])} to {_number(row['ci_high'])}"
            )
            parts.append(f"{_number(row['value'])} ({between}, n {row['n']:,}) for {row['stratum']}")
        if parts:
            yield f"{said} {', '.join(parts)}."


def _role(rows: Sequence[Mapping[str, Any]], role: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["role"] == role), None)


def _sign(row: Mapping[str, Any], confidence: float, name: str = "difference") -> int:
    """1 where the chosen cell is surely higher, -1 where it is surely lower, else 0; a place in (0, 1, -1)."""
    p = row[CORRECTED[name]]
    if p is None or p > 1 - confidence or row["people"] < FEWEST:
        return 0
    return _side(row, name)


def _side(row: Mapping[str, Any], name: str) -> int:
    """On which side of 0 the interval is; 0 where it contains 0, or there is none."""
    low, high = row[name + "_low"], row[name + "_high"]
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def _but(row: Mapping[str, Any], confidence: float, name: str) -> str:
    """What stands against a difference that is not claimed though its interval leaves out 0."""
    if not _side(row, name) or _sign(row, confidence, name):
        return ""
    if row["people"] < FEWEST:
        return ", but of too few"
    p = row[CORRECTED[name]]
    return ", but no p" if p is None else f", but p {p:.2g} after correction"


def _named(name: str, row: Mapping[str, Any], confidence: float) -> str:
    """A method with its score and the difference to it, and what stands against one that is not claimed."""
    said = f"{name} [{_number(row['value'])}"
    if row["difference"] is not None:
        said += f", difference {_number(row['difference'])}"
        said += ", no interval" if row["difference_low"] is None else f" ({_between(row, 'difference')})"
        said += _but(row, confidence, "difference")
    return said + "]"


def _between(row: Mapping[str, Any], name: str) -> str:
    return f"{_number(row[name + '_low'])} to {_number(row[name + '_high'])}"


def _number(value: float) -> str:
    """Three decimals; what they would show as 0 though it is not, with two digits."""
    small = value != 0 and abs(value) < 5e-4
    return (f"{value:.1e}" if small else f"{value:.3f}").replace("-", "−")


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _people(n: int, unit: str) -> str:
    return _count(n, *UNITS[unit][:2])


def _count(n: int, one: str, more: str = "") -> str:
    return f"{n:,} {one if n == 1 else more or one + 's'}"
