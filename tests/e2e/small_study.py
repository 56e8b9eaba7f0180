"""Settings and commands of the small study that the end-to-end tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from relevance_assets.configuration import remember
from relevance_assets.home import Home

ROOT = Path(__file__).resolve().parents[2]

# 30 scans on a 9 mm grid, two epochs: everything happens, nothing is learnt.
SMALL = {
    "preparation.resample.voxel_size_mm": [9, 9, 9],
    "preparation.crop_or_pad.shape": [16, 32, 16],
    "training.epochs": 2,
    "statistics.permutations": 199,
    "statistics.bootstrap": 100,
    "masks.top_percents": [20, 100],
    "masks.negative": True,
    # Three of the study's eight methods: LRP from both starts, and one without an account.
    "methods": {
        "lrp_attention": {"start": "attention", "composite": "disability"},
        "lrp_output": {"start": "output", "composite": "disability", "product": "all", "native": False},
        "saliency_output": {"composite": "saliency", "combined": False, "native": False},
    },
    "inversion.top_percents": [20, 100],
    "inversion.random_draws": 2,
    "sanity.scans": 2,
    "sanity.training_scans": 8,
    "sanity.epochs": 1,
    "sanity.rounds": 2,
    "heat_map.top_percent": 20,
    "heat_map.permutations": 49,
}


def command(*words: str, home: Path) -> list[str]:
    return [sys.executable, "-m", "relevance_assets", *words, "--home", str(home)]


def run(*words: str, home: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "160", "NO_COLOR": "1"}
    done = subprocess.run(
        command(*words, home=home), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def settle(home: Path, cohort: Path) -> Home:
    """A home with the small study's settings and the cohort's scans."""
    place = Home(home)
    remember(place, "disability", SMALL | {"cohort.bids": str(cohort)})
    return place
