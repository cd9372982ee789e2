"""Studies: the case table, splits by patient, the volume cache and loaders.

Only the case table is re-exported here; it needs neither torch nor MONAI.
"""

from medvol.data.sources import open_study
from medvol.data.splits import assign_splits, fold_splits
from medvol.data.study import Case, Study
from medvol.data.table import content_hash, items, require_task, with_classes, write_table

__all__ = [
    "Case",
    "Study",
    "assign_splits",
    "content_hash",
    "fold_splits",
    "items",
    "open_study",
    "require_task",
    "with_classes",
    "write_table",
]
