"""From tissue to image values: tissue constants, what damage does to them, sequences, bias and noise.

Belongs here: every physical constant, with its source, and the equations that use it. Does not belong
here: where tissue, lesions and regions are.

"Typical, after X" means: a rounded value of the size that X reports, not a number copied from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "FLUID", "LESION", "PLANTED", "TISSUES", "Contents", "Properties", "Tissue", "add_rician_noise", "flair", "mix",
    "reference_noise", "t1w",
]  # fmt: skip


@dataclass(frozen=True)
class Tissue:
    """One tissue at 3 T."""

    t1_ms: float
    t2_ms: float
    proton_density: float  # relative to fluid
    mwf: float
    ndi: float


# T1: white matter 838 ± 50, cortex 1607 ± 112, putamen 1332 ± 68 ms (MPRAGE at 3 T, Wright et al. 2008,
# MAGMA 21:121). T2: typical, after Wansapura et al. 1999, JMRI 9:531. Proton density: typical.
# MWF: typical, after MacKay and Laule 2016, Brain Plasticity 2:71. NDI: typical, after Zhang et al. 2012,
# NeuroImage 61:1000.
TISSUES = {
    "white": Tissue(838.0, 75.0, 0.70, 0.120, 0.60),
    "grey": Tissue(1607.0, 100.0, 0.82, 0.030, 0.38),
    "deep_grey": Tissue(1332.0, 80.0, 0.80, 0.045, 0.45),
}
FLUID = Tissue(4200.0, 1500.0, 1.00, 0.002, 0.02)

# A focal lesion against normal white matter. MWF of lesions is 52 % of that of normal-appearing white
# matter (Laule et al. 2004, J Neurol 251:284). T1, T2 and NDI: typical, after Vrenken et al. 2006 (T1) and
# Schneider et al. 2017, J Neuroimaging 27 (NDI).
LESION = Tissue(838.0 * 1.5, 150.0, 0.80, 0.120 * 0.52, 0.60 * 0.62)

#: Largest relative change in the planted region (severity 1, effect 1: EDSS 8). Between the change of
#: normal-appearing white matter (MWF -16 % in Laule et al. 2004, -37 % in Faizy et al. 2016, PLoS One 11)
#: and that of lesions (above): a tract with both, and its degeneration. Chosen before any network was trained.
PLANTED = {"t1": 0.25, "mwf": -0.35, "ndi": -0.25}

# Sequences: MPRAGE and FLAIR as ideal inversion recovery (ms).
MPRAGE_TR, MPRAGE_TI = 2300.0, 1100.0
FLAIR_TR, FLAIR_TI, FLAIR_TE = 9000.0, 2500.0, 110.0
SCANNER_UNITS = {"T1w": 2200.0, "FLAIR": 3500.0}
SNR = {"T1w": 40.0, "FLAIR": 30.0}  # of white matter, whatever the voxel size
BIAS_SD = 0.10  # of the logarithm of the field at its control points

# Noise on the fitted value, normal: relative for T1, absolute for the fractions. And a smooth error
# (relative) such as an imperfect transmit field leaves in the maps.
FIT_NOISE = {"T1map": 0.03, "MWFmap": 0.015, "dwimap": 0.025}
FIT_SMOOTH_ERROR = {"T1map": 0.015, "MWFmap": 0.04, "dwimap": 0.015}


@dataclass
class Contents:
    """What each of n points holds, as fractions (0 to 1), (n,) each; `damage` is severity times effect."""

    white: np.ndarray
    grey: np.ndarray
    deep_grey: np.ndarray
    fluid: np.ndarray
    lesion: np.ndarray
    vessel: np.ndarray
    damage: np.ndarray


@dataclass
class Properties:
    """What n points look like, (n,) each; rates in 1/ms.

    Rates and proton density are those of the tissue alone; `solid` is the share that is tissue, the rest is
    fluid. `mean_r1`, `mwf` and `ndi` are of tissue and fluid together.
    """

    r1: np.ndarray
    r2: np.ndarray
    proton_density: np.ndarray
    solid: np.ndarray
    mean_r1: np.ndarray
    mwf: np.ndarray
    ndi: np.ndarray


def mix(contents: Contents, t1_scale: float, mwf_scale: float, ndi_scale: float) -> Properties:
    """Properties of a mixture: within tissue, rates and fractions average by volume.

    Parameters
    ----------
    contents : Contents
        `damage` is severity x effect at the point (0 where nothing is planted).
    t1_scale, mwf_scale, ndi_scale : float
        The person's tissue against the mean (1 = the mean); fluid is the same in everybody.
    """
    tissue = {name: getattr(contents, name) for name in TISSUES}
    amount = np.maximum(sum(tissue.values()), 1e-6)

    def mean(attribute: str, rate: bool) -> np.ndarray:
        values = {name: getattr(kind, attribute) for name, kind in TISSUES.items()}
        total = sum(tissue[name] * (1 / v if rate else v) for name, v in values.items()) / amount
        lesion = 1 / getattr(LESION, attribute) if rate else getattr(LESION, attribute)
        return total + contents.lesion * (lesion - total)

    damage = {name: np.clip(1 + change * contents.damage, 0.1, 4.0) for name, change in PLANTED.items()}
    r1 = mean("t1_ms", True) / (t1_scale * damage["t1"])
    r2, density = mean("t2_ms", True), mean("proton_density", False)
    mwf = mean("mwf", False) * mwf_scale * damage["mwf"]
    ndi = mean("ndi", False) * ndi_scale * damage["ndi"]
    solid = amount / np.maximum(amount + contents.fluid, 1e-6) * (1 - contents.vessel)

    def with_fluid(inside: np.ndarray, fluid: float) -> np.ndarray:
        return solid * inside + (1 - solid) * fluid

    return Properties(
        r1=r1,
        r2=r2,
        proton_density=density,
        solid=solid,
        mean_r1=with_fluid(r1, 1 / FLUID.t1_ms),
        mwf=with_fluid(mwf, FLUID.mwf),
        ndi=with_fluid(ndi, FLUID.ndi),
    )


def t1w(at: Properties) -> np.ndarray:
    """Magnitude of an ideal MPRAGE, before bias and noise, (n,); the signals of tissue and fluid add."""
    tissue = at.proton_density * _recovered(at.r1, MPRAGE_TR, MPRAGE_TI)
    fluid = FLUID.proton_density * _recovered(1 / FLUID.t1_ms, MPRAGE_TR, MPRAGE_TI)
    return SCANNER_UNITS["T1w"] * np.abs(at.solid * tissue + (1 - at.solid) * fluid)


def flair(at: Properties) -> np.ndarray:
    """Magnitude of an ideal FLAIR, before bias and noise, (n,); the signals of tissue and fluid add."""
    tissue = at.proton_density * _recovered(at.r1, FLAIR_TR, FLAIR_TI) * np.exp(-FLAIR_TE * at.r2)
    fluid = FLUID.proton_density * _recovered(1 / FLUID.t1_ms, FLAIR_TR, FLAIR_TI)
    fluid *= np.exp(-FLAIR_TE / FLUID.t2_ms)
    return SCANNER_UNITS["FLAIR"] * np.abs(at.solid * tissue + (1 - at.solid) * fluid)


def _recovered(r1: np.ndarray | float, tr_ms: float, ti_ms: float) -> np.ndarray:
    """Longitudinal magnetisation (-1 to 1) at the inversion time of a repeated inversion recovery."""
    return 1 - 2 * np.exp(-ti_ms * r1) + np.exp(-tr_ms * r1)


def reference_noise(contrast: str) -> float:
    """Noise (in image units) at the contrast's SNR in the mean person's white matter."""
    one, none = np.ones(1), np.zeros(1)
    white = mix(Contents(one, none, none, none, none, none, none), 1.0, 1.0, 1.0)
    return float((t1w if contrast == "T1w" else flair)(white)[0]) / SNR[contrast]


def add_rician_noise(image: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of the image with normal noise in both channels (Gudbjartsson and Patz 1995, MRM 34:910)."""
    real = image + sd * rng.standard_normal(image.shape)
    return np.hypot(real, sd * rng.standard_normal(image.shape))
