"""From YAML to a Study: the repository's `defs.yaml`, and over it what the user set for this home.

Belongs here: reading, merging, and errors that name the file and the key. Does not belong here: what a study may say
(`study/`), Dagster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from relevance_assets.files import atomic_path
from relevance_assets.home import Home
from relevance_assets.study import Study

__all__ = [
    "COMPONENT",
    "DEFINITIONS",
    "SQL",
    "SettingsError",
    "load_studies",
    "overridden",
    "read_settings",
    "remember",
    "remembered",
    "study_from",
]

SQL = Path(__file__).resolve().parents[1] / "sql"
DEFINITIONS = Path(__file__).resolve().parents[1] / "dagster_project" / "defs"
COMPONENT = "relevance_assets.component.StudyComponent"


class SettingsError(ValueError):
    """A setting that is unknown, missing or wrong; the message names file and key."""


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: a mapping of settings is expected")
    return content


def overridden(attributes: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`attributes` with dotted keys set: `{"training.epochs": 3}`. Lists are indexed by number or by `name`."""
    result = _copied(attributes)
    for dotted, value in settings.items():
        place: Any = result
        *parents, last = str(dotted).split(".")
        for part in parents:
            place = _member(place, part, dotted) if isinstance(place, list) else place.setdefault(part, {})
            if not isinstance(place, dict | list):
                raise SettingsError(f"--set {dotted}: {part!r} holds a single value, nothing lies below it")
        if isinstance(place, list):
            place[place.index(_member(place, last, dotted))] = value
        else:
            place[last] = value
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _member(place: list[Any], part: str, dotted: str) -> Any:
    for item in place:
        if isinstance(item, dict) and part in (item.get("name"), item.get("step"), item.get("column")):
            return item
    if part.isdecimal() and int(part) < len(place):
        return place[int(part)]
    raise SettingsError(f"--set {dotted}: no {part!r} in that list")


def study_from(attributes: dict[str, Any], home: Home, source: str) -> Study:
    """The study that `attributes` describe, with this home's settings over them.

    Raises
    ------
    SettingsError
        One line per wrong key, with `source`.
    """
    try:
        remembered = read_settings(home.settings(str(attributes.get("name"))))
        return Study.model_validate(overridden(attributes, remembered))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'study'}: {e['msg']}" for e in error.errors()]
        settings = home.settings(str(attributes.get("name")))
        places = f"{source} (with {settings} over it)" if settings.exists() else source
        raise SettingsError(f"{places}: " + "; ".join(lines)) from error


def load_studies(home: Home, folder: Path = DEFINITIONS) -> dict[str, Study]:
    """Every study below the definitions folder, by name."""
    studies: dict[str, Study] = {}
    for path in sorted(folder.glob("*/defs.yaml")):
        content = read_settings(path)
        if content.get("type") != COMPONENT:
            continue
        study = study_from(content.get("attributes") or {}, home, str(path))
        if study.name in studies:
            raise SettingsError(f"{path}: a study named {study.name!r} exists already; choose another name")
        studies[study.name] = study
    return studies


def remember(home: Home, name: str, settings: dict[str, Any]) -> None:
    """Keep settings for this home: later runs, and the web UI, see the same study.

    A setting takes the place of what was kept below it: `sanity` that of `sanity.epochs`.
    """
    if not settings:
        return
    path = home.settings(name)
    above = tuple(f"{key}." for key in settings)
    kept = {key: value for key, value in read_settings(path).items() if not str(key).startswith(above)}
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(kept | settings, sort_keys=True))


@contextmanager
def remembered(home: Home, name: str, settings: dict[str, Any]) -> Iterator[None]:
    """Keep settings for this home, unless the body raises: then what was kept before comes back."""
    path = home.settings(name)
    before = path.read_text() if path.exists() else None
    remember(home, name, settings)
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(before)
        raise
