"""Who takes part: groups, age, sex, EDSS, sessions, and how much each person's tissue differs.

Belongs here: every draw that is one number per person or per scan, and the random streams. Does not
belong here: images, and the places of lesions.

Group, EDSS, the number of sessions and the decoy's severity are drawn from Weyl sequences (fractional parts
of multiples of different irrational numbers): their shares hold in small cohorts too, and the decoy is
balanced against EDSS. All else is drawn at random and independently, so that nothing but the planted effect
(and `ms_type`) goes with EDSS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

__all__ = ["Stream", "Person", "Visit", "draw_person", "draw_visits", "severity", "stream"]

MS_SHARE_OF_SCANS = 0.85
SECOND_SESSION_SHARE = 0.25  # of people with MS; HC have one session
YEARS_BETWEEN_SESSIONS = 2
AGE_MEAN, AGE_SD, AGE_RANGE = 46.0, 15.0, (18, 78)  # 45.9 ± 14.3 in Lu et al. 2023 (arXiv 2308.07611)
FEMALE_SHARE = 0.60  # 99 of 166 in Lu et al. 2023

# EDSS of people with MS, in per cent: median 2.5-3, 32 % at 5 or above. The scale has no 0.5.
EDSS_PERCENT = {
    0.0: 4, 1.0: 8, 1.5: 10, 2.0: 11, 2.5: 9, 3.0: 8, 3.5: 7, 4.0: 6, 4.5: 5,
    5.0: 5, 5.5: 5, 6.0: 9, 6.5: 7, 7.0: 3, 7.5: 2, 8.0: 1,
}  # fmt: skip
EDSS_RISES_BY_VISIT_2 = 0.3  # share of people whose EDSS is a step higher two years later
SEVERITY_SCATTER = 0.06  # SD between people of equal EDSS, in units of severity


class Stream(IntEnum):
    """Independent random streams of one person."""

    PERSON = 0
    WARP = 1
    LESIONS = 2
    VESSELS = 3
    SCANNER = 4
    COHORT = 5
    TUMOUR = 6


def stream(seed: int, subject: int, what: Stream, session: int = 0) -> np.random.Generator:
    """The random generator of one person (1, 2, ...), for one purpose."""
    return np.random.default_rng([seed, subject, session, int(what)])


@dataclass(frozen=True)
class Person:
    """What does not change between sessions. Scatters are relative (0.02 = 2 % above the mean)."""

    subject: int
    group: str
    ms_type: str | None
    sex: str
    age: int
    edss: float | None
    edss_2: float | None
    sessions: int
    severity_scatter: float
    decoy_severity: float
    t1_scatter: float
    mwf_scatter: float
    ndi_scatter: float
    ventricle_scatter_mm: float
    thinning_scatter: float

    @property
    def label(self) -> str:
        return f"sub-{self.subject:04d}"


@dataclass(frozen=True)
class Visit:
    """One scan: a person at one session. `severity` (0 to about 1.2) drives the planted region."""

    person: Person
    session: int
    age: int
    edss: float | None
    severity: float

    @property
    def scan(self) -> str:
        return f"{self.person.label}_ses-{self.session}"


def severity(edss: float | None) -> float:
    """Damage of the planted region, 0 to 1: none up to EDSS 2 (no disability), full at EDSS 8; HC 0."""
    return 0.0 if edss is None else float(np.clip((edss - 2.0) / 6.0, 0.0, 1.0))


def draw_person(seed: int, subject: int) -> Person:
    """The person with this number (1, 2, ...), the same in any cohort of this seed."""
    starts = stream(seed, 0, Stream.COHORT).random(4)
    weyl = [(start + subject * math.sqrt(prime)) % 1.0 for start, prime in zip(starts, (2, 3, 5, 7), strict=True)]
    # Share of people, so that the share of scans comes out although people with MS have more of them.
    ms_share = MS_SHARE_OF_SCANS / (1 + SECOND_SESSION_SHARE * (1 - MS_SHARE_OF_SCANS))
    ms = weyl[0] < ms_share
    rng = stream(seed, subject, Stream.PERSON)
    age = _age(rng)
    sex = "F" if rng.random() < FEMALE_SHARE else "M"
    edss = _edss(weyl[1])
    progressive = rng.random() < 1 / (1 + math.exp(-(edss - 4.5) / 0.9))
    rises = rng.random() < EDSS_RISES_BY_VISIT_2
    decoy = max(0.0, severity(_edss(weyl[3])) + SEVERITY_SCATTER * rng.standard_normal())
    scatter = SEVERITY_SCATTER * rng.standard_normal()
    # A few per cent between people; diffuse damage of normal-appearing tissue in MS on top of it, unrelated
    # to EDSS. MWF of normal-appearing white matter is 16 % lower in Laule et al. 2004; ours is half of it.
    t1, mwf, ndi = rng.normal(0.0, (0.02, 0.04, 0.03))
    diffuse = np.clip(rng.normal(1.0, 0.3), 0.0, 2.0) if ms else 0.0
    return Person(
        subject=subject,
        group="MS" if ms else "HC",
        ms_type=("PMS" if progressive else "RRMS") if ms else None,
        sex=sex,
        age=age,
        edss=edss if ms else None,
        edss_2=_next_edss(edss, rises) if ms else None,
        sessions=2 if ms and weyl[2] < SECOND_SESSION_SHARE else 1,
        severity_scatter=float(scatter),
        decoy_severity=float(decoy),
        t1_scatter=float(t1 + 0.015 * diffuse),
        mwf_scatter=float(mwf - 0.08 * diffuse),
        ndi_scatter=float(ndi - 0.03 * diffuse),
        ventricle_scatter_mm=float(rng.normal(0.0, 0.4)),
        thinning_scatter=float(rng.normal(0.0, 0.03)),
    )


def draw_visits(seed: int, scans: int) -> Iterator[Visit]:
    """The first `scans` scans of the cohort, in order; the last person may lose the second session."""
    subject, made = 0, 0
    while made < scans:
        subject += 1
        person = draw_person(seed, subject)
        person = replace(person, sessions=min(person.sessions, scans - made))
        for session in range(1, person.sessions + 1):
            yield _visit(person, session)
        made += person.sessions


def _visit(person: Person, session: int) -> Visit:
    edss = person.edss if session == 1 else person.edss_2
    damage = max(0.0, severity(edss) + person.severity_scatter) if edss is not None else 0.0
    return Visit(
        person=person,
        session=session,
        age=person.age + YEARS_BETWEEN_SESSIONS * (session - 1),
        edss=edss,
        severity=damage,
    )


def _age(rng: np.random.Generator) -> int:
    while True:
        age = round(rng.normal(AGE_MEAN, AGE_SD))
        if AGE_RANGE[0] <= age <= AGE_RANGE[1]:
            return age


def _edss(quantile: float) -> float:
    """EDSS at a quantile (0 to 1) of the distribution among people with MS."""
    values = list(EDSS_PERCENT)
    index = np.searchsorted(np.cumsum(list(EDSS_PERCENT.values())), 100 * quantile, side="right")
    return values[int(index)]


def _next_edss(edss: float, rises: bool) -> float:
    values = list(EDSS_PERCENT)
    return values[min(values.index(edss) + 1, len(values) - 1)] if rises else edss
