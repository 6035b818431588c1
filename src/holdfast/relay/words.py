"""What other machines, the system and libraries say, fit for people: one line each."""

from __future__ import annotations

import logging
import os
import ssl


def shown(text: str) -> str:
    """What another machine said: bounded, without control characters, so that it can be printed and logged."""
    return "".join(c if c.isprintable() else "?" for c in text.strip()[:300])


def cause(error: OSError) -> str:
    """What the system says of it, without what Python adds."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'it cannot be read').lower().replace('_', ' ')}"
    said = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    return said.lower() or "the connection was closed"


def quiet_logger() -> logging.Logger:
    """For websockets: whatever goes wrong is told by us, in a sentence."""
    logger = logging.getLogger("holdfast.relay")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
