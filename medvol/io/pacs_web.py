"""A PACS by DICOMweb: QIDO-RS, WADO-RS and STOW-RS through dicomweb-client.

Its own retries are off, since they would hold a whole series; redirects are refused, since they would carry credentials
and requests to an address that nobody named; every answer has a limit of bytes. Instances are asked for in the transfer
syntax in which they are stored.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, final

from medvol.errors import MedvolError
from medvol.io import pacs_address
from medvol.io.dicom_file import no_quotes
from medvol.io.pacs_address import Access, Address, Secret
from medvol.io.pacs_query import IMAGE, MANY, SERIES, Answer, RemoteSeries
from medvol.io.pacs_transfer import ANSWER_LIMIT, INSTANCE_LIMIT, Keep, Outgoing, retry

if TYPE_CHECKING:
    from requests import Session

CHUNK = 1 << 18
"""Bytes that are read at once; so many are lost at most when a connection drops."""
_STORED = (("application/dicom", "*"),)
_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_FEW = 20  # so many missing instances are asked for one by one, more of them by the whole series
_BUSY = (408, 429, 500, 502, 503, 504)


@final
class WebPeer:
    """A PACS at an http address.

    Args:
        address: Where it is.
        access: How to get in.

    Raises:
        MedvolError: `NEED_PACKAGE`, `UNSAFE_CREDENTIALS` for a password over an open connection, and what
            the file of the credentials meets.
    """

    def __init__(self, address: Address, access: Access) -> None:
        try:
            from dicomweb_client.api import DICOMwebClient
        except ImportError as error:
            raise pacs_address.need_net("dicomweb-client") from error
        self._address, self._access = address, access
        self._left = ANSWER_LIMIT
        self._session = _session(address, access)
        self._session.hooks = {"response": [self._limit]}
        timeout = (min(10.0, access.timeout_s), access.timeout_s)
        make: dict[str, Any] = {
            "url": address.url,
            "session": self._session,
            "permissive_uid": True,  # UIDs are checked before they come here; those of research often start with 0
            "timeout": timeout,
        }
        self._client: Any = DICOMwebClient(**make, chunk_size=CHUNK)
        # Above its chunk size it posts without a length, which several servers do not take.
        self._sender: Any = DICOMwebClient(**make, chunk_size=2 * INSTANCE_LIMIT)
        for client in (self._client, self._sender):
            client.set_http_retry_params(retry=False)

    def find(self, level: str, keys: Mapping[str, str], wanted: Sequence[str], expected: int = 0) -> list[Answer]:
        """Return the answers at a level, page by page until nothing new comes."""
        found: dict[str, Answer] = {}
        name = "SOPInstanceUID" if level == IMAGE else f"{level.capitalize()}InstanceUID"
        while True:
            page = retry(self._access, partial(self._page, level, keys, wanted, len(found)))
            new = {one[name]: one for one in page if one.get(name) and one[name] not in found}
            found |= new
            if not new or len(found) > MANY or len(found) == expected:
                return list(found.values())

    def fetch(self, remote: RemoteSeries, wanted: Sequence[str], keep: Keep) -> None:
        """Hand the wanted instances to `keep`: a few one by one, many from the stream of the whole series."""
        left = set(wanted)
        if len(wanted) > _FEW or len(wanted) == len(remote.instances):
            with self._errors():
                self._left = INSTANCE_LIMIT
                stream = self._client.iter_series(remote.study, remote.series, media_types=_STORED)
                for number, dataset in enumerate(stream):
                    if number > 2 * remote.count + 10:
                        raise _bad_answer(self._address, "more instances than it listed")
                    self._take(remote, dataset, left, keep)
                    self._left = INSTANCE_LIMIT
            return
        for uid in wanted:
            try:
                with self._errors():
                    self._left = INSTANCE_LIMIT
                    dataset = self._client.retrieve_instance(remote.study, remote.series, uid, media_types=_STORED)
                    self._take(remote, dataset, left, keep)
            except MedvolError as error:
                if error.code != "NOT_FOUND":  # listed, but not there: the count will tell
                    raise

    def send(self, batch: Sequence[Outgoing]) -> Mapping[str, str]:
        """Store files with one request; one by one when the server refuses it for the sake of one of them."""
        try:
            with self._errors():
                self._left = ANSWER_LIMIT
                answer = self._sender.store_instances(_read(batch))
        except MedvolError as error:
            if error.code not in ("BAD_ANSWER", "REFUSED"):  # the first also for a file that pydicom cannot read
                raise
            if len(batch) == 1:
                return {batch[0].uid: error.found}
            return {uid: why for one in batch for uid, why in self.send([one]).items()}
        reasons = {one.uid: "the PACS does not confirm it" for one in batch}
        for item in answer.get("ReferencedSOPSequence") or ():
            reasons[str(item.get("ReferencedSOPInstanceUID"))] = ""
        for item in answer.get("FailedSOPSequence") or ():
            code = item.get("FailureReason")
            reasons[str(item.get("ReferencedSOPInstanceUID"))] = f"failure {code:#06x}" if code else "it failed"
        return {one.uid: reasons[one.uid] for one in batch}

    def close(self) -> None:
        """Close connections that are kept alive; a later request opens its own."""
        self._session.close()

    def _page(self, level: str, keys: Mapping[str, str], wanted: Sequence[str], offset: int) -> list[dict[str, str]]:
        filters = dict(keys)
        options: dict[str, Any] = {"fields": wanted, "offset": offset or None}
        search = self._client.search_for_studies
        if level in (SERIES, IMAGE):
            options["study_instance_uid"] = filters.pop("StudyInstanceUID", None)
            search = self._client.search_for_series
        if level == IMAGE:
            options["series_instance_uid"] = filters.pop("SeriesInstanceUID")
            search = self._client.search_for_instances
        with self._errors():
            self._left = ANSWER_LIMIT
            return [_plain(answer, wanted) for answer in search(search_filters=filters, **options)]

    def _take(self, remote: RemoteSeries, dataset: Any, left: set[str], keep: Keep) -> None:
        """Keep an instance that was asked for; others are passed over."""
        study, series, uid = (str(dataset.get(name, "")) for name in _TAGS)
        if (study, series) == (remote.study, remote.series) and uid in left:
            keep(uid, dataset.save_as)
            left.discard(uid)

    def _limit(self, response: Any, *_args: object, **_options: object) -> None:
        """Let an answer be read up to its limit, and only to its end: a body may stop without an error."""
        from requests.exceptions import ChunkedEncodingError

        # Weakly: an answer that holds itself keeps its connection open until it is collected.
        read = partial(type(response).iter_content, weakref.proxy(response))
        kind = response.headers.get("content-type", "")
        boundary = kind.partition("boundary=")[2].split(";")[0].strip().strip('"')
        closing = f"--{boundary}--".encode() if boundary else b""
        is_open = "content-length" not in response.headers and "transfer-encoding" not in response.headers

        def limited(chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[bytes]:
            tail = b""
            for chunk in read(chunk_size, decode_unicode):
                self._left -= len(chunk)
                if self._left < 0:
                    raise MedvolError(
                        "TOO_LARGE",
                        found=f"{self._address.shown}: an answer without end",
                        expected=f"at most {INSTANCE_LIMIT:,} bytes per instance, {ANSWER_LIMIT:,} per list",
                    )
                tail = (tail + chunk)[-len(closing) - 64 :]
                yield chunk
            if (closing and closing not in tail) or (not closing and is_open and "dicom" in kind):
                raise ChunkedEncodingError("the body ends before its last part does")

        response.iter_content = limited

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what requests and pydicom raise into refusals; their texts hold addresses with what was asked for."""
        from requests import exceptions as web

        try:
            with no_quotes(), _silenced():
                yield
        except MedvolError:
            raise
        except web.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            raise self._status(status) from None
        except web.SSLError:
            raise pacs_address.tls_failed(self._address) from None
        except web.TooManyRedirects:
            raise MedvolError(
                "REDIRECTED", found=f"{self._address.shown} sends to another address", fix="name that address"
            ) from None
        except web.JSONDecodeError:
            raise _bad_answer(self._address, "no JSON") from None
        except web.RequestException as error:
            raise pacs_address.connection_lost(self._address, type(error).__name__) from None
        except Exception as error:
            raise _bad_answer(self._address, type(error).__name__) from None

    def _status(self, status: int) -> MedvolError:
        if status in (401, 403):
            return pacs_address.not_authorised(self._address, f"HTTP {status}")
        if status in _BUSY:
            return pacs_address.server_error(self._address, f"HTTP {status}")
        code = "NOT_FOUND" if status in (404, 410) else "REFUSED"
        return MedvolError(
            code, found=f"{self._address.shown}: HTTP {status}", fix="check the path of the address, as /dicom-web"
        )


def _session(address: Address, access: Access) -> Session:
    """Return a session with certificates and credentials, that reads nothing else from the environment but proxies."""
    import requests
    from requests.utils import get_environ_proxies, get_netrc_auth

    session = requests.Session()
    # With it, a variable would go before --ca-file, and netrc would answer to any host.
    session.trust_env = False
    session.max_redirects = 0
    session.proxies.update(get_environ_proxies(address.url))
    session.verify = True if access.ca_file is None else str(access.ca_file)
    if access.certificate is not None:
        session.cert = str(access.certificate) if access.key is None else (str(access.certificate), str(access.key))
    if access.credentials is not None:
        secret = pacs_address.read_secret(access.credentials)
    else:
        user, password = get_netrc_auth(address.url) or ("", "")
        secret = Secret(user=user, password=password)
    if not secret.user and not secret.token:
        return session
    if not address.is_tls and not address.is_local:
        raise MedvolError(
            "UNSAFE_CREDENTIALS",
            found=f"{address.shown}: credentials for a connection that is not encrypted",
            expected="an https address",
        )
    if secret.token:
        session.headers["Authorization"] = f"Bearer {secret.token}"
    else:
        session.auth = (secret.user, secret.password)
    return session


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep dicomweb-client quiet for a while: it warns with what a server writes, and with tracebacks."""
    loggers = [logging.getLogger(name) for name in ("dicomweb_client.web", "retrying")]
    for logger in loggers:
        logger.addFilter(_is_debug)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_debug)


def _is_debug(record: logging.LogRecord) -> bool:
    return record.levelno <= logging.DEBUG


def _read(batch: Sequence[Outgoing]) -> Iterator[Any]:
    from pydicom import dcmread

    return (dcmread(one.path) for one in batch)


def _plain(answer: Any, wanted: Sequence[str]) -> dict[str, str]:
    """Return the first value of each wanted attribute of DICOM JSON as text."""
    from pydicom.datadict import tag_for_keyword

    found = {}
    for name in wanted:
        values = answer.get(f"{tag_for_keyword(name):08X}", {}).get("Value") or [""]
        found[name] = str(values[0]).strip(" \0")
    return found


def _bad_answer(address: Address, found: str) -> MedvolError:
    return MedvolError(
        "BAD_ANSWER", found=f"{address.shown}: {found}", expected="DICOMweb", fix="check the path of the address"
    )
