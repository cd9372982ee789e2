"""The text headers of NRRD and MetaImage: what SimpleITK would invent or not check is looked at here.

SimpleITK takes a missing spacing for 1 mm, a NRRD of an unknown space for LPS, and hands out the voxels of a damaged
compressed block. So the header has to state a space and a spacing, and compressed blocks are read to their checksum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medvol.errors import MedvolError
from medvol.io.inflate import GZIP, ZLIB, inflate

_HEADER_LIMIT = 1 << 20
_PATIENT_SPACES = (
    "left-posterior-superior",
    "lps",
    "right-anterior-superior",
    "ras",
    "left-anterior-superior",
    "las",
)


@dataclass(frozen=True)
class TextHeader:
    """A NRRD or MetaImage header.

    Args:
        kind: `NRRD` or `MetaImage`.
        fields: Lower-case name to value.
        data_path: File that holds the voxels, the header's own file included.
        data_offset: First byte of the voxels in it.
    """

    kind: str
    fields: dict[str, str]
    data_path: Path
    data_offset: int


def read_text_header(path: Path) -> TextHeader:
    """Parse the header of a .nrrd, .nhdr, .mha or .mhd file.

    Raises:
        MedvolError: `NOT_NRRD`, `NOT_METAIMAGE`, `BAD_HEADER` or `NOT_FOUND` for a missing voxel file.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEADER_LIMIT)
    is_nrrd = head.startswith(b"NRRD") or (path.suffix.lower() in (".nrrd", ".nhdr") and b"NDims" not in head[:4096])
    return _nrrd(head, path) if is_nrrd else _meta(head, path)


def data_files(path: Path) -> tuple[Path, ...]:
    """Return the header and, where the voxels lie elsewhere, their file, sorted."""
    return tuple(sorted({path, read_text_header(path).data_path}))


def problem_of_geometry(header: TextHeader) -> str:
    """Return what the header lacks to place voxels in the patient, or an empty string."""
    fields = header.fields
    if header.kind == "MetaImage":
        return "" if "elementspacing" in fields else "no ElementSpacing"
    if fields.get("space", "").lower() not in _PATIENT_SPACES:
        return f"space '{fields['space'][:40]}'" if "space" in fields else "no space"
    if "space directions" not in fields:
        return "no space directions"
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    return "" if units <= {"mm", "", "none"} else f"space units {sorted(units)}"


def check_payload(header: TextHeader, count: int) -> None:
    """Check that all voxels are there: a raw block by its size, a gzip or zlib block by reading it to its checksum.

    Args:
        header: What says where the voxels are.
        count: Bytes of the decoded voxels.

    Raises:
        MedvolError: `TRUNCATED` or `CORRUPT`.
    """
    fields = header.fields
    if _has_skips(fields):
        return  # rare; SimpleITK's own check has to do
    if header.kind == "NRRD":
        encoding = fields.get("encoding", "").lower()
        window, is_raw = (GZIP if encoding in ("gzip", "gz") else 0), encoding == "raw"
    else:
        window = ZLIB if fields.get("compresseddata", "").lower() == "true" else 0
        is_raw = window == 0 and fields.get("binarydata", "true").lower() != "false"
    if window:
        with header.data_path.open("rb") as stream:
            stream.seek(header.data_offset)
            available = sum(len(piece) for piece in inflate(stream, header.data_path, window))
    elif is_raw:
        available = header.data_path.stat().st_size - header.data_offset
    else:
        return
    if available < count:
        raise MedvolError(
            "TRUNCATED",
            file=header.data_path,
            found=f"{available:,} bytes of voxels",
            expected=f"{count:,}",
            fix="copy or download the file again",
        )


def _has_skips(fields: dict[str, str]) -> bool:
    return any(fields.get(name, "0") not in ("0", "") for name in ("line skip", "byte skip", "lineskip", "byteskip"))


def _nrrd(head: bytes, path: Path) -> TextHeader:
    if not re.match(rb"NRRD000[1-5]\r?\n", head):
        raise _not("NRRD", path, head)
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[: end.start()] if end else head
    fields: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").splitlines()[1:]:
        match = re.match(r"([^#:=]+):(?!=)\s*(.*)", line)
        if match:
            fields[match[1].strip().lower()] = match[2].strip()
    name = fields.get("data file", fields.get("datafile", ""))
    if not name and end is None:
        raise _bad(path, "no empty line behind the header", "one before the voxels")
    return TextHeader("NRRD", fields, _beside(path, name), 0 if name else end.end() if end else 0)


def _meta(head: bytes, path: Path) -> TextHeader:
    fields: dict[str, str] = {}
    position = 0
    while (end := head.find(b"\n", position)) >= 0:
        line = head[position:end].decode("utf-8", "replace")
        name, equals, value = line.partition("=")
        position = end + 1
        if not equals:
            break
        fields[name.strip().lower()] = value.strip()
        if name.strip().lower() == "elementdatafile":
            break
    if "ndims" not in fields or "elementdatafile" not in fields:
        raise _not("METAIMAGE", path, head)
    if "elementspacing" not in fields and "elementsize" in fields:
        fields["elementspacing"] = fields["elementsize"]
    name = fields["elementdatafile"]
    is_local = name.upper() == "LOCAL"
    return TextHeader("MetaImage", fields, _beside(path, "" if is_local else name), position if is_local else 0)


def _beside(path: Path, name: str) -> Path:
    """Return the voxel file; it has to lie in the header's folder, so that a header cannot name any file it likes."""
    if not name:
        return path
    if Path(name).name != name or name.upper().startswith("LIST") or "%" in name:
        raise _bad(path, f"voxels in '{name[:60]}'", "one file in the same folder")
    data_path = path.parent / name
    if not data_path.is_file():
        raise MedvolError(
            "NOT_FOUND",
            file=data_path,
            found="no such file",
            expected=f"the voxels of {path.name}"[:80],
            fix="copy both",
        )
    return data_path


def _not(kind: str, path: Path, head: bytes) -> MedvolError:
    from medvol.io.nifti_layout import looks_like

    return MedvolError(
        f"NOT_{kind}",
        file=path,
        found=looks_like(head),
        expected=f"a {kind} header",
        fix="download or convert it again",
    )


def _bad(path: Path, found: str, expected: str) -> MedvolError:
    return MedvolError("BAD_HEADER", file=path, found=found, expected=expected, fix="write the file again")
