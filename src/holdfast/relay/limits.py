"""How often one may try, and how fast bytes may go. Pure but for `Pace`, which waits."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Fills by `per_s` up to `most`. `left` may be negative: whoever takes more than there is waits."""

    most: float
    per_s: float
    left: float
    at_s: float

    def fill(self, now_s: float) -> None:
        """What has come in since."""
        self.left = min(self.most, self.left + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s


class Limits:
    """A bucket for each key; full ones are forgotten, and of `most_keys` the oldest."""

    def __init__(self, most: float, per_s: float, *, most_keys: int = 10_000) -> None:
        self._most, self._per_s, self._most_keys = most, per_s, most_keys
        self._buckets: dict[Hashable, Bucket] = {}

    def wait_s(self, key: Hashable, now_s: float) -> float:
        """How long until one may be taken; 0.0 for now."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return 0.0
        bucket.fill(now_s)
        return max(0.0, (1 - bucket.left) / self._per_s)

    def take(self, key: Hashable, now_s: float) -> None:
        """One more."""
        bucket = self._buckets.pop(key, None) or Bucket(self._most, self._per_s, self._most, now_s)
        bucket.fill(now_s)
        bucket.left -= 1
        self._buckets[key] = bucket
        if len(self._buckets) > self._most_keys:
            del self._buckets[next(iter(self._buckets))]

    def forget(self, now_s: float) -> None:
        """Drop what is full again."""
        for bucket in self._buckets.values():
            bucket.fill(now_s)
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if bucket.left < bucket.most}


class Pace:
    """So many bytes a second, all who share it together."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bucket = Bucket(bytes_per_s, bytes_per_s, bytes_per_s, time.monotonic())

    async def __call__(self, size_bytes: int) -> None:
        """Until `size_bytes` may go."""
        self._bucket.fill(time.monotonic())
        self._bucket.left -= size_bytes
        if self._bucket.left < 0:
            await asyncio.sleep(-self._bucket.left / self._bucket.per_s)


def place_on_the_net(address: str) -> str:
    """What counts as one address: of IPv6 the network, since its owner has all of it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network(f"{found}/64", strict=False)) if found.version == 6 else address
