"""medvol: from a folder of scans and a table of cases to an honestly measured MONAI bundle."""

__version__ = "0.1.0"
