"""Many composites for one image: one forward pass, and as little backwards as they have in common.

Belongs here: the backward pass that composites share, the account of each map, what maps cost. Does not belong here:
formulas (`rules.py`), which composites there are (`vgg_rules.py`), scores of maps, choosing a cell.

Composites that give an operation and all behind it the same rules share the relevance there: of 11 x 11 cells the dense
layers are passed once, layers under epsilon 11 times. Where 11 epsilons meet one gamma, the gamma rule's denominators
are computed once for them. Every map is what the `Explainer` gives for that composite alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from relevance_assets.relevance.brain import Inside
from relevance_assets.relevance.composites import Composite
from relevance_assets.relevance.cost import flops
from relevance_assets.relevance.engine import Explainer
from relevance_assets.relevance.explanation import start_values
from relevance_assets.relevance.graph import Ref, UnknownOperation, steady
from relevance_assets.relevance.ledger import BOUNDS, COLUMNS, LOSSES
from relevance_assets.relevance.passes import Backward, Forward
from relevance_assets.relevance.plan import Plan, explain_unknown, make_plan
from relevance_assets.relevance.rules import Rule

__all__ = ["Account", "CellMap", "RuleGrid", "cost"]


@dataclass(frozen=True)
class Account:
    """What became of the relevance that one map started with.

    Attributes
    ----------
    start, total
        Relevance put in (the target's logit), and what reached the image.
    bias, stabiliser, dead, clamped
        What was lost, as in the engine's ledger; epsilon's part is under `stabiliser`.
    unexplained
        start - total - all losses: 0 but for rounding.
    worst
        The largest that any one operation left unexplained.
    worst_share
        The same in units of the largest entry of that operation's row, which means something where epsilon leaves
        little of the start too.
    """

    start: float
    total: float
    bias: float
    stabiliser: float
    dead: float
    clamped: float
    unexplained: float
    worst: float
    worst_share: float

    @property
    def lost(self) -> float:
        """All losses together."""
        return self.bias + self.stabiliser + self.dead + self.clamped

    def sound(self, dtype: torch.dtype = torch.float32) -> bool:
        """Whether the map adds up within the engine's bound, relative to the start, and is finite; else do not use it.

        Rules that amplify relevance (epsilon near -z, gamma near -1) may break it in float32; float64 bears more.
        """
        left = np.maximum(abs(self.unexplained), self.worst)
        return bool(np.isfinite([self.total, left]).all() and left <= BOUNDS[dtype] * abs(self.start))


@dataclass(frozen=True)
class CellMap:
    """The map of one image for one composite and one class.

    Attributes
    ----------
    cell
        The composite's name in what `RuleGrid` was given, as a `vgg_rules.Cell`.
    target
        The class explained.
    relevance : (X, Y) float32
        Sum over channels.
    account
        In the engine's precision.
    """

    cell: Any
    target: int
    relevance: np.ndarray
    account: Account


class _Level(NamedTuple):
    """A stretch of the backward pass in which nothing branches.

    steps: indices of nodes, from the output down; branches: composites (by place) that are one up to its end.
    """

    steps: list[int]
    branches: list[list[int]]


class _Lane(NamedTuple):
    """Relevance on its way: for one target, and for all composites of one branch."""

    target: int
    cells: tuple[int, ...]
    arrived: dict[Ref, Tensor]
    losses: np.ndarray  # (LOSSES,)
    worst: float
    worst_share: float


class RuleGrid:
    """A network made ready once, that explains images by many composites at a time.

    Parameters
    ----------
    network
        (1, C, X, Y) to (1, classes). It is copied, not touched.
    shape : (C, X, Y)
        Of every image.
    composites
        By name, as of `vgg_rules.grid`; any others of the same network may stand beside them.
    dtype, device
        As `Explainer` takes them.
    memory
        Bytes that relevance on its way may take about; cells of the same rules below go through together so far as it
        reaches.

    Raises
    ------
    ValueError
        If there are no composites, or the network does not take images of that shape.
    UnknownOperation
        For an operation without a rule.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        composites: Mapping[Any, Composite],
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        memory: int = 2**30,
    ) -> None:
        if not composites:
            raise ValueError("rule grid: no composites are given; name at least one gamma and one epsilon")
        self.explainer = Explainer(network, dtype=dtype, device=device)
        self.names, self.shape = list(composites), tuple(shape)
        size = int(np.prod(self.shape))
        ramp = torch.linspace(0, 1, size, dtype=self.explainer.dtype, device=self.explainer.device)
        self.traced = self.explainer.trace([ramp.view(1, *self.shape)])
        graph = self.traced.graph
        self.result = graph.result()
        self.plans = [make_plan(graph, one, self.result) for one in composites.values()]
        if self.plans[0].unknown:
            raise UnknownOperation(explain_unknown(self.plans[0].unknown[0]))
        self.levels = levels(self.plans)
        # each stretch of rules is in one of these, so what they save is all that is read
        kept = {self._rules(branch[0], level): branch[0] for level in self.levels for branch in level.branches}
        self.kept = [self.plans[cell] for cell in sorted(set(kept.values()))]
        widest = max(int(np.prod(node.shape)) for node in graph.nodes) * self.explainer.dtype.itemsize
        self.together = max(1, memory // (4 * widest))  # relevance above, below, its quotient, and a stack of it

    def __call__(self, image: np.ndarray | Tensor, targets: Sequence[int | None] = (None,)) -> Iterator[CellMap]:
        """Maps of one image, one by one as they are ready; cells that share most come together, not in their order.

        Parameters
        ----------
        image : (C, X, Y)
            Within the bounds of the first rule.
        targets
            Classes; None is the predicted one. What is named twice is explained once.

        Raises
        ------
        ValueError
            For an image of another shape, with values that are not finite or out of zB's bounds; a class there is not.
        """
        given = torch.as_tensor(image)
        if tuple(given.shape) != self.shape:
            raise ValueError(f"rule grid: the image has shape {tuple(given.shape)}, not {self.shape}")
        inputs, _ = self.explainer._inputs(given[None].to(self.explainer.dtype))
        with torch.no_grad(), steady():
            forward = Forward(self.traced.graph, inputs, self.kept, self.result, 0)
            starts = self._starts(forward.values[self.result], targets)
        lanes = [
            _Lane(target, tuple(range(len(self.plans))), {self.result: start}, np.zeros(len(LOSSES)), 0.0, 0.0)
            for target, start in starts.items()
        ]
        for depth, level in enumerate(self.levels):
            branched = [lane for above in lanes for lane in _branch(above, level)]
            below: list[_Lane] = []
            for chunk in self._chunks(branched, level):
                with torch.no_grad(), steady():
                    passed = self._pass(chunk, level, forward)
                    done = self._maps(passed, starts) if depth == len(self.levels) - 1 else []
                below += [] if done else passed
                yield from done
            lanes = below

    def _starts(self, output: Tensor, targets: Sequence[int | None]) -> dict[int, Tensor]:
        predicted = int(output.argmax())
        chosen = dict.fromkeys(predicted if target is None else target for target in targets)
        return {target: start_values(output, target) for target in chosen}

    def _chunks(self, lanes: list[_Lane], level: _Level) -> Iterator[list[_Lane]]:
        """Lanes of the same rules, as many as go through together."""
        alike: dict[Hashable, list[_Lane]] = {}
        for lane in lanes:
            alike.setdefault(self._rules(lane.cells[0], level), []).append(lane)
        for group in alike.values():
            for at in range(0, len(group), self.together):
                yield group[at : at + self.together]

    def _rules(self, cell: int, level: _Level) -> tuple[Rule, ...]:
        return tuple(self.plans[cell].steps[index].rule for index in level.steps)

    def _pass(self, lanes: list[_Lane], level: _Level, forward: Forward) -> list[_Lane]:
        """Through the steps of a level, whose rules are the same for all these lanes."""
        whole = self.plans[lanes[0].cells[0]]
        plan = replace(whole, steps={index: whole.steps[index] for index in level.steps})
        inside = Inside(self.traced.graph, None, self.explainer.device)
        blank = [next(iter(lane.arrived.values()), torch.empty(0)) for lane in lanes]
        backward = Backward(self.explainer, self.traced, [plan] * len(lanes), forward, inside, blank)
        backward.arrived = {}
        for place, lane in enumerate(lanes):
            for ref, tensor in lane.arrived.items():
                backward.arrived.setdefault(ref, {})[place] = tensor
        backward.walk(last=False)
        rows = backward.ledger.values()[..., 0]  # (rows, COLUMNS, lanes)
        with np.errstate(invalid="ignore"):  # what overflowed says so in its account
            losses = rows[:, [COLUMNS.index(name) for name in LOSSES]]
            left = np.abs(
                rows[:, COLUMNS.index("relevance_in")] - rows[:, COLUMNS.index("relevance_out")] - losses.sum(1)
            )
            size = np.abs(rows).max(1, initial=0)
            share = np.divide(left, size, out=np.zeros_like(left), where=size > 0)
            return [
                lane._replace(
                    arrived={ref: starts[place] for ref, starts in backward.arrived.items() if place in starts},
                    losses=lane.losses + losses[:, :, place].sum(0),
                    worst=float(np.maximum(lane.worst, left[:, place].max(initial=0))),  # NaN stays NaN
                    worst_share=float(np.maximum(lane.worst_share, share[:, place].max(initial=0))),
                )
                for place, lane in enumerate(lanes)
            ]

    def _maps(self, lanes: list[_Lane], starts: Mapping[int, Tensor]) -> list[CellMap]:
        image = Ref(0)
        empty = torch.zeros(1, *self.shape, dtype=self.explainer.dtype, device=self.explainer.device)
        maps = torch.cat([lane.arrived.get(image, empty) for lane in lanes]).sum(1)
        totals = maps.sum((1, 2), dtype=torch.float64).tolist()
        single = maps.to(torch.float32).cpu().numpy()
        found = []
        for lane, total, relevance in zip(lanes, totals, single, strict=True):
            start = float(starts[lane.target].sum())
            left = start - total - float(lane.losses.sum())
            losses = dict(zip(LOSSES, lane.losses.tolist(), strict=True))
            account = Account(start, total, **losses, unexplained=left, worst=lane.worst, worst_share=lane.worst_share)
            found += [CellMap(self.names[cell], lane.target, relevance.copy(), account) for cell in lane.cells]
        return found


def levels(plans: Sequence[Plan]) -> list[_Level]:
    """Where composites part: stretches of steps, and which composites are still one in each."""
    branches, found, steps = [list(range(len(plans)))], [], list[int]()
    for index in sorted(plans[0].steps, reverse=True):
        finer: dict[Hashable, list[int]] = {}
        for place, branch in enumerate(branches):
            for cell in branch:
                finer.setdefault((place, plans[cell].steps[index].rule), []).append(cell)
        if len(finer) > len(branches):
            if steps:
                found.append(_Level(steps, branches))
            branches, steps = list(finer.values()), []
        steps.append(index)
    return [*found, _Level(steps, branches)]


def _branch(lane: _Lane, level: _Level) -> list[_Lane]:
    """The lanes of a level that come out of one of the level before."""
    inner = set(lane.cells)
    return [lane._replace(cells=tuple(branch)) for branch in level.branches if inner.issuperset(branch)]


# --------------------------------------------------------------------------------------------------------------- cost
def cost(grid: RuleGrid, image: np.ndarray | Tensor, targets: Sequence[int | None] = (None,)) -> dict[str, float]:
    """What maps cost, in forward passes of the network by floating point operations.

    Returns
    -------
    dict
        `forwards_per_image`: all maps of one image together; `forwards_per_map`: by the number of maps;
        `flops_of_forward`: the unit. Preparing weights and tracing come once per network and are not counted.
    """
    maps = sum(1 for _ in grid(image, targets))  # prepares weights
    explainer = grid.explainer
    given = torch.as_tensor(image)[None].to(explainer.device, explainer.dtype)

    def forward() -> None:
        with torch.no_grad():
            explainer.model(given)

    def every() -> None:
        for _ in grid(image, targets):
            pass

    unit, together = flops(forward), flops(every)
    return {
        "forwards_per_image": together / unit,
        "forwards_per_map": together / unit / maps,
        "flops_of_forward": float(unit),
    }
