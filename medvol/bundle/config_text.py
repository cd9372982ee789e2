"""Texts that MONAI's configurations would not leave as they are, such as a path with a `#` in it."""

from __future__ import annotations

import re

SIGNS = ("$", "@", "%")
"""What an expression, a reference and a macro begin with."""


def config_text(text: str) -> str:
    """Return what a configuration evaluates to `text`: the text itself wherever that is possible.

    MONAI turns every `#` into `::`, and takes a text that begins with one of `SIGNS` for what it is not.
    """
    return f"${config_literal(text)}" if "#" in text or text[:1] in SIGNS else text


def config_literal(text: str) -> str:
    """Return a text as a part of an expression, with the signs that MONAI looks for spelt by their numbers.

    `import` is one of them: an expression that holds it is executed as a statement.
    """
    return re.sub(rf"[#{''.join(SIGNS)}]|i(?=mport)", lambda sign: f"\\x{ord(sign[0]):02x}", repr(text))
