"""What stands for UIDs and dates: functions of a secret key, which is kept apart from the data.

The same key gives the same pseudonyms, UIDs and offsets in every run, so that a study can grow and references between
files still hold. Nothing leads back without it; whoever holds it can find out whether a guess is right.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path
from uuid import UUID

from medvol.errors import MedvolError
from medvol.io.files import existing

SHORTEST_KEY = 16
"""Bytes; a shorter secret can be found by trying."""

DAYS = 365


def create_key(path: Path) -> bytes:
    """Write a random key that only its owner may read, and return it.

    Raises:
        MedvolError: `KEY_EXISTS`, `CANNOT_WRITE`.
    """
    key = f"{secrets.token_hex(32)}\n".encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise MedvolError(
            "KEY_EXISTS",
            file=path,
            found="a file is there already",
            expected="a new file",
            fix="leave out --new-key to use this key",
        ) from error
    except OSError as error:
        raise MedvolError("CANNOT_WRITE", file=path, found=error.strerror or "it cannot be written") from error
    with os.fdopen(handle, "wb") as stream:
        stream.write(key)
        stream.flush()
        os.fsync(stream.fileno())
    return key


def read_key(path: Path) -> bytes:
    """Return the bytes of a key file, those that `medvol scan --key-file` takes.

    Raises:
        MedvolError: `NOT_FOUND`, `CANNOT_READ`, or `SHORT_KEY` for fewer than 16 bytes.
    """
    try:
        key = existing(path).read_bytes()
    except OSError as error:
        raise MedvolError("CANNOT_READ", file=path, found=error.strerror or "it cannot be read") from error
    if len(key.strip()) < SHORTEST_KEY:
        raise MedvolError(
            "SHORT_KEY",
            file=path,
            found=f"a secret of {len(key.strip())} bytes, which can be found by trying",
            expected=f"at least {SHORTEST_KEY}",
            fix="make one with --new-key",
        )
    return key


def is_shared(path: Path) -> bool:
    """Tell whether others than its owner may read a key."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def hashed_uid(uid: str, key: bytes) -> str:
    """Return the UID that stands for another one: `2.25.` and a UUID made of a keyed hash (PS3.5 B.2)."""
    digest = _hash(key, "uid", uid.strip(" \0"))
    return f"2.25.{UUID(bytes=digest[:16], version=4).int}"


def days_earlier(identity: str, key: bytes) -> int:
    """Return by how many days the dates of a patient move back, 1 to 365; the same for all of a patient's files."""
    return 1 + int.from_bytes(_hash(key, "days", identity)[:8], "big") % DAYS


def key_check(key: bytes) -> str:
    """Return letters that tell two keys apart and say nothing else about them."""
    return _hash(key, "check", "").hex()[:12]


def _hash(key: bytes, purpose: str, text: str) -> bytes:
    return hmac.new(key, f"medvol {purpose}\n{text}".encode(), hashlib.sha256).digest()
