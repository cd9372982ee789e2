"""Where a PACS is and how to get in: `https://host/dicom-web` or `dicom://AETITLE@host:port`.

Secrets never stand in an address or on a command line, where every user of the machine can read them: they come from a
file or from the user's netrc. Certificates are always verified.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from medvol.errors import MedvolError
from medvol.io.files import cannot_read, existing

WEB, DIMSE = "DICOMweb", "DICOM"
_KINDS = {"https": (WEB, True), "http": (WEB, False), "dicoms": (DIMSE, True), "dicom": (DIMSE, False)}
_PORTS = {"https": 443, "http": 80, "dicoms": 2762, "dicom": 104}
_TITLE = re.compile(r"[ !#-\[\]-~]{1,16}")  # AE: at most 16 printable characters, no backslash, no quote
_EXPECTED = "https://host/dicom-web or dicom://AETITLE@host:port"


@dataclass(frozen=True)
class Address:
    """A PACS.

    Args:
        kind: `DICOMweb` or `DICOM`.
        is_tls: Whether the connection is encrypted.
        host: Name or number of the machine.
        port: TCP port.
        title: Application entity title of a DICOM peer.
        url: Root of the DICOMweb service, without a slash at its end.
    """

    kind: str
    is_tls: bool
    host: str
    port: int
    title: str = ""
    url: str = ""

    @property
    def shown(self) -> str:
        """What may stand in a message."""
        return f"{self.kind} {self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the connection stays on this machine."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class Access:
    """How to get in, and how long to try.

    Args:
        own_title: Application entity title that a DICOM peer sees.
        ca_file: PEM file of the authority that signed the certificate of the PACS; the usual authorities without one.
        certificate: PEM file of the own certificate, where the PACS asks for one.
        key: PEM file of its key, where it is not in the same file.
        credentials: File with `USER:PASSWORD` or `Bearer TOKEN` on one line; DICOMweb looks into netrc without one.
        retries: How often a request is sent again after a dropped connection, with a wait of 1, 2, 4, ... seconds.
        first_wait_s: The first of these waits.
        timeout_s: Longest silence of the PACS.

    Raises:
        MedvolError: `BAD_ARGUMENT`, `NOT_FOUND`.
    """

    own_title: str = "MEDVOL"
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    credentials: Path | None = None
    retries: int = 3
    first_wait_s: float = 1.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not _TITLE.fullmatch(self.own_title):
            raise _bad_argument("an own AE title that DICOM does not allow", "1 to 16 printable characters")
        if self.retries < 0 or self.timeout_s <= 0 or self.first_wait_s < 0:
            raise _bad_argument("a negative number of retries or seconds", "retries of 0 or more, a timeout above 0")
        for path in (self.ca_file, self.certificate, self.key, self.credentials):
            if path is not None:
                existing(path)


@dataclass(frozen=True)
class Secret:
    """Name and password, or a token; none of them is ever shown.

    Args:
        user: Name of the user, empty with a token.
        password: Their password.
        token: Of a bearer.
    """

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def parse_address(text: str) -> Address:
    """Return the PACS that an address names.

    Raises:
        MedvolError: `BAD_ADDRESS`, `SECRET_IN_ADDRESS`; the address itself is never repeated, since it may hold one.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise _bad("an address that cannot be read", _EXPECTED) from error
    if parts.scheme not in _KINDS or not parts.hostname:
        raise _bad("an address of another kind", _EXPECTED)
    kind, is_tls = _KINDS[parts.scheme]
    if parts.password is not None or parts.query or parts.fragment or (kind == WEB and "@" in parts.netloc):
        raise MedvolError(
            "SECRET_IN_ADDRESS",
            found="a user, password or token within the address",
            expected=_EXPECTED,
            fix="write USER:PASSWORD into a file that only you can read and name it with --credentials",
        )
    port = _PORTS[parts.scheme] if port is None else port
    if kind == WEB:
        return Address(kind, is_tls, parts.hostname, port, url=_root(parts))
    title = parts.username or ""
    if not _TITLE.fullmatch(title) or parts.path.strip("/"):
        raise _bad("a DICOM address without an AE title, or with a path", "dicom://AETITLE@host:port")
    return Address(kind, is_tls, parts.hostname, port, title=title)


def read_secret(path: Path) -> Secret:
    """Return the credentials in a file.

    Raises:
        MedvolError: `READABLE_SECRET` when every user of the machine may read it, `BAD_CREDENTIALS`, `CANNOT_READ`.
    """
    existing(path)
    if path.stat().st_mode & stat.S_IRWXO:
        raise MedvolError(
            "READABLE_SECRET",
            file=path,
            found="credentials that every user of this machine can read",
            expected="a file of yours alone",
            fix=f"chmod 600 {path}",
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeDecodeError:
        lines = []
    if len(lines) == 1:
        kind, _, token = lines[0].partition(" ")
        if kind.lower() == "bearer" and token.strip():
            return Secret(token=token.strip())
        user, colon, password = lines[0].partition(":")
        if user and colon:
            return Secret(user=user, password=password)
    # The content is not shown, neither here nor as the cause.
    raise MedvolError(
        "BAD_CREDENTIALS", file=path, found="another content", expected="one line, USER:PASSWORD or Bearer TOKEN"
    )


def tls_context(access: Access) -> ssl.SSLContext:
    """Return the settings of an encrypted DICOM connection: certificate and host name verified.

    Raises:
        MedvolError: `BAD_CERTIFICATE` when a PEM file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=access.ca_file)
        if access.certificate is not None:
            context.load_cert_chain(access.certificate, access.key)
    except (ssl.SSLError, OSError) as error:
        raise bad_certificate(access) from error
    return context


def bad_certificate(access: Access) -> MedvolError:
    """Return the refusal of PEM files that cannot be used."""
    return MedvolError(
        "BAD_CERTIFICATE",
        file=access.certificate or access.ca_file or "",
        found="a certificate or key that cannot be used",
        expected="PEM files that belong together",
    )


def tls_failed(address: Address) -> MedvolError:
    """Return the refusal of a peer whose certificate does not hold."""
    return MedvolError(
        "TLS_FAILED",
        found=f"{address.shown}: its certificate or encryption cannot be verified",
        expected="a certificate for this host from a known authority",
        fix="name the authority's PEM file with --ca-file, the own certificate with --certificate",
    )


def connection_lost(address: Address, found: str) -> MedvolError:
    """Return the refusal that makes a request be tried again."""
    return MedvolError(
        "CONNECTION_LOST", found=f"{address.shown}: {found}", fix="run the same command again: it goes on from there"
    )


def server_error(address: Address, found: str) -> MedvolError:
    """Return the refusal of a PACS that fails by itself; tried again too."""
    return MedvolError("SERVER_ERROR", found=f"{address.shown}: {found}", fix="try later, or ask who runs the PACS")


def not_authorised(address: Address, found: str) -> MedvolError:
    """Return the refusal of a PACS that does not let us in."""
    fix = "check --credentials or netrc" if address.kind == WEB else "have the own AE title registered (--own-title)"
    return MedvolError("NOT_AUTHORISED", found=f"{address.shown}: {found}", fix=fix)


def need_net(package: str) -> MedvolError:
    """Return the refusal where the extra is not installed."""
    return MedvolError(
        "NEED_PACKAGE", found=f"{package} is not installed", fix="pip install 'medvol-monai[net]' brings it"
    )


def _root(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _bad(found: str, expected: str) -> MedvolError:
    return MedvolError("BAD_ADDRESS", found=found, expected=expected)


def _bad_argument(found: str, expected: str) -> MedvolError:
    return MedvolError("BAD_ARGUMENT", found=found, expected=expected)
