"""AUC after inversion: against sklearn and explicit resampling; paired people; planted differences."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from relevance_assets.statistics.inversion import inversion_areas, inversion_curves

PERCENTS = (0, 20, 60, 100)
REFERENCE = ("lrp", "combined")
SCENARIOS = (REFERENCE, ("lrp", "individual"), ("gradient", "individual"))
PLANTED = ("planted", "combined")


def _table(seed=0, people=14, folds=3, draws=3, effect=0.0):
    """Two scans of some people; a person is validation in one fold or test in all; outputs on a coarse grid tie."""
    random = np.random.default_rng(seed)
    rows = []
    for person in range(people):
        role = person % (folds + 1)
        target = int(random.random() < 0.5) if person >= 2 * (folds + 1) else person // (folds + 1)
        for scan in range(1 + person % 2):
            for fold in range(folds):
                kind = "test" if role == folds else "validation" if role == fold else "train"
                curves = [(*s, c, n, 0) for s in SCENARIOS for c in ("own", "matched") for n in PERCENTS]
                curves += [(*REFERENCE, "random", n, d) for d in range(draws) for n in PERCENTS]
                curves += [(*PLANTED, "planted", 100, 0), *((*s, "matched_planted", 100, 0) for s in SCENARIOS)]
                curves += [(*PLANTED, "random_planted", 100, d) for d in range(draws)]
                for method, map_, control, n, draw in curves:
                    loses = (method, map_, control) == (*REFERENCE, "own") or control == "planted"
                    lost = effect * n / 100 if loses else 0
                    output = np.round(random.normal() + target * (1.5 - lost), 1)
                    rows.append(
                        {"scan": f"s{person}-{scan}", "participant_id": f"p{person}", "fold": str(fold), "set": kind}
                        | {"target": target, "method": method, "map": map_, "control": control, "top_percent": n}
                        | {"draw": draw, "output": output, "share_of_brain": (n + 5 * target) / 300}
                    )
    return pl.DataFrame(rows)


def _select(frame, **values):
    return frame.filter(*(pl.col(name) == value for name, value in values.items()))


def _auc(frame):
    return roc_auc_score(frame["target"].to_numpy(), frame["output"].to_numpy())


def test_curves_against_sklearn():
    table = _table()
    curves = inversion_curves(table)
    judged = table.filter(pl.col("set") != "train")
    seen = 0
    for key, group in judged.group_by("method", "map", "control", "top_percent", "draw"):
        point = dict(zip(("method", "map", "control", "top_percent", "draw"), key, strict=True))
        found = _select(curves, **point)
        aucs = []
        for fold in ("0", "1", "2"):
            scans, row = _select(group, fold=fold), _select(found, fold=fold).row(0, named=True)
            aucs.append(_auc(scans))
            assert row["auc"] == pytest.approx(aucs[-1], abs=1e-12)
            assert (row["n"], row["n_positive"], row["low"]) == (len(scans), scans["target"].sum(), None)
        mean = _select(found, fold="mean").row(0, named=True)
        assert mean["auc"] == pytest.approx(np.mean(aucs), abs=1e-12)
        assert (mean["low"], mean["high"]) == pytest.approx((min(aucs), max(aucs)), abs=1e-12)
        assert mean["n"] == group["scan"].n_unique()
        assert mean["share_of_brain_lower"] == pytest.approx(point["top_percent"] / 300)
        assert mean["share_of_brain_upper"] == pytest.approx((point["top_percent"] + 5) / 300)
        share = [_select(group, fold=fold)["share_of_brain"].mean() for fold in ("0", "1", "2")]
        assert mean["share_of_brain"] == pytest.approx(np.mean(share))
        seen += 1
    assert seen * 4 == len(curves)


def test_a_fold_of_one_class_is_null():
    table = _table().with_columns(target=pl.when(pl.col("fold") == "1").then(0).otherwise(pl.col("target")))
    curves = inversion_curves(table)
    assert _select(curves, fold="1")["auc"].null_count() == len(_select(curves, fold="1"))
    mean = _select(curves, fold="mean")["auc"].to_numpy()
    rest = [_select(curves, fold=fold)["auc"].to_numpy() for fold in ("0", "2")]
    np.testing.assert_allclose(mean, np.mean(rest, axis=0))
    areas = inversion_areas(table, reference=REFERENCE, bootstrap=5)
    left = inversion_areas(table.filter(pl.col("fold") != "1"), reference=REFERENCE, bootstrap=5)
    np.testing.assert_allclose(areas["value"].to_numpy(), left["value"].to_numpy())
    alone = _table().with_columns(target=pl.lit(1))
    assert inversion_curves(alone)["auc"].null_count() == len(inversion_curves(alone))
    areas = inversion_areas(alone, reference=REFERENCE, bootstrap=20)
    assert areas.select("value", "ci_low", "ci_high", "p").null_count().row(0) == (len(areas),) * 4
    assert set(areas["resamples"]) == {0}


def _area_by_loops(table, scans, method, map_, control):
    """Mean over folds of the trapezoids over N, or of the AUC where there is one N; None where a fold lacks a class.

    `scans` may name a scan twice.
    """
    percents = sorted(_select(table, method=method, map=map_, control=control)["top_percent"].unique())
    folds = []
    for fold in ("0", "1", "2"):
        of_fold = _select(table, fold=fold, method=method, map=map_, control=control)
        draws = []
        for draw in of_fold["draw"].unique():
            curve = []
            for percent in percents:
                point = _select(of_fold, draw=draw, top_percent=percent)
                by_scan = {row["scan"]: row for row in point.iter_rows(named=True) if row["set"] != "train"}
                drawn = [by_scan[scan] for scan in scans if scan in by_scan]
                target, output = [row["target"] for row in drawn], [row["output"] for row in drawn]
                if len(set(target)) < 2:
                    return None
                curve.append(roc_auc_score(target, output))
            draws.append(np.trapezoid(curve, np.array(percents) / 100) if len(curve) > 1 else curve[0])
        folds.append(np.mean(draws))
    return np.mean(folds)


def test_areas_against_explicit_resamples():
    table = _table(seed=3)
    resamples, seed = 25, 11
    areas = inversion_areas(table, reference=REFERENCE, bootstrap=resamples, confidence=0.8, seed=seed)
    # the draws: people in the order of their scans' names, multinomially
    owner = dict(sorted(set(table.select("scan", "participant_id").iter_rows())))
    people = list(dict.fromkeys(owner.values()))
    share = np.full(len(people), 1 / len(people))
    counts = np.random.default_rng(seed).multinomial(len(people), share, size=resamples)
    draws = [[s for p, k in zip(people, row, strict=True) for s in owner if owner[s] == p for _ in range(k)]
             for row in counts]  # fmt: skip

    def known(curve):
        whole = _area_by_loops(table, list(owner), *curve)
        drawn = [_area_by_loops(table, scans, *curve) for scans in draws]
        return whole, np.array([np.nan if value is None else value for value in drawn])

    first, other, chance = (*REFERENCE, "own"), ("gradient", "individual", "own"), (*REFERENCE, "random")
    truth, anywhere = (*PLANTED, "planted"), (*PLANTED, "random_planted")
    mask = ("gradient", "individual", "matched_planted")
    whole, drawn = {}, {}
    for curve in (first, other, chance, truth, anywhere, mask):
        whole[curve], drawn[curve] = known(curve)
        method, map_, control = curve
        row = _select(areas, method=method, map=map_, control=control).filter(pl.col("against").is_null())
        _check(row.row(0, named=True), whole[curve], drawn[curve])
        assert row["percents"][0] == ("0, 20, 60, 100" if curve in (first, other, chance) else None)
    for key, against, more, less in (
        (first, "gradient individual", first, other),
        (chance, "random", first, chance),
        (truth, "random_planted", truth, anywhere),
        (mask, "random_planted", mask, anywhere),
        (truth, "gradient individual", truth, mask),
    ):
        method, map_, control = key
        row = _select(areas, method=method, map=map_, control=control, against=against).row(0, named=True)
        difference = drawn[more] - drawn[less]
        _check(row, whole[more] - whole[less], difference)
        finite = difference[np.isfinite(difference)]
        low, high = sum(d <= 1e-12 for d in finite), sum(d >= -1e-12 for d in finite)
        assert row["p"] == pytest.approx(min(1, 2 * (min(low, high) + 1) / (len(finite) + 1)))
    # 6 curves and the random one; 2 controls x 2 others, and random
    # of the planted size: itself, random, 3 scenarios; itself and 3 scenarios against random, itself against those
    assert len(areas) == 7 + 5 + 5 + 4 + 3
    assert set(areas["n"]) == {14}


def _check(row, value, drawn):
    finite = drawn[np.isfinite(drawn)]
    assert row["value"] == pytest.approx(value, abs=1e-12)
    assert row["resamples"] == len(finite)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(np.quantile(finite, [0.1, 0.9])), abs=1e-12)


def test_a_flat_curve_has_its_auc_as_area():
    table = _table().with_columns(output=pl.col("target") * 1.0)
    areas = inversion_areas(table, reference=REFERENCE, bootstrap=50)
    np.testing.assert_allclose(areas.filter(pl.col("against").is_null())["value"].to_numpy(), 1)
    differences = areas.filter(pl.col("against").is_not_null())
    assert set(differences["value"]) == {0.0}
    assert set(differences["p"]) == {1.0}
    table = table.with_columns(output=pl.lit(0.0))
    assert set(inversion_areas(table, reference=REFERENCE, bootstrap=50)["value"]) == {0.5, 0.0}


def test_the_grid_of_percents_may_be_uneven_and_partial():
    """Trapezoids over the values of N that there are, which column `percents` names."""
    table = _table().filter(pl.col("top_percent").is_in([20, 60, 100]))
    areas = inversion_areas(table, reference=REFERENCE, bootstrap=5)
    curves = _select(inversion_curves(table), method="lrp", map="combined", control="own", fold="mean")
    value = _select(areas, method="lrp", map="combined", control="own").filter(pl.col("against").is_null())["value"][0]
    assert value == pytest.approx(np.trapezoid(curves["auc"].to_numpy(), [0, 0.5, 1]))
    assert set(areas["percents"]) == {"20, 60, 100", None}


def test_without_truth_nothing_is_said_of_it():
    table = _table().filter(~pl.col("control").str.contains("planted"))
    areas = inversion_areas(table, reference=REFERENCE, bootstrap=5)
    assert len(areas) == 7 + 5
    assert areas["percents"].null_count() == 0


def test_a_planted_difference_is_found_and_none_is_not():
    found = inversion_areas(_table(people=120, effect=1.5, draws=2), reference=REFERENCE, bootstrap=500)
    own = _select(found, control="own").filter(pl.col("against").is_not_null())
    assert (own["ci_high"] < 0).all()
    assert (own["p"] < 0.05).all()
    matched = _select(found, control="matched").filter(pl.col("against").is_not_null())
    assert (matched["ci_low"] < 0).all()
    assert (matched["ci_high"] > 0).all()
    planted = _select(found, control="planted").filter(pl.col("against").is_not_null())
    assert set(planted["against"]) == {"random_planted", *(" ".join(scenario) for scenario in SCENARIOS)}
    assert (planted["ci_high"] < 0).all()
    chance = _select(found, control="matched_planted", against="random_planted")
    assert (chance["ci_low"] < 0).all()
    assert (chance["ci_high"] > 0).all()


def test_the_seed_decides_and_the_rows_order_does_not():
    table = _table()
    shuffled = table.sample(fraction=1, shuffle=True, seed=0)
    options = {"reference": REFERENCE, "bootstrap": 30}
    one = inversion_areas(table, seed=1, **options)
    assert one.equals(inversion_areas(shuffled, seed=1, **options))
    assert not one.equals(inversion_areas(table, seed=2, **options))
    assert inversion_curves(table).equals(inversion_curves(shuffled))


def test_texts_may_be_categories_and_folds_numbers():
    table = _table()
    others = (
        table.sample(fraction=1, shuffle=True, seed=1).with_columns(pl.col(pl.String).cast(pl.Categorical)),
        table.with_columns(pl.col("fold").cast(pl.Int64)),
    )
    options = {"reference": REFERENCE, "bootstrap": 30}
    for other in others:
        assert inversion_curves(other).equals(inversion_curves(table))
        assert inversion_areas(other, **options).equals(inversion_areas(table, **options))


def test_errors():
    table = _table()
    for wrong, message in (
        (table.drop("output"), r"lack the columns \['output'\]"),
        (table.with_columns(set=pl.lit("train")), "no outputs"),
        (table.with_columns(target=pl.lit(2)), "0 or 1"),
        (table.with_columns(output=pl.lit(float("nan"))), "not finite"),
        (table.with_columns(output=pl.lit(None, pl.Float64)), "not finite"),
        (pl.concat([table, table]), "two outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            inversion_curves(wrong)
        with pytest.raises(ValueError, match=message):
            inversion_areas(wrong, reference=REFERENCE)
    validation = (pl.col("scan") == "s3-0") & (pl.col("fold") == "1")
    own = (pl.col("method") == "gradient") & (pl.col("control") == "own")
    for wrong, message in (
        (table.filter(~(validation & own & (pl.col("top_percent") == 20))), "top 20 % of gradient individual own has"),
        (table.filter(~own | (pl.col("fold") == "0")), "fold 1 has no outputs of gradient individual own"),
        (table.filter(pl.col("top_percent") == 0), "at least two"),
        (table.filter((pl.col("top_percent") == 0) | pl.col("control").str.contains("planted")), "at least two"),
        (table.with_columns(control=pl.col("control").replace("own", "planted")), "size one"),
        (table.filter(pl.col("control") != "planted"), "planted combined planted, which has no outputs"),
        (table.with_columns(participant_id=pl.col("participant_id") + pl.col("fold")), "two people"),
        (table.filter((pl.col("method") != "lrp") | (pl.col("control") != "own")), "has no outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            inversion_areas(wrong, reference=REFERENCE)
    with pytest.raises(ValueError, match="nobody combined has no outputs"):
        inversion_areas(table, reference=("nobody", "combined"))
