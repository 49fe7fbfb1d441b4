"""Retrieval of a series from a DICOMweb server, such as the one that OHIF displays."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import IO

from fastapi import HTTPException

#: The form of a UID; nothing else becomes part of an address.
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
UID_CHARACTERS = 64


def is_uid(text: str) -> bool:
    """Whether `text` can be the UID of a series."""
    return len(text) <= UID_CHARACTERS and UID.fullmatch(text) is not None


def fetch_series(url: str, series_uid: str, most_bytes: int) -> Iterator[IO[bytes]]:
    """Retrieve the instances of a series as files, one at a time.

    Parameters
    ----------
    url
        Address of the DICOMweb service, from the operator of this server, never from a request.
    series_uid
        UID of the series; the UID of its study is looked up.
    most_bytes
        Maximum size of all instances together.

    Raises
    ------
    HTTPException
        404 if there is no such series, 413 if it is too large, 502 if the service fails.
    """
    from dicomweb_client import DICOMwebClient
    from requests import RequestException

    client = DICOMwebClient(url)
    total = 0
    try:
        found = client.search_for_series(search_filters={"SeriesInstanceUID": series_uid}, limit=1)
        if not found:
            raise HTTPException(404, "the DICOMweb server has no such series")
        study_uid = found[0]["0020000D"]["Value"][0]
        for instance in client.iter_series(study_uid, series_uid):
            file = io.BytesIO()
            instance.save_as(file, enforce_file_format=True)
            total += file.tell()
            if total > most_bytes:
                raise HTTPException(413, f"the series is larger than {most_bytes >> 20} MiB")
            file.seek(0)
            yield file
    except (RequestException, LookupError, ValueError) as error:
        raise HTTPException(502, f"the DICOMweb server did not deliver the series ({type(error).__name__})") from error
