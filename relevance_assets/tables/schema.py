"""Every table of the results: its key, its columns, their types and units.

Belongs here: what a table says and means. Does not belong here: how it is checked (`table.py`), where it
lies (`store.py`), SQL that reads it (`sql/`).
"""

from __future__ import annotations

import polars as pl

from relevance_assets.tables.table import Column, Table, TableError

__all__ = ["TABLES", "Column", "Table", "TableError"]

_PATH = "below the home folder: relative to it; elsewhere (raw images): relative to the BIDS folder"


def _text(name: str, description: str, **options: bool) -> Column:
    return Column(name, pl.String(), description, **options)


def _whole(name: str, description: str, **options: bool) -> Column:
    return Column(name, pl.Int64(), description, **options)


def _real(name: str, description: str, **options: bool) -> Column:
    return Column(name, pl.Float64(), description, **options)


def _table(name: str, description: str, key: tuple[Column, ...], values: tuple[Column, ...]) -> Table:
    key = (_text("study", "study's name"), *key)
    return Table(name, description, tuple(column.name for column in key), (*key, *values))


_SCAN = _text("scan", "scan: sub-<label>[_ses-<label>]")
_IMAGE = _text("image", "the study's name of the image, e.g. qT1")
_MODEL = _text("model", "the study's network, or a baseline: 'mean', 'ridge'")
_FOLD = _text("fold", "'0', '1', ... the fold's model; 'ensemble': mean over the folds' models")
_METHOD = _text("method", "the study's name of the way of explaining")
_CONTRAST = _text("contrast", "image that the map explains; 'combined': weighted sum over the images (eq. 8)")
_SIGN = _text("sign", "'positive': voxels that speak for what is explained; 'negative': against it")
_TOP = _whole("top_percent", "the mask keeps this share of the map's brain voxels of this sign, in %")
_MAP = _text("map", "'individual': each contrast's map masks that contrast; 'combined': one mask for all")
_GROUP = _text("group", "'mild' or 'severe' by the study's threshold; 'severe - mild': the difference")
_INTERVAL = (
    _real("ci_low", "lower end of the confidence interval", nullable=True),
    _real("ci_high", "upper end of the confidence interval", nullable=True),
)
_PERSON = (
    _real("age", "age in years", nullable=True),
    _text("sex", "as given in participants.tsv", nullable=True),
    _text("group", "as given in participants.tsv, e.g. MS or HC", nullable=True),
    _text("ms_type", "course of the disease as given, e.g. RRMS", nullable=True),
    _real("edss", "Expanded Disability Status Scale, 0-10", nullable=True),
    _text("other", "the other columns of participants.tsv and sessions.tsv, as JSON", nullable=True),
)
_GRID = (
    _whole("shape_x", "voxels along the first axis"),
    _whole("shape_y", "voxels along the second axis"),
    _whole("shape_z", "voxels along the third axis"),
    _real("voxel_x_mm", "voxel size along the first axis, mm"),
    _real("voxel_y_mm", "voxel size along the second axis, mm"),
    _real("voxel_z_mm", "voxel size along the third axis, mm"),
    _text("orientation", "axis codes of the affine, e.g. RAS"),
)

_SOURCE = _text("source", "whose masks, as the study names them, e.g. manual")
_EXPLAINED = _text("explained", "class that the map explains: 'true' or 'predicted'")
_CELL = _text("map", "cell of the grid, or another method")
_REGION = _text("region", "'grid' (the main one) or 'sensible', in which the cell was chosen")
_OF_REGION = _text("region", "'grid' or 'sensible'; null for other methods", nullable=True)
_MEASURE = _text("measure", "score, with its quantile")
_CELLS = (
    _text("method", "'lrp_grid', another method, or 'random_weights' (the cell for a network that learnt nothing)"),
    _real("gamma", "gamma of the cell", nullable=True),
    _real("epsilon", "epsilon of the cell", nullable=True),
)
_SCORE = (
    _text("score", "of the quantile mask: 'iou', 'dice', 'precision', ...; of the map: 'relevance_mass_accuracy', ..."),
    _real("quantile", "the mask holds what is above it; null for measures of the map itself", nullable=True),
)
_MEAN = (
    _real("value", "mean over slices; null where undefined", nullable=True),
    *_INTERVAL,
    _real("chance", "mean chance level", nullable=True),
    _real("ceiling", "mean ceiling", nullable=True),
    _whole("n", "slices with a value"),
    _whole("people", "people (or blocks) that they are of"),
)
_CLASS = _text("class", "'ventricle' or 'wmh'")
_LEFT_OUT = "the fold whose network left the person out, or 'ensemble': all networks, of a person that none knows"
_RULE = _text("rule", "of the zones: 'published_2d' (objects in slices), 'lesion_3d' (lesions), 'voxel_3d' (voxels)")
_ANALYSIS = (
    _text("analysis", "which question"),
    _text("recipe", "'as_published' (faults included) or 'sound'"),
    _text("variant", "'all', or 'without_outliers' by the published rule"),
)
_STRATUM = _text("stratum", "which people, e.g. 'MS female'")
_FILTER = _text("filter", "condition on the view subject_measures that gives the row's people")
_CORRECTED = (
    _real("p", "two-sided", nullable=True),
    _real("p_corrected", "p corrected as `correction` says", nullable=True),
    _real("p_fdr", "p after Benjamini and Hochberg over the same family", nullable=True),
    _text("correction", "method and family of p_corrected", nullable=True),
)

_ALL = (
    _table("participants", "People as participants.tsv describes them.", (
        _text("participant_id", "sub-<label>"),
    ), _PERSON),
    _table("scans", "Scans of the cohort, with what is known of the person at that time. Also, with a '/' in place of "
           "a scan's name, what can be no scan and people without an image.", (_SCAN,), (
        _text("participant_id", "sub-<label>"),
        _text("session", "ses-<label>; null where the person has no sessions", nullable=True),
        *_PERSON,
        _real("target", "the study's target column as given (before any threshold)", nullable=True),
        _text("status", "'ok', 'failed' (an error, see reason) or 'excluded' (by the study's choice)"),
        _text("reason", "why the scan is not ok", nullable=True),
    )),
    _table("raw_scans", "Raw images: header and hash.", (_SCAN, _IMAGE), (
        _text("path", f"file, {_PATH}"),
        _text("sha256", "SHA-256 of the file"),
        _whole("bytes", "size of the file"),
        *_GRID,
        _text("unit", "spatial unit of the header, or the sidecar's unit of the values", nullable=True),
        _text("sidecar", "the JSON sidecar's content, as JSON", nullable=True),
    )),
    _table("volumes", "Prepared images: grid and quality measures.", (_SCAN, _IMAGE), (
        _text("path", f"file, {_PATH}"),
        _text("sha256", "SHA-256 of the file"),
        *_GRID,
        Column("resampled", pl.Boolean(), "whether voxels were interpolated"),
        _whole("brain_voxels", "voxels of the brain mask on the prepared grid"),
        _real("brain_volume_mm3", "volume of the brain mask, mm³"),
        _real("minimum", "least value in the brain, before scaling", nullable=True),
        _real("maximum", "greatest value in the brain, before scaling", nullable=True),
        _real("mean", "mean in the brain, before scaling", nullable=True),
        _real("standard_deviation", "standard deviation in the brain, before scaling", nullable=True),
        _real("share_clipped", "share of brain voxels that scaling cut off at 0 or 1", nullable=True),
        _real("share_cropped", "share of brain voxels that crop_or_pad cut off", nullable=True),
        _real("native_brain_mm3", "volume of the brain as found, with regions that are removed, mm³", nullable=True),
        _real("template_overlap", "Dice of the brain mask and the template's, in its space", nullable=True),
        _real("similarity_before", "correlation with the template, as the file's millimetres put it", nullable=True),
        _real("similarity_after", "correlation with the template after registration", nullable=True),
        _real("jacobian_minimum", "least local change of volume from the template to the scan", nullable=True),
        _real("jacobian_maximum", "greatest local change of volume from the template to the scan", nullable=True),
        _real("white_matter_cv_before", "SD / mean in white matter before the bias field is out", nullable=True),
        _real("white_matter_cv_after", "SD / mean in white matter after the bias field is out", nullable=True),
        _real("signal_to_noise", "mean in the brain / SD of noise in air (null without air)", nullable=True),
    )),
    _table("preparation_steps", "What each step of the recipe did to a scan, and what it took.", (
        _SCAN,
        _whole("place", "of the step in the recipe, from 1"),
    ), (
        _text("step", "the recipe's name of it"),
        Column("done", pl.Boolean(), "false: the input made it needless"),
        _text("note", "what it did, or why it was needless"),
        _real("seconds", "duration", volatile=True),
        _real("cpu_seconds", "processor time", volatile=True),
        _real("peak_mb", "the process's peak memory by the end of the step, MB", volatile=True),
    )),
    _table("preparation_overview", "How the prepared scans of the cohort are spread, by quality measure.", (
        _IMAGE,
        _text("measure", "a column of table volumes"),
    ), (
        _whole("n", "scans with this measure"),
        _real("minimum", "least", nullable=True),
        _real("lower_quartile", "first quartile", nullable=True),
        _real("median", "second quartile", nullable=True),
        _real("upper_quartile", "third quartile", nullable=True),
        _real("maximum", "greatest", nullable=True),
    )),
    _table("splits", "Set and fold of each scan; all scans of a person are in the same.", (_SCAN,), (
        _text("set", "'train', 'test', 'new' (came after the split) or, of slices, 'buffer' (left out between sets)"),
        _whole("fold", "fold in which the scan is validated; null where it is in none", nullable=True),
        _text("participant_id", "sub-<label>"),
        Column("leaking", pl.Boolean(), "whether the person is in another set too, by a split of single slices that "
               "was asked for", nullable=True),
        _text("draw", "which split it is: hash of settings and cohort when it was drawn", nullable=True),
    )),
    _table("training_epochs", "Course of training.", (_MODEL, _FOLD, _whole("epoch", "from 1")), (
        _real("loss", "mean loss of the training batches", nullable=True),
        _real("validation_loss", "loss on the validation scans", nullable=True),
        _real("validation_metric", "the monitored measure on the validation scans", nullable=True),
        _real("seconds", "duration of the epoch", nullable=True, volatile=True),
    )),
    _table("training_scans", "Scans that each model was trained on and chosen by.", (_MODEL, _FOLD, _SCAN), (
        _text("set", "'train' or 'validation'; of networks that segment also 'test', who were left out"),
        _text("participant_id", "sub-<label>"),
    )),
    _table("models", "Trained models, one per fold.", (_MODEL, _FOLD), (
        _text("path", f"checkpoint, {_PATH}"),
        _text("sha256", "SHA-256 of the checkpoint"),
        _whole("parameters", "number of trained parameters"),
        _text("device", "device it was trained on"),
        _real("seconds", "duration of the training", nullable=True, volatile=True),
        _whole("seed", "seed of the training"),
        _whole("best_epoch", "epoch that was kept"),
    )),
    _table("predictions", "What each model says of each scan.", (_MODEL, _FOLD, _SCAN), (
        _text("set", "the scan's role for this model: 'train', 'validation', 'test' or 'new'"),
        _real("target", "binary: 0 or 1; regression: the target in its unit"),
        _real("output", "the model's output: logit (binary) or the target's unit (regression)"),
        _real("probability", "logistic function of the output; null for regression", nullable=True),
    )),
    _table("scores", "How good the predictions are.", (
        _MODEL,
        _text("set", "'train', 'validation', 'test' or 'new'"),
        _text("fold", "'0', '1', ...; 'mean' over the folds' scores; 'ensemble': score of the mean output"),
        _text("metric", "binary: auc, accuracy, ...; regression: mae, rmse, r, r2"),
    ), (
        _real("value", "null where undefined", nullable=True),
        *_INTERVAL,
        _whole("n", "scans used"),
        _whole("resamples", "bootstrap resamples in which it is defined: the interval's", nullable=True),
    )),
    _table("attention_weights", "Weight of each image in a gated model.", (_MODEL, _FOLD, _SCAN, _CONTRAST), (
        _real("weight", "0-1; the weights of a scan sum to 1"),
    )),
    _table("attention_summary", "Mean weight of each image over correctly classified scans.", (
        _text("set", "'train', 'validation', 'test' or 'new'"), _FOLD, _CONTRAST,
    ), (
        _real("value", "mean weight; null where no scan is classified correctly", nullable=True),
        *_INTERVAL,
        _whole("n", "scans classified correctly"),
    )),
    _table("scenarios", "Ways of explaining and using maps, with their cost.", (_METHOD, _MAP), (
        _whole("number", "number of the scenario in the publication", nullable=True),
        _text("start", "where relevance starts: 'output' or 'attention'"),
        _text("rules", "name of the composite or baseline, or its rules as JSON"),
        _text("product", "rule for gated products; null for a baseline", nullable=True),
        _real("passes", "cost of the method's maps by itself, in FLOPs of one forward and backward pass",
              nullable=True),
        _real("passes_together", "cost of all the study's methods together, which share work; the same in every row",
              nullable=True),
    )),
    _table("relevance_maps", "Relevance maps and what they sum to.", (_METHOD, _FOLD, _SCAN, _CONTRAST), (
        _text("path", f"map on the prepared grid, {_PATH}; null for a fold's part of 'ensemble'", nullable=True),
        _text("native_path", f"map on the raw image's grid, {_PATH}", nullable=True),
        _text("template_path", f"map in MNI152NLin2009aSym, {_PATH}", nullable=True),
        _real("template_total", "sum over the voxels of the map in MNI152NLin2009aSym", nullable=True),
        _real("start", "relevance put in", nullable=True),
        _real("total", "sum over the map's voxels"),
        _real("difference", "start minus total", nullable=True),
        _real("lost", "part of the difference that rules are known to have lost: to biases, to stabilisers, on units "
              "without contributions", nullable=True),
        _real("unexplained", "difference minus lost: zero to rounding, or the map is wrong", nullable=True),
        _real("share_outside_brain", "share of positive relevance outside the brain", nullable=True),
        _real("share_positive", "positive relevance / sum of absolute relevance", nullable=True),
    )),
    _table("relevance_ledger", "What each operation of a network did with relevance: the proof of a map.", (
        _METHOD, _FOLD, _SCAN, _text("layer", "operation of the network, in the order of execution within a scan"),
    ), (
        _whole("place", "number of the operation in the order of execution"),
        _text("kind", "convolution, linear, activation, max_pool, ..."),
        _text("rule", "the rule it had, with its parameters"),
        _real("relevance_in", "relevance that arrived at its output"),
        _real("relevance_out", "relevance that it handed on"),
        _real("bias", "taken by its bias, or by constants"),
        _real("stabiliser", "taken by the stabiliser of its denominators"),
        _real("dead", "at units without contributions, which have nobody to hand it to"),
        _real("clamped", "at units that a rule keeps off"),
        _real("unexplained", "relevance_in minus all of these: zero to rounding, or the map is wrong"),
    )),
    _table("fold_agreement", "Whether the folds' models explain a scan alike.", (
        _METHOD, _SCAN, _CONTRAST, _text("fold_a", "a fold's model"), _text("fold_b", "another fold's model"),
    ), (
        _real("spearman", "rank correlation of the two maps inside the brain", nullable=True),
        _real("dice", "overlap of their top-40 % masks", nullable=True),
        _real("dice_chance", "overlap expected of random masks of these sizes", nullable=True),
        _real("dice_shifted", "mean overlap when one mask is shifted against the other", nullable=True),
    )),
    _table("quantile_masks", "Masks of the most relevant voxels.", (_METHOD, _SCAN, _CONTRAST, _SIGN, _TOP), (
        _text("path", f"mask, {_PATH}; null where it was not kept", nullable=True),
        _real("threshold", "least relevance in the mask; null if the mask is empty", nullable=True),
        _whole("voxels", "voxels in the mask"),
        _real("volume_mm3", "volume of the mask, mm³"),
    )),
    _table("mask_measures", "Image values inside the masks.", (
        _METHOD, _SCAN, _text("contrast", "image that the mask's map explains"), _SIGN, _TOP,
        _text("image", "image that is measured"),
    ), (
        _real("mean", "mean of the prepared image in the mask; null for an empty mask", nullable=True),
        _real("median", "median of the prepared image in the mask; null for an empty mask", nullable=True),
    )),
    _table("localisation", "Whether relevance lies where the truth is.", (
        _METHOD, _SCAN, _CONTRAST, _text("region", "region of the truth or of an atlas"),
        _text("metric", "what is measured, e.g. share_of_positive"),
    ), (
        _real("value", "null where undefined", nullable=True),
        _real("chance", "mean over the same region shifted elsewhere in the brain", nullable=True),
        _real("chance_even", "what relevance spread evenly over the brain would give", nullable=True),
    )),
    _table("region_volumes", "Regions of the truth.", (_SCAN, _text("region", "region of the truth")), (
        _real("volume_mm3", "volume on the raw image's grid, mm³"),
    )),
    _table("localisation_summary", "Whether relevance lies where the truth is, over scans.", (
        _METHOD, _CONTRAST, _text("region", "region of the truth"), _text("metric", "as in localisation"),
    ), (
        _real("value", "mean over scans", nullable=True),
        _real("chance", "mean over scans, of the shifted regions", nullable=True),
        _real("difference", "mean of value minus chance", nullable=True),
        *_INTERVAL,
        _whole("n", "scans in which it is defined"),
        _whole("people", "people they are of"),
        _whole("resamples", "bootstrap resamples of the interval (of the difference)", nullable=True),
    )),
    _table("inversions", "What each model says of a scan whose relevant voxels are inverted.", (
        _text("fold", "'0', '1', ... the fold's model. Masks of a test scan are of the mean of the folds' maps, which "
              "no fold's model made alone: it may lose less by them than by masks of its own map"),
        _SCAN,
        _text("method", "the study's name of the way of explaining; 'planted': the true region"),
        _MAP,
        _text("control", "'own': the method's masks; 'matched': its top voxels, as many as the reference's masks have; "
              "'random': random voxels, as many; 'planted': the true region; 'random_planted': random voxels, as many "
              "as the true region has; 'matched_planted': the method's top voxels, as many"),
        _whole("top_percent", "N: the most relevant N % of the positive voxels are inverted; 0: none; 100 where the "
              "size is the true region's"),
        _whole("draw", "number of the random mask"),
    ), (
        _real("output", "the model's output"),
        _whole("pairs", "inverted pairs of voxel and contrast"),
        _real("share_of_brain", "inverted share of all pairs in the brain", nullable=True),
    )),
    _table("inversion_curves", "AUC after the most relevant voxels are inverted.", (
        _text("fold", "'0', '1', ...: a fold's model on its validation scans and the test scans; 'mean' over folds. "
              "Masks of test scans are of the mean of the folds' maps: a model may lose less by them than by its own"),
        _text("method", "as in inversions"), _MAP, _text("control", "as in inversions"), _whole("top_percent", "N"),
        _whole("draw", "number of the random mask"),
    ), (
        _real("auc", "null where one class is missing; below 0.5 decisions are reversed, no more is lost than at 0.5",
              nullable=True),
        _real("low", "'mean': the lowest of the folds", nullable=True),
        _real("high", "'mean': the highest of the folds", nullable=True),
        _whole("n", "scans"),
        _whole("n_positive", "scans of the upper class"),
        _real("share_of_brain", "mean inverted share of the brain", nullable=True),
        _real("share_of_brain_lower", "the same over scans of the lower class (mild)", nullable=True),
        _real("share_of_brain_upper", "the same over scans of the upper class (severe)", nullable=True),
    )),
    _table("inversion_areas", "Area under the inversion curves: the smaller, the more the masks hold.", (
        _text("method", "as in inversions"), _MAP,
        _text("control", "as in inversions; 'planted', 'random_planted' and 'matched_planted' are no curves: their AUC "
              "stands in place of an area"),
        _text("against", "'nothing': the area itself; else what is taken from it: '<method> <map>': that scenario's, "
              "of the same control (of 'planted': its 'matched_planted'); 'random': that of random masks, from the "
              "area of 'own'; 'random_planted': that of random voxels, as many as the true region has"),
    ), (
        _text("percents", "the values of N that the area is over, by trapezoids; null where the size is the true "
              "region's", nullable=True),
        _real("value", "mean AUC over N, mean over folds; or a difference of two", nullable=True),
        *_INTERVAL,
        _real("p", "two-sided, from the bootstrap; of a difference only; not corrected", nullable=True),
        _whole("n", "people"),
        _whole("resamples", "bootstrap resamples in which it is defined", nullable=True),
    )),
    _table("sanity", "Tests that an explanation must pass before it is believed.", (
        _METHOD, _text("test", "which test"),
    ), (
        _real("value", "what was measured", nullable=True),
        _text("passes_if", "side of the threshold on which a value passes: 'below' or 'above'", nullable=True),
        _real("threshold", "bound, set beforehand", nullable=True),
        Column("passed", pl.Boolean(), "verdict; null where it could not be tested", nullable=True),
        _whole("n", "scans used"),
        _text("note", "what is compared, with intervals", nullable=True),
    )),
    _table("region_frequencies", "How often regions are among the most relevant, by group, in template space.", (
        _text("atlas", "name of the atlas; 'approximate': built in"), _GROUP, _text("region", "region of the atlas"),
    ), (
        _whole("voxels", "voxels of the region"),
        _real("volume_mm3", "volume of the region, mm³"),
        _whole("n", "people, each with the first scan; of a difference: of both groups", nullable=True),
        _whole("n_warped", "of these scans, moved along a warp; the others were taken to lie in template space",
               nullable=True),
        _real("mean", "mean over the region of the share of these scans whose mask holds the voxel", nullable=True),
        _real("peak", "largest such share (of a difference: the largest in size)", nullable=True),
        _real("peak_x_mm", "where the peak lies, mm of the template", nullable=True),
        _real("peak_y_mm", "where the peak lies, mm of the template", nullable=True),
        _real("peak_z_mm", "where the peak lies, mm of the template", nullable=True),
        _real("share_above", "share of the region above a quarter of all scans", nullable=True),
        _real("p_corrected", "difference: smallest p in the region, corrected over the brain by the maximum "
              "statistic; first scans of people only", nullable=True),
    )),
    _table("slices", "2D pictures with a mask: files, class, patient.", (_SCAN,), (
        _text("slice_id", "number or name of the slice, as given"),
        _text("class", "as given"),
        _text("patient", "as given; null where none is known", nullable=True),
        _whole("fold", "fold of the published cvind.mat, from 1", nullable=True),
        _text("image", "picture, relative to the folder of slices"),
        _text("mask", "mask of truth, relative to the folder of slices; a .mat holds both"),
    )),
    _table("class_predictions", "What the model says of each class of a slice.", (
        _MODEL, _FOLD, _SCAN, _text("class", "a class"),
    ), (
        _text("set", "the slice's role for this model: 'train', 'validation', 'test', 'new' or 'buffer' (left out)"),
        _real("logit", "the model's output"),
        _real("probability", "softmax of the logits"),
        Column("is_true", pl.Boolean(), "whether the slice is of this class"),
        Column("is_predicted", pl.Boolean(), "whether it has the greatest logit"),
    )),
    _table("confusion", "Slices of each class by what they are called.", (
        _MODEL, _FOLD, _text("set", "'train', 'validation', 'test', 'new' or 'buffer'"),
        _text("true_class", "as given"), _text("predicted_class", "the one with the greatest logit"),
    ), (
        _whole("count", "slices"),
    )),
    _table("rule_grid", "Scores of every map of a slice against its mask, beside chance and ceiling.", (
        _SCAN, _EXPLAINED, _CELL, _MEASURE,
    ), (
        *_CELLS, _OF_REGION, *_SCORE,
        _real("value", "null where undefined, or where the map does not add up", nullable=True),
        _real("chance", "expectation of a mask of the same size, or of the same values, at random", nullable=True),
        _real("ceiling", "most that sizes allow", nullable=True),
        _real("normalised", "(value - chance) / (ceiling - chance)", nullable=True),
        _whole("mask_pixels", "pixels of the quantile mask; null for measures of the map itself", nullable=True),
        _whole("truth_pixels", "pixels of the tumour"),
        _whole("pixels", "pixels of the slice"),
    )),
    _table("rule_maps", "Account of every map of the grid: what it started with, what arrived, what was lost.", (
        _SCAN, _EXPLAINED, _CELL,
    ), (
        *_CELLS, _OF_REGION,
        _text("class", "the class explained"),
        _real("start", "relevance put in: the class's logit; null for methods without account", nullable=True),
        _real("total", "sum over the map", nullable=True),
        _real("bias", "lost to biases", nullable=True),
        _real("stabiliser", "lost to stabilisers, and to epsilon", nullable=True),
        _real("dead", "lost at units without contributions", nullable=True),
        _real("clamped", "lost where a rule cuts off", nullable=True),
        _real("unexplained", "start minus total minus all losses; zero to rounding", nullable=True),
        _real("worst_share", "the largest part that an operation left unexplained of the largest number in its account",
              nullable=True),
        Column("sound", pl.Boolean(), "whether it adds up within the engine's bound; else it has no scores"),
        _real("forwards", "what it cost in forward passes, by floating point operations; cells share their slice's"),
        _text("path", f"map, {_PATH}; null where it is not kept", nullable=True),
    )),
    _table("rule_cells", "Mean score of every cell on validation and on test slices.", (
        _REGION, _EXPLAINED, _MEASURE, _text("set", "'validation' or 'test'"),
        _real("gamma", "gamma of the cell"), _real("epsilon", "epsilon of the cell"),
    ), (
        *_SCORE, *_MEAN,
        _real("wins", "share of resamples of validation people in which it is chosen; validation only", nullable=True),
        Column("is_candidate", pl.Boolean(), "whether it could be chosen: it has a value on the same validation slices "
               "as all others that could, and none has more", nullable=True),
        Column("is_chosen", pl.Boolean(), "whether it is best on validation slices"),
        Column("is_distinguishable", pl.Boolean(), "whether it is surely worse than the chosen one", nullable=True),
    )),
    _table("rule_comparison", "The chosen cell and all else on test slices.", (
        _REGION, _EXPLAINED, _MEASURE,
        _text("stratum_kind", "'all', 'class' or 'prediction'"), _text("stratum", "which"),
        _text("role", "'chosen', 'published', 'worst', 'best_...' of a part of the grid, 'best_on_test' (cheating), "
              "'reference'"),
        _CELL,
    ), (
        *_CELLS, *_SCORE, *_MEAN,
        _real("gain", "mean of value minus chance", nullable=True),
        _real("gain_low", "lower end of its interval", nullable=True),
        _real("gain_high", "upper end of its interval", nullable=True),
        _real("gain_p", "sign flips of people, two-sided; of the chosen cell", nullable=True),
        _real("gain_p_corrected", "corrected together with the choice's differences", nullable=True),
        _real("validation", "its mean on validation slices", nullable=True),
        _real("difference", "mean of the chosen cell minus this, on the same slices", nullable=True),
        _real("difference_low", "lower end of its interval", nullable=True),
        _real("difference_high", "upper end of its interval", nullable=True),
        _real("p", "sign flips of people, two-sided", nullable=True),
        _real("p_corrected", "corrected over the choice's differences and gain", nullable=True),
        _text("correction", "how", nullable=True),
        _whole("n_pairs", "slices compared", nullable=True),
        _whole("resamples", "bootstrap resamples in which it is defined", nullable=True),
    )),
    _table("rule_means", "Mean score of every map over slices, ours and in the published form.", (
        _REGION, _EXPLAINED, _MEASURE, _text("set", "'validation' or 'test'"), _CELL,
        _text("form", "'mean_over_images', or 'sum_over_n_as_published' (what is undefined counts as 0)"),
    ), (
        *_CELLS, *_SCORE, *_MEAN,
    )),
    _table("rule_answers", "What the numbers say, in words made from them.", (_REGION, _EXPLAINED, _MEASURE), (
        *_SCORE,
        _text("answer", "a paragraph"),
    )),
    _table("segmentations", "Masks of the study's own networks, on the native grid.", (_SCAN, _CLASS), (
        _text("path", f"mask, {_PATH}"),
        _text("sha256", "SHA-256 of the mask's file"),
        _whole("voxels", "voxels of the native grid"),
        _real("volume_mm3", "volume, mm³"),
        _text("fold", _LEFT_OUT),
    )),
    _table("segmentation_scores", "How well a network's masks agree with those that are learnt from, by scan.", (
        _SCAN, _CLASS,
        _text("metric", "'dice', 'iou', 'precision', 'recall' (of voxels), 'hd95_mm', 'assd_mm', "
              "'volume_difference_mm3' (found minus true), 'volume_difference_relative', 'lesion_precision', "
              "'lesion_recall', 'lesion_f1' (pieces by the study's lesions.connectivity, 26 neighbours if not set)"),
    ), (
        _real("value", "null where undefined, as Dice where neither mask has a voxel", nullable=True),
        _text("fold", _LEFT_OUT),
    )),
    _table("segmentation_counts", "What a scan brings to the published, pooled form of the scores.", (
        _SCAN, _text("class", "'ventricle' or 'wmh'; 'all': pixels labelled alike, and all pixels"),
    ), (
        _whole("both", "pixels in both masks"),
        _whole("predicted", "pixels found"),
        _whole("true", "pixels in truth"),
        _whole("slices", "slices in which both masks have the class, or neither"),
        _real("distance_pixels", "sum over these of the 95th percentile of boundary distances, pixels"),
    )),
    _table("segmentation_summary", "How good the networks are on people they never saw.", (
        _text("class", "'ventricle', 'wmh' or, pooled, 'all'"),
        _text("metric", "as in segmentation_scores; pooled also 'accuracy'"),
        _text("form", "'mean_over_scans', or 'pooled_as_published': over all pixels of all slices, pixels of 0.5 mm"),
    ), (
        _real("value", "null where undefined", nullable=True),
        *_INTERVAL,
        _whole("n", "scans used"),
        _whole("resamples", "bootstrap resamples of people; null without interval", nullable=True),
    )),
    _table("source_agreement", "How far two sources of masks find the same volumes in the same zones.", (
        _text("source_a", "name of a source of masks"),
        _text("source_b", "name of another"),
        _RULE,
        _text("zone", "'all', 'periventricular', 'paraventricular' or 'juxtacortical'"),
    ), (
        _real("pearson", "Pearson's r of the volumes; null where one does not vary", nullable=True),
        _real("concordance", "Lin's concordance correlation coefficient", nullable=True),
        *_INTERVAL,
        _real("difference_mm3", "mean of b minus a, mm³"),
        _real("limit_low_mm3", "lower limit of agreement (1.96 standard deviations), mm³", nullable=True),
        _real("limit_high_mm3", "upper limit of agreement, mm³", nullable=True),
        _whole("n", "scans that both have"),
        _whole("resamples", "bootstrap resamples in which the concordance is defined: the interval's", nullable=True),
    )),
    _table("lesions", "Lesions by rule: their size, shape, place and zone. Distances are in the rule's own dimensions: "
           "within the slice by pixels of 0.9 mm (published_2d), or in space.", (
        _SCAN, _SOURCE, _RULE,
        _whole("lesion", "number of the lesion, or of the object in a slice"),
    ), (
        _whole("slice", "index along the axis nearest to vertical, of published_2d", nullable=True),
        _text("zone", "'periventricular', 'paraventricular' or 'juxtacortical'; voxel_3d: that of most of its voxels",
              nullable=True),
        _whole("voxels", "voxels of the native grid; published_2d: with holes filled"),
        _real("volume_mm3", "volume, mm³"),
        _real("area_mm2", "area by the published rule's pixels, mm²", nullable=True),
        _real("ventricle_edge_mm", "nearest voxel to ventricle, mm; null without one", nullable=True),
        _real("ventricle_centroid_mm", "centroid to ventricle, mm; null without one", nullable=True),
        _real("cortex_edge_mm", "nearest voxel to cortex or fluid, mm; null without it", nullable=True),
        _real("midplane_mm", "centroid from the plane that mirrors the brain, mm, right is positive", nullable=True),
        _real("centroid_x_mm", "centroid, mm to the right"),
        _real("centroid_y_mm", "centroid, mm to the front"),
        _real("centroid_z_mm", "centroid, mm upward"),
        _real("diameter_mm", "largest distance between two of its corners, mm"),
        _real("elongation", "ratio of its longest to its shortest axis (1: a ball)", nullable=True),
    )),
    _table("lesion_burden", "Lesions of a scan by zone.", (
        _SCAN, _SOURCE, _RULE,
        _text("zone", "'all', 'periventricular', 'paraventricular' or 'juxtacortical'"),
    ), (
        _whole("voxels", "voxels of the native grid; null where a lesion's zone is not known", nullable=True),
        _real("volume_mm3", "volume, mm³; 0 without a lesion, null where a lesion's zone is not known", nullable=True),
        _whole("count", "lesions with a voxel there", nullable=True),
        _real("share", "of the lesion volume; null without a lesion", nullable=True),
        _real("share_of_intracranial", "of the volume of the brain mask", nullable=True),
    )),
    _table("lesion_totals", "What a scan's lesions are measured against.", (_SCAN, _SOURCE), (
        _real("intracranial_mm3", "volume of the brain mask on the native grid, mm³"),
        _real("ventricle_mm3", "volume of the ventricles, mm³"),
        _real("lesion_mm3", "volume of all lesions counted, mm³"),
        _whole("lesions", "lesions in 3D"),
    )),
    _table("zone_agreement", "How two rules agree on a scan's lesion voxels.", (
        _SCAN, _SOURCE,
        _text("rule_a", "a rule"),
        _text("rule_b", "another rule"),
    ), (
        _whole("voxels", "voxels with a zone by both"),
        _whole("only_one", "voxels with a zone by one rule only, which are left out"),
        _real("kappa", "Cohen's kappa; null without voxels, or where both know one zone only", nullable=True),
        _real("equal", "share of the voxels with the same zone", nullable=True),
    )),
    _table("zone_sensitivity", "Burden by zone with one threshold changed, the others as set.", (
        _SCAN, _SOURCE, _RULE,
        _text("threshold", "the threshold that is changed"),
        _real("factor", "by which it is multiplied"),
        _text("zone", "'all', 'periventricular', 'paraventricular' or 'juxtacortical'"),
    ), (
        _real("value", "the threshold then, mm or mm³"),
        _real("volume_mm3", "volume, mm³; null where a lesion's zone is not known", nullable=True),
        _whole("count", "lesions with a voxel there", nullable=True),
    )),
    _table("lesion_changes", "What became of lesions since the person's visit before, half-way between both.", (
        _SCAN, _SOURCE,
        _whole("lesion", "number of the lesion; what touches over both visits is one"),
    ), (
        _text("since", "the visit before"),
        _text("state", "'new', 'enlarging', 'stable', 'shrinking' or 'resolved'"),
        _whole("lesions_before", "of how many it was made before"),
        _whole("lesions_after", "of how many it is made now"),
        _real("volume_before_mm3", "volume before, mm³"),
        _real("volume_after_mm3", "volume now, mm³"),
        _real("change_mm3", "volume now minus before, mm³"),
        _real("overlap_mm3", "volume of both visits, mm³"),
    )),
    _table("subjects", "One row per person: brain, ventricles and lesions by zone.", (
        _text("participant_id", "sub-<label>"),
    ), (
        _real("age", "age in years", nullable=True),
        _text("sex", "F or M", nullable=True),
        _text("group", "e.g. MS or HC", nullable=True),
        _real("intracranial", "brain, in `unit`"),
        _real("ventricle", "ventricles, in `unit`"),
        _real("lesion", "all lesions, in `unit`"),
        _real("periventricular", "periventricular lesions, in `unit`"),
        _real("paraventricular", "paraventricular lesions, in `unit`"),
        _real("juxtacortical", "juxtacortical lesions, in `unit`"),
        _text("unit", "'mm³', or 'as given' in an imported table"),
        _text("scan", "the scan measured; null in an imported table", nullable=True),
    )),
    _table("group_comparisons", "Two groups compared, by published and by sound recipes.", (
        *_ANALYSIS,
        _text("measure", "what is compared; sizes are called area, as published, also where they are volumes"),
        _STRATUM,
        _text("group_a", "a group"),
        _text("group_b", "another group"),
        _text("test", "name of the test"),
    ), (
        _FILTER,
        _real("statistic", "of the test", nullable=True),
        _real("effect", "size of the effect, b against a", nullable=True),
        _text("effect_name", "which effect", nullable=True),
        *_INTERVAL, *_CORRECTED,
        _whole("n_a", "people of group a"),
        _whole("n_b", "people of group b"),
    )),
    _table("regressions", "Terms of regressions, by published and by sound recipes.", (
        *_ANALYSIS,
        _STRATUM,
        _text("outcome", "what is explained"),
        _text("term", "term of the model"),
    ), (
        _text("model", "the model as a formula"),
        _FILTER,
        _real("estimate", "see estimate_name", nullable=True),
        _text("estimate_name", "what the estimate is"),
        *_INTERVAL, *_CORRECTED,
        _whole("n", "people used"),
    )),
    _table("descriptives", "Summaries of measures, by published and by sound recipes.", (
        *_ANALYSIS,
        _text("measure", "what is summed up; sizes are called area, as published, also where they are volumes"),
        _STRATUM,
        _text("statistic", "e.g. mean, median"),
    ), (
        _FILTER,
        _real("value", "null where it is not defined", nullable=True),
        *_INTERVAL,
        _whole("n", "people used"),
    )),
    _table("outliers", "People with values far from their group's and age band's.", (
        _text("participant_id", "sub-<label>"),
    ), (
        _text("group", "the group"),
        _text("band", "age band"),
        _text("sex", "F or M", nullable=True),
        _whole("flags", "variables that are far"),
        Column("removed", pl.Boolean(), "whether the published rule takes the person out: three flags or more"),
        _text("variables", "which, with group and band"),
        _FILTER,
    )),
    _table("published_comparison", "What a publication reports, beside what was found here.", (
        _text("measure", "measure as published"),
    ), (
        _real("published", "published value"),
        _real("ours", "value found here", nullable=True),
        _text("unit", "unit of both"),
        _whole("n", "scans used here", nullable=True),
        _whole("n_published", "scans of the publication", nullable=True),
        _text("verdict", "'exact', 'rounds to', 'differs', 'not reproducible', 'not measured' or 'contradicts itself'"),
        Column("comparable", pl.Boolean(), "whether both are of comparable data: synthetic scans are not"),
        _text("note", "what else is to know", nullable=True),
        _text("recipe", "what was computed here", nullable=True),
        _text("printed", "the published number as printed", nullable=True),
    )),
    _table("correlations", "Correlations with their p-values.", (
        _text("analysis", "which question, or which method's masks"),
        _text("x", "first variable"),
        _text("y", "second variable"),
        _text("stratum", "which scans or which mask, e.g. 'combined top 10 %'"),
        _text("statistic", "e.g. spearman"),
    ), (
        _real("value", "null where a variable is constant", nullable=True),
        *_INTERVAL,
        _real("p", "two-sided, from the asymptotic distribution", nullable=True),
        _real("p_permutation", "two-sided, (b+1)/(B+1)", nullable=True),
        _real("p_corrected", "p_permutation (else p) corrected over the family", nullable=True),
        _real("p_fdr", "p_permutation (else p) after Benjamini and Hochberg over the family", nullable=True),
        _text("correction", "of p_corrected: 'max-statistic' (Westfall-Young), or method and family", nullable=True),
        _whole("n", "pairs used"),
        _whole("n_a", "pairs of the first group, where two are compared", nullable=True),
        _whole("n_b", "pairs of the second group, where two are compared", nullable=True),
        _text("recipe", "'as_published' or 'sound', where a publication has one of its own", nullable=True),
        _text("variant", "'all' or 'without_outliers', where outliers are looked for", nullable=True),
        _text("filter", "condition on the view subject_measures that gives the row's people", nullable=True),
    )),
    _table("brain_age_gap", "Predicted minus true age, also without its dependence on age.", (_SCAN,), (
        _text("set", "'validation', 'test' or 'new'"),
        _real("age", "age in years"),
        _real("predicted_age", "predicted age in years"),
        _real("gap_years", "predicted minus true age, years"),
        _real("corrected_gap_years", "gap after linear age-bias correction, years", nullable=True),
    )),
    _table("runs", "What was done to each item, when and at what cost.", (
        _text("asset", "name of the asset"),
        _text("item", "scan, fold or 'all'"),
    ), (
        _text("run_id", "the orchestrator's run", nullable=True, volatile=True),
        Column("started", pl.Datetime("us"), "UTC", nullable=True, volatile=True),
        _real("seconds", "duration", nullable=True, volatile=True),
        _real("peak_mb", "greatest memory of the process, MB", nullable=True, volatile=True),
        _text("outcome", "'ok' or 'failed'"),
        _whole("attempts", "how often in a row it failed for a reason that may pass", nullable=True, volatile=True),
        _text("reason", "why it failed, in one line", nullable=True),
        _text("fingerprint", "hash of inputs (also file times), parameters and code version; null where another try "
              "may succeed", nullable=True, volatile=True),
        _text("result", "hash of what came out; later stages' fingerprints are made of it", nullable=True),
    )),
)  # fmt: skip

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
