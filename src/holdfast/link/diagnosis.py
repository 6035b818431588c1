"""Why there is no connection, from what ssh said on its standard error. Pure.

What may be tried again by itself is a matter of the cause: a server that is told wrong keys again and again shuts the
whole network of the user out (PerSourcePenalties, fail2ban), while a cable may be plugged in again at any time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """What keeps a link down."""

    AUTHENTICATION = "authentication"  # the server does not take what we have
    HOST_KEY = "host-key"  # it is not the machine that it was, or not known yet
    CONFIGURATION = "configuration"  # ssh does not begin
    NAME = "name"  # nobody knows the host's address
    NETWORK = "network"  # no way there, or nobody listens
    LOST = "lost"  # there was a connection
    UNKNOWN = "unknown"

    @property
    def is_retried(self) -> bool:
        """Whether a connection is tried again without being asked for."""
        return self in (Cause.NAME, Cause.NETWORK, Cause.LOST, Cause.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Why:
    """One sentence for a person, with what to do in `hint`; `said` is the line of ssh it comes from."""

    cause: Cause
    sentence: str
    hint: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    cause: Cause
    pattern: str
    sentence: str  # {host} is the alias; {name} a group of the pattern
    hint: str = ""


_ROWS = (
    _Row(
        Cause.HOST_KEY,
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{host} shows another host key than before: it was installed anew, or somebody stands in between",
        "ask who looks after it; ssh {host} then says which line of known_hosts to remove",
    ),
    _Row(Cause.HOST_KEY, r"Host key verification failed", "the host key of {host} is not known", "ssh {host} once"),
    _Row(Cause.HOST_KEY, r"No \S+ host key is known for", "the host key of {host} is not known", "ssh {host} once"),
    _Row(
        Cause.AUTHENTICATION,
        r"^error: (?P<what>the token is not known here|this token may not go to .*)",
        "the relay on the way to {host} refuses: {what}",
        "its file of tokens says who may go where",
    ),
    _Row(
        Cause.AUTHENTICATION,
        r"Permission denied \((?P<ways>[^)]*)\)",
        "{host} takes none of our keys (it offers {ways})",
        "ssh-copy-id {host}, or ssh-add your key",
    ),
    _Row(
        Cause.AUTHENTICATION,
        r"Too many authentication failures",
        "{host} was shown too many keys before the right one",
        "name the key: IdentityFile and IdentitiesOnly yes under Host {host}",
    ),
    _Row(
        Cause.AUTHENTICATION,
        r"UNPROTECTED PRIVATE KEY FILE|bad permissions",
        "a private key for {host} can be read by others, so ssh does not use it",
        "chmod 600 that file",
    ),
    _Row(Cause.CONFIGURATION, r"Bad configuration option: (?P<what>\S+)", "ssh does not know the option {what}"),
    _Row(Cause.CONFIGURATION, r"Bad owner or permissions on (?P<what>\S+)", "ssh refuses {what}", "chmod 600 {what}"),
    _Row(
        Cause.CONFIGURATION,
        r"ControlPath too long|too long for Unix domain socket",
        "your ssh configuration has too long a ControlPath on the way to {host}",
        "shorten it there, for example ~/.ssh/%C",
    ),
    _Row(
        Cause.NAME,
        r"Could not resolve hostname (?P<name>\S+):",
        "nobody knows an address of {name}",
        "is {name} an alias of your ~/.ssh/config? is the network there?",
    ),
    _Row(Cause.NETWORK, r"Connection refused", "{host} is there, and no SSH server listens", "is the port right?"),
    _Row(Cause.NETWORK, r"No route to host|Network is unreachable", "there is no way to {host}", "is the network up?"),
    _Row(Cause.NETWORK, r"connect to .*: Connection timed out|timed out during banner", "{host} does not answer"),
    _Row(Cause.NETWORK, r"kex_exchange_identification|Connection closed by .* port \d+$", "{host} hangs up at once"),
    _Row(Cause.LOST, r"Timeout, server \S+ not responding", "{host} has not answered for too long"),
    _Row(
        Cause.LOST,
        r"Connection reset by|Broken pipe|Connection to .* closed|Received disconnect from|client_loop",
        "the connection to {host} was cut",
    ),
)  # fmt: skip


_NO_WAY = "UNKNOWN port 65535"  # what ssh calls the end of a jump host, or of a proxy, that has not let it through
_PROXY_SAYS = "error: "  # ssh itself begins no line with that; `holdfast relay connect` does


def diagnose(said: str, host: str) -> Why:
    """The cause, from all that ssh has said; of several the one that explains the others."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    is_short = any(_NO_WAY in line for line in lines) and not any("stdio forwarding failed" in line for line in lines)
    told = next((line for line in lines if line.startswith(_PROXY_SAYS)), "") if is_short else ""
    for row in _ROWS:
        for line in reversed(lines):
            found = re.search(row.pattern, line)
            if found:
                words = {"host": host, **found.groupdict()}
                hint = row.hint.format(**words)
                if told and row.cause is Cause.NETWORK:
                    return Why(row.cause, f"the way to {host}: {told.removeprefix(_PROXY_SAYS)}", said=told)
                elsewhere = not told and row.cause not in (Cause.NAME, Cause.CONFIGURATION)
                if is_short and elsewhere and "Connection closed by" not in line:
                    words["host"], hint = f"a host on the way to {host}", f"ssh -v {host} shows which"
                return Why(row.cause, row.sentence.format(**words), hint, line)
    last = lines[-1] if lines else ""
    return Why(Cause.UNKNOWN, f"ssh {host} ended{f': {last}' if last else ' and said nothing'}", said=last)
