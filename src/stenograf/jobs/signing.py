"""Addresses of an object store that are good by themselves for a while: signed with AWS' signature, version 4.

obstore signs addresses of whole objects, and no more. This is for what it leaves out: a name for the file that is
downloaded, and uploads in parts that were never ended, which can be neither listed nor removed through it.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urlsplit

if TYPE_CHECKING:
    import httpx2

MAX_SECONDS = 604_800
"""The longest that an address may be good, by the specification of the signature."""

OWN_SECONDS = 1800
"""How long those are good that are used here at once: clocks may differ by 15 minutes, which is what S3 allows."""

_UPLOAD = re.compile(r"<Upload>(.*?)</Upload>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Keys:
    """What requests are signed with; its text shows nothing of it."""

    access: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, as addresses name it: below the address of its store."""

    endpoint: str
    """Without a slash at its end."""
    name: str
    region: str

    def address(self, key: str = "") -> str:
        """The address of an object, or of the bucket."""
        return f"{self.endpoint}/{self.name}" + (f"/{quote(key, safe='/~')}" if key else "")


def signed(
    bucket: Bucket,
    keys: Keys,
    method: str,
    key: str = "",
    query: Mapping[str, str] | None = None,
    *,
    seconds: float = OWN_SECONDS,
    now: float | None = None,
) -> str:
    """The address at which `method` is allowed for so long, with these parameters and no others."""
    moment = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    day, stamp = f"{moment:%Y%m%d}", f"{moment:%Y%m%dT%H%M%SZ}"
    scope = f"{day}/{bucket.region}/s3/aws4_request"
    asked = {
        **(query or {}),
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{keys.access}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(max(1, min(int(seconds), MAX_SECONDS))),
        "X-Amz-SignedHeaders": "host",
    }
    if keys.token:
        asked["X-Amz-Security-Token"] = keys.token
    told = "&".join(sorted(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in asked.items()))
    address = bucket.address(key)
    parts = urlsplit(address)
    request = f"{method}\n{parts.path}\n{told}\nhost:{_host(parts)}\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    secret = f"AWS4{keys.secret}".encode()
    for part in (day, bucket.region, "s3", "aws4_request"):
        secret = _hmac(secret, part)
    return f"{address}?{told}&X-Amz-Signature={_hmac(secret, text).hex()}"


def unfinished(client: httpx2.Client, bucket: Bucket, keys: Keys, prefix: str) -> Iterator[tuple[str, str, float]]:
    """Uploads in parts that were begun and not ended, below `prefix`: key, id, and seconds since 1970 of its beginning.

    Raises what `client` raises.
    """
    after: dict[str, str] = {}
    while True:
        query = {"uploads": "", "prefix": prefix, **after}
        answer = client.get(signed(bucket, keys, "GET", query=query)).raise_for_status()
        for upload in _UPLOAD.findall(answer.text):
            begun = datetime.fromisoformat(_tag("Initiated", upload)).timestamp()
            yield _tag("Key", upload), _tag("UploadId", upload), begun
        if _tag("IsTruncated", answer.text) != "true":
            return
        after = {"key-marker": _tag("NextKeyMarker", answer.text)}
        after["upload-id-marker"] = _tag("NextUploadIdMarker", answer.text)


def give_up(client: httpx2.Client, bucket: Bucket, keys: Keys, key: str, upload_id: str) -> None:
    """Remove an upload that was not ended, with its parts; one that is gone already is fine."""
    answer = client.delete(signed(bucket, keys, "DELETE", key, {"uploadId": upload_id}))
    if answer.status_code != 404:
        answer.raise_for_status()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _host(parts: SplitResult) -> str:
    """As clients write it into the header Host: without a port that goes without saying."""
    host = parts.netloc.rpartition("@")[2].lower()
    return host.removesuffix(":80" if parts.scheme == "http" else ":443")


def _tag(name: str, xml: str) -> str:
    """The text of the first element of that name; a parser for XML would be one more thing to trust."""
    found = re.search(rf"<{name}>(.*?)</{name}>", xml, re.DOTALL)
    return html.unescape(found[1]) if found else ""
