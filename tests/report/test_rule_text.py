"""The answer in words: every branch, the numbers themselves, and no difference that is not shown."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from relevance_assets.report.rule_text import BLOCKS, answer, cell, score_name
from relevance_assets.statistics.rule_selection import CELLS, COMPARISON

KEY = {"explained": "true", "score": "iou", "quantile": 0.95}
CHOSEN, PUBLISHED = (0.0, 20.0), (-20.0, 0.0)
ABOVE = {"difference": 0.05, "difference_low": 0.02, "difference_high": 0.08, "p": 0.001, "p_corrected": 0.004}
BELOW = {"difference": -0.05, "difference_low": -0.08, "difference_high": -0.02, "p": 0.001, "p_corrected": 0.004}
OPEN = {"difference": 0.01, "difference_low": -0.02, "difference_high": 0.04, "p": 0.4, "p_corrected": 1.0}
UNCORRECTED = ABOVE | {"p": 0.03, "p_corrected": 0.21}
NO_INTERVAL = {"difference": 0.05}


def cells(wins=0.62, alike=1, chosen=CHOSEN, without=0):
    """The last `without` of 4 could not be chosen."""
    rows = []
    for number, (gamma, epsilon) in enumerate([chosen, PUBLISHED, (0.0, 0.0), (20.0, -20.0)]):
        row = KEY | {"set": "validation", "gamma": gamma, "epsilon": epsilon, "value": 0.3 - number / 100, "n": 120}
        row |= {"people": 15, "wins": wins if number == 0 else None, "is_chosen": number == 0}
        row |= {"is_candidate": number < 4 - without}
        apart = None if wins is None or not row["is_candidate"] else number > alike
        rows.append(row | {"is_distinguishable": apart})
        rows.append(row | {"set": "test", "value": 0.9, "wins": None, "is_distinguishable": None})
    return pl.DataFrame(rows, schema=CELLS)


def row(role, cell=CHOSEN, method="lrp_grid", value=0.25, n=100, kind="all", stratum="all", **numbers):
    return (
        KEY
        | {"stratum_kind": kind, "stratum": stratum, "role": role, "method": method, "gamma": cell[0]}
        | {"epsilon": cell[1], "value": value, "n": n, "people": 12}
        | numbers
    )


def comparison(*rows, **of_chosen):
    numbers = {"ci_low": 0.21, "ci_high": 0.29, "chance": 0.02, "ceiling": 0.45, "validation": 0.3}
    numbers |= {"gain": 0.23, "gain_low": 0.19, "gain_high": 0.27, "gain_p": 0.001, "gain_p_corrected": 0.01}
    return pl.DataFrame([row("chosen", **(numbers | of_chosen)), *rows], schema=COMPARISON)


def test_the_numbers_are_the_tables():
    said = answer(cells(), comparison())
    assert "Of 4 cells of the grid, γ = 0, ε = 20 had the largest mean IoU of the 0.95 quantile mask (0.300; " in said
    assert "the true class explained) on 120 validation images of 15 people." in said
    assert "chosen in 62 % of the resamples of these people; 1 other cell cannot be told from it." in said
    assert (
        "On 100 test images of 12 people, which had no part in the choice, it scores 0.250 (95 % interval 0.210 to"
        in said
    )
    assert "0.290); chance is 0.020 and the most that the sizes allow 0.450." in said
    assert "That is more than chance (difference 0.230, 0.190 to 0.270)." in said
    assert said.endswith(
        "Nothing here tells whether another network, another split or other images would give the same cell."
    )
    assert "\n" not in said
    assert "90 % interval" in answer(cells(), comparison(), confidence=0.9)


def test_how_sure_the_choice_is():
    assert "every other cell is worse." in answer(cells(alike=0), comparison())
    assert "3 other cells cannot be told from it." in answer(cells(alike=3), comparison())
    said = answer(cells(wins=None), comparison())
    assert "How sure this choice is cannot be told from one person." in said
    assert "resamples" not in said


def test_cells_that_could_not_be_chosen_are_counted_apart():
    said = answer(cells(alike=1, without=1), comparison(row("best_on_test")))
    assert said.startswith("Of 3 cells of the grid that could be chosen, γ = 0, ε = 20 had the largest mean IoU")
    assert "1 other cell had no say for want of a value on some of these images, where its map did not add up" in said
    assert "1 other cell cannot be told from it." in said
    assert "A choice on the test images, among the same cells, would have fallen on this one too." in said
    said = answer(cells(alike=0, without=2), comparison())
    assert "2 other cells had no say for want of a value on some of these images, where their maps did not" in said
    assert "every other one of these cells is worse." in said
    alone = answer(cells(alike=0, without=3), comparison())
    assert alone.startswith("Of 1 cell of the grid that could be chosen, ")
    assert "3 other cells had no say" in alone
    for word in ("resamples", "told from it", "is worse", "How sure"):
        assert word not in alone
    assert "no say" not in answer(cells(), comparison())


def test_patients_in_several_sets_are_said_to_be():
    said = answer(cells(), comparison(), leaking=True)
    assert "Patients are in several sets, as single images were divided at random" in said
    assert "is too good for new patients." in said
    assert "no part in the choice" not in said
    assert "On 100 test images of 12 people it scores 0.250" in said
    blocks = answer(cells(), comparison(), leaking=True, unit=BLOCKS)
    assert "Blocks are in several sets" in blocks
    assert "several sets" not in answer(cells(), comparison())


def test_blocks_are_not_called_people():
    few = comparison(people=4, gain_p_corrected=0.125)
    for table, of in ((cells(), comparison()), (cells(wins=None).with_columns(people=pl.lit(1)), few)):
        said = answer(table, of, unit="blocks (not patients)")
        assert "No patient is known; a patient's images may lie in several blocks and sets" in said
        for word in ("people", "person"):
            assert word not in said
    assert "How sure this choice is cannot be told from one block (not a patient)." in said
    assert "cannot be told from fewer than 6 blocks (not patients) (" in said
    said = answer(cells(), comparison(), unit=BLOCKS)
    assert "on 120 validation images of 15 blocks (not patients)." in said
    assert "of the resamples of these blocks; " in said
    assert "On 100 test images of 12 blocks (not patients), which had no part" in said
    assert "No patient is known" not in answer(cells(), comparison())
    with pytest.raises(ValueError, match="unit 'scans'; it is 'people' or 'blocks"):
        answer(cells(), comparison(), unit="scans")


def test_more_than_chance_needs_a_p_and_six_people():
    said = answer(cells(), comparison(gain_p=0.03, gain_p_corrected=0.21))
    assert "That cannot be told from chance (difference 0.230, 0.190 to 0.270, but p 0.21 after correction)." in said
    assert "but no p)" in answer(cells(), comparison(gain_p=None, gain_p_corrected=None))
    assert "That is more than chance" in answer(cells(), comparison(people=6))
    for people in (2, 5):
        said = answer(cells(), comparison(people=people), confidence=0.5)
        assert "Whether that is more than chance cannot be told from fewer than 6 people (difference 0.230, " in said
        assert "is more than chance (" not in said
    few = row("published", PUBLISHED, value=0.2, **ABOVE) | {"people": 5}
    said = answer(cells(), comparison(few))
    assert (
        "It cannot be told from the published cell (γ = −20, ε = 0) [0.200, difference 0.050 (0.020 to 0.080)," in said
    )
    assert ", but of too few]." in said


def test_against_chance():
    for low, high, expected in (
        (0.19, 0.27, "That is more than chance"),
        (-0.27, -0.19, "That is less than chance"),
        (-0.01, 0.02, "That cannot be told from chance"),
        (None, None, "Whether that is more than chance cannot be told."),
    ):
        gain = None if low is None else (low + high) / 2
        assert expected in answer(cells(), comparison(gain=gain, gain_low=low, gain_high=high))
    plain = answer(cells(), comparison(chance=None, ceiling=None, ci_low=None, ci_high=None))
    assert "it scores 0.250. " in plain


def test_without_test_images():
    said = answer(cells(), comparison(row("published", PUBLISHED, value=None, n=0), n=0, value=None, ci_low=None))
    assert "No test image has a value" in said
    assert "published" not in said
    assert "scores" not in said


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (
            ABOVE,
            "It scores higher than the published cell (γ = −20, ε = 0) [0.200, difference 0.050 (0.020 to 0.080)].",
        ),
        (
            BELOW,
            "It scores lower than the published cell (γ = −20, ε = 0) [0.200, difference −0.050 (−0.080 to −0.020)].",
        ),
        (
            OPEN,
            "It cannot be told from the published cell (γ = −20, ε = 0) [0.200, difference 0.010 (−0.020 to 0.040)].",
        ),
        (UNCORRECTED, "(0.020 to 0.080), but p 0.21 after correction]."),
        (
            NO_INTERVAL,
            "It cannot be told from the published cell (γ = −20, ε = 0) [0.200, difference 0.050, no interval].",
        ),
    ],
)
def test_against_the_published_cell(numbers, expected):
    said = answer(cells(), comparison(row("published", PUBLISHED, value=0.2, **numbers)))
    assert expected in said
    assert ("It cannot be told from the published" in said) == (numbers not in (ABOVE, BELOW))


def test_the_chosen_cell_may_be_the_published_one_or_that_one_absent():
    same = comparison(row("published", PUBLISHED)).with_columns(gamma=pl.lit(-20.0), epsilon=pl.lit(0.0))
    assert "It is the published cell." in answer(cells(chosen=PUBLISHED), same)
    absent = answer(cells(), comparison(row("published", PUBLISHED, value=None, n=0)))
    assert "The published cell (γ = −20, ε = 0) has no value on these images." in absent
    assert "published cell" not in answer(cells(), comparison())  # of a grid in which it does not lie


def test_references_are_grouped_by_what_can_be_told():
    no_cell = (None, None)
    found = comparison(
        row("reference", no_cell, "lrp_0", 0.2, **ABOVE),
        row("reference", no_cell, "grad_cam", 0.3, **BELOW),
        row("reference", no_cell, "integrated_gradients", 0.24, **OPEN),
        row("reference", no_cell, "gradient_x_input", 0.2, **ABOVE),
        row("reference", no_cell, "mine", None, n=0),
    )
    said = answer(cells(), found)
    higher = "It scores higher than LRP-0 [0.200, difference 0.050 (0.020 to 0.080)], gradient x input [0.200, "
    assert higher in said
    assert "It scores lower than Grad-CAM [0.300, difference −0.050 (−0.080 to −0.020)]." in said
    assert "It cannot be told from integrated gradients [0.240, difference 0.010 (−0.020 to 0.040)]." in said
    assert "There are no test images with mine." in said
    assert "random weights" not in said


@pytest.mark.parametrize(("numbers", "doubt"), [(ABOVE, False), (OPEN, True), (BELOW, True), (UNCORRECTED, True)])
def test_no_better_than_random_weights_shows_nothing_learnt(numbers, doubt):
    said = answer(cells(), comparison(row("reference", CHOSEN, "random_weights", 0.2, **numbers)))
    assert ("the score does not show what the network has learnt" in said) == doubt


def test_whether_the_signs_matter():
    sides = [
        row("best_gamma_negative", PUBLISHED, value=0.2, **ABOVE),
        row("best_gamma_not_negative"),
        row("best_epsilon_negative", (20.0, -20.0), value=0.24, **OPEN),
        row("best_epsilon_zero", PUBLISHED, value=0.2, **UNCORRECTED),
        row("best_epsilon_positive"),
    ]
    said = answer(cells(), comparison(*sides))
    assert "That the sign of γ matters is shown: the best cell with γ < 0 (γ = −20, ε = 0) [0.200, " in said
    assert "(0.020 to 0.080)] scores lower." in said
    assert "That the sign of ε matters is not shown: the best cell with ε < 0 (γ = 20, ε = −20) [0.240" in said
    assert "cannot be told from it and the best cell with ε = 0" in said
    assert "ε > 0" not in said
    sides[2] = row("best_epsilon_negative", (20.0, -20.0), value=0.3, **BELOW)
    said = answer(cells(), comparison(*sides))
    assert "That the sign of ε matters is shown: the best cell with ε < 0 (γ = 20, ε = −20) [0.300" in said
    assert "] scores higher and the best cell with ε = 0" in said
    said = answer(cells(), comparison(*sides[1:2], *sides[4:]))
    assert "Cells with γ ≥ 0 alone had a part: whether the sign of γ matters is open." in said


def test_cheating_is_called_so():
    said = answer(cells(), comparison(row("best_on_test", PUBLISHED, value=0.27, difference=-0.02)))
    assert "A choice on the test images would have been cheating: γ = −20, ε = 0 with 0.270, 0.020 more than" in said
    said = answer(cells(), comparison(row("best_on_test")))
    assert "A choice on the test images, among the same cells, would have fallen on this one too." in said


def test_classes_and_predictions_are_reported_not_compared():
    said = answer(
        cells(),
        comparison(
            row("chosen", kind="class", stratum="glioma", value=0.3, n=60, ci_low=0.25, ci_high=0.35),
            row("chosen", kind="class", stratum="pituitary", value=0.1, n=1200),
            row("published", kind="class", stratum="glioma", value=0.6),
            row("chosen", kind="prediction", stratum="wrong", value=0.05, n=7, ci_low=0.0001, ci_high=0.1),
        ),
    )
    assert (
        "By class it scores 0.300 (0.250 to 0.350, n 60) for glioma, 0.100 (no interval, n 1,200) for pituitary."
        in said
    )
    assert "By the network's prediction it scores 0.050 (1.0e−04 to 0.100, n 7) for wrong." in said


def test_nothing_is_claimed_where_an_interval_contains_0():
    """Random tables: whatever the p, a claim needs an interval on one side of 0."""
    random = np.random.default_rng(0)
    roles = ["published", "best_gamma_negative", "best_epsilon_negative", "best_epsilon_zero", "reference"]
    always = [row("best_gamma_not_negative"), row("best_epsilon_positive")]
    for _ in range(100):
        low, high = sorted(random.normal(size=2))
        low, high = (min(low, 0.0), max(high, 0.0))
        numbers = {"difference": (low + high) / 2, "difference_low": low, "difference_high": high}
        numbers |= {"p": random.random() / 50, "p_corrected": random.random() / 25}
        found = [row(role, PUBLISHED, "lrp_0" if role == "reference" else "lrp_grid", **numbers) for role in roles]
        said = answer(cells(), comparison(*found, *always, gain=0.0, gain_low=low, gain_high=high))
        for claim in ("scores higher", "scores lower", "is shown", "is more than chance", "is less than chance"):
            assert claim not in said


def test_names():
    assert score_name("iou", None) == "IoU"
    assert score_name("new_score", 0.9) == "new_score of the 0.9 quantile mask"
    assert cell({"gamma": -0.5, "epsilon": 100.0}) == "γ = −0.5, ε = 100"


def test_what_is_refused():
    two = pl.concat([comparison(), comparison().with_columns(score=pl.lit("auc"))])
    with pytest.raises(ValueError, match="one explained class, score and quantile"):
        answer(cells(), two)
    with pytest.raises(ValueError, match="one explained class"):
        answer(cells().with_columns(score=pl.lit("auc")), comparison())
    with pytest.raises(ValueError, match="not of 0"):
        answer(cells().clear(), comparison().clear())
    with pytest.raises(ValueError, match="no row has the role 'chosen'"):
        answer(cells(), comparison(row("published")).filter(pl.col("role") == "published"))
