"""What went wrong lately, for people: a file in the home folder, and a message to an address of their choice.

Belongs here: writing both. Does not belong here: noticing (`automation.py`).
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from relevance_assets.files import write_json
from relevance_assets.home import Home

__all__ = ["KEPT", "Notice", "announce", "notices"]

KEPT = 100
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """A run that failed: what it was to make, and why it could not."""

    run_id: str
    what: str
    why: str
    time: float


def notices(home: Home) -> list[Notice]:
    """The latest failures, newest first; none where the file is missing or not ours."""
    try:
        content = json.loads(home.status.read_text())
        return [Notice(**entry) for entry in content["failures"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def announce(home: Home, notice: Notice) -> None:
    """Write a failure down, once, and post it to RELEVANCE_WEBHOOK where that is set.

    A message that cannot be sent is logged and otherwise ignored: the failure itself matters more.
    """
    known = [one for one in notices(home) if one.run_id != notice.run_id]
    content = {"failures": [asdict(one) for one in [notice, *known][:KEPT]]}
    write_json(home.status, content)
    address = os.environ.get("RELEVANCE_WEBHOOK")
    if not address:
        return
    if not address.startswith(("https://", "http://")):
        log.warning("RELEVANCE_WEBHOOK is no http address; nothing is sent")
        return
    when = datetime.fromtimestamp(notice.time, UTC).isoformat(timespec="seconds")
    body = json.dumps({"text": f"{notice.what} failed: {notice.why}", "time": when, "run_id": notice.run_id})
    request = urllib.request.Request(address, body.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10):
            pass
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        log.warning("RELEVANCE_WEBHOOK: the message was not taken (%s)", error)
