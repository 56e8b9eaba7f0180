"""From a graph and a composite to the steps of the backward pass.

Belongs here: which rule each operation has, where batch norms go, which tensors a pass has to keep. Does not belong
here: doing it (`engine.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch

from relevance_assets.relevance.canonizers import WEIGHTED, Folds, find_folds
from relevance_assets.relevance.composites import Composite, Place, Plain
from relevance_assets.relevance.graph import Graph, Node, Ref, outputs
from relevance_assets.relevance.operations import MOVES, Weighted, is_computed
from relevance_assets.relevance.rules import Rule, WeightedRule
from relevance_assets.relevance.structure import gate_of, needs
from relevance_assets.relevance.weighted_rules import Epsilon, Gamma

__all__ = ["Plan", "Step", "make_plan"]

AS_IS = Plain("pass")  # of operations that have no choice


@dataclass
class Step:
    """How relevance passes one operation.

    Attributes
    ----------
    node
        Where relevance arrives: the operation, or the batch norm that was folded into it.
    core
        The weighted operation; `node` itself for all others.
    rule
        Its rule.
    saved
        Tensors of the forward pass that the rule reads.
    first
        Whether nothing weighted comes before it.
    split
        Whether the forward pass keeps the sum of its contributions apart from the bias.
    nonnegative
        Whether a weighted operation's input cannot be negative.
    vanishing
        Whether a ReLU follows, and relevance is 0 wherever it is off.
    output
        Where the operation's output is read: its own, or, if `vanishing`, that of the ReLU behind it, which says as
        much wherever relevance is not 0 and is kept anyway.
    """

    node: Node
    core: Node
    rule: Rule
    saved: list[Ref] = field(default_factory=list)
    first: bool = False
    split: bool = False
    nonnegative: bool = False
    vanishing: bool = False
    output: Ref | None = None
    weighted: Weighted | None = None

    @property
    def source(self) -> Ref:
        """The computed operand of a weighted operation."""
        return next(value for value in self.core.args if is_computed(value))


@dataclass
class Plan:
    """The backward pass from one tensor.

    Attributes
    ----------
    target
        Where relevance starts.
    steps
        By the index of the node where relevance arrives.
    folds
        Where batch norms went.
    unknown
        Operations without rule that relevance reaches.
    """

    target: Ref
    steps: dict[int, Step]
    folds: Folds
    unknown: list[Node] = field(default_factory=list)

    @property
    def saved(self) -> set[Ref]:
        """Tensors that the forward pass keeps."""
        return {ref for step in self.steps.values() for ref in step.saved} | {self.target}


def make_plan(graph: Graph, composite: Composite, target: Ref, *, masked: bool = False) -> Plan:
    """Rules for all operations that relevance from `target` reaches; `masked`: there will be a mask."""
    for pattern in {assignment.name for assignment in composite.layers if assignment.name is not None}:
        if not any(fnmatchcase(node.layer, pattern) for node in graph.nodes):
            raise ValueError(
                f"composite: no operation of the network is called {pattern!r}; check_model lists the names"
            )
    folds = find_folds(graph, composite.fold)
    reached = {target.node}
    steps: dict[int, Step] = {}
    unknown: list[Node] = []
    places = weighted_places(graph, target)
    for node in reversed(graph.nodes):
        if node.index not in reached or node.op is None:
            continue
        if node.kind == "unknown":
            unknown.append(node)
            reached |= {ref.node for ref in node.refs}  # what else would be in the way
            continue
        core = graph.nodes[folds.left[node.index]] if node.index in folds.left else node
        step = Step(node, core, rule_for(composite, core, places, folds))
        if isinstance(step.rule, WeightedRule):
            _weighted(graph, folds, step, places)
            operands = [step.source]
        else:
            assert isinstance(step.rule, Plain)
            step.saved = needs(graph, node, step.rule, masked=masked)
            operands = receivers(graph, node, step.rule)
        steps[node.index] = step
        reached |= {ref.node for ref in operands}
    plan = Plan(target, steps, folds, unknown)
    zero: dict[Ref, bool] = {target: False}
    for step in steps.values():
        relu = step.output if step.output is not None and step.output.node != step.node.index else None
        step.vanishing = relu is not None and relu.node in steps and _vanishes(graph, plan, relu, zero)
        if relu is not None and not step.vanishing:
            step.saved[step.saved.index(relu)] = step.output = Ref(step.node.index)
        step.nonnegative = step.weighted is not None and _nonnegative(graph, step.source)
    return plan


def _vanishes(graph: Graph, plan: Plan, ref: Ref, known: dict[Ref, bool]) -> bool:
    """Whether relevance at a tensor is 0 wherever the tensor is: every rule that reads it multiplies by it."""
    if ref not in known:
        known[ref] = all(_multiplies(graph, plan, ref, index, known) for index in graph.readers(ref))
    return known[ref]


def _multiplies(graph: Graph, plan: Plan, ref: Ref, index: int, known: dict[Ref, bool]) -> bool:
    heads = [index, *(norm for norm, core in plan.folds.left.items() if core == index)]
    step = next((plan.steps[head] for head in heads if head in plan.steps), None)
    if step is None:
        return True  # no relevance comes from there
    if isinstance(step.rule, WeightedRule):
        return not step.rule.first_only and step.rule.bias != "distribute" and ref not in plan.folds.path
    assert isinstance(step.rule, Plain)
    if step.node.kind in ("average", "sum", "interpolate", "add") and step.rule.rule == "epsilon":
        return True
    unchanged = step.node.kind in ("move", "scale") or step.node.name == "aten.relu"
    if unchanged or (step.node.kind == "max_pool" and step.rule.rule == "winner"):
        made = outputs(step.node)[:1] if step.node.kind == "max_pool" else outputs(step.node)
        return all(_vanishes(graph, plan, result, known) for result in made)
    return False


def _nonnegative(graph: Graph, ref: Ref) -> bool:
    """Whether a tensor cannot be negative, as far as its operations tell."""
    node = graph.nodes[ref.node]
    if node.name in ("aten.relu", "aten.sigmoid", "aten.hardsigmoid", "aten._softmax"):
        return True
    constants = [
        value for value in node.args if isinstance(value, torch.Tensor | list | tuple) and not is_computed(value)
    ]
    if node.name == "aten.constant_pad_nd" and len(node.args) > 2 and node.args[2] < 0:
        return False
    if node.name == "aten.cat":
        return all(is_computed(value) for value in node.args[0]) and all(_nonnegative(graph, r) for r in node.refs)
    if node.kind in ("max_pool", "average") or (node.kind == "move" and len(node.refs) == 1):
        return not any(isinstance(value, torch.Tensor) for value in constants) and _nonnegative(graph, node.refs[0])
    if node.name == "aten.add":
        return (
            len(node.refs) == 2 and node.kwargs.get("alpha", 1) >= 0 and all(_nonnegative(graph, r) for r in node.refs)
        )
    return False


def rule_for(composite: Composite, node: Node, places: dict[int, Place], folds: Folds) -> Rule:
    """The rule of an operation; moves, scales and folded batch norms have no choice."""
    if node.kind in MOVES or node.kind == "scale" or node.index in folds.right:
        return AS_IS
    return composite.rule(node.kind, node.layer, places.get(node.index, Place()))


def receivers(graph: Graph, node: Node, rule: Plain) -> list[Ref]:
    """The operands of an operation without weights that relevance goes to."""
    refs = [ref for ref in node.refs if graph.nodes[ref.node].dtypes[ref.output].is_floating_point]
    if node.kind == "product" and (rule.rule == "all" or node.name == "aten.div"):
        return [refs[1 - gate_of(graph, node)]]
    return refs


def weighted_places(graph: Graph, target: Ref) -> dict[int, Place]:
    """First, last and number of each weighted operation."""
    before: dict[int, bool] = {}  # whether a weighted operation comes before
    for node in graph.nodes:
        before[node.index] = any(before[r.node] or graph.nodes[r.node].kind in WEIGHTED for r in node.refs)
    last: set[int] = set()
    stack, seen = [target.node], set()
    while stack:
        node = graph.nodes[stack.pop()]
        if node.index in seen:
            continue
        seen.add(node.index)
        if node.kind in WEIGHTED:
            last.add(node.index)
        else:
            stack += [ref.node for ref in node.refs]
    numbered = [node.index for node in graph.nodes if node.kind in WEIGHTED]
    return {index: Place(place, not before[index], index in last) for place, index in enumerate(numbered)}


def _weighted(graph: Graph, folds: Folds, step: Step, places: dict[int, Place]) -> None:
    assert isinstance(step.rule, WeightedRule)
    core, rule = step.core, step.rule
    step.weighted = Weighted(core.op, core.args, core.kwargs)
    step.first = places[core.index].first
    step.saved = [step.source]
    shifted = step.source in folds.path
    step.split = rule.splits and not shifted and core.kind == "convolution"
    reads = isinstance(rule, Gamma) or (isinstance(rule, Epsilon) and rule.bias != "drop")
    if reads:
        step.output = Ref(step.node.index)
        readers = graph.readers(step.output)
        if len(readers) == 1 and graph.nodes[readers[0]].name == "aten.relu" and not rule.relative:
            step.output = Ref(readers[0])
        step.saved.append(step.output)


def explain_unknown(node: Node) -> str:
    """What is unknown, where, and what to do."""
    shapes = ", ".join("x".join(map(str, shape)) for shape in node.shapes)
    return (
        f"{node.layer}: no relevance rule for {node.name} (operation {node.index} of the network, output {shapes}); "
        "write it with operations that have one, explain from an inner operation before it (start=Inner(...)), or keep "
        "it out of relevance's way with a product whose gate gets nothing"
    )
