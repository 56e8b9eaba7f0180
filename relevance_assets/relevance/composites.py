"""Composites: which operation of a network has which relevance rule, as data.

Belongs here: the rules that each kind of operation may have, how a composite selects them, the named composites. Does
not belong here: formulas (`rules.py`, `structure.py`).

| name | first convolution | convolutions | dense layers | sums, averages | bias |
|---|---|---|---|---|---|
| `epsilon` | epsilon 0.1, relative | the same | the same | the same | kept |
| `z_plus` | z+ | z+ | z+ | z+ | b+ kept |
| `gamma` | gamma 0.25 | gamma 0.25 | gamma 0.25 | epsilon | kept |
| `gamma_box` | zB(0, 1) | gamma 0.25 | epsilon 1e-6 | epsilon | kept |
| `alpha_beta` | alpha 2, beta 1 | alpha 2, beta 1 | epsilon 1e-6 | epsilon | b+, b- kept |
| `epsilon_plus` | z+ | z+ | epsilon 1e-6 | epsilon | b+ kept |
| `epsilon_plus_flat` | flat | z+ | epsilon 1e-6 | epsilon | b+ kept |
| `epsilon_alpha2_beta1` | alpha 2, beta 1 | alpha 2, beta 1 | epsilon 1e-6 | epsilon | b+, b- kept |
| `epsilon_alpha1_beta0` | z+ | z+ | epsilon 1e-6 | epsilon | b+ kept |
| `attention` | epsilon 0.1, relative | the same | the same | the same | kept |
| `disability` | zB(0, 1) | z+ | epsilon 1e-8 | averages z+, sums epsilon 1e-8 | left out |
| `preset_a` | z+ | z+ | epsilon 0.1 | epsilon 0.1 | kept, both signs |

An absolute epsilon of 1e-6 everywhere is gradient times input in disguise, and explodes where signs cancel (on a
DenseNet121 of random weights it amplifies relevance by 10^13, beyond what float64 can account for); so `epsilon` and
`attention` measure it in units of each operation's mean absolute output. At 0.01 a BasicUNet of random weights still
amplifies by 10^5, at 0.1 five MONAI networks amplify by 0.3 to 8 (a ViT by 200).

`epsilon_plus`, `epsilon_plus_flat`, `epsilon_alpha2_beta1` and `gamma_box` are zennit's; `attention` has the rules of
AttnLRP for softmax, matrix products and gates (Achtibat et al. 2024); `disability`: Lu et al. 2023; `preset_a`:
iNNvestigate's `LRPSequentialPresetA`, as Hofmann et al. 2022 used it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from torch import Tensor

from relevance_assets.relevance.rules import Rule, WeightedRule
from relevance_assets.relevance.weighted_rules import AlphaBeta, Box, Epsilon, Flat, Gamma, WSquare, Zero, ZPlus

__all__ = ["COMPOSITES", "Assignment", "Composite", "Plain", "composite_of", "rule_of"]

WEIGHTED_RULES: dict[str, type[WeightedRule]] = {
    rule.name: rule for rule in (Epsilon, Zero, ZPlus, AlphaBeta, Gamma, Box, WSquare, Flat)
}


@dataclass(frozen=True)
class Plain(Rule):
    """A rule of an operation without weights; `structure.py` says what each name does.

    Attributes
    ----------
    epsilon, relative
        The stabiliser, and whether it is in units of the mean absolute denominator.
    bias
        Whether constants and shifts have a part in denominators.
    """

    name: ClassVar[str] = ""
    rule: str
    epsilon: float = 1e-6
    relative: bool = False
    bias: Literal["keep", "drop"] = "keep"

    def __str__(self) -> str:
        if self.rule != "epsilon":
            return self.rule
        return f"epsilon(relative=True, epsilon={self.epsilon:g})" if self.relative else f"epsilon({self.epsilon:g})"


# The first rule of a kind is what it has where a composite says nothing.
PLAIN_RULES: dict[str, tuple[str, ...]] = {
    "average": ("epsilon", "z_plus", "flat"),
    "sum": ("epsilon", "z_plus", "flat"),
    "interpolate": ("epsilon", "z_plus", "flat"),
    "add": ("epsilon", "z_plus"),
    "max_pool": ("winner", "proportional"),
    "activation": ("pass", "block"),
    "softmax": ("pass", "gradient"),
    "product": ("all", "proposed", "half", "abs"),
    "matmul": ("half", "all"),
    "norm": ("pass", "epsilon"),
    "batch_norm": ("pass", "epsilon"),
}
NORMS = ("norm", "batch_norm")
WEIGHTED_KINDS = ("convolution", "linear")
BIASES = ("keep", "drop", "distribute", "both")
RULED = (*WEIGHTED_KINDS, *PLAIN_RULES)


@dataclass(frozen=True)
class Assignment:
    """A rule for the operations that match all that is given.

    Attributes
    ----------
    rule
        The rule.
    kind
        `convolution`, `linear`, `average`, `sum`, `interpolate`, `add`, `max_pool`, `activation`, `softmax`, `product`,
        `matmul`, `norm` or `batch_norm`. None: all that have the rule, but not norms, whose statistics hold relevance
        of their own under any rule but `pass`.
    name
        A pattern of the operation's name: `encoder.*`.
    place
        `first`: weighted operations that nothing weighted comes before; `last`: that nothing weighted comes behind;
        (from, to): by number in the order of execution of weighted operations, `to` excluded.
    """

    rule: Rule
    kind: str | None = None
    name: str | None = None
    place: Literal["first", "last"] | tuple[int, int] | None = None

    def matches(self, kind: str, name: str, place: Place) -> bool:
        """Whether an operation is meant."""
        if self.kind is not None and self.kind != kind:
            return False
        if self.kind is None and isinstance(self.rule, WeightedRule) != (kind in WEIGHTED_KINDS):
            return False
        named = PLAIN_RULES.get(kind, ()) if kind not in NORMS else ()
        if self.kind is None and isinstance(self.rule, Plain) and self.rule.rule not in named:
            return False
        if self.name is not None and not fnmatchcase(name, self.name):
            return False
        if self.place is None:
            return True
        if isinstance(self.place, str):
            return place.first if self.place == "first" else place.last
        return place.number is not None and self.place[0] <= place.number < self.place[1]


@dataclass(frozen=True)
class Place:
    """Where a weighted operation stands in the order of execution."""

    number: int | None = None
    first: bool = False
    last: bool = False


@dataclass(frozen=True)
class Composite:
    """Rules for a network: the first assignment that matches an operation holds.

    Attributes
    ----------
    layers
        In order of precedence. Kinds that none of them names have the first rule of their kind; weighted ones epsilon.
    fold
        Directions in which batch norms are folded, the preferred one first; empty: not at all.
    name
        For tables.
    """

    layers: tuple[Assignment, ...]
    fold: tuple[Literal["left", "right"], ...] = ("left", "right")
    name: str = "own"

    def rule(self, kind: str, name: str, place: Place) -> Rule:
        """The rule of an operation."""
        for assignment in self.layers:
            if assignment.matches(kind, name, place):
                return assignment.rule
        return Epsilon() if kind in WEIGHTED_KINDS else Plain(PLAIN_RULES[kind][0])


def rule_of(entry: Mapping[str, Any], bias: str = "keep") -> list[Rule]:
    """The rule that an entry of a composite describes, for weighted and other kinds where both have one of that name.

    Raises
    ------
    ValueError
        For an unknown rule or parameter, or a rule that the entry's kind does not have.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"composite: an entry is a mapping such as {{'kind': 'linear', 'rule': 'zero'}}, not {entry!r}"
        )
    options = {key: value for key, value in entry.items() if key not in ("rule", "kind", "name", "place")}
    for key, value in options.items():
        _check(key, value)
    name, kind = str(entry.get("rule")), entry.get("kind")
    if kind is not None and kind not in RULED:
        raise ValueError(f"composite: kind {kind!r} is not known; choose one of {', '.join(RULED)}")
    name = "epsilon" if name == "norm" and kind not in WEIGHTED_KINDS else name
    found: list[Rule] = []
    if name in WEIGHTED_RULES and kind in (None, *WEIGHTED_KINDS):
        maker = WEIGHTED_RULES[name]
        _known(name, options, {field.name for field in fields(maker)})
        given = {"bias": bias} | options if maker not in (Box, Flat) else options
        found.append(maker(**given))
    kinds = PLAIN_RULES if kind is None else {kind: PLAIN_RULES.get(kind, ())}
    if any(name in names for names in kinds.values()) and kind not in WEIGHTED_KINDS:
        if not found:
            _known(name, options, {"epsilon", "relative", "bias"})
        shared = {key: value for key, value in options.items() if key in ("epsilon", "relative")}
        found.append(Plain(name, **shared, bias="drop" if options.get("bias", bias) == "drop" else "keep"))
    if not found:
        own = sum(kinds.values(), ())
        names = WEIGHTED_RULES if kind in WEIGHTED_KINDS else own if kind else {*WEIGHTED_RULES, *own}
        where = f" for {kind}" if kind else ""
        raise ValueError(f"composite: no rule {name!r}{where}; choose one of {', '.join(sorted(names))}")
    return found


def _check(key: str, value: Any) -> None:
    """Whether a parameter's value can be meant, whatever rule it is for."""
    if key == "bias" and value not in BIASES:
        raise ValueError(f"composite: bias must be {', '.join(BIASES[:-1])} or {BIASES[-1]}, not {value!r}")
    if key in ("signed", "relative") and not isinstance(value, bool):
        raise ValueError(f"composite: {key} must be true or false, not {value!r}")
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if key in ("epsilon", "stabiliser", "at_zero", "gamma", "alpha", "beta") and not numeric:
        hint = " (YAML reads 1e-8 as text; write 1.0e-8)" if isinstance(value, str) else ""
        raise ValueError(f"composite: {key} must be a number, not {value!r}{hint}")
    if numeric and value != value:
        raise ValueError(f"composite: {key} is not a number")
    if key in ("low", "high") and not isinstance(value, int | float | Tensor):
        raise ValueError(f"composite: {key} must be a number or a tensor, not {value!r}")
    if key in ("stabiliser", "at_zero") and value < 0:
        raise ValueError(f"composite: {key} must not be negative, given {value!r}")


def _place(place: Any) -> Any:
    if place is None or place in ("first", "last"):
        return place
    if isinstance(place, Sequence) and len(place) == 2 and all(isinstance(number, int) for number in place):
        return int(place[0]), int(place[1])
    raise ValueError(f"composite: place must be first, last, or [from, to), not {place!r}")


def _known(name: str, options: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"composite: rule {name} has no parameter {unknown[0]!r}; it has {', '.join(sorted(known))}")


def composite_of(given: Any) -> Composite:
    """A composite from its name, from data, or as it is.

    Parameters
    ----------
    given
        A name of `COMPOSITES`; a list of entries such as {"kind": "convolution", "place": "first", "rule": "box",
        "low": 0, "high": 1}; a mapping {"layers": [...], "bias": "keep", "fold": ["left", "right"]}.

    Raises
    ------
    ValueError
        For anything that is not known.
    """
    if isinstance(given, Composite):
        return given
    if isinstance(given, str):
        if given not in COMPOSITES:
            raise ValueError(f"composite {given!r} is not known; choose one of {', '.join(sorted(COMPOSITES))}")
        return COMPOSITES[given]
    if isinstance(given, Mapping) and "method" in given:
        raise ValueError(f"no baseline is called {given['method']!r}; docs/relevance.md lists them")
    if isinstance(given, Mapping):
        _known("of a composite", given, {"layers", "bias", "fold", "name"})
        entries, bias = given.get("layers", []), given.get("bias", "keep")
        fold, name = tuple(given.get("fold", ("left", "right"))), given.get("name", "own")
    elif isinstance(given, Sequence):
        entries, bias, fold, name = given, "keep", ("left", "right"), "own"
    else:
        raise ValueError(f"a composite is a name, a list of rules or a mapping, not {type(given).__name__}")
    if not set(fold) <= {"left", "right"}:
        raise ValueError(f"composite: fold holds 'left' and 'right', not {fold!r}")
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise ValueError(f"composite: layers must be a list of rules, not {entries!r}")
    _check("bias", bias)
    layers = []
    for entry in entries:
        for rule in rule_of(entry, bias):
            layers.append(Assignment(rule, entry.get("kind"), entry.get("name"), _place(entry.get("place"))))
    return Composite(tuple(layers), fold, name)


def _named(
    name: str, *entries: Mapping[str, Any], bias: str = "keep", fold: Sequence[str] = ("left", "right")
) -> Composite:
    return replace(composite_of({"layers": entries, "bias": bias, "fold": fold}), name=name)


def _conv(rule: str, **options: Any) -> dict[str, Any]:
    return {"kind": "convolution", "rule": rule, **options}


def _first(rule: str, **options: Any) -> dict[str, Any]:
    return {"kind": "convolution", "place": "first", "rule": rule, **options}


EPSILON = {"rule": "epsilon", "epsilon": 0.1, "relative": True}
_ALPHA2 = (_conv("alpha_beta", alpha=2.0, beta=1.0),)
COMPOSITES: dict[str, Composite] = {
    composite.name: composite
    for composite in (
        _named("epsilon", EPSILON),
        _named("z_plus", {"rule": "z_plus"}),
        _named("gamma", {"rule": "gamma"}),
        _named("gamma_box", _first("box"), _conv("gamma")),
        _named("alpha_beta", *_ALPHA2),
        _named("epsilon_plus", _conv("z_plus")),
        _named("epsilon_plus_flat", _first("flat"), _conv("z_plus")),
        _named("epsilon_alpha2_beta1", *_ALPHA2),
        _named("epsilon_alpha1_beta0", _conv("z_plus")),
        _named("attention", {"kind": "softmax", "rule": "gradient"}, {"kind": "product", "rule": "half"}, EPSILON),
        _named(
            "disability",
            _first("box", stabiliser=0.0),
            _conv("z_plus", stabiliser=0.0),
            {"kind": "average", "rule": "z_plus"},
            {"kind": "product", "rule": "proposed"},
            {"rule": "epsilon", "epsilon": 1e-8},
            bias="drop",
            fold=("right", "left"),
        ),
        _named(
            "preset_a",
            _conv("z_plus", bias="both", stabiliser=0.0, at_zero=1e-7),
            {"rule": "epsilon", "epsilon": 0.1},
        ),
    )
}
