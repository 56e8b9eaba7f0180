"""docs/relevance.md does what it says: its snippets run in order, in one namespace, and print what stands below them.

Belongs here: running the guide, and the README's snippet. Does not belong here: whether what they show is right
(`test_engine.py`, `test_rules.py`, `tests/oracles/`).

How blocks of the guide are taken: `python` runs; where a file's name is its first line (`# rules.yaml`), the block is
written to that file first. `console` holds one command of relevance-assets. The next `text` block is what they print.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import relevance_assets.cli

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "relevance.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.(?:py|yaml))\n")
WIDTH = 100


def blocks(path):
    """(language, content, line) of every fenced block."""
    text = path.read_text()
    return [(m[1], m[2], text[: m.start()].count("\n") + 2) for m in BLOCK.finditer(text)]


def run_python(code, line, path, namespace):
    """What a snippet prints; errors and warnings carry the line of the document."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
    return printed.getvalue()


def run_command(command):
    """What one command prints, and that it ended well or as a missing rule ends."""
    words = command.split()
    assert words[:2] == ["$", "relevance-assets"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relevance_assets.check_model.console", Console(width=WIDTH))
        result = CliRunner(env={"COLUMNS": str(WIDTH), "NO_COLOR": "1"}).invoke(relevance_assets.cli.app, words[2:])
    assert result.exit_code in (0, 1), result.output
    return result.output


def run(path, **given):
    """(line, what was printed, what the document shows) of every block that runs; `given`: names that it may use."""
    namespace = {"__name__": "guide"} | given
    found = blocks(path)
    for place, (language, code, line) in enumerate(found):
        following = found[place + 1] if place + 1 < len(found) else ("", "", 0)
        file = FILE.match(code)
        if file:
            Path(file[1]).write_text(code)
        if language == "python":
            printed = run_python(code, line, path, namespace)
        elif language == "console":
            printed = run_command(code)
        else:
            continue
        yield line, clean(printed), clean(following[1]) if following[0] == "text" else ""


def clean(text):
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Files of the guide are written to a folder of their own, that is importable while it runs."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # unexplained relevance
        yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def test_every_snippet_runs_and_prints_what_is_shown(elsewhere):
    began = time.process_time()
    results = list(run(GUIDE))
    wrong = [(line, printed, shown) for line, printed, shown in results if printed != shown]
    for line, printed, shown in wrong:
        print(f"--- {GUIDE.name}, line {line}, prints:\n{printed}\n--- shown:\n{shown}")
    assert not wrong
    assert len(results) > 10
    assert time.process_time() - began < 40, "the guide is meant to run in 20 s of one core"


def test_the_readmes_snippet_runs(elsewhere):
    torch.manual_seed(0)
    model, scan = (
        nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)),
        torch.rand(1, 1, 4, 4, 4),
    )
    brain = torch.ones(4, 4, 4, dtype=torch.bool)
    brain[0] = False
    namespace = {"model": model, "scan": scan, "brain": brain}
    assert [printed for _, printed, _ in run(ROOT / "README.md", **namespace)] == [""]


def test_nothing_but_snippets_is_in_fences():
    known = {"python", "text", "yaml", "console", "sh"}
    assert {language for language, *_ in blocks(GUIDE)} <= known


def test_names_in_the_guide_are_the_engines():
    """Every composite, baseline and kind that the engine knows is in the guide."""
    from relevance_assets.relevance import COMPOSITES
    from relevance_assets.relevance.baselines import BASELINES
    from relevance_assets.relevance.composites import RULED, WEIGHTED_RULES

    text = GUIDE.read_text()
    missing = [name for name in (*COMPOSITES, *BASELINES, *RULED, *WEIGHTED_RULES) if f"`{name}`" not in text]
    assert missing == []


def test_links_lead_somewhere():
    for path in (GUIDE, ROOT / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_engine_needs_no_dagster():
    code = "import sys, relevance_assets.relevance; print('dagster' in sys.modules, 'monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
