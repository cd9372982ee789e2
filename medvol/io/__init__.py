"""Reading volumes: NIfTI, DICOM series, npy/npz, NRRD, MetaImage, mat, PNG and JPEG; strictly, by their content."""

from medvol.io.find import Found, find_volumes
from medvol.io.options import ReadOptions
from medvol.io.read import read_volume
from medvol.io.reference import Reference, parse_reference, source_files

__all__ = ["Found", "ReadOptions", "Reference", "find_volumes", "parse_reference", "read_volume", "source_files"]
