"""Bad input of every kind, and odd input that is sound, as one BIDS dataset: `python generate.py FOLDER`.

Belongs here: writing each case by NumPy and nibabel alone, and what is expected of it. Does not belong here: the
test of it, and what spoils a dataset as a whole (`test_corpus.py`).
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (12, 14, 10)
AFFINE = np.array([[4.0, 0, 0, -24], [0, 4, 0, -30], [0, 0, 4, -18], [0, 0, 0, 1]])
GOOD = ("good1", "good2", "good3")
Write = Callable[[Path], None]
WHERE = ("read", "scans", "raw_scans", "prepared_volumes")


@dataclass(frozen=True)
class Case:
    """One person of the dataset.

    Attributes
    ----------
    name : the person's label, or a name for what is no person
    what : in words
    where : 'read', or the stage that refuses it ('scans': in that table)
    write : given the image's path, writes it, or what is there in its place
    words : what the reason says, beside the scan or file
    values, affine : what reading gives (float32 and float64), where it is read
    scan : name in the tables; `sub-<name>` where not given
    row : its line in participants.tsv after `participant_id`; None: no line
    """

    name: str
    what: str
    where: str
    write: Write
    words: tuple[str, ...] = ()
    values: np.ndarray | None = None
    affine: np.ndarray | None = None
    scan: str = ""
    row: tuple[str, ...] | None = ("2.5", "40", "")

    @property
    def key(self) -> str:
        return self.scan or f"sub-{self.name}"


def brain(seed: int = 0) -> np.ndarray:
    """A bright ellipsoid with texture on 0, int16."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    return np.where(inside, np.random.default_rng(seed).integers(300, 900, SHAPE), 0).astype(np.int16)


def nifti(data: np.ndarray, affine: np.ndarray | None = AFFINE, *, two: bool = False, **fields: Any) -> bytes:
    """The bytes of an image, with header fields as given, whatever they are; a field `pixdim3` is one element."""
    kind = nib.Nifti2Image if two else nib.Nifti1Image
    image = kind(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    if affine is not None:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    raw = image.to_bytes()
    header = kind.header_class(raw[: kind.header_class.sizeof_hdr], check=False)
    for name, value in fields.items():
        if name.rstrip("01234567") in ("dim", "pixdim"):
            header[name.rstrip("01234567")][int(name[-1])] = value
        else:
            header[name] = value
    return header.binaryblock + raw[header.sizeof_hdr :]


def packed(raw: bytes) -> bytes:
    return gzip.compress(raw, 1, mtime=0)


def put(content: bytes) -> Write:
    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def image(data: np.ndarray, affine: np.ndarray | None = AFFINE, **fields: Any) -> Write:
    return put(packed(nifti(data, affine, **fields)))


def moved(*shift: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += shift
    return affine


B = brain()
ZIP = packed(nifti(B))
SHEARED = AFFINE @ np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
MIRRORED = AFFINE @ np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def with_value(value: float) -> np.ndarray:
    data = B.astype(np.float32)
    data[3, 4, 5] = value
    return data


def scaled_to(size: float) -> np.ndarray:
    return AFFINE @ np.diag([size / 4, size / 4, size / 4, 1])


def other_sform(affine: np.ndarray, sform: int = 1, qform: int = 1) -> dict[str, Any]:
    rows = dict(zip(("srow_x", "srow_y", "srow_z"), affine[:3], strict=True))
    return rows | {"sform_code": sform, "qform_code": qform}


def refused_images() -> Iterator[Case]:
    """The header or the values are at fault: `raw_scans` says so."""

    def bad(name: str, what: str, write: Write, *words: str) -> Case:
        return Case(name, what, "raw_scans", write, words)

    yield bad("truncated", "half of a gzip", put(ZIP[: len(ZIP) // 2]), "truncated or damaged", "copy")
    yield bad("noChecksum", "a gzip without its last bytes", put(ZIP[:-4]), "truncated or damaged")
    yield bad("flippedBit", "a wrong checksum", put(ZIP[:-6] + bytes([ZIP[-6] ^ 255]) + ZIP[-5:]), "damaged")
    yield bad("garbage", "bytes behind the gzip", put(ZIP + b"garbage"), "damaged")
    yield bad("cutPlain", "an uncompressed image cut off", put(nifti(B)[:-10]), "truncated")
    yield bad("empty", "no bytes", put(b""), "truncated: 0 bytes")
    yield bad("emptyGzip", "a gzip of nothing", put(packed(b"")), "truncated: 0 bytes")
    yield bad("webPage", "an error page of a server", put(b"<html>not found</html>" * 40), "not a NIfTI")
    yield bad("wrongMagic", "another magic", image(B, magic=b"abc", sizeof_hdr=17), "not a NIfTI")
    yield bad("analyze", "Analyze 7.5", image(B, magic=b""), "Analyze 7.5", "convert")
    yield bad("onlyHeader", "the header of .hdr and .img", image(B, magic=b"ni1"), ".hdr and .img", "convert")
    yield bad("hugeDims", "32767^3 voxels claimed", image(B, dim1=32767, dim2=32767, dim3=32767), "536870912 voxels")
    yield bad("largeDims", "500 x 900 x 900 claimed", image(B, dim1=500, dim2=900, dim3=900), "truncated", "bytes")
    yield bad("zeroDim", "an axis of 0", image(B, dim2=0), "no voxels")
    yield bad("negativeDim", "an axis of -5", image(B, dim2=-5), "no voxels")
    yield bad("badOffset", "values begin in the header", image(B, vox_offset=20), "vox_offset")
    yield bad("bomb", "64 MB behind a small image", put(packed(nifti(B) + bytes(2**26))), "more than the")
    yield bad("wrongType", "int16 called uint8", image(B, datatype=2, bitpix=8), "more than the", "header says")
    yield bad("twoAxes", "a slice", image(B[:, :, 0]), "2 axes", "3D image is needed")
    yield bad("series", "a time series", image(np.stack([B, B], axis=-1)), "4 axes", "choose one volume")
    yield bad("vectors", "a warp field", image(np.stack([B] * 3, -1)[..., None, :]), "5 axes", "3D image is needed")
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    yield bad("colours", "RGB", image(colours), "RGB24", "real numbers")
    yield bad("complexValues", "complex numbers", image(B.astype(np.complex64)), "COMPLEX64", "real numbers")
    yield bad("bits", "one bit per voxel", image(B, datatype=1, bitpix=1), "type 1", "real numbers")
    yield bad("unknownType", "a type that the standard has not", image(B, datatype=77), "type 77", "real numbers")
    yield bad("overflow", "scaling beyond float32", image(B, scl_slope=3e38), "NaN or infinite")
    yield bad("infiniteSlope", "an infinite slope", image(B, scl_slope=np.inf), "slope")
    yield bad("nanIntercept", "a NaN intercept", image(B, scl_slope=2, scl_inter=np.nan), "intercept nan")
    yield bad("notANumber", "one NaN", image(with_value(np.nan)), "1 voxels are NaN")
    yield bad("infinite", "one infinite value", image(with_value(-np.inf)), "1 voxels are NaN or infinite")
    yield bad("constant", "all voxels equal", image(np.full(SHAPE, 5, np.int16)), "all voxels are 5")
    yield bad("apart", "sform and qform of one code 3 mm apart", image(B, **other_sform(moved(0, 3, 0))), "3 mm apart")
    yield bad("mirroredForms", "sform and qform that differ in left and right", image(B, **other_sform(MIRRORED)),
              "code 1", "apart")  # fmt: skip
    yield bad("sheared", "axes that are no right angles", image(B, **other_sform(SHEARED, 2)), "sheared", "resample")
    yield bad("singular", "zero determinant", image(B, srow_z=[0, 0, 0, 0]), "singular")
    yield bad("nanAffine", "NaN in the affine", image(B, srow_y=[0, np.nan, 0, 0]), "affine", "NaN")
    yield bad("nowhere", "neither sform nor qform", image(B, None), "no orientation")
    yield bad("unknownCode", "an sform of code 99", image(B, sform_code=99), "codes [99, 1]", "correct the header")
    yield bad("negativeSize", "a negative voxel size", image(B, pixdim2=-4), "must be positive")
    yield bad("zeroSize", "a voxel size of 0", image(B, pixdim3=0), "must be positive")
    yield bad("micrometres", "the unit is µm", image(B, xyzt_units=3), "micrometre", "convert")
    yield bad("metres", "the unit is m", image(B, xyzt_units=1), "metre", "convert")
    yield bad("tinyVoxels", "0.001 mm", image(B, scaled_to(0.001)), "0.001", "unit")
    yield bad("hugeVoxels", "1000 mm", image(B, scaled_to(1000)), "1000", "unit")
    yield bad("twoSizes", "pixdim and affine differ", image(B, pixdim1=1, qform_code=0), "pixdim")
    yield Case("darkness", "nothing above 0", "prepared_volumes", image(-B - 1), ("no voxel is > 0",))


def odd_images() -> Iterator[Case]:
    """Sound by the standard: read, with exactly these values."""

    def good(name: str, what: str, write: Write, values: np.ndarray = B, affine: np.ndarray = AFFINE) -> Case:
        return Case(name, what, "read", write, (), values.astype(np.float32), affine)

    yield good("oneVolume", "4D with one volume", image(B[..., None, None]))
    yield good("slopeZero", "slope 0: no scaling", image(B, scl_slope=0, scl_inter=7))
    yield good("slopeNan", "slope NaN: no scaling", image(B, scl_slope=np.nan, scl_inter=np.nan))
    yield good("scaling", "0.5 x + 3", image(B, scl_slope=0.5, scl_inter=3), B * 0.5 + 3)
    yield good("doubles", "float64", image(B * np.float64(0.1)), B * np.float64(0.1))
    yield good("wholeNumbers", "int64", image(B.astype(np.int64)))
    yield good("nifti2", "NIfTI-2", image(B, two=True))
    swapped = nib.Nifti1Image(B, AFFINE, nib.Nifti1Header(endianness=">"))
    yield good("bigEndian", "the other order of bytes", put(packed(swapped.to_bytes())))
    extended = nib.Nifti1Image(B, AFFINE)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made by hand" * 50))
    yield good("extended", "a header extension", put(packed(extended.to_bytes())))
    yield good("plainAsGzip", ".nii called .nii.gz", put(nifti(B)))
    yield good("gzipAsPlain", ".nii.gz called .nii", lambda path: put(ZIP)(path.with_suffix("")))
    yield good("plain", ".nii", lambda path: put(nifti(B))(path.with_suffix("")))
    half = len(nifti(B)) // 2
    yield good("twoParts", "a gzip of two members", put(packed(nifti(B)[:half]) + packed(nifti(B)[half:])))
    yield good("zeroPadded", "a gzip padded with zeros, as tapes do", put(ZIP + bytes(512)))
    aligned = moved(0, 9, 0)
    yield good("aligned", "sform aligned, qform of the scanner: the sform", image(B, **other_sform(aligned, 2)),
               affine=aligned)  # fmt: skip
    yield good("rounded", "sform and qform 0.2 mm apart: rounding", image(B, **other_sform(moved(0.2, 0, 0))),
               affine=moved(0.2, 0, 0))  # fmt: skip
    yield good("onlyQform", "no sform", image(B, sform_code=0, srow_x=[0, 0, 0, 0]))
    yield good("leftward", "LAS", image(B[::-1].copy(), MIRRORED), B[::-1], MIRRORED)
    psr = np.array([[0, 0, 4.0, -24], [-4, 0, 0, 22], [0, -4, 0, 18], [0, 0, 0, 1]])
    turned = B.transpose(1, 2, 0)[::-1, ::-1]
    yield good("sagittal", "axes to posterior, inferior, right", image(turned.copy(), psr), turned, psr)


def annexed(path: Path) -> None:
    """As git-annex has it: the content below the dataset's .git."""
    content = path.parents[2] / ".git" / "annex" / "objects" / "key"
    put(ZIP)(content)
    path.parent.mkdir(parents=True)
    path.symlink_to(os.path.relpath(content, path.parent))


def outside(path: Path) -> None:
    """A person's folder is a link to another disk."""
    place = path.parents[3] / "elsewhere" / path.parents[1].name
    put(ZIP)(place / "anat" / path.name)
    path.parents[1].symlink_to(place)


def loops(path: Path) -> None:
    """Links to the folder itself, to the one above, and to the whole disk."""
    put(ZIP)(path)
    for name, target in {"self": ".", "up": "../..", "disk": "/", "twice": "twice"}.items():
        (path.parent / name).symlink_to(target)
        (path.parents[1] / name).symlink_to(target)


def link_to(target: str) -> Write:
    def write(path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.symlink_to(target)

    return write


def beside(name: str) -> Write:
    """The image under another name, relative to the dataset."""
    return lambda path: put(ZIP)(path.parents[2] / name)


def twice(path: Path) -> None:
    """Compressed and not."""
    put(ZIP)(path)
    put(nifti(B))(path.with_suffix(""))


def pipe(path: Path) -> None:
    path.parent.mkdir(parents=True)
    os.mkfifo(path)


def visits(path: Path) -> None:
    put(ZIP)(path)
    os.mkfifo(path.parents[1] / f"{path.parents[1].name}_sessions.tsv")


def sidecar(content: bytes | None) -> Write:
    def write(path: Path) -> None:
        put(ZIP)(path)
        json = path.with_name(path.name.replace(".nii.gz", ".json"))
        os.mkfifo(json) if content is None else json.write_bytes(content)

    return write


def files() -> Iterator[Case]:
    """What a file is, and where a link leads."""

    def read(name: str, what: str, write: Write) -> Case:
        return Case(name, what, "read", write, (), B.astype(np.float32), AFFINE)

    yield read("annex", "a link into .git/annex", annexed)
    yield read("elsewhere", "a person's folder on another disk", outside)
    yield read("M" * 136, "the longest label", put(ZIP))
    yield read("loops", "links back to folders above, and to the disk", loops)
    yield Case("notFetched", "a link without content", "raw_scans", link_to("../../.git/none"), ("fetch its content",))
    yield Case("circle", "a link to itself", "raw_scans", link_to("sub-circle_T1w.nii.gz"), ("back to itself",))
    yield Case("borrowed", "a link to another's image", "scans",
               link_to("../../sub-good1/anat/sub-good1_T1w.nii.gz"), ("another person",))  # fmt: skip
    yield Case("folder", "a folder called like an image", "raw_scans",
               lambda path: put(ZIP)(path / path.name), ("is a folder",))  # fmt: skip
    yield Case("pipe", "a FIFO", "raw_scans", pipe, ("is a pipe", "replace"))
    yield Case("unreadable", "no permission", "raw_scans", put(ZIP), ("may not be read", "right"))
    yield Case("locked", "a folder without permission", "scans", put(ZIP), ("may not be read",), scan="sub-locked/")


def names() -> Iterator[Case]:
    """Names that are no names, and files in the wrong place; none of them may become a path."""

    def bad(name: str, what: str, file: str, words: str, scan: str = "", row: Any = ("2.5", "40", "")) -> Case:
        return Case(name, what, "scans", beside(file), (words,), scan=scan or f"{file.split('/')[0]}/", row=row)

    letters = "letters and digits"
    yield bad("a b", "a space in a label", "sub-a b/anat/sub-a b_T1w.nii.gz", letters)
    yield bad("a_old", "an underscore", "sub-a_old/anat/sub-a_old_T1w.nii.gz", letters)
    yield bad("Übung", "a letter beyond ASCII", "sub-Übung/anat/sub-Übung_T1w.nii.gz", letters)
    yield bad("a\nb", "a line break", "sub-a\nb/anat/sub-a\nb_T1w.nii.gz", letters, r"sub-a\nb/", None)
    latin = os.fsdecode(b"sub-M\xfcller")
    yield bad(
        "latin", "a name that is not UTF-8", f"{latin}/anat/{latin}_T1w.nii.gz", letters, r"sub-M\udcfcller/", None
    )
    yield bad("L" * 180, "a label of 180 letters", f"sub-{'L' * 180}/anat/sub-{'L' * 180}_T1w.nii.gz", letters)
    yield bad("lost", "a file in another's folder", "sub-lost/anat/sub-other_T1w.nii.gz", "named sub-other but lies in",
              "sub-lost/anat/sub-other_T1w.nii.gz")  # fmt: skip
    yield bad("visit", "a file in another session", "sub-visit/ses-1/anat/sub-visit_ses-2_T1w.nii.gz", "lies in ses-1",
              "sub-visit/ses-1/anat/sub-visit_ses-2_T1w.nii.gz")  # fmt: skip
    yield bad("loose", "an image in the dataset's root", "sub-loose_T1w.nii.gz", "outside a person's folder",
              "sub-loose_T1w.nii.gz/", None)  # fmt: skip
    yield bad("spaced", "a space in place of a suffix", "sub-spaced/anat/sub-spaced T1w.nii.gz", "not named by BIDS",
              "sub-spaced/anat/sub-spaced T1w.nii.gz")  # fmt: skip
    yield bad("shouted", "capitals", "sub-shouted/anat/sub-shouted_T1w.NII.GZ", "not named by BIDS",
              "sub-shouted/anat/sub-shouted_T1w.NII.GZ")  # fmt: skip
    for one, two in (("case", "CASE"), ("CASE", "case")):
        yield Case(one, "differs from another by case only", "scans", put(ZIP), (f"sub-{two}", "case only"))
    yield Case("doubled", "one contrast twice", "scans", twice, ("is doubled", "sub-doubled_T1w.nii,"))
    yield Case("flairOnly", "another contrast", "scans", beside("sub-flairOnly/anat/sub-flairOnly_FLAIR.nii.gz"),
               ("T1w (T1w) is missing", "FLAIR"))  # fmt: skip


def sidecars_and_rows() -> Iterator[Case]:
    """JSON beside an image, and a person's line in participants.tsv."""

    def json(name: str, what: str, content: bytes | None, *words: str) -> Case:
        return Case(name, what, "scans", sidecar(content), words)

    def row(name: str, what: str, cells: tuple[str, ...] | None, *words: str, write: Write | None = None) -> Case:
        return Case(name, what, "scans" if words else "read", write or put(ZIP), words, B.astype(np.float32), AFFINE,
                    row=cells)  # fmt: skip

    yield json("brokenJson", "JSON cut off", b'{"Units": "a', "_T1w.json", "correct or remove")
    yield json("listJson", "JSON that is a list", b"[1, 2]", "_T1w.json", "must be a JSON object")
    yield json("nanJson", "NaN, which JSON has not", b'{"EchoTime": NaN}', "NaN is not JSON")
    yield json("deepJson", "100,000 brackets", b"[" * 100_000, "_T1w.json", "correct or remove")
    yield json("latinJson", "JSON that is not UTF-8", b'{"Name": "M\xfcller"}', "_T1w.json", "utf-8")
    yield json("unitsJson", "a unit that is a number", b'{"Units": 3}', "Units is 3")
    yield json("hugeJson", "64 MiB of JSON", b"{}" + b" " * 2**26, "_T1w.json", "more than")
    yield json("pipeJson", "a FIFO", None, "_T1w.json", "no file")
    content = '\ufeff{"Units": "µm²/ms", "Name": "Zoë"}'.encode()
    yield Case("unicodeJson", "a byte order mark and Greek", "read", sidecar(content), (), B.astype(np.float32), AFFINE)
    yield row("unicodeRow", "values beyond ASCII", ("2.5", "40", "Zürich\u2028 5'10\""))
    yield row("quoted", "cells in quotation marks", ('"2.5"', "40", '"a ""b"""'))
    yield row("noAge", "n/a where nothing is needed", ("2.5", "n/a", ""))
    yield row("noTarget", "n/a in the target", ("n/a", "40", ""), "edss (target) is n/a")
    yield row("comma", "a comma in a number", ("2,5", "40", ""), "'2,5', not a number", "point")
    yield row("words", "a word for a number", ("six", "40", ""), "'six', not a number")
    yield row("rounded89", "an age of 89+", ("2.5", "89+", ""), "'89+', not a number")
    yield row("short", "a row without its last cells", ("2.5",), "line", "cells")
    yield row("noRow", "an image without a row", None, "no row in participants.tsv", "add it")
    yield Case("noImage", "a row without an image", "scans", lambda path: None, ("no image",), scan="sub-noImage/")
    yield row("visits", "a pipe in place of sessions.tsv", ("2.5", "40", ""), "_sessions.tsv", "no file", write=visits)
    yield row("twice", "listed twice", ("2.5", "40", "\nsub-twice\t3\t41\t"), "listed 2 times")
    yield Case("../../etc", "a path for a label", "scans", lambda path: None, ("not sub-<label>",))


def cases() -> list[Case]:
    return [*refused_images(), *odd_images(), *files(), *names(), *sidecars_and_rows()]


def write_dataset(root: Path, chosen: list[Case]) -> None:
    """The good scans and these cases; participants.tsv with a byte order mark and the line ends of Windows."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "corpus", "BIDSVersion": "1.10.0"}')
    lines = ["participant_id\tedss\tage\tsite"]
    for seed, name in enumerate(GOOD, start=1):
        image(brain(seed))(root / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz")
        lines.append(f"sub-{name}\t{seed}\t3{seed}\tBasel")
    for case in chosen:
        case.write(root / f"sub-{case.name}" / "anat" / f"sub-{case.name}_T1w.nii.gz")
        if case.row is not None:
            lines += "\t".join((f"sub-{case.name}", *case.row)).split("\n")
    (root / "participants.tsv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")


if __name__ == "__main__":
    write_dataset(Path(sys.argv[1]), cases())
    for case in cases():
        print(f"{case.key[:40]:40} {case.where:16} {case.what}")
