"""What decides: tokens, limits, signs of life, URLs, pauses, proofs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from holdfast.errors import UsageError
from holdfast.relay.client import MOST_PAUSE_S, checked_url, pause_s
from holdfast.relay.handshake import Refused, Resumption, asked, session_secret
from holdfast.relay.limits import Limits, place_on_the_net
from holdfast.relay.liveness import DEAD_AFTER_S, JUMP_S, PING_AFTER_S, TICK_S, Verdict, judge
from holdfast.relay.stream import within
from holdfast.relay.tokens import Token, digest_of, matching, place_of, read_token, read_tokens, target_of

SHOWN = "a-token-of-some-length"
HASH = digest_of(SHOWN).hex()


def test_a_file_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# who\n\nalice {HASH} gpu-a:22,[fd00::1]:2222 20MB/s\nbob {'0' * 64} gpu-b:22\n")

    alice, bob = read_tokens(tmp_path / "tokens")

    assert alice == Token("alice", digest_of(SHOWN), frozenset({"gpu-a:22", "[fd00::1]:2222"}), 20_000_000)
    assert matching([alice, bob], SHOWN) == alice
    assert matching([alice, bob], SHOWN + "x") is None
    assert place_of("[fd00::1]:2222") == ("fd00::1", 2222)
    assert target_of("fd00::1", 2222) == "[fd00::1]:2222"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no token"),
        (f"alice {HASH}", "tokens:1 has 2 words"),
        ("alice secret gpu-a:22", "'secret' is no SHA-256"),
        (f"alice {HASH} gpu-a", "'gpu-a' is not a target"),
        (f"alice {HASH} gpu-a:99999", "'gpu-a:99999' is not a target"),
        (f"alice {HASH} *:22", "'*:22' is not a target"),
        (f"alice {HASH} a:22\nalice {'1' * 64} a:22", "the same name twice: alice"),
        (f"alice {HASH} a:22\nbob {HASH} a:22", "the same token twice"),
        (f"alice {HASH} a:22 20", "is not a rate"),
    ],
)
def test_a_file_of_tokens_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "tokens").write_text(text)

    with pytest.raises(UsageError) as told:
        read_tokens(tmp_path / "tokens")

    assert said in str(told.value)


def test_a_token_that_others_can_read_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(SHOWN + "\n")
    path.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others"):
        read_token(path)

    path.chmod(0o600)

    assert read_token(path) == SHOWN


@pytest.mark.parametrize(("value", "said"), [("", "there is no token"), ("short", "is not 16 or more")])
def test_a_token_of_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.setenv("HOLDFAST_RELAY_TOKEN", value)

    with pytest.raises(UsageError, match=said):
        read_token(None)


def test_a_token_is_one_whose_every_byte_is_right() -> None:
    digest = digest_of("shown")
    nearly = [bytes(byte ^ (at == wrong) for at, byte in enumerate(digest)) for wrong in range(len(digest))]
    others = [Token(f"other-{number}", each, frozenset()) for number, each in enumerate(nearly)]
    right = Token("right", digest, frozenset())

    assert matching(others, "shown") is None
    assert matching([*others[:9], right, *others[9:]], "shown") == right


def test_a_limit_fills_again() -> None:
    limits = Limits(most=3, per_s=0.5)
    for _ in range(3):
        assert limits.wait_s("a", 0.0) == 0.0
        limits.take("a", 0.0)

    assert limits.wait_s("a", 0.0) == 2.0
    assert limits.wait_s("b", 0.0) == 0.0
    assert limits.wait_s("a", 2.0) == 0.0


def test_limits_remember_no_more_keys_than_they_may() -> None:
    limits = Limits(most=1, per_s=0.001, most_keys=2)
    for key in "abc":
        limits.take(key, 0.0)

    assert [limits.wait_s(key, 0.0) > 0 for key in "abc"] == [False, True, True]
    limits.forget(10_000.0)
    assert limits.wait_s("c", 10_000.0) == 0.0


def test_one_owner_of_many_addresses_is_one_place() -> None:
    assert place_on_the_net("2001:db8::1") == place_on_the_net("2001:db8::ffff:1")
    assert place_on_the_net("192.0.2.1") != place_on_the_net("192.0.2.2")


@pytest.mark.parametrize(
    ("silent_s", "ticked_s", "verdict"),
    [
        (0.0, TICK_S, Verdict.FINE),
        (PING_AFTER_S, TICK_S, Verdict.PING),
        (DEAD_AFTER_S, TICK_S, Verdict.DEAD),
        (0.0, TICK_S + JUMP_S + 0.1, Verdict.DEAD),  # asleep: no question is asked
        (0.0, -3600.0, Verdict.FINE),  # the clock was set back
    ],
)
def test_signs_of_life(silent_s: float, ticked_s: float, verdict: Verdict) -> None:
    assert judge(silent_s, ticked_s) is verdict


@pytest.mark.parametrize("url", ["wss://relay.example.org/ssh", "wss://[fd00::1]:8443", "ws://127.0.0.1:8022/x"])
def test_urls_of_relays(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ws://relay.example.org/ssh", "unencrypted"),
        ("https://relay.example.org", "not the URL of a relay"),
        ("wss://", "not the URL of a relay"),
        ("wss://user:secret@relay.example.org", "not the URL of a relay"),
        ("wss://relay.example.org:99999", "is not a URL"),
    ],
)
def test_urls_that_are_none(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        checked_url(url)


def test_pauses_are_spread_from_nothing_to_their_ceiling() -> None:
    rng = random.Random(0)
    assert all(0 <= pause_s(0, rng) <= 0.1 for _ in range(100))
    late = [pause_s(50, rng) for _ in range(1000)]
    assert min(late) < 1 and 29 < max(late) <= MOST_PAUSE_S


def test_a_proof_covers_everything_that_is_said() -> None:
    secret = session_secret(b"key", "0" * 32)
    header = Resumption("0" * 32, 3, 77).header(secret)
    wish = asked({"Authorization": "Bearer x", "Holdfast-Resume": header}).resumption

    assert wish is not None and wish.is_proven(secret)
    assert not wish.is_proven(session_secret(b"other", "0" * 32))
    for changed in (("1" * 32, 3, 77), ("0" * 32, 4, 77), ("0" * 32, 3, 78)):
        assert not Resumption(*changed, proof=wish.proof).is_proven(secret)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Basic eDp5"}, 401),
        ({"Authorization": "Bearer x"}, 400),
        ({"Authorization": "Bearer x", "Holdfast-Resume": "1 2 3"}, 400),
    ],
)
def test_requests_that_say_too_little(headers: dict[str, str], status: int) -> None:
    with pytest.raises(Refused) as refused:
        asked(headers)

    assert refused.value.status == status


def test_a_cancellation_is_not_lost_when_the_work_ends_at_the_same_moment() -> None:
    async def work() -> None:
        inner = asyncio.Event()
        waiting = asyncio.ensure_future(within(inner.wait(), 60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        inner.set()
        await asyncio.sleep(0)  # the work has ended, who waits for it has not gone on
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(work())


def test_what_takes_too_long_is_ended() -> None:
    async def work() -> None:
        never = asyncio.Event()
        with pytest.raises(asyncio.TimeoutError):
            await within(never.wait(), 0.01)

    asyncio.run(work())
