"""medvol: from a folder of scans and a table of cases to an honestly measured MONAI bundle."""

import warnings
from importlib.metadata import PackageNotFoundError, distribution

__version__ = "0.1.0"


def _warn_of_namesake() -> None:
    """Say so when PyPI's other project of this name, a file wrapper, is installed into the same folder."""
    try:
        namesake = distribution("medvol")
    except PackageNotFoundError:
        return
    warnings.warn(
        f"Another package called 'medvol' ({namesake.version}) is installed and shares files with medvol-monai. "
        "Fix: pip uninstall medvol, then install medvol-monai again.",
        stacklevel=2,
    )


_warn_of_namesake()
