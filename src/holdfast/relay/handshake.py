"""What a client says in the headers of its request, and how a resumption is proven. Pure.

A resumption carries a number that only grows and a keyed hash over all it says: who hears one cannot use it again.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

AUTHORIZATION = "Authorization"
TARGET = "Holdfast-Target"
RESUME = "Holdfast-Resume"
OURS = "Holdfast-Relay"  # in a refusal: it is the relay's own word, not that of something before it
_RESUME = re.compile(r"([0-9a-f]{32}) (\d{1,9}) (\d{1,18}) ([0-9a-f]{64})", re.ASCII)


class Refused(Exception):
    """The sentence goes to the client. `status` is that of HTTP."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class Resumption:
    """Session `id` goes on; `received` is the offset up to which the client has everything."""

    id: str
    turn: int
    received: int
    proof: str = ""

    def proven(self, secret: bytes) -> str:
        """The proof that belongs to it."""
        said = f"{self.id} {self.turn} {self.received}"
        return hmac.new(secret, said.encode(), hashlib.sha256).hexdigest()

    def header(self, secret: bytes) -> str:
        """As the request carries it."""
        return f"{self.id} {self.turn} {self.received} {self.proven(secret)}"

    def is_proven(self, secret: bytes) -> bool:
        """Whether whoever sent it has the session's secret."""
        return hmac.compare_digest(self.proof, self.proven(secret))


@dataclass(frozen=True, slots=True)
class Asked:
    """Either `target` of a new session or `resumption` of one."""

    token: str
    target: str = ""
    resumption: Resumption | None = None


def asked(headers: Mapping[str, str]) -> Asked:
    """What a request wants. Raises Refused."""
    scheme, _, token = headers.get(AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refused(401, "there is no token in the request")
    if RESUME in headers:
        found = _RESUME.fullmatch(headers[RESUME])
        if found is None:
            raise Refused(400, f"the header {RESUME} cannot be read")
        return Asked(token, resumption=Resumption(found[1], int(found[2]), int(found[3]), found[4]))
    if TARGET not in headers:
        raise Refused(400, f"there is no header {TARGET}")
    return Asked(token, target=headers[TARGET])


def session_secret(key: bytes, session: str) -> bytes:
    """What only the relay and the client of `session` know. `key` is the relay's own, made when it starts."""
    return hmac.new(key, session.encode(), hashlib.sha256).digest()
