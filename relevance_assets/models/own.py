"""A network from the user's own code, by name: `package.module:factory`.

Belongs here: finding and calling it, and saying in one line what went wrong. Does not belong here: this project's
networks (`registry.py`), what is done with the network.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FactoryError", "first_line", "importable", "own_network"]

NAME = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<factory>[^\W\d]\w*)")


class FactoryError(ValueError):
    """The name leads to no network."""


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules in `folder` can be imported, before others of their name."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # a module may have taken it away
            sys.path.remove(str(folder))


def own_network(name: str) -> nn.Module:
    """The network that a function without arguments returns.

    Importing its module runs that module, as Python does; beyond that, nothing runs but the function.

    Parameters
    ----------
    name
        `package.module:factory`. The factory may be a function, a class, or a network that the module already holds.

    Raises
    ------
    FactoryError
        If the name is none, the module is missing or fails, or the factory fails or returns something else.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise FactoryError(f"{name!r} is no module:factory; write it as my_package.my_module:make_network")
    module, factory = found["module"], found["factory"]
    try:
        holder = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise FactoryError(
                f"no module {error.name!r} here or among what is installed; see --python-path"
            ) from error
        raise FactoryError(f"importing {module} failed: {first_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise FactoryError(f"importing {module} failed: {first_line(error)}") from error
    made = getattr(holder, factory, None)
    if made is None:
        raise FactoryError(f"module {module} ({getattr(holder, '__file__', 'built in')}) has no {factory!r}")

    from torch import nn

    if not isinstance(made, nn.Module):
        if not callable(made):
            raise FactoryError(
                f"{name} is of type {type(made).__name__}, neither a network nor a function that returns one"
            )
        try:
            made = made()
        except TypeError as error:
            hint = (
                "; it is called without arguments: name a function that needs none" if "argument" in str(error) else ""
            )
            raise FactoryError(f"{name} failed: {first_line(error)}{hint}") from error
        except (Exception, SystemExit) as error:
            raise FactoryError(f"{name} failed: {first_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise FactoryError(f"{name} returned an object of type {type(made).__name__}, not a torch.nn.Module")
    return made
