"""What a relevance map costs: this engine, zennit 0.5.1 and captum 0.9.0 in one run.

    python benchmarks/relevance_engine.py [--quick] [--sizes 64 96] [--threads N] [--device cpu|cuda]
                                          [--json FILE] [--markdown]

Unit of work, memory and time: one forward + backward to the input, of the same network. Floating point operations
are counted by torch as it runs them (convolutions and matrix products). Preparing weights and tracing the graph
come before, once per model and input shape, and are not counted; zennit's canonizers and hooks neither.

Belongs here: which cases are run, and the tables. Does not belong here: engines (`engines.py`), measuring
(`measure.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import engines
import measure
import torch
from engines import ENGINES, RULES
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

Row = dict[str, Any]
MEMORY_OF_UNIT = 1.6  # times the memory of forward + backward, and never more than zennit's (issue 3, point 5)
STARTS, BATCH = 10, 4


# ---------------------------------------------------------------------------------------------------------- measuring
def cases(options: argparse.Namespace) -> Iterator[Row]:
    """Network, shape and kind of input of each table."""
    size, left = min(options.sizes), {"signed": False, "fold": ["left"]}
    for every in options.sizes:
        yield {"network": "plain", "shape": [1, 1, every, every, every], **left}
    yield {"network": "plain", "shape": [1, 1, size, size, size], **left, "signed": True}
    yield {"network": "densenet121", "shape": [1, 1, size, size, size], **left}
    yield {"network": "densenet121", "shape": [1, 1, size, size, size], **left, "fold": ["left", "right"]}
    if options.device == "cuda":
        yield {"network": "plain", "shape": [1, 3, 96, 96, 112], **left}
        yield {"network": "densenet121", "shape": [1, 3, 96, 96, 112], **left}


def run_case(case: Row, options: argparse.Namespace) -> list[Row]:
    """One row per rule."""
    say(f"{title(case)} ...")
    model = engines.network(case["network"], case["shape"][1]).to(options.device)
    x = engines.image(*case["shape"], signed=case["signed"]).to(options.device)
    case = {**case, "index": int(model(x).abs().argmax())}
    unit = made("unit", model, None, case)
    unit_flops, rows = measure.flops(partial(unit, x)), []
    for rule in RULES:
        calls = {"unit": unit}
        for engine in ENGINES:
            if engines.has(engine, rule, case["network"], case["fold"]):
                calls[engine] = made(engine, model, rule, case)
        row: Row = {**case, "rule": rule, "unit_flops": unit_flops}
        bound = {engine: partial(call, x) for engine, call in calls.items()}
        for call in bound.values():
            call()
        row["flops"] = {engine: measure.flops(call) / unit_flops for engine, call in bound.items()}
        row["seconds"] = measure.seconds(bound, options.repeats, options.device)
        rows.append(row)
    for row in rows:
        row |= differences(model, x, row["rule"], case) if "zennit" in row["flops"] else {}
    return rows


def add_memory(rows: list[Row], options: argparse.Namespace) -> None:
    """Peak memory in MB, each in a process of its own; forward + backward once for all rules."""
    case = {key: rows[0][key] for key in ("network", "shape", "signed", "fold")}
    case |= {"threads": options.threads, "device": options.device}
    say(f"{title(case)}: memory ...")
    unit = measure.peak_memory({**case, "engine": "unit", "rule": None})
    for row in rows:
        found = [engine for engine in ENGINES if engine in row["flops"]]
        row["megabytes"] = {e: measure.peak_memory({**case, "engine": e, "rule": row["rule"]}) for e in found}
        row["megabytes"]["unit"] = unit


def made(engine: str, model: torch.nn.Module, rule: str | None, case: Row) -> engines.Call:
    kind = {key: case[key] for key in ("index", "signed", "fold")}
    return engines.prepare(engine, model, rule, case["network"], **kind)


def differences(model: torch.nn.Module, x: Tensor, rule: str, case: Row) -> Row:
    """Of our map from zennit's in float64 and in float32, and of zennit's in float32 from its own in float64."""
    single = {engine: made(engine, model, rule, case)(x) for engine in ("ours", "zennit")}
    double = {engine: made(engine, model.double(), rule, case)(x.double()) for engine in ("ours", "zennit")}
    model.float()
    return {
        "difference_float64": distance(double["ours"], double["zennit"]),
        "difference_float32": distance(single["ours"], single["zennit"]),
        "rounding_zennit": distance(single["zennit"], double["zennit"]),
    }


def sharing(size: int, options: argparse.Namespace) -> list[Row]:
    """Ten classes from one forward, and a batch of four against four singles, for each rule of the plain network."""
    from relevance_assets.relevance import Explainer

    say("several starts, batches ...")
    model = engines.network("plain").to(options.device)
    x = engines.image(BATCH, 1, size, size, size).to(options.device)
    rows = []
    for rule in RULES:
        explainer = Explainer(model, engines.composite(RULES[rule]))
        one, classes = x[:1], list(range(STARTS))
        calls = {
            "one": partial(explainer, one, 0),
            "classes": partial(explainer, one, classes),
            "batch": partial(explainer, x, 0),
        }
        for call in calls.values():
            call()
        double, many = Explainer(model, explainer.composite, dtype=torch.float64), x.double()
        batch = double(many, 0).relevance
        singles = torch.cat([double(many[i : i + 1], 0).relevance for i in range(BATCH)])
        several = torch.stack([e.relevance for e in explainer(one, classes)[:2]])
        apart = torch.stack([explainer(one, i).relevance for i in classes[:2]])
        counts = {name: measure.flops(call) for name, call in calls.items()}
        times = measure.seconds(calls, options.repeats, options.device)
        rows.append(
            {
                "rule": rule,
                "maps_per_second": 1 / times["one"]["median"],
                "maps_per_second_in_batch": BATCH / times["batch"]["median"],
                "maps_per_second_of_classes": STARTS / times["classes"]["median"],
                "flops_of_classes": counts["classes"] / counts["one"],
                "batch_difference": distance(batch, singles),
                "classes_difference": distance(several, apart),
            }
        )
    return rows


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, relative to the largest relevance."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------- tables
def title(case: Row) -> str:
    name = {"plain": "plain 3D CNN", "densenet121": "MONAI DenseNet121"}[case["network"]]
    _, channels, *space = case["shape"]
    kind = "z-scored input" if case["signed"] else "input in [0, 1]"
    kind += ", all batch norms folded" if "right" in case["fold"] else ""
    return f"{name}, {' x '.join(map(str, space))}{f' x {channels}' if channels > 1 else ''}, {kind}"


def judged(value: float | None, bound: float | None, most: bool, form: str = "{:.2f}") -> str:
    """A value with its bound, and whether it holds."""
    if value is None:
        return "–"
    if bound is None:
        return form.format(value)
    holds = value <= bound if most else value >= bound
    sign = ("≤" if holds else ">") if most else ("≥" if holds else "<")
    return f"{form.format(value)} {sign} {form.format(bound).rstrip('0').rstrip('.')} {'✓' if holds else '✗'}"


def number(values: dict[str, Any], key: str, form: str) -> str:
    return "–" if values.get(key) is None else form.format(values[key])


def cost_cells(row: Row) -> list[str]:
    """Operations and seconds of one rule, and how far our map is from zennit's.

    Bounds where issue 3 sets them: for inputs >= 0; speed, for the plain network on the CPU.
    """
    rule, strict = RULES[row["rule"]], not row["signed"] and "right" not in row["fold"]
    times = {engine: value["median"] * 1e3 for engine, value in row["seconds"].items()}
    form = "{:.0f}" if times["unit"] >= 20 else "{:.2f}"
    return [
        rule.title,
        judged(row["flops"]["ours"], rule.flops if strict else None, True),
        number(row["flops"], "zennit", "{:.2f}"),
        number(row["flops"], "captum", "{:.2f}"),
        *(number(times, key, form) for key in ("unit", *ENGINES)),
        judged(times["zennit"] / times["ours"] if "zennit" in times else None, rule.speed if strict else None, False),
    ]


def accuracy_cells(row: Row) -> list[str]:
    """How far our map is from zennit's, and what rounding alone does to a map."""
    return [
        RULES[row["rule"]].title,
        *(f"{row[key]:.0e}" for key in ("difference_float64", "difference_float32", "rounding_zennit")),
    ]


def memory_cells(row: Row) -> list[str]:
    """Memory of one rule."""
    memory = row.get("megabytes", {})
    ours, theirs, unit = (memory.get(key) for key in ("ours", "zennit", "unit"))
    return [
        RULES[row["rule"]].title,
        *(number(memory, key, "{:.0f}") for key in ("unit", *ENGINES)),
        judged(ours / unit if ours and unit else None, MEMORY_OF_UNIT, True),
        judged(ours / theirs if ours and theirs else None, 1.0, True),
    ]


COST = ["rule", "FLOPs ours", "zennit", "captum", "ms fwd+bwd", "ours", "zennit", "captum", "faster than zennit"]
MEMORY = ["rule", "MB fwd+bwd", "ours", "zennit", "captum", "of fwd+bwd", "of zennit's"]
ACCURACY = ["rule", "ours - zennit's, float64", "ours - zennit's, float32", "zennit's, float32 - float64"]
SHARING = {
    "rule": lambda row: RULES[row["rule"]].title,
    "maps/s": lambda row: f"{row['maps_per_second']:.1f}",
    "in a batch of 4": lambda row: f"{row['maps_per_second_in_batch']:.1f}",
    "of 10 classes": lambda row: f"{row['maps_per_second_of_classes']:.1f}",
    "FLOPs of 10 classes / 1": lambda row: f"{row['flops_of_classes']:.2f}",
    "batch - singles, float64": lambda row: f"{row['batch_difference']:.0e}",
    "classes - one by one, float32": lambda row: f"{row['classes_difference']:.0e}",
}


def show(console: Console, heading: str, names: list[str], rows: list[list[str]], markdown: bool) -> None:
    """A table on the terminal, or for a README; a missed bound stands out."""
    if markdown:
        lines = [f"**{heading}**\n"] if heading else []
        lines += ["| " + " | ".join(names) + " |", "|---" + "|--:" * (len(names) - 1) + "|"]
        print("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]))
        return
    if heading:
        console.print(Text(heading, style="bold"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for at, name in enumerate(names):
        table.add_column(name, justify="right" if at else "left", no_wrap=not at, overflow="fold")
    for row in rows:
        styles = ["bold red" if "✗" in cell else "green" if "✓" in cell else "" for cell in row]
        table.add_row(*(Text(cell, style=style, no_wrap=True) for cell, style in zip(row, styles, strict=True)))
    console.print(table)
    console.print()


NOTES = """FLOPs: of one map, relative to one forward + backward to the input (fwd+bwd) of the same network. Done
before, once per model and shape, and not counted: weights prepared, graph traced. ms: median of {n} after one to warm
up, engines taking turns, {threads} thread(s), {device}. MB: the most resident over what was before, preparation
included, each in its own process. Bounds hold for inputs in [0, 1]; ✗ is a bound missed. ours - zennit's: the largest
difference of the two maps, relative to the largest relevance; float32 - float64: what rounding alone does to a map,
which is much where a rounding decides a maximum pool, or where an average pool reads both signs (DenseNet121's
transitions; Norm divides by their sum). DenseNet121: batch norms after a convolution are folded into it, all others
pass relevance, in both engines; "all batch norms folded" has the others in the convolution behind their ReLU, which
zennit cannot do, and whose inputs then have both signs. captum: its gamma adds nothing to biases and its z+ ignores
the input's sign, so both are cheaper than what they are named after; it has neither alpha-beta nor box, and is wrong
on a DenseNet."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32 voxels a side, 3 turns, no memory: a minute")
    parser.add_argument("--sizes", type=int, nargs="+", default=None, help="voxels a side (default 64 96)")
    parser.add_argument("--networks", nargs="+", default=["plain", "densenet121"], choices=["plain", "densenet121"])
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--repeats", type=int, default=None, help="turns that are timed (default 5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--markdown", action="store_true", help="print tables for a README")
    options = parser.parse_args(arguments)
    options.sizes = options.sizes or ([32] if options.quick else [64, 96])
    options.repeats = options.repeats or (3 if options.quick else 5)
    if min(options.sizes) < 32:
        parser.error("--sizes must be 32 or more: DenseNet121 halves a volume five times")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is at hand")
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    results: Row = {"torch": torch.__version__, **{k: str(v) for k, v in vars(options).items()}, "cases": []}
    for case in (case for case in cases(options) if case["network"] in options.networks):
        rows = run_case(case, options)
        measured = not (options.quick or case["signed"])  # a sign changes the first layer's only
        if measured:
            add_memory(rows, options)
        results["cases"] += rows
        show(console, title(case), COST, [cost_cells(row) for row in rows], options.markdown)
        if measured:
            show(console, "", MEMORY, [memory_cells(row) for row in rows], options.markdown)
        if "difference_float64" in rows[0]:
            show(console, "", ACCURACY, [accuracy_cells(row) for row in rows], options.markdown)
    results["sharing"] = sharing(min(options.sizes), options)
    table = [[make(row) for make in SHARING.values()] for row in results["sharing"]]
    show(console, "Maps per second, several starts, batches (plain 3D CNN)", list(SHARING), table, options.markdown)
    if not options.markdown:
        device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
        print(NOTES.format(n=options.repeats, threads=options.threads, device=device))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
