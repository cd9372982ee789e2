"""The one error type that users of medvol meet.

A refusal is a part of the product: it names what was found, what was expected and the way out, in one line that fits a
terminal. Whatever a program wants to act on stands in attributes, and long lists stand one level down in `details`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from os import PathLike, fspath
from typing import Any

INTERRUPTED = (
    "medvol: interrupted; files are whole or not there. The same command begins again; "
    "a training goes on after its last whole epoch with --resume True"
)
"""What a run says that was told to end, by Ctrl-C or SIGTERM."""

MESSAGE_LIMIT = 300  # characters; longer findings belong into `details`


class MedvolError(Exception):
    """A refusal with a code, the case and file it is about, the finding, the expectation and the fix.

    Args:
        code: Stable upper-case name of the kind of refusal, e.g. `TRUNCATED`.
        found: What was found, with its numbers.
        expected: What would have been accepted.
        fix: What the user can do.
        case: Name of the case, when one is known.
        file: File, folder or reference the finding is about.
        details: Further findings, one string each; not part of the message.
        message: A traceback that ends in a refusal, which then gives code and finding. This is how torch's DataLoader
            raises a worker's error again: it calls the type of any error that has a `message` with that word alone.
    """

    def __init__(  # noqa: PLR0913 - the fields of a refusal, and the word that torch insists on
        self,
        code: str = "",
        *,
        found: str = "",
        expected: str = "",
        fix: str = "",
        case: str = "",
        file: str | PathLike[str] = "",
        details: Iterable[str] = (),
        message: str = "",
    ) -> None:
        if message:
            code, found = _last_refusal(message)
            details = (*details, message)
        self.code = code
        self.case = case
        self.file = fspath(file)
        self.found = found
        self.expected = expected
        self.fix = fix
        self.details = tuple(details)
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """One line: code, case, file, found, expected, fix. File names are shortened before the fix is lost."""
        where = f"case {self.case}" if self.case else ""
        tail = "; ".join(part for part in (f"expected {self.expected}" if self.expected else "", self.fix) if part)
        name = self.file
        body = _join(self.code, where, name, self.found, tail)
        if len(body) > MESSAGE_LIMIT and len(name) > 60:
            body = _join(self.code, where, "..." + name[-57:], self.found, tail)
        return body

    def for_case(self, case: str) -> MedvolError:
        """Return the same refusal with the case named, as raised once the caller knows which case it reads."""
        return MedvolError(
            self.code,
            found=self.found,
            expected=self.expected,
            fix=self.fix,
            case=self.case or case,
            file=self.file,
            details=self.details,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON-ready values."""
        fields = ("code", "case", "file", "found", "expected", "fix")
        return {name: getattr(self, name) for name in fields} | {"details": list(self.details)}

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive the default pickling, and DataLoader workers send errors by pickle.
        return _rebuild, (self.as_dict(),)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `did you mean 'X'?` for the closest of `choices`, or an empty string when none is close."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"did you mean '{matches[0]}'?" if matches else ""


def require_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Raise `UNKNOWN_OPTION`, with the nearest choice, when the value of an option is not among its choices."""
    known = list(choices)
    if value not in known:
        raise MedvolError(
            "UNKNOWN_OPTION", found=f"{option} '{value}'", expected=" or ".join(known), fix=nearest(str(value), known)
        )


def require_choices(option: str, values: str | Iterable[str], choices: Iterable[str]) -> tuple[str, ...]:
    """Return the values of an option that takes several, of which a single one may be written as a plain word.

    Raises:
        MedvolError: `UNKNOWN_OPTION` for the first that is not among the choices.
    """
    known = list(choices)
    chosen = (values,) if isinstance(values, str) else tuple(values)
    for value in chosen:
        require_choice(option, value, known)
    return chosen


def find_refusal(error: BaseException | None) -> MedvolError | None:
    """Return the MedvolError that an exception was raised from, however often MONAI wrapped it.

    A full disk, which any library may meet, is one too: `DISK_FULL`.
    """
    full: MedvolError | None = None
    for one in _chain(error):
        if isinstance(one, MedvolError):
            return one
        if isinstance(one, OSError) and is_full(one):
            fix = "free space, or name another folder"
            full = MedvolError("DISK_FULL", file=one.filename or "", found="no space left to write it", fix=fix)
    return full


def interruption_code(error: BaseException | None) -> int | None:
    """Return the exit code of the Ctrl-C (130) or SIGTERM (143) that an exception was raised from.

    Libraries that are interrupted in the middle raise errors of their own: torch, of an archive that it cannot close.
    """
    for one in _chain(error):
        if isinstance(one, KeyboardInterrupt):
            return 130
        if isinstance(one, SystemExit) and isinstance(one.code, int):
            return one.code
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def is_full(error: OSError) -> bool:
    """Return whether the system says that a disk is full or a quota used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _rebuild(fields: dict[str, Any]) -> MedvolError:
    code = fields.pop("code")
    return MedvolError(code, **fields)


def _last_refusal(traceback: str) -> tuple[str, str]:
    """Return the code and the rest of the last refusal in a traceback."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    line = next((line for line in reversed(lines) if "MedvolError: " in line), lines[-1] if lines else "")
    code, _, rest = line.partition("MedvolError: ")[2].partition(": ")
    return (code, rest) if code else ("WORKER_FAILED", line)


def _join(code: str, where: str, name: str, found: str, tail: str) -> str:
    place = ", ".join(part for part in (where, name) if part)
    text = f"{code}: " + (f"{place}: " if place else "") + found
    return f"{text}; {tail}" if tail else text
