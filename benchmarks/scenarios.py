"""What the twelve scenarios of GAMER-MRIL cost for one scan and one fold: each method alone, and all together.

Belongs here: cases and the table. Does not belong here: measuring (`measure.py`).

The unit is one forward + backward of the network to its images, in the type it is explained in (float64). Eight methods
make the twelve scenarios: maps by rules are looked at one by one and combined, which costs nothing more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from measure import flops, seconds

from relevance_assets.models.gated_attention import GatedAttentionNet
from relevance_assets.relevance.maps import Scenarios
from relevance_assets.study import Method

SHAPE = (28, 34, 30)
CONTRASTS = 3


def methods(steps: int) -> dict[str, Method]:
    """The study's eight, by name."""
    found = {}
    starts: tuple[Literal["attention", "output"], ...] = ("attention", "output")
    products: dict[str, Literal["proposed", "all"]] = {"lrp": "proposed", "lrp_all": "all"}
    for start in starts:
        for name, product in products.items():
            found[f"{name}_{start}"] = Method(start=start, composite="disability", product=product)
        found[f"saliency_{start}"] = Method(start=start, composite="saliency")
        ig = {"method": "integrated_gradients", "steps": steps}
        found[f"ig_{start}"] = Method(start=start, composite=ig)
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("lrp")))


def cases(steps: int, device: str) -> dict[str, Callable[[], Any]]:
    """Calls by name; the first is the unit. Networks are traced and weights prepared once, and not counted."""
    torch.manual_seed(0)
    model = GatedAttentionNet(SHAPE, CONTRASTS, 1, blocks=(2, 2, 2)).double().eval().requires_grad_(False).to(device)
    generator = np.random.default_rng(0)
    brain = np.zeros(SHAPE, bool)
    brain[3:-3, 3:-3, 3:-3] = True
    images, covariates = generator.random((CONTRASTS, *SHAPE)) * brain, [0.46]
    q = torch.tensor(images, device=device)[None].requires_grad_()
    p = torch.tensor([covariates], dtype=torch.float64, device=device)

    def unit() -> Any:
        x = q.view_as(q)  # no leaf: the counter cannot follow `autograd.grad` to one
        return torch.autograd.grad(model(x, p).sum(), x)

    made: dict[str, Callable[[], Any]] = {"forward + backward": unit}
    named = methods(steps)
    rules = {name: method for name, method in named.items() if name.startswith("lrp")}
    rest = {name: method for name, method in named.items() if name not in rules}
    groups = {name: {name: method} for name, method in named.items()}
    groups |= {"all by rules": rules, "all by gradients": rest, "all": named}
    for name, chosen in groups.items():
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float32 and chosen.keys() <= rules.keys():
                continue
            scenarios = Scenarios(model, chosen, gradients=dtype, device=device)
            label = f"{name}, gradients in float32" if dtype == torch.float32 else name
            made[label] = lambda scenarios=scenarios: scenarios(images, covariates, brain)  # type: ignore[misc]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of integrated gradients")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    calls = cases(given.steps, given.device)
    times = seconds(calls, given.repeats, given.device)  # also the first call of each, which traces
    counts = {name: flops(call) for name, call in calls.items()}
    unit, second = next(iter(counts.values())), next(iter(times.values()))
    print(f"{CONTRASTS} x {SHAPE}, {given.steps} steps, {given.threads} thread(s), {given.device}")
    print(f"{'':44s} {'FLOPs':>8s} {'time':>8s} {'seconds':>8s} {'CPU s':>8s}")
    for name, time in times.items():
        parts = counts[name] / unit, time["median"] / second["median"]
        print(f"{name:44s} {parts[0]:8.2f} {parts[1]:8.2f} {time['median']:8.3f} {time['cpu']:8.3f}")


if __name__ == "__main__":
    main()
