"""A PACS by DICOM's own protocol: C-FIND, C-GET and C-STORE through pynetdicom.

C-GET brings images over the connection that asked for them, so that nothing has to listen on this machine, as C-MOVE
would need. Every transfer syntax is proposed in a context of its own: the PACS then sends what it has stored, where a
context with several of them would bind it to one. Images are written as they come, without decoding.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any, final

from medvol.errors import MedvolError
from medvol.io import pacs_address
from medvol.io.dicom_file import no_quotes
from medvol.io.pacs_address import Access, Address, tls_context
from medvol.io.pacs_query import MANY, Answer, RemoteSeries
from medvol.io.pacs_transfer import INSTANCE_LIMIT, Keep, Outgoing, retry

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # study root
_GET = "1.2.840.10008.5.1.4.1.2.2.3"
_NATIVE = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_SYNTAXES = (
    *_NATIVE,
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.5",  # RLE
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
)
_AT_ONCE = 8  # classes of objects per association: 128 contexts are the most that one may propose
_NAMED_AT_ONCE = 100  # instances per request, so that its UIDs stay a few kilobytes
_PENDING, _SUCCESS, _SOME_FAILED = (0xFF00, 0xFF01), 0x0000, 0xB000
_STORED = (_SUCCESS, 0xB000, 0xB006, 0xB007)  # the last three: with changes that the PACS made
_NOT_TAKEN = "the PACS does not take this kind of object or compression"
_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
# What a series most likely holds where the PACS does not tell: CT, MR, PET, X-ray, their enhanced kinds, segmentations,
# structure sets and reports.
_USUAL = tuple(
    f"1.2.840.10008.5.1.4.1.1.{tail}"
    for tail in (
        *("2", "2.1", "4", "4.1", "128", "130", "20", "7", "1", "1.1", "1.2", "12.1", "12.2", "6.1", "3.1"),
        *("66.4", "66.7", "66", "30", "481.3", "481.2", "88.22", "88.33", "88.34", "104.1"),
    )
)


@final
class DimsePeer:
    """A PACS at an AE title, host and port.

    Args:
        address: Where it is.
        access: How to get in.

    Raises:
        MedvolError: `NEED_PACKAGE`, `BAD_CERTIFICATE`, `UNUSED_OPTION` for credentials, which DICOM has no place for.
    """

    def __init__(self, address: Address, access: Access) -> None:
        try:
            import pynetdicom  # noqa: F401
        except ImportError as error:
            raise pacs_address.need_net("pynetdicom") from error
        if access.credentials is not None:
            raise MedvolError(
                "UNUSED_OPTION",
                found="credentials for a DICOM address",
                expected="an AE title that the PACS knows, or a client certificate",
            )
        self._address, self._access = address, access
        self._tls = (tls_context(access), address.host) if address.is_tls else None

    def find(self, level: str, keys: Mapping[str, str], wanted: Sequence[str], expected: int = 0) -> list[Answer]:
        """Return the answers at a level."""
        return retry(self._access, lambda: self._find(level, keys, wanted))

    def fetch(self, remote: RemoteSeries, wanted: Sequence[str], keep: Keep) -> None:
        """Hand the wanted instances to `keep`: the whole series by its UID, parts of it by theirs."""
        classes = sorted(set(remote.instances.values()) - {""})
        if not classes:
            contexts = [_context(one, _NATIVE) for one in _USUAL]
            self._get(remote, wanted, contexts, keep)
            return
        for start in range(0, len(classes), _AT_ONCE):
            here = classes[start : start + _AT_ONCE]
            contexts = [_context(one, [syntax]) for one in here for syntax in _SYNTAXES]
            uids = [uid for uid in wanted if remote.instances[uid] in (*here, "")]
            self._get(remote, uids, contexts, keep)

    def send(self, batch: Sequence[Outgoing]) -> Mapping[str, str]:
        """Store files over one connection."""
        try:
            return self._send(batch)
        except MedvolError as error:
            if error.code != "REFUSED":
                raise
            return dict.fromkeys((one.uid for one in batch), _NOT_TAKEN)  # none of the kinds in this batch

    def close(self) -> None:
        """Do nothing: each request has an association of its own, which ends with it."""

    def _send(self, batch: Sequence[Outgoing]) -> dict[str, str]:
        kinds = dict.fromkeys((one.sop_class, one.syntax) for one in batch)
        reasons = {}
        with self._associated([_context(sop_class, [syntax]) for sop_class, syntax in kinds]) as association:
            for number, one in enumerate(batch):
                try:
                    status = association.send_c_store(one.path, msg_id=number % 65535 + 1)
                except (ValueError, AttributeError, RuntimeError) as error:
                    if not association.is_established:
                        raise self._lost() from error
                    reasons[one.uid] = _NOT_TAKEN
                    continue
                if "Status" not in status:
                    raise self._lost()
                code = int(status.Status)
                reasons[one.uid] = "" if code in _STORED else f"status {code:#06x}"
        return reasons

    def _find(self, level: str, keys: Mapping[str, str], wanted: Sequence[str]) -> list[Answer]:
        from pydicom.dataset import Dataset

        query = Dataset()
        query.QueryRetrieveLevel = level
        if not all(value.isascii() for value in keys.values()):
            query.SpecificCharacterSet = "ISO_IR 192"
        for name in wanted:
            setattr(query, name, keys.get(name, ""))
        found: list[Answer] = []
        with self._associated([_context(_FIND, _NATIVE)]) as association:
            for status, answer in association.send_c_find(query, _FIND):
                if "Status" not in status:
                    raise self._lost()
                if status.Status in _PENDING and answer is not None:
                    found.append({name: str(answer.get(name, "")).strip(" \0") for name in wanted})
                elif status.Status != _SUCCESS:
                    raise self._refused("the query", status.Status)
                if len(found) > MANY:
                    break
        return found

    def _get(
        self, remote: RemoteSeries, wanted: Sequence[str], contexts: Sequence[PresentationContext], keep: Keep
    ) -> None:
        from pynetdicom import evt
        from pynetdicom.presentation import build_role

        receiver = _Receiver(remote, set(wanted), keep)
        roles = [build_role(str(one), scp_role=True) for one in dict.fromkeys(c.abstract_syntax for c in contexts)]
        handlers = [(evt.EVT_C_STORE, receiver.store), (evt.EVT_DATA_RECV, receiver.count)]
        with self._associated([_context(_GET, _NATIVE), *contexts], roles, handlers) as association:
            for query in _retrievals(remote, wanted):
                for status, _ in association.send_c_get(query, _GET):
                    if receiver.problem is not None:
                        raise receiver.problem
                    if "Status" not in status:
                        raise self._lost()
                    if status.Status not in (*_PENDING, _SUCCESS, _SOME_FAILED):
                        raise self._refused("the retrieval", status.Status)

    @contextmanager
    def _associated(
        self, contexts: Sequence[PresentationContext], roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
    ) -> Iterator[Association]:
        from pynetdicom import AE, evt

        moments = evt.EVT_CONN_OPEN, evt.EVT_DATA_SENT, evt.EVT_DATA_RECV
        entity = AE(ae_title=self._access.own_title)
        entity.connection_timeout = entity.acse_timeout = min(10.0, self._access.timeout_s)
        entity.dimse_timeout = entity.network_timeout = self._access.timeout_s
        with no_quotes():
            association = entity.associate(
                self._address.host,
                self._address.port,
                contexts=list(contexts),
                ae_title=self._address.title,
                ext_neg=list(roles),
                evt_handlers=[*((one, _without_waits) for one in moments), *handlers],
                tls_args=self._tls,
            )
            if not association.is_established:
                _close_socket(association)
                raise self._not_associated(association)
            is_done = False
            try:
                yield association
                is_done = True
            except ValueError as error:  # pynetdicom's word for a context that was not accepted
                raise self._refused("the service", None) from error
            finally:
                if association.is_established:
                    association.release() if is_done else association.abort()

    def _not_associated(self, association: Association) -> MedvolError:
        """Return why there is no association; pynetdicom keeps that to its log."""
        if association.is_rejected:
            return pacs_address.not_authorised(self._address, f"it rejects the AE title '{self._access.own_title}'")
        try:
            with socket.create_connection((self._address.host, self._address.port), timeout=10) as plain:
                if self._tls is not None:
                    self._tls[0].wrap_socket(plain, server_hostname=self._tls[1]).close()
        except pacs_address.ssl.SSLError:
            return pacs_address.tls_failed(self._address)
        except OSError as error:
            return pacs_address.connection_lost(self._address, error.strerror or type(error).__name__)
        if association.acceptor.primitive is not None:
            return self._refused("the service", None)
        return pacs_address.connection_lost(self._address, "no DICOM association")

    def _lost(self) -> MedvolError:
        return pacs_address.connection_lost(self._address, "the association ended")

    def _refused(self, what: str, status: int | None) -> MedvolError:
        found = f"{self._address.shown} refuses {what}" + ("" if status is None else f" with status {status:#06x}")
        return MedvolError("REFUSED", found=found, fix="ask for C-FIND, C-GET and C-STORE, or use its DICOMweb address")


@final
class _Receiver:
    """What arrives over a C-GET.

    Args:
        remote: The series.
        left: UIDs that are still to come; emptied as they do.
        keep: Where they go.
    """

    def __init__(self, remote: RemoteSeries, left: set[str], keep: Keep) -> None:
        self._remote, self._left, self._keep = remote, left, keep
        self._bytes = 0
        self.problem: MedvolError | None = None

    def store(self, event: Any) -> int:
        """Keep an instance that was asked for; the others are taken from the wire and passed over."""
        from pydicom import dcmread

        self._bytes = 0
        if self.problem is not None:
            return 0xA700  # out of resources
        try:
            data = event.encoded_dataset()
            with no_quotes():
                header = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=list(_TAGS))
                study, series, uid = (str(header.get(name, "")) for name in _TAGS)
            if (study, series) == (self._remote.study, self._remote.series) and uid in self._left:
                self._keep(uid, lambda stream: stream.write(data))
                self._left.discard(uid)
        except MedvolError as error:
            self.problem = error
            return 0xA700
        except Exception:  # damage meets every kind of exception; the count will tell
            return 0xC000  # cannot understand
        return _SUCCESS

    def count(self, event: Any) -> None:
        """Hang up on an instance without end; it would fill the memory before anybody sees it."""
        self._bytes += len(event.data)
        if self._bytes > INSTANCE_LIMIT and self.problem is None:
            self.problem = MedvolError(
                "TOO_LARGE", found="an instance without end", expected=f"at most {INSTANCE_LIMIT:,} bytes"
            )
            with suppress(OSError, AttributeError):
                event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)


def _retrievals(remote: RemoteSeries, wanted: Sequence[str]) -> Iterator[Any]:
    from pydicom.dataset import Dataset

    is_whole = len(wanted) == len(remote.instances)
    for start in range(0, 1 if is_whole else len(wanted), _NAMED_AT_ONCE):
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES" if is_whole else "IMAGE"
        query.StudyInstanceUID, query.SeriesInstanceUID = remote.study, remote.series
        if not is_whole:
            query.SOPInstanceUID = list(wanted[start : start + _NAMED_AT_ONCE])
        yield query


def _context(abstract: str, syntaxes: Sequence[str]) -> PresentationContext:
    from pynetdicom.presentation import build_context

    return build_context(abstract, list(syntaxes))


def _close_socket(association: Association) -> None:
    """Close what pynetdicom leaves open where a peer hangs up within TLS; it would warn when it is collected."""
    held = association.dul.socket
    if held is not None and held.socket is not None:
        held.socket.close()


def _without_waits(event: Any) -> None:
    """Switch off TCP's wait for a full packet and, where the system allows it, the wait before a packet is confirmed.

    A PACS that writes its answer in two pieces holds the second back until the first is confirmed: 60 ms per file on
    loopback against Orthanc 1.10, 6 ms without the waits. Linux takes them up again by itself, hence after each packet.
    """
    with suppress(OSError, AttributeError):
        plain = event.assoc.dul.socket.socket
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
