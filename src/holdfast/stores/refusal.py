"""What a store's client said, as one sentence with something to do. Pure.

The client's own text is not passed on: it may hold a signed URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdfast.errors import StoreRefused

_STATUS = re.compile(r"status code: (\d{3})|status: (\d{3})\b")
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_BROKEN = ("http error", "error sending request", "error decoding", "connection closed", "incompletemessage")
_ARRIVED_DAMAGED = ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody")
_METADATA = ("169.254.169.254", "169.254.170.2", "metadata.google.internal", "fd00:ec2::254")
_AMAZON = "set the store's variables (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or its usual file"
_GOOGLE = "set GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login"

# error code of the store, or HTTP status → what to do
_HINTS = {
    "NoSuchBucket": "check the bucket's name and region; holdfast makes none",
    "InvalidAccessKeyId": "the access key is unknown to this store: check key and endpoint",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "RequestTimeTooSkewed": "set this machine's clock: it differs too much from the store's",
    "ExpiredToken": "the session token has expired: log in again",
    "AccessDenied": "the credentials lack a right: reading, writing, listing and deleting below the URL are needed",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "301": "the bucket is in another region: set AWS_REGION",
    "401": "give credentials; docs/guides/mirror.md says where they are looked for",
    "403": "check credentials and rights; docs/guides/mirror.md says where they are looked for",
    "404": "check the bucket's name; holdfast makes none",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code`: the store's own word or the HTTP status; empty when there was no answer at all."""

    code: str
    transient: bool
    why: str
    hint: str

    def error(self, url: str) -> StoreRefused:
        """For people."""
        return StoreRefused(f"{url}: {self.why}", hint=self.hint)


def read(text: str) -> Refusal:
    """Understand a client's message."""
    status = next((one[1] or one[2] for one in [_STATUS.search(text)] if one), "")
    code = next((one[1] for one in [_CODE.search(text)] if one), "")
    if any(host in text for host in _METADATA):
        hint = _GOOGLE if "google" in text else _AMAZON
        return Refusal("NoCredentials", False, "there are no credentials", hint)
    if not status:
        return _silent(text)
    transient = status in ("408", "429") or (status.startswith("5") and status != "501")
    transient = transient or code == "RequestTimeout" or code in _ARRIVED_DAMAGED
    said = f"the store answered {status}" + (f" {code}" if code else "")
    return Refusal(code or status, transient, said, _HINTS.get(code) or _HINTS.get(status, ""))


def _silent(text: str) -> Refusal:
    low = text.lower()
    if "dns error" in low or "failed to lookup" in low:
        return Refusal("", True, "the host's name cannot be resolved", "check the endpoint's name and the network")
    if "certificate" in low or "tls" in low:
        return Refusal("", False, "the store's certificate is not accepted", "https with a certificate of this host?")
    if "connection refused" in low:
        return Refusal("", True, "nothing listens there", "check the endpoint, and whether the store is up")
    if "timed out" in low or "kind: timeout" in low:
        return Refusal("", True, "there was no answer in time", "check the network")
    if any(word in low for word in _BROKEN):
        return Refusal("", True, "the connection broke", "check the network")
    if "url scheme is not allowed" in low:
        return Refusal("", False, "the endpoint is http", "")
    return Refusal("", False, "the client gave up", "")
