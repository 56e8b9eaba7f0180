"""The state of a training that is under way, so that a killed one goes on where it was.

Belongs here: what must survive a kill, and when a state found on disk may be used. Does not belong here: the
finished model (`checkpoint.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from relevance_assets.training.checkpoint import plain_state, write_tensors

__all__ = ["Progress"]


@dataclass
class Progress:
    """All that the next epoch depends on; its random numbers follow from (seed, fold, epoch) alone.

    Attributes
    ----------
    fingerprint : str
        Of settings, scans, images, targets: a state with another one is not ours.
    history : list of dict
        One row of the epochs table per finished epoch.
    network, optimizer : dict
        States after the last finished epoch; empty before the first.
    best_rank, best_epoch, best_network
        The best epoch so far by `losses.rank`.
    """

    fingerprint: str
    history: list[dict[str, Any]] = field(default_factory=list)
    network: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best_rank: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best_network: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    @classmethod
    def read(cls, path: Path, fingerprint: str | None = None) -> Progress:
        """The state at `path` if it is whole and belongs to this training (None: any), else a fresh one."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            found = cls(**{each.name: content[each.name] for each in fields(cls)})
        except Exception:  # absent, damaged or foreign: in each case training begins anew
            return cls(fingerprint or "")
        return found if fingerprint in (None, found.fingerprint) else cls(fingerprint or "")

    def write(self, path: Path) -> None:
        """Write atomically: after a kill there is this state or the one before it."""
        write_tensors(path, {each.name: getattr(self, each.name) for each in fields(self)})

    def add(
        self,
        row: dict[str, Any],
        rank: tuple[float, float],
        network: dict[str, torch.Tensor],
        optimizer: dict[str, Any],
    ) -> None:
        """Take in a finished epoch."""
        self.history.append(row)
        self.network, self.optimizer = plain_state(network), optimizer
        if not self.best_rank or list(rank) < self.best_rank:
            self.best_rank, self.best_epoch, self.best_network = list(rank), row["epoch"], self.network
