"""What study `disability` costs for one scan and one model: twelve scenarios, and their inversion at eleven quantiles.

Belongs here: the scan, the cases, and what they count. Does not belong here: measuring (`measure.py`), tables
(`disability.py`).

Two units: a pass is one forward + backward of the network to its images, a forward is one without the way back; both
by FLOPs, and by time in the type that is used (float64 for explanations, float32 for predictions). Eight methods make
the twelve scenarios: maps by rules are looked at one by one and combined, which costs nothing more. What is done once
per network, such as tracing it, is not counted.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import flops, seconds
from torch import nn

from relevance_assets.configuration import load_studies
from relevance_assets.evidence.inversion import Inversions, plan_inversions
from relevance_assets.home import Home
from relevance_assets.models import registry
from relevance_assets.precision import has_gpu
from relevance_assets.relevance.cost import TOGETHER, passes
from relevance_assets.relevance.maps import ScanMaps, Scenarios, combined_map
from relevance_assets.study import Method, Study
from relevance_assets.training.loop import memory_format
from relevance_assets.training.predict import Predictor

__all__ = ["PERCENTS", "EXACT", "Case", "Cost", "Scan", "case", "explanations", "inversions"]

PERCENTS = tuple(range(10, 101, 10))  # and 0, the scan as it is
BATCH = 4  # as the stage `inversions` has it
SAMPLE = 16  # batches by which ways to predict are compared
EXACT = f"{TOGETHER}, gradients in float64"


class Scan(NamedTuple):
    """Noise in the place of tissue: no cost here depends on what images show."""

    images: np.ndarray
    covariates: np.ndarray
    brain: np.ndarray
    planted: np.ndarray


class Case(NamedTuple):
    """The study as its YAML has it, its network with fresh weights, and a scan of its grid."""

    study: Study
    model: nn.Module
    scan: Scan
    device: str


class Cost(NamedTuple):
    """Of one scan; seconds are those of `measure.seconds`."""

    name: str
    passes: float
    forwards: float
    seconds: dict[str, float]


def case() -> Case:
    with tempfile.TemporaryDirectory() as folder:  # no home: nothing set over the YAML
        study = load_studies(Home(Path(folder)))["disability"]
    shape, contrasts, covariates = study.shape, len(study.contrasts), len(study.cohort.covariates)
    assert shape is not None
    torch.manual_seed(0)
    model = registry.build(
        study.model.name, shape=shape, contrasts=contrasts, covariates=covariates, options=study.model.options
    )
    random = np.random.default_rng(0)
    brain, planted = ball(shape, 0.9), ball(shape, 0.3)
    scan = Scan(random.random((contrasts, *shape)) * brain, random.random(covariates), brain, planted)
    return Case(study, model.eval().requires_grad_(False), scan, "cuda" if has_gpu() else "cpu")


def ball(shape: tuple[int, ...], size: float) -> np.ndarray:
    """The ellipsoid that fills so much of each side of a grid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) / size for n in shape), indexing="ij")
    return np.asarray(sum(axis**2 for axis in axes)) <= 1


# ------------------------------------------------------------------------------------------------------ explanations
def explanations(given: Case, repeats: int) -> list[Cost]:
    """A forward, a pass, every method alone, and all together."""
    counts = passes(given.model, given.study.methods, *given.scan[:3])
    network, q, p = _inputs(given, torch.float64)
    q.requires_grad_()

    def one_pass() -> Any:
        x = q.view_as(q)  # no leaf: the counter cannot follow `autograd.grad` to one
        return torch.autograd.grad(network(x, p).sum(), x)

    def one_forward() -> Any:
        with torch.no_grad():
            return network(q, p)

    backward = flops(one_pass) / flops(one_forward)
    groups = {name: {name: method} for name, method in given.study.methods.items()} | {TOGETHER: given.study.methods}
    calls: dict[str, Callable[[], Any]] = {"forward": one_forward, "forward + backward": one_pass}
    calls |= {name: _explain(given, methods) for name, methods in groups.items()}
    calls[EXACT] = _explain(given, given.study.methods, torch.float64)
    counts |= {"forward": 1 / backward, "forward + backward": 1.0, EXACT: counts[TOGETHER]}
    times = seconds(calls, repeats, given.device)
    return [Cost(name, counts[name], counts[name] * backward, times[name]) for name in calls]


def _explain(
    given: Case, methods: dict[str, Method], gradients: torch.dtype = torch.float32
) -> Callable[[], dict[str, ScanMaps]]:
    """As the stage `relevance_maps` explains: rules in float64, gradients in float32."""
    scenarios = Scenarios(given.model, methods, gradients=gradients, device=given.device)
    return lambda: scenarios(given.scan.images, given.scan.covariates, given.scan.brain)


def _inputs(given: Case, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A copy of the network and the scan, in a type and where they are used."""
    network = copy.deepcopy(given.model).to(given.device, dtype)
    images, covariates = (
        torch.tensor(values, dtype=dtype, device=given.device)[None]
        for values in (given.scan.images, given.scan.covariates)
    )
    return network, images, covariates


# -------------------------------------------------------------------------------------------------------- inversions
def inversions(given: Case, repeats: int) -> tuple[Inversions, dict[str, dict[str, float]]]:
    """The plan for eleven quantiles with every control, and seconds by name.

    `planning` is of the whole scan, `inversion` of one, from the first batches. `forward`: of the network alone, in as
    large a batch and the same order in memory.
    """
    settings, scan = given.study.inversion, given.scan
    assert settings is not None
    explained = _explain(given, given.study.methods)()
    maps = {name: found.maps for name, found in explained.items()}
    combined = {name: combined_map(one, scan.images) for name, one in maps.items() if given.study.has_combined(name)}

    def planned() -> Inversions:
        return plan_inversions(
            maps,
            combined,
            scan.images,
            scan.brain,
            percents=PERCENTS,
            reference=(settings.reference.method, settings.reference.map),
            draws=settings.random_draws,
            random=np.random.default_rng(settings.seed),
            planted=scan.planted,
        )

    plan = planned()
    network, q, p = _inputs(given, torch.float32)
    predictor = Predictor(given.model)

    def predict() -> Any:
        return predictor.outputs(islice(plan.batches(BATCH), SAMPLE), scan.covariates)

    layout = memory_format(torch.device(given.device))
    network, q = network.to(memory_format=layout), q.repeat(BATCH, 1, 1, 1, 1).contiguous(memory_format=layout)
    p = p.repeat(BATCH, 1)

    def forwards() -> Any:
        with torch.inference_mode():
            return [network(q, p) for _ in range(SAMPLE)]

    times = seconds({"forward": forwards, "inversion": predict}, repeats, given.device)
    images = min(plan.predictions, SAMPLE * BATCH)
    times = {name: {key: value / images for key, value in time.items()} for name, time in times.items()}
    return plan, times | seconds({"planning": planned}, repeats, given.device)
