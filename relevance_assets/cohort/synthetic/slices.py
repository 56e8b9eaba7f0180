"""Synthetic slices with planted brain tumours: a plain folder with `index.csv`, pictures and masks.

Belongs here: slices through people of the synthetic cohort with a tumour each, a simple head around the brain, and the
folder. Does not belong here: tumours (`tumours.py`), reading a folder of slices (`relevance_assets.cohort.slices`).

Order of writing: settings first, then slice by slice, its mask before its picture; index.csv last.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from relevance_assets.cohort.synthetic import signal
from relevance_assets.cohort.synthetic.cohort import SyntheticCohortError
from relevance_assets.cohort.synthetic.people import Stream, Visit, draw_person, stream
from relevance_assets.cohort.synthetic.scan import CENTRE_MM
from relevance_assets.cohort.synthetic.template import CHANNELS, Template, load_template, sample
from relevance_assets.cohort.synthetic.tumours import KINDS, Tumour, brightness, depth, draw_tumour
from relevance_assets.cohort.synthetic.warp import Warp, draw_warp, to_template
from relevance_assets.files import atomic_path, write_json

__all__ = ["PER_PATIENT", "make_slice", "synthesise_slices"]

VERSION = "2"  # raise it when the same seed gives other bytes
PER_PATIENT = 3  # one in each plane
SETTINGS = "synthetic_slices.json"
FIELD_OF_VIEW_MM = 220.0
TEMPLATE_MM = 2
FINE_MM = 1.5  # pixels larger than this are means of 2 x 2 points
SMALLEST, LARGEST = 48, 1024  # pixels; below, a pituitary tumour may fall between two of them
#: In-plane axes, to the right and downwards in the picture, of planes as radiologists look at them (RAS mm).
PLANES = {
    "axial": ((-1, 0, 0), (0, -1, 0)),
    "coronal": ((-1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, -1, 0), (0, 0, -1)),
}
OFFSET = 0.45  # of the radius, at most, from the tumour's middle
# The head around the brain: layers by distance in mm from the smooth outline, brightness in white matter's.
CLOSING_MM = 20.0
SKULL_MM, SCALP_MM = (2.0, 6.5), (6.5, 12.0)
BETWEEN, SKULL, SCALP = 0.35, 0.12, 1.35
WHITE_GREY_VALUE = 100.0  # of 255


def synthesise_slices(folder: Path, *, slices: int, size: int, seed: int) -> None:
    """Write `slices` pictures of `size` x `size` pixels with their tumour masks and `index.csv`.

    Patients have six slices each: two axial, two coronal, two sagittal; kinds of tumour take turns. A slice depends on
    the seed, the size and its number only. A folder with the same settings is continued, also to more slices; one
    that is complete is left alone.

    Parameters
    ----------
    folder : Path
        Made when missing: index.csv (slice_id, class, image, mask, patient), images/<n>.png (8 bit), masks/<n>.png
        (1 bit).
    slices : int
        1 or more.
    size : int
        48 to 1024.
    seed : int
        0 or larger.

    Raises
    ------
    SyntheticCohortError
        A ValueError: a setting is out of range, or the folder holds something else.
    """
    _check(folder, slices, size, seed)
    rows = [_row(number) for number in range(1, slices + 1)]
    missing = [number for number, row in enumerate(rows, 1) if not (folder / row[2]).is_file()]
    content = "".join(
        ",".join(map(str, row)) + "\n" for row in [("slice_id", "class", "image", "mask", "patient"), *rows]
    )
    index = folder / "index.csv"
    if not missing and index.exists() and index.read_text() == content:
        return
    write_json(folder / SETTINGS, _settings(slices, size, seed))
    index.unlink(missing_ok=True)
    for number in missing:
        picture, mask = make_slice(number, size=size, seed=seed)
        for name, values in (
            (rows[number - 1][3], Image.fromarray(mask)),
            (rows[number - 1][2], Image.fromarray(picture)),
        ):
            with atomic_path(folder / name) as temporary:
                values.save(temporary)
    with atomic_path(index) as temporary:
        temporary.write_text(content)


def make_slice(number: int, *, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture (size, size) uint8 and tumour mask (size, size) bool of slice `number` (1, 2, ...); rows from the top."""
    subject, place = _patient(number), (number - 1) % PER_PATIENT
    template = load_template(TEMPLATE_MM)
    warp, tumour, middle_mm = _patient_anatomy(seed, subject)
    rng = stream(seed, subject, Stream.SCANNER, session=place + 1)
    right, down = np.array(list(PLANES.values())[place])
    through = np.cross(right, down)
    offset = rng.uniform(-OFFSET, OFFSET) * float(np.abs(through) @ tumour.semi_axes_mm)
    factor = 2 if FIELD_OF_VIEW_MM / size > FINE_MM else 1
    pixel_mm = FIELD_OF_VIEW_MM / (size * factor)
    along = (np.arange(size * factor) - (size * factor - 1) / 2) * pixel_mm
    centre = np.array(CENTRE_MM) + through * ((middle_mm - CENTRE_MM) @ through + offset)
    points = centre + along[:, None, None] * down + along[None, :, None] * right
    values, inside = _paint(template, warp, tumour, points.reshape(-1, 3), along.size, pixel_mm)
    values, inside = (_mean_of(part, factor) for part in (values, inside))
    gain, slope = rng.uniform(0.85, 1.15), rng.normal(0.0, 0.08, 2)
    u = np.linspace(-1, 1, size)
    values = values * gain * np.exp(slope[0] * u[:, None] + slope[1] * u[None, :])
    noisy = signal.add_rician_noise(values, 1 / signal.SNR["T1w"], rng)
    return np.rint(np.clip(noisy * WHITE_GREY_VALUE, 0, 255)).astype(np.uint8), inside >= 0.5


@lru_cache(maxsize=2)
def _patient_anatomy(seed: int, subject: int) -> tuple[Warp, Tumour, np.ndarray]:
    """A patient's warp and tumour, and the tumour's middle in the patient's mm (3,)."""
    template = load_template(TEMPLATE_MM)
    person = draw_person(seed, subject)
    warp = draw_warp(template, seed, Visit(person, 1, person.age, None, 0.0))
    tumour = draw_tumour(template, stream(seed, subject, Stream.TUMOUR), KINDS[(subject - 1) % len(KINDS)])
    straight = tumour.centre_mm
    for _ in range(20):  # the warp is given from the patient to the template; its displacement contracts
        straight = tumour.centre_mm - sample(warp.grid, straight[None], warp.displacement)[0][0]
    return warp, tumour, (np.linalg.inv(warp.inverse) @ [*straight, 1.0])[:3]


def _paint(
    template: Template, warp: Warp, tumour: Tumour, points: np.ndarray, size: int, pixel_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness (size, size) in white matter's, without noise, and share of tumour, at points in the patient's mm."""
    there = to_template(warp, points)
    at = dict(zip(CHANNELS, sample(template.grid, there, template.table)[0].T, strict=True))
    brain = at["brain"]
    none = np.zeros(len(points), dtype=np.float32)
    fluid = np.maximum(brain - at["white"] - at["grey"] - at["deep_grey"], 0.0)
    contents = signal.Contents(at["white"], at["grey"], at["deep_grey"], fluid, none, none, none)
    white = signal.reference_noise("T1w") * signal.SNR["T1w"]
    tissue = signal.t1w(signal.mix(contents, 1.0, 1.0, 1.0)) / white
    radius = depth(tumour, there)
    skull_ends_at = brain >= 0.5
    if tumour.kind == "pituitary":
        skull_ends_at |= radius <= 1  # the sella is a hollow in the bone
    outside, outline = _head(skull_ends_at.reshape(size, size), pixel_mm)
    around = brain * tissue + (1 - brain) * outside.ravel()
    # Gliomas stay in the brain, and no tumour grows through the skull.
    room = brain if tumour.kind == "glioma" else np.clip(SKULL_MM[0] - outline.ravel(), 0.0, 1.0)
    painted = brightness(tumour, there, radius, around)
    values = around + room * (painted - around)
    share = room * (radius <= 1.0)
    return values.reshape(size, size), share.reshape(size, size)


def _head(brain: np.ndarray, pixel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """What is around a brain (n, n): brightness, and the distance in mm from its smooth outline, negative within."""
    if not brain.any():
        return np.zeros(brain.shape), np.full(brain.shape, np.inf)
    margin = int(CLOSING_MM / pixel_mm) + 2  # the closing must not stick to the picture's border
    near = ndimage.distance_transform_edt(np.pad(~brain, margin, constant_values=True), sampling=pixel_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(near, sampling=pixel_mm) > CLOSING_MM
    hull = closed[margin:-margin, margin:-margin] | brain
    distance = ndimage.distance_transform_edt(~hull, sampling=pixel_mm)
    distance -= ndimage.distance_transform_edt(hull, sampling=pixel_mm)
    values = np.select(
        [distance < SKULL_MM[0], distance < SKULL_MM[1], distance < SCALP_MM[1]], [BETWEEN, SKULL, SCALP]
    )
    return values, distance


def _mean_of(values: np.ndarray, factor: int) -> np.ndarray:
    size = len(values) // factor
    return values.reshape(size, factor, size, factor).mean(axis=(1, 3))


def _patient(number: int) -> int:
    return 1 + (number - 1) // PER_PATIENT


def _row(number: int) -> tuple[int, str, str, str, str]:
    subject = _patient(number)
    kind = KINDS[(subject - 1) % len(KINDS)]
    return number, kind, f"images/{number}.png", f"masks/{number}.png", f"P{subject:04d}"


def _settings(slices: int, size: int, seed: int) -> dict[str, Any]:
    return {
        "description": "Synthetic slices with planted tumours, made by relevance-assets. Nobody on them exists.",
        "slices": slices,
        "size": size,
        "seed": seed,
        "version": VERSION,
    }


def _check(folder: Path, slices: int, size: int, seed: int) -> None:
    if slices < 1:
        raise SyntheticCohortError(f"slices is {slices}: ask for at least 1")
    if not SMALLEST <= size <= LARGEST:
        raise SyntheticCohortError(f"size is {size}: choose from {SMALLEST} to {LARGEST} pixels")
    if seed < 0:
        raise SyntheticCohortError(f"seed is {seed}: choose 0 or larger")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        before = json.loads((folder / SETTINGS).read_text())
        same = {key: before[key] for key in ("size", "seed", "version")} == {
            "size": size,
            "seed": seed,
            "version": VERSION,
        }
        more = int(before["slices"]) > slices
    except (OSError, ValueError, LookupError, TypeError):
        raise SyntheticCohortError(
            f"{folder} is not empty and holds no synthetic slices: choose another folder"
        ) from None
    if not same or more:
        what = "more slices than asked for" if same else "slices of another size, seed or version"
        raise SyntheticCohortError(f"{folder} holds {what}: choose another folder, or delete this one")
