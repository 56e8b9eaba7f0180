"""The command `check-model`: which relevance rule each operation of a network has.

Belongs here: its arguments, and what it says of them. Does not belong here: the check (`relevance/check.py`), the table
(`report/operations.py`).
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from relevance_assets.console import console, failure

__all__ = ["check_model"]


class Precision(StrEnum):
    """What relevance is computed in."""

    float32 = "float32"
    float64 = "float64"


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(number) for number in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise failure(f"--shape {text}: write whole numbers, the batch first, for example --shape 1,1,96,96,96", 2)
    return shape


def _composite(given: str) -> Any:
    """A name as it is; a YAML file's content."""
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        return given
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise failure(f"--composite {given}: {str(error).splitlines()[0]}", 2) from error


def check_model(
    factory: Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="A function that returns the network.")],
    shape: Annotated[
        list[str], typer.Option(help="Of an input, the batch first: 1,1,96,96,96. Once per input, in their order.")
    ],
    composite: Annotated[str, typer.Option(help="A composite's name, or a YAML file that holds one.")] = "epsilon_plus",
    dtype: Annotated[Precision | None, typer.Option(help="Convert the network first. Default: as it is.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Number or key of the output explained, if the network returns several.")
    ] = None,
    python_path: Annotated[
        Path, typer.Option(help="Folder that MODULE is in. Default: this one, and what is installed.")
    ] = Path(),
    unknown_only: Annotated[
        bool, typer.Option("--unknown-only", help="Only operations without a rule, and the verdict.")
    ] = False,
) -> None:
    """Every operation of your network, and its relevance rule; exit code 1 if one has none.

    The module is imported, the factory called without arguments, and the network run once on random inputs.
    """
    from relevance_assets.models.own import FactoryError, first_line, importable, own_network
    from relevance_assets.report.operations import operations_report, without_rule

    shapes, rules = [_shape(text) for text in shape], _composite(composite)
    if not python_path.is_dir():
        raise failure(f"--python-path {python_path}: no such folder", 2)

    import torch

    from relevance_assets.relevance import UnknownOperation
    from relevance_assets.relevance import check_model as check
    from relevance_assets.relevance.composites import composite_of

    try:
        rules = composite_of(rules)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise failure(f"--composite {composite}: {error}", 2) from error
    with importable(python_path.resolve()):
        try:
            model = own_network(factory)
            model = model if dtype is None else model.to(getattr(torch, dtype))
            inputs = [torch.rand(one) for one in shapes]
            part = int(output) if output is not None and output.isdecimal() else output
            frame = check(model, inputs, rules, output=part)
        except (FactoryError, UnknownOperation) as error:
            raise failure(error, 1 if isinstance(error, UnknownOperation) else 2) from error
        except Exception as error:  # the user's own network may fail in any way
            told = first_line(error).removeprefix("ValueError: ")
            raise failure(f"{factory}: {told}", 2) from error
    # a file or a pipe has no width that lines should be folded to
    target = console if console.is_terminal or "COLUMNS" in os.environ else Console(width=160)
    target.print(operations_report(frame, unknown_only=unknown_only))
    if without_rule(frame).height:
        raise typer.Exit(1)
