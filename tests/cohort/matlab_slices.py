"""A slice as the published brain tumour set has it (figshare 1512427): one MATLAB 7.3 file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

USERBLOCK = 512  # MATLAB writes its own header before the HDF5 file


def write_mat(path: Path, picture: np.ndarray, mask: np.ndarray, label: float = 1, pid: str | None = "100360") -> None:
    """Write a picture and a mask that are given row by row, from the top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=USERBLOCK) as file:
        data = file.create_group("cjdata")
        data.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, values, kind in (
            ("image", np.asarray(picture).T, "int16"),  # MATLAB keeps columns together, HDF5 rows
            ("tumorMask", np.asarray(mask, dtype=np.uint8).T, "logical"),
            ("label", np.array([[label]], dtype=np.float64), "double"),
            ("tumorBorder", np.array([[1.0], [2.0], [1.0], [3.0]]), "double"),
            ("PID", None if pid is None else np.array([[ord(c)] for c in pid], dtype=np.uint16), "char"),
        ):
            if values is not None:
                data.create_dataset(name, data=values).attrs["MATLAB_class"] = np.bytes_(kind)
    header = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Mon Jan 02 2017 HDF5 schema 1.00 ."
    with path.open("r+b") as raw:
        raw.write(header.ljust(124) + b"\x00\x02IM")
