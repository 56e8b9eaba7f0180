"""What a grid of rules costs on VGG16: all cells of an image together, against the engine and zennit cell by cell.

    python benchmarks/rule_grid.py [--size 64] [--images 2] [--apart 4] [--variant NAME] [--device cpu|cuda]
                                   [--batch 8] [--threads N] [--json FILE]

Weights and images are random: time does not depend on them. The grid runs in full; the engine alone and zennit run only
`--apart` cells, spread over the grid, and the time of all cells is that of one times their number, which is printed as
such. It is a fair guess, as a cell costs the same whatever gamma and epsilon are. On a GPU zennit is given `--batch`
images at once, as one would, and the grid one, as it takes them. Floating point operations are counted by torch.
zennit's hooks are put on and taken off for every cell, and count; tracing and preparing weights come before and do not.

Belongs here: these measurements. Does not belong here: whether maps are right (`tests/relevance/test_rule_grid.py`).
"""

from __future__ import annotations

import argparse
import gc
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn

from relevance_assets.relevance import Explainer
from relevance_assets.relevance.rule_grid import RuleGrid, cost
from relevance_assets.relevance.vgg_rules import VARIANTS, Cell, grid

CLASSES = 3


def vgg(size: int, device: str) -> nn.Module:
    """torchvision's VGG16 with three outputs, random weights."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    net = vgg16(weights=None)
    net.classifier[6] = nn.Linear(4096, CLASSES)
    return net.eval().requires_grad_(False).to(device)


def by_zennit(net: nn.Module, images: Tensor, cell: Cell, variant: str) -> Tensor:
    """(B, X, Y): zennit's maps of the predicted classes for one cell, zB in (0, 1)."""
    from zennit.attribution import Gradient
    from zennit.composites import NameMapComposite
    from zennit.core import Stabilizer
    from zennit.rules import Epsilon, Gamma, ZBox

    ends, stabilise = VARIANTS[variant], Stabilizer(1e-6)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks: list[tuple[list[str], Any]] = [
        ([layers[0]], ZBox(torch.zeros_like(images[:1]), torch.ones_like(images[:1]))),
        (layers[1 : ends.gamma], Gamma(cell.gamma, stabilizer=1e-6)),
        (layers[ends.gamma : ends.epsilon], Epsilon(lambda z: stabilise(z + cell.epsilon))),
        (["avgpool", *layers[ends.epsilon :]], Epsilon(1e-6)),
    ]
    with Gradient(net, NameMapComposite(hooks)) as attributor:
        put_in = lambda output: output * nn.functional.one_hot(output.argmax(1), CLASSES)  # noqa: E731
        return attributor(images.clone().requires_grad_(), put_in)[1].detach().sum(1)


def peak(call: Callable[[], Any], device: str) -> float:
    """MB that a call takes at most: on a GPU what torch allocates, else growth of the most resident memory."""
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = measure._resident()[0]
    call()
    return max(0.0, measure._resident()[1] - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--apart", type=int, default=4, help="cells that are run one by one")
    parser.add_argument("--variant", default="as_published_code", choices=VARIANTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=8, help="images that zennit gets at once on a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # as the engine computes
    warnings.filterwarnings("ignore", category=RuntimeWarning)

    device, shape = options.device, (3, options.size, options.size)
    net, composites = vgg(options.size, device), grid(options.variant)
    cells = list(composites)[:: max(1, len(composites) // options.apart)][: options.apart]
    batch = torch.rand(options.batch if device == "cuda" else 1, *shape, device=device)
    image, predicted = batch[0], int(net(batch[:1]).argmax())
    run, explainer = RuleGrid(net, shape, composites, device=device), Explainer(net, device=device)

    def forward() -> None:
        with torch.no_grad():
            net(batch)

    def together() -> dict[Any, Any]:
        return {one.cell: one.relevance for one in run(image, [predicted])}

    def engine() -> None:
        for cell in cells:
            explainer.several(image[None], [(composites[cell], predicted)])

    def zennit() -> list[Tensor]:
        return [by_zennit(net, batch, cell, options.variant) for cell in cells]

    memory = {"grid": peak(together, device)}  # with weights of all gammas
    if device == "cuda":  # the peak of a process cannot be reset
        memory["zennit"] = peak(zennit, device)
    calls = {"forward": forward, "grid": together, "engine": engine, "zennit": zennit}
    seconds = {name: each["median"] for name, each in measure.seconds(calls, options.images, device).items()}
    count, of_cells, of_batch = len(composites), len(composites) / len(cells), len(batch)
    per_image = {
        "forward": seconds["forward"] / of_batch,
        "grid": seconds["grid"],
        "engine": seconds["engine"] * of_cells,
        "zennit": seconds["zennit"] * of_cells / of_batch,
    }
    price = cost(run, image, [predicted])
    unit = price["flops_of_forward"]
    flops = {
        "grid": price["forwards_per_map"],
        "engine": measure.flops(engine) / unit / len(cells),
        "zennit": measure.flops(zennit) / unit / len(cells) / of_batch,
    }
    maps = together()
    apart = [torch.as_tensor(maps[cell]).sub(found[0].cpu()).abs().max() / found[0].abs().max().cpu()
             for cell, found in zip(cells, zennit(), strict=True)]  # fmt: skip
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {options.threads} threads",
        "shape": shape, "cells": count, "cells_run_apart": len(cells), "images_at_once_zennit": of_batch,
        "seconds_per_image": per_image, "maps_per_second": {n: count / per_image[n] for n in flops},
        "forwards_per_map": flops, "memory_mb": memory, "furthest_from_zennit": float(max(apart)),
    }  # fmt: skip
    title = f"VGG16 {options.size}^2, {options.variant}, {count} cells, {result['device']}"
    print(f"{title}; median of {options.images} runs")
    for name in flops:
        note = "" if name == "grid" else f", extrapolated from {len(cells)} cells"
        rate = f"{count / per_image[name]:.1f} images x cells per second, {flops[name]:.2f} forwards per map by FLOPs"
        print(f"{name:7} {per_image[name]:8.2f} s per image{note}: {rate}")
    for other in ("engine", "zennit"):
        print(f"ratio to {other} cell by cell: time {per_image[other] / per_image['grid']:.1f}, "
              f"FLOPs {flops[other] / flops['grid']:.1f}")  # fmt: skip
    print(f"one forward {per_image['forward']:.3f} s; maps are within {result['furthest_from_zennit']:.1e} of zennit's")
    print("; ".join(f"{name}: {size:.0f} MB more than before at most" for name, size in memory.items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
