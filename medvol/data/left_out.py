"""What lies in a folder beside what is read of it: told in notes, so that nobody takes a part for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medvol.data.paths import file_of, has_image_suffix, resolve
from medvol.data.study import Draft
from medvol.io.files import files_and_dangling_links
from medvol.io.find import Found, find_passed_over
from medvol.io.write_nifti import is_result


def passed_over_notes(folder: Path) -> tuple[str, ...]:
    """Return a sentence on the files of a folder of volumes that look like images and are none, where there are any."""
    passed = find_passed_over(folder)
    if not passed:
        return ()
    advice = "convert images to .nii.gz, name an array as in file.npz#key, fetch what a link stands for"
    return (f"{_counted(passed, folder)} passed over: no format that is read, or several arrays; {advice}",)


def without_results(found: Sequence[Found], folder: Path) -> tuple[list[Found], tuple[str, ...]]:
    """Return the volumes of a folder that medvol did not write, and a sentence on the others; all where it wrote all.

    A folder that also holds the masks of an earlier run would have them segmented as if they were scans.
    """
    own = [one for one in found if is_result(one.reference)]
    if not own or len(own) == len(found):
        return list(found), ()
    described = _counted([Path(one.reference) for one in own], folder)
    kept = [one for one in found if one not in own]
    return kept, (f"{described} written by medvol as a mask or probabilities, and not read",)


def unlisted_notes(folder: Path, draft: Draft) -> tuple[str, ...]:
    """Return a sentence on the images of a folder that the table in it does not list, where there are any.

    Masks that medvol wrote are none, nor is what any column of the table names.

    Args:
        folder: Folder of the table.
        draft: What was read of the table.
    """
    listed = {Path(file_of(reference)) for row in draft.rows for reference in row.image}
    for row in draft.rows:
        cells = [row.label, *row.covariates.values()]
        listed |= {Path(file_of(resolve(cell, draft.folder))) for cell in cells if isinstance(cell, str)}
    files, links = files_and_dangling_links(folder)
    images = [path for path in (*files, *links) if has_image_suffix(path.name)]
    unlisted = [path for path in images if listed.isdisjoint((path, *path.parents)) and not is_result(path)]
    if not unlisted:
        return ()
    return (f"{_counted(unlisted, folder)} not in the table {Path(draft.source).name}, and not read",)


def _counted(paths: Sequence[Path], folder: Path) -> str:
    first = min(path.relative_to(folder).as_posix() for path in paths)
    return f"{len(paths)} files, such as {first}, are" if len(paths) > 1 else f"the file {first} is"
