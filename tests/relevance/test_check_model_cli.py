"""`relevance-assets check-model`: the verdict, its exit code, a table for narrow and wide terminals, and one clear line
for whatever is wrong with the call.

Belongs here: the command and what it prints. Does not belong here: which operation has which rule (`test_networks.py`).
"""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import relevance_assets.cli
from relevance_assets.models.own import importable, own_network
from relevance_assets.relevance import check_model
from relevance_assets.report.operations import operations_report, without_rule

NETS = """
import torch
from torch import nn
from monai.networks.nets import DenseNet121, ViT


def small():
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(4, 2))


held = Small()


class Sums(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


def sums():
    return nn.Sequential(Sums(), nn.Linear(3, 3), Sums(), nn.Linear(3, 2))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.age = nn.Conv3d(1, 2, 3), nn.Linear(1, 2)

    def forward(self, image, age):
        return {"logits": self.image(image).mean((2, 3, 4)) + self.age(age), "image": self.image(image)}


class Looks(nn.Module):
    def forward(self, x):
        return x * x.max().item()


def densenet():
    return DenseNet121(3, 1, 2)


def vit():
    return ViT(1, (16,) * 3, (8,) * 3, 24, 48, 1, 3, classification=True)


def half():
    return Small().bfloat16()


def fails():
    raise KeyError("weights are not here")


def stops():
    raise SystemExit(0)


def wants(channels):
    return Small()


def number():
    return 3


constant = 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(NETS)
    (tmp_path / "broken_nets.py").write_text("import not_there_at_all\n")
    (tmp_path / "unclosed_nets.py").write_text("def make(:\n")
    for name in ("own_nets", "broken_nets", "unclosed_nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("own_nets", "broken_nets", "unclosed_nets"):
        sys.modules.pop(name, None)


def ask(*words, code=0, width=100):
    runner = CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relevance_assets.check_model.console", Console(width=width))
        result = runner.invoke(relevance_assets.cli.app, ["check-model", *words])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_network_with_a_rule_for_everything(nets):
    text = ask("own_nets:small", "--shape", "1,1,4,4,4")
    assert text.splitlines()[-1].rstrip() == "✓ 5 operations, all with a rule"
    rows = [line.split() for line in text.splitlines()[1:6]]
    assert rows[0] == ["1", "0", "convolution", "z_plus"]
    assert rows[1] == ["2", "1", "batch_norm", "folded", "into", "0"]
    assert rows[4] == ["5", "4", "linear", "epsilon"]


def test_an_operation_without_rule_is_named_and_fails_the_call(nets):
    text = ask("own_nets:sums", "--shape", "1,3", code=1)
    assert "2 operations have no rule" in text
    words = " ".join(text.split())
    assert "0: no relevance rule for aten.cumsum (operation 1 of the network, output 1x3), also 2" in words
    assert words.count("Ways out: ") == 1
    assert "linear" in text


@pytest.mark.parametrize(("name", "shape", "red"), [("sums", (1, 3), True), ("small", (1, 1, 4, 4, 4), False)])
def test_the_verdict_is_red_only_where_a_rule_is_missing(nets, name, shape, red):
    console = Console(width=100, force_terminal=True, color_system="standard", file=io.StringIO())
    console.print(operations_report(table_of(name, nets, shape)))
    text = console.file.getvalue()
    assert ("\x1b[1;31m2 operations have no rule" in text) is red
    assert ("\x1b[1;31m" in text) is red


def test_unknown_only_leaves_the_others_out(nets):
    text = ask("own_nets:sums", "--shape", "1,3", "--unknown-only", code=1)
    assert "linear" not in text
    assert text.count("unknown: cumsum") == 2
    assert ask("own_nets:small", "--shape", "1,1,4,4,4", "--unknown-only").strip() == "✓ 5 operations, all with a rule"


@pytest.mark.parametrize("width", [100, 160])
def test_no_line_of_a_densenet_is_folded(nets, width):
    text = ask("own_nets:densenet", "--shape", "1,1,32,32,32", width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    start = next(number for number, line in enumerate(lines) if line.lstrip().startswith("1 "))
    assert [int(line.split()[0]) for line in lines[start : start + 427]] == list(range(1, 428))
    assert "features.denseblock4.denselayer16.layers.conv1" in text
    assert ("native_batch_norm" in text) is (width == 160)
    assert lines[-1].rstrip() == "✓ 427 operations, all with a rule"


def test_moves_in_a_row_take_one_line(nets):
    text = ask("own_nets:vit", "--shape", "1,1,16,16,16", "--output", "0", width=160)
    lines = [line for line in text.splitlines() if "14 moves" in line]
    assert len(lines) == 1
    assert "blocks.0: 14 moves" in lines[0]
    assert "permute" in lines[0]
    counted = next(line for line in text.splitlines() if line.split()[1:2] == ["move"] and "–" not in line)
    table = table_of("vit", nets, (1, 1, 16, 16, 16), output=0)
    assert int(counted.split()[0]) == (table["kind"] == "move").sum()


def table_of(name, folder, shape, **options):
    with importable(folder):
        return check_model(own_network(f"own_nets:{name}"), torch.rand(shape), **options)


def test_several_inputs_and_one_of_several_outputs(nets):
    shapes = ("--shape", "1,1,4,4,4", "--shape", "1,1")
    text = ask("own_nets:Two", *shapes, "--output", "logits")
    # the second output's convolution is there, and no relevance comes to it
    assert "5 operations, all with a rule, but for 1 that no relevance comes to" in text
    assert "the network returned 2 tensors" in ask("own_nets:Two", *shapes, code=2)


@pytest.mark.parametrize("name", ["Small", "held"])
def test_a_class_or_a_network_is_a_factory_too(nets, name):
    assert "2 operations, all with a rule" in ask(f"own_nets:{name}", "--shape", "1,1,4")


def test_composites_by_name_and_as_yaml(nets):
    assert "epsilon(relative=True, epsilon=0.1)" in ask(
        "own_nets:small", "--shape", "1,1,4,4,4", "--composite", "epsilon"
    )
    rules = "layers:\n- {kind: convolution, rule: gamma, gamma: 0.5}\nfold: []\n"
    (nets / "rules.yaml").write_text(rules)
    text = ask("own_nets:small", "--shape", "1,1,4,4,4", "--composite", "rules.yaml")
    assert "gamma(gamma=0.5)" in text
    assert "folded" not in text


@pytest.mark.parametrize(
    "text", ["- epsilon\n", "3\n", "- {rule: epsilon, place: [1]}\n", "layers: [\n", "- {rule: no}\n"]
)
def test_yaml_that_is_no_composite_is_said_in_one_line(nets, text):
    (nets / "rules.yaml").write_text(text)
    told = ask("own_nets:small", "--shape", "1,1,4,4,4", "--composite", "rules.yaml", code=2)
    assert told.startswith("error --composite rules.yaml: ")
    assert len(told.strip().splitlines()) == 1


def test_a_network_in_low_precision_is_refused_until_converted(nets):
    assert "bfloat16 is not offered" in ask("own_nets:half", "--shape", "1,4", code=2)
    assert "2 operations, all with a rule" in ask("own_nets:half", "--shape", "1,1,4", "--dtype", "float32")


def test_python_path_takes_a_folder(nets, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "no module 'own_nets'" in ask("own_nets:small", "--shape", "1,1,4,4,4", code=2)
    path = list(sys.path)
    assert "all with a rule" in ask("own_nets:small", "--shape", "1,1,4,4,4", "--python-path", "..")
    assert sys.path == path


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("own_nets", "--shape", "1,4"), 2, "'own_nets' is no module:factory"),
        (("../own_nets:small", "--shape", "1,4"), 2, "is no module:factory"),
        (("own_nets:small()", "--shape", "1,4"), 2, "is no module:factory"),
        (("own_nets:other", "--shape", "1,4"), 2, "has no 'other'"),
        (("nowhere.nets:small", "--shape", "1,4"), 2, "no module 'nowhere' here or among what is installed"),
        (
            ("broken_nets:small", "--shape", "1,4"),
            2,
            "importing broken_nets failed: ModuleNotFoundError: No module named",
        ),
        (("unclosed_nets:make", "--shape", "1,4"), 2, "importing unclosed_nets failed: SyntaxError"),
        (("own_nets:fails", "--shape", "1,4"), 2, "own_nets:fails failed: KeyError: 'weights are not here'"),
        (("own_nets:stops", "--shape", "1,4"), 2, "own_nets:stops failed: SystemExit"),
        (("own_nets:wants", "--shape", "1,4"), 2, "it is called without arguments"),
        (
            ("own_nets:number", "--shape", "1,4"),
            2,
            "own_nets:number returned an object of type int, not a torch.nn.Module",
        ),
        (
            ("own_nets:constant", "--shape", "1,4"),
            2,
            "own_nets:constant is of type int, neither a network nor a function",
        ),
        (
            ("own_nets:small", "--shape", "1,3,4,4,4"),
            2,
            "inputs of shape 1x3x4x4x4 fail in the network: RuntimeError: Given groups=1",
        ),
        (
            ("own_nets:Small", "--shape", "1,4", "--shape", "1,2"),
            2,
            "inputs of shape 1x4, 1x2 fail in the network: TypeError: Sequential.forward() takes 2",
        ),
        (("own_nets:small", "--shape", "1,a"), 2, "--shape 1,a: write whole numbers"),
        (("own_nets:small", "--shape", "1,0,4"), 2, "--shape 1,0,4: write whole numbers"),
        (
            ("own_nets:small", "--shape", "1,4", "--composite", "other"),
            2,
            "--composite other: composite 'other' is not",
        ),
        (("own_nets:small", "--shape", "1,4", "--composite", "no.yaml"), 2, "--composite no.yaml: "),
        (("own_nets:small", "--shape", "1,4", "--python-path", "no"), 2, "--python-path no: no such folder"),
        (("own_nets:Looks", "--shape", "1,4"), 1, "reads a computed value into Python"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(nets, words, code, message):
    text = ask(*words, code=code)
    assert message in text
    assert len(text.strip().splitlines()) == 1


def test_without_rule_means_just_that(nets):
    table = table_of("sums", nets, (1, 3))
    assert without_rule(table)["layer"].to_list() == ["0", "2"]


def test_the_command_line_does_not_import_torch():
    code = "import sys, relevance_assets.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
