"""The choice of a rule: means and intervals by explicit loops, planted truth, no peeking, and what is undefined."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.report.rule_text import answer
from relevance_assets.statistics.rule_images import GRID, image_means
from relevance_assets.statistics.rule_selection import PARTS, select_rule

GAMMAS, EPSILONS = (-20.0, 0.0, 20.0), (-20.0, 0.0, 20.0)
CELLS = list(itertools.product(GAMMAS, EPSILONS))
SETTINGS = {"bootstrap": 300, "seed": 3}


def images(random, people=(8, 10), each=3):
    out = []
    for name, count in zip(("validation", "test"), people, strict=True):
        for person in range(count):
            for number in range(1 + person % each):
                out.append(
                    {"scan": f"{name}{person:02}-{number}", "participant_id": f"{name[0]}{person}", "set": name}
                    | {"class": ("glioma", "meningioma")[person % 2], "correct": bool(random.random() < 0.8)}
                )
    return out


def rows(effect=None, seed=0, people=(8, 10), noise=0.05, methods=("gradient", "random_weights"), **missing):
    """A cell's mean is 0.3 + effect; each image and each person move all cells alike."""
    random, effect, out = np.random.default_rng(seed), effect or {}, []
    whose: dict[str, float] = {}
    for image in images(random, people):
        level = 0.3 + whose.setdefault(image["participant_id"], random.normal(0, 0.1)) + random.normal(0, 0.02)
        for method, gamma, epsilon in [(GRID, *cell) for cell in CELLS] + [(name, None, None) for name in methods]:
            shift = effect.get((gamma, epsilon) if method == GRID else method, 0.0)
            out.append(
                image
                | {"explained": "true", "score": "iou", "quantile": 0.95, "method": method}
                | {"gamma": gamma, "epsilon": epsilon, "value": level + shift + random.normal(0, noise)}
                | {"chance": 0.02, "ceiling": 0.5}
            )
    return pl.DataFrame(out, infer_schema_length=None)


def one(selection, role, kind="all", stratum="all", method=None):
    part = selection.comparison.filter(role=role, stratum_kind=kind, stratum=stratum)
    return (part if method is None else part.filter(method=method)).row(0, named=True)


def values_of(frame, name, gamma, epsilon, method=GRID):
    part = frame.filter(pl.col("set") == name, pl.col("method") == method)
    cell = pl.col("gamma").eq_missing(pl.lit(gamma, pl.Float64)) & pl.col("epsilon").eq_missing(
        pl.lit(epsilon, pl.Float64)
    )
    return {row["scan"]: row["value"] for row in part.filter(cell).iter_rows(named=True) if row["value"] is not None}


def test_the_choice_is_the_largest_validation_mean_whatever_the_test_says():
    frame = rows(seed=1)
    means = {cell: np.mean(list(values_of(frame, "validation", *cell).values())) for cell in CELLS}
    best, worst = max(CELLS, key=means.__getitem__), min(CELLS, key=means.__getitem__)
    selection = select_rule(frame, **SETTINGS)
    found = [(row["gamma"], row["epsilon"]) for row in (one(selection, "chosen"), one(selection, "worst"))]
    assert found == [best, worst]
    turned = frame.with_columns(
        value=pl.when(pl.col("set") == "test").then(-pl.col("value")).otherwise(pl.col("value"))
    )
    other = one(select_rule(turned, **SETTINGS), "chosen")
    assert (other["gamma"], other["epsilon"]) == best
    assert other["validation"] == one(selection, "chosen")["validation"] == pytest.approx(means[best])
    cheat = one(selection, "best_on_test")
    on_test = {cell: np.mean(list(values_of(frame, "test", *cell).values())) for cell in CELLS}
    assert (cheat["gamma"], cheat["epsilon"]) == max(CELLS, key=on_test.__getitem__)
    assert cheat["difference"] == pytest.approx(on_test[best] - max(on_test.values()))
    assert cheat["difference"] <= 0
    assert cheat["p"] is cheat["difference_low"] is None


def test_numbers_by_explicit_resamples():
    frame = rows(seed=2)
    selection, resamples = select_rule(frame, confidence=0.9, **SETTINGS), SETTINGS["bootstrap"]
    owner = dict(frame.filter(pl.col("set") == "test").select("scan", "participant_id").unique().sort("scan").rows())
    people = list(dict.fromkeys(owner.values()))
    counts = np.random.default_rng(3).multinomial(len(people), np.full(len(people), 1 / len(people)), resamples)
    chosen = one(selection, "chosen")
    ours = values_of(frame, "test", chosen["gamma"], chosen["epsilon"])

    def interval(by_scan):
        drawn = []
        for count in counts:
            drawn.append(np.mean([v for s, v in by_scan.items() for _ in range(count[people.index(owner[s])])]))
        return tuple(np.quantile(drawn, [0.05, 0.95]))

    assert chosen["value"] == pytest.approx(np.mean(list(ours.values())))
    assert (chosen["ci_low"], chosen["ci_high"]) == pytest.approx(interval(ours))
    assert (chosen["n"], chosen["people"], chosen["difference"]) == (len(owner), 10, None)
    assert (chosen["chance"], chosen["ceiling"]) == pytest.approx((0.02, 0.5))
    gains = {scan: value - 0.02 for scan, value in ours.items()}
    assert chosen["gain"] == pytest.approx(np.mean(list(gains.values())))
    assert (chosen["gain_low"], chosen["gain_high"]) == pytest.approx(interval(gains))
    gradient = one(selection, "reference", method="gradient")
    theirs = values_of(frame, "test", None, None, "gradient")
    differences = {scan: ours[scan] - theirs[scan] for scan in ours}
    assert gradient["difference"] == pytest.approx(np.mean(list(differences.values())))
    assert (gradient["difference_low"], gradient["difference_high"]) == pytest.approx(interval(differences))
    sums = np.array([sum(d for s, d in differences.items() if owner[s] == person) for person in people])
    exact = [abs(np.array(signs) @ sums) >= abs(sums.sum()) - 1e-12 for signs in itertools.product((-1, 1), repeat=10)]
    p = np.mean(exact)
    assert gradient["p"] == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / resamples) + 1 / resamples)


def test_holm_counts_a_cell_with_two_roles_once():
    comparison = select_rule(rows(seed=4), **SETTINGS).comparison
    for kind in ("all", "class", "prediction"):
        part = comparison.filter(pl.col("stratum_kind") == kind)
        found: dict[tuple, float] = {}
        for row in part.iter_rows(named=True):
            for name in ("p", "gain_p"):
                if row[name] is not None:
                    found[name, row["stratum"], row["method"], row["gamma"], row["epsilon"]] = row[name]
        assert {key[1] for key in found if key[0] == "gain_p"} == set(part["stratum"])
        before = 0.0
        expected = {}
        for place, key in enumerate(sorted(found, key=found.__getitem__)):
            before = max(before, min(1.0, found[key] * (len(found) - place)))
            expected[key] = before
        for row in part.iter_rows(named=True):
            for name in ("p", "gain_p"):
                if row[name] is not None:
                    key = name, row["stratum"], row["method"], row["gamma"], row["epsilon"]
                    assert row[f"{name}_corrected"] == pytest.approx(expected[key])
                    assert row["correction"].startswith(f"holm over {len(found)}: ")
                else:
                    assert row[f"{name}_corrected"] is None


@pytest.mark.parametrize("people", [2, 5, 6, 10])
def test_the_p_of_few_people_is_exact(people):
    """Of the gain and of a difference, by all flips of signs, however few resamples; the least is 2 / 2^n."""
    frame = rows(seed=people, people=(3, people), methods=("gradient",)).with_columns(chance=pl.lit(0.29))
    above = frame.with_columns(chance=pl.col("value") - 0.01 * (pl.col("participant_id").str.slice(1).cast(int) + 1))
    for part in (frame, above):
        selection = select_rule(part, bootstrap=20, seed=1)
        chosen, other = one(selection, "chosen"), one(selection, "reference")
        test = part.filter(set="test")
        cell = test.filter(gamma=chosen["gamma"], epsilon=chosen["epsilon"]).sort("scan")
        gradient = test.filter(method="gradient").sort("scan")
        gain = cell["value"].to_numpy() - cell["chance"].to_numpy()
        difference = cell["value"].to_numpy() - gradient["value"].to_numpy()
        for found, values in ((chosen["gain_p"], gain), (other["p"], difference)):
            whose = cell["participant_id"].to_numpy()
            sums = [values[whose == f"t{person}"].sum() for person in range(people)]
            extreme = [
                abs(sum(sign * one for sign, one in zip(signs, sums, strict=True))) >= abs(sum(sums)) - 1e-12
                for signs in itertools.product((-1, 1), repeat=people)
            ]
            assert found == pytest.approx(sum(extreme) / 2**people, abs=1e-12)
    assert chosen["gain_p"] == pytest.approx(2 / 2**people)
    assert one(selection, "published")["gain_p"] is other["gain_p"] is None


@pytest.mark.parametrize(("people", "masks"), [(3, False), (5, True), (6, False), (8, True), (12, False), (12, True)])
def test_chance_is_ruled_out_by_mistake_in_few(people, masks):
    """One cell alone, which nothing corrects: people's gains are noise about 0, or those of masks laid at random."""
    wrong, repeats, random = 0, 100 if people > 5 else 20, np.random.default_rng(people + 100 * masks)
    frame = rows(people=(2, people), methods=()).filter(gamma=0, epsilon=0)
    whose = frame["participant_id"].rank("dense").to_numpy() - 1
    hits = np.arange(21)  # of 50 of 1000 pixels in a tumour of 20
    iou = hits / (50 + 20 - hits)
    chance = float(stats.hypergeom(1000, 20, 50).pmf(hits) @ iou) if masks else 0.02
    for seed in range(repeats):
        if masks:
            value = iou[random.hypergeometric(20, 980, 50, size=len(frame))]
        else:
            value = chance + random.normal(size=people + 2)[whose]
        drawn = frame.with_columns(pl.Series("value", value), chance=pl.lit(chance))
        selection = select_rule(drawn, bootstrap=300, seed=seed)
        said = answer(selection.cells, selection.comparison)
        wrong += "is more than chance (" in said or "is less than chance (" in said
    assert wrong <= (0 if people < 6 else 12)  # P(more than 12 of 100 | 0.05) = 0.001


def test_a_planted_cell_is_chosen_surely_and_its_gain_found():
    selection = select_rule(rows({(0.0, 20.0): 0.3, (-20.0, 0.0): 0.1}, people=(15, 20)), **SETTINGS)
    chosen = one(selection, "chosen")
    assert (chosen["gamma"], chosen["epsilon"]) == (0.0, 20.0)
    cells = selection.cells.filter(pl.col("set") == "validation")
    assert cells.filter("is_chosen")["wins"].to_list() == [1.0]
    assert cells.filter("is_distinguishable").height == 8
    for role in ("published", "worst", "reference", "best_gamma_negative", "best_epsilon_zero"):
        row = one(selection, role)
        assert row["difference_low"] > 0, role
        assert row["p_corrected"] < 0.05
    assert one(selection, "published")["difference"] == pytest.approx(0.2, abs=0.05)
    assert chosen["gain_low"] > 0
    assert chosen["gain_p_corrected"] < 0.05
    assert "That is more than chance" in answer(selection.cells, selection.comparison)
    assert one(selection, "best_on_test")["difference"] is None  # it is the chosen one
    assert one(selection, "best_epsilon_positive")["difference"] is None


def test_without_effect_no_cell_is_called_worse():
    """All cells alike: in 25 cohorts of 20 people the simultaneous bound of 95 % errs at most in a few."""
    wrong = 0
    for seed in range(25):
        cells = select_rule(rows(seed=seed, people=(20, 2), methods=()), bootstrap=200, seed=seed).cells
        wrong += cells["is_distinguishable"].any()
    assert wrong <= 5  # P(more than 5 of 25 | 0.05) = 0.001


def test_ties_go_to_the_plainest_cell():
    frame = rows().with_columns(value=pl.lit(0.25))
    selection = select_rule(frame, **SETTINGS)
    chosen = one(selection, "chosen")
    assert (chosen["gamma"], chosen["epsilon"]) == (0.0, 0.0)
    cells = selection.cells.filter(pl.col("set") == "validation")
    assert cells.filter(pl.col("wins") == 1)["is_chosen"].to_list() == [True]
    assert not cells["is_distinguishable"].any()
    published = one(selection, "published")
    assert (published["difference"], published["p"]) == (0, 1)
    without = frame.filter(pl.col("epsilon").is_null() | (pl.col("epsilon") != 0))
    chosen = one(select_rule(without, **SETTINGS), "chosen")
    assert (chosen["gamma"], chosen["epsilon"]) == (0.0, -20.0)


def test_strata_are_the_same_images_alone():
    frame = rows(seed=5)
    selection = select_rule(frame, **SETTINGS)
    chosen = one(selection, "chosen")
    ours = values_of(frame, "test", chosen["gamma"], chosen["epsilon"])
    scans = frame.filter(pl.col("set") == "test").unique("scan")
    for kind, stratum, part in [
        ("class", "glioma", scans.filter(pl.col("class") == "glioma")),
        ("class", "meningioma", scans.filter(pl.col("class") == "meningioma")),
        ("prediction", "correct", scans.filter("correct")),
        ("prediction", "wrong", scans.filter(~pl.col("correct"))),
    ]:
        row = one(selection, "chosen", kind, stratum)
        assert row["value"] == pytest.approx(np.mean([ours[scan] for scan in part["scan"]]))
        assert (row["n"], row["people"]) == (len(part), part["participant_id"].n_unique())
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["validation"] is None
    roles = selection.comparison.filter(pl.col("stratum") == "glioma")["role"].to_list()
    assert roles == ["chosen", "published", "worst", "best_on_test", *PARTS, "reference", "reference"]


def test_a_cell_without_value_on_some_images_cannot_be_chosen():
    frame = rows({(20.0, 20.0): 0.5})
    broken = frame.with_columns(
        value=pl.when((pl.col("gamma") == 20) & (pl.col("epsilon") == 20) & (pl.col("scan") == "validation00-0"))
        .then(None)
        .otherwise(pl.col("value"))
    )
    assert one(select_rule(frame, **SETTINGS), "chosen")["gamma"] == 20
    selection = select_rule(broken, **SETTINGS)
    assert (one(selection, "chosen")["gamma"], one(selection, "chosen")["epsilon"]) != (20, 20)
    row = selection.cells.filter(set="validation", gamma=20, epsilon=20).row(0, named=True)
    assert row["wins"] is row["is_distinguishable"] is None
    assert not row["is_candidate"]
    assert selection.cells.filter(set="validation")["is_candidate"].sum() == 8
    said = answer(selection.cells, selection.comparison)
    assert "Of 8 cells of the grid that could be chosen, " in said
    assert "1 other cell had no say for want of a value on some of these images" in said
    assert row["n"] == selection.cells["n"].filter(selection.cells["set"] == "validation").max() - 1


def test_cells_that_lack_different_images_are_not_chosen_between():
    """As many images each; one cell has high values on images that the others lack, and all are alike on the rest."""
    frame = rows(people=(20, 2), methods=()).filter(pl.col("gamma") >= 0, pl.col("epsilon") == 20)
    frame = pl.concat([frame, frame.filter(gamma=0).with_columns(gamma=pl.lit(1.0))])
    scan, high = pl.col("scan"), pl.col("gamma") == 0
    own, others = (scan.is_in([f"validation{person:02}-0" for person in some]) for some in (range(10), range(10, 20)))
    value = pl.when(own).then(1.0).when(others).then(0.0).otherwise(0.3)
    lacking = frame.with_columns(value=pl.when((high & others) | (~high & own)).then(None).otherwise(value))
    selection = select_rule(lacking, **SETTINGS)
    cells = selection.cells.filter(pl.col("set") == "validation").sort("gamma")
    assert cells["gamma"].to_list() == [0, 1, 20]
    assert cells["n"].n_unique() == 1
    assert cells["is_candidate"].to_list() == [False, True, True]  # most cells have those images
    assert cells["is_chosen"].to_list() == [False, True, False]
    assert cells["is_distinguishable"].to_list() == [None, False, False]
    assert cells["wins"].to_list() == [None, 1, 0]
    alone = select_rule(lacking.filter(pl.col("gamma") < 20), **SETTINGS)
    cells = alone.cells.filter(pl.col("set") == "validation").sort("gamma")
    assert cells["is_candidate"].to_list() == cells["is_chosen"].to_list() == [True, False]  # the one that wins a tie


def test_people_in_both_sets_where_that_was_asked_for():
    """The numbers are those of the same images of other people: only the check is left out."""
    frame = rows(seed=9)
    torn = frame.with_columns(participant_id="p" + pl.col("participant_id").str.slice(1))
    assert set(torn.filter(set="test")["participant_id"]) & set(torn.filter(set="validation")["participant_id"])
    for refused in (select_rule, image_means):
        with pytest.raises(ValueError, match="p0 is in validation and test; split by person"):
            refused(torn, **SETTINGS)
    for one_of, other in zip(
        select_rule(torn, leaking=True, **SETTINGS), select_rule(frame, leaking=True, **SETTINGS), strict=True
    ):
        assert one_of.equals(other)
    assert image_means(torn, leaking=True, **SETTINGS).equals(image_means(frame, **SETTINGS))


def test_differences_rest_on_images_that_both_have():
    frame = rows(seed=6)
    gone = (pl.col("method") == "gradient") & (pl.col("participant_id") == "t0")
    selection = select_rule(frame.filter(~gone), **SETTINGS)
    row, whole = one(selection, "reference", method="gradient"), one(selection, "chosen")
    assert row["n"] == row["n_pairs"] == whole["n"] - 1
    assert row["people"] == whole["people"] - 1


def test_a_method_with_a_grid_of_its_own_is_taken_at_the_chosen_cell():
    frame = rows({(0.0, 20.0): 0.3}, methods=())
    random_weights = frame.with_columns(method=pl.lit("random_weights"), value=pl.lit(0.1))
    row = one(select_rule(pl.concat([frame, random_weights]), **SETTINGS), "reference")
    assert (row["method"], row["gamma"], row["epsilon"], row["value"]) == ("random_weights", 0, 20, pytest.approx(0.1))
    zero = random_weights.filter(pl.col("gamma") == 0, pl.col("epsilon") == 0).with_columns(method=pl.lit("lrp_0"))
    row = one(select_rule(pl.concat([frame, zero]), **SETTINGS), "reference")
    assert (row["method"], row["gamma"]) == ("lrp_0", 0)
    few = random_weights.filter(pl.col("gamma") == -20)
    with pytest.raises(ValueError, match="random_weights has no row for the chosen cell"):
        select_rule(pl.concat([frame, few]), **SETTINGS)


def test_a_grid_without_the_published_cell():
    frame = rows().filter(pl.col("gamma").is_null() | (pl.col("gamma") >= 0))
    selection = select_rule(frame, **SETTINGS)
    row = one(selection, "published")
    assert (row["gamma"], row["value"], row["n"]) == (-20, None, 0)
    assert "best_gamma_negative" not in selection.comparison["role"]


def test_a_grid_in_which_the_published_cell_does_not_lie_has_no_such_role():
    frame = rows(seed=1)
    without = select_rule(frame, published=None, **SETTINGS)
    assert "published" not in set(without.comparison["role"])
    assert without.cells.equals(select_rule(frame, **SETTINGS).cells)


def test_one_person_has_no_interval():
    selection = select_rule(rows(people=(1, 1)), **SETTINGS)
    row = one(selection, "reference")
    assert row["value"] is not None
    assert (
        row["ci_low"]
        is row["difference_low"]
        is row["gain_low"]
        is row["p"]
        is one(selection, "chosen")["gain_p"]
        is None
    )
    assert selection.cells["wins"].null_count() == selection.cells["ci_low"].null_count() == 18


def test_without_test_images_there_is_a_choice_and_no_report():
    selection = select_rule(rows().filter(pl.col("set") == "validation"), **SETTINGS)
    row = one(selection, "chosen")
    assert (row["value"], row["n"]) == (None, 0)
    assert row["validation"] is not None
    assert "best_on_test" not in selection.comparison["role"]


def test_several_scores_are_chosen_apart():
    frame = rows({(0.0, 20.0): 0.3}, seed=7)
    other = frame.with_columns(score=pl.lit("auc"), quantile=pl.lit(None, pl.Float64), value=1 - pl.col("value"))
    both = select_rule(pl.concat([frame, other]), **SETTINGS)
    for part in (frame, other):
        alone = select_rule(part, **SETTINGS)
        score = part["score"][0]
        assert both.comparison.filter(score=score).equals(alone.comparison)
        assert both.cells.filter(score=score).equals(alone.cells)


def test_means_in_both_forms():
    frame = rows(seed=8).with_columns(value=pl.when(pl.col("scan") == "test00-0").then(None).otherwise(pl.col("value")))
    table = image_means(frame, published_n=460, **SETTINGS)
    values = list(values_of(frame, "test", 0.0, 20.0).values())
    part = table.filter(set="test", method=GRID, gamma=0, epsilon=20)
    ours = part.row(by_predicate=pl.col("form") == "mean_over_images", named=True)
    theirs = part.row(by_predicate=pl.col("form") == "sum_over_n_as_published", named=True)
    assert (ours["value"], ours["n"]) == (pytest.approx(np.mean(values)), len(values))
    assert ours["ci_low"] < ours["value"] < ours["ci_high"]
    assert (theirs["value"], theirs["n"], theirs["ci_low"]) == (pytest.approx(sum(values) / 460), 460, None)
    own = image_means(frame, **SETTINGS).filter(set="test", method=GRID, gamma=0, epsilon=20, form=theirs["form"])
    assert own["value"].item() == pytest.approx(sum(values) / (len(values) + 1))


def test_what_is_refused():
    frame = rows()
    with pytest.raises(ValueError, match="lack the columns"):
        select_rule(frame.drop("correct"))
    with pytest.raises(ValueError, match="sets \\['train'\\]"):
        select_rule(frame.with_columns(set=pl.lit("train")))
    moved = pl.when(pl.col("scan") == "test00-0").then(pl.lit("v0")).otherwise(pl.col("participant_id"))
    with pytest.raises(ValueError, match="v0 is in validation and test"):
        select_rule(frame.with_columns(participant_id=moved))
    with pytest.raises(ValueError, match="two rows"):
        select_rule(pl.concat([frame, frame]))
    with pytest.raises(ValueError, match="both correct and wrong"):
        select_rule(frame.with_columns(correct=pl.col("gamma") == 0))
    with pytest.raises(ValueError, match="not finite"):
        select_rule(frame.with_columns(value=pl.lit(np.nan)))
    with pytest.raises(ValueError, match="no cell of lrp_grid has a value"):
        select_rule(frame.with_columns(value=pl.lit(None, pl.Float64)))
    with pytest.raises(ValueError, match="lacks gamma or epsilon"):
        select_rule(frame.with_columns(gamma=pl.lit(None, pl.Float64)).unique(["scan", "method", "epsilon"]))
