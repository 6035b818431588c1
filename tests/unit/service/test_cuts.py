"""A call over connections that break: at every byte of a short conversation, and again and again in a long one."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import itertools
import json
import os
import random
import signal
import socket
import struct
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import process
from holdfast.errors import HostUnreachable
from holdfast.runs import RunDir
from holdfast.service import frames
from holdfast.service.calls import Call, Order
from holdfast.service.client import CallLost, Calls, Standing
from holdfast.service.frames import WINDOW_BYTES, Decoder, Frame, Kind
from holdfast.service.riding import Riding
from holdfast.service.streams import unix
from holdfast.service.tasks import stop
from tests.unit.service.lab import Node, Said, calling, node, proxy, start
from tests.waiting import until

pytestmark = pytest.mark.e2e

Cuts = Iterator[tuple[int | None, int | None]]
CHATTER = "while read x; do echo out $x; echo err $x >&2; done; exit 5"
FRAMES_BYTES = 130  # more than follow the heads of HTTP there
AT_ONCE = 8


async def saying_over(service: Node, cuts: Cuts, *argv: str, stdin: bytes) -> tuple[Said, list[int], list[int]]:
    """What a call brings over connections with these cuts, and how many bytes each carried down and up."""
    async with proxy(service.socket, cuts) as between:
        said = await calling(between.path, *argv, stdin=stdin)
        return said, between.down, between.up


def said_over(service: Node, cuts: Cuts, *argv: str, stdin: bytes) -> tuple[Said, list[int], list[int]]:
    """As `saying_over`."""
    return asyncio.run(asyncio.wait_for(saying_over(service, cuts, *argv, stdin=stdin), 100))


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_a_cut_at_any_byte_loses_and_doubles_nothing(service: Node, run: RunDir, way: str, step: int) -> None:
    """At every third in the suite, at every one in make soak."""
    argv = ("shell", "digits", "--", "sh", "-c", CHATTER)
    stdin = b"1\n2\n"
    whole, down, up = said_over(service, iter(()), *argv, stdin=stdin)
    assert (whole.code, whole.out, whole.err) == (5, b"out 1\nout 2\n", b"err 1\nerr 2\n")

    end = (down if way == "down" else up)[0]
    places = [*range(0, end - FRAMES_BYTES, 32), *range(max(0, end - FRAMES_BYTES), end, step)]

    async def all_of_them() -> list[Said]:
        turns = asyncio.Semaphore(AT_ONCE)  # each waits a little before it connects again

        async def one(at: int) -> Said:
            cut = (at, None) if way == "down" else (None, at)
            async with turns:
                return (await saying_over(service, iter([cut]), *argv, stdin=stdin))[0]

        return await asyncio.wait_for(asyncio.gather(*map(one, places)), 100)

    for at, said in zip(places, asyncio.run(all_of_them()), strict=True):
        assert (at, said.code, said.out, said.err) == (at, whole.code, whole.out, whole.err)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 6))])
def test_a_long_stream_both_ways_survives_many_cuts(service: Node, run: RunDir, seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(12 << 20)
    cuts = ((chance.randrange(400, 2 << 20), chance.randrange(400, 2 << 20)) for _ in itertools.count())

    said, down, _ = said_over(service, cuts, "shell", "digits", "--", "cat", stdin=data)

    assert len(down) > 5
    assert hashlib.sha256(said.out).hexdigest() == hashlib.sha256(data).hexdigest()
    assert said.standings[0] == said.standings[-1] == Standing(None)
    assert said.standings[1].away_s is not None


def test_a_verb_is_begun_once_when_the_answer_is_lost(service: Node, run: RunDir, tmp_path: Path) -> None:
    count = tmp_path / "count"

    said, down, _ = said_over(
        service, iter([(0, None), (10, None)]), "shell", "digits", "--", "sh", "-c", f"echo x >>{count}", stdin=b""
    )

    assert (said.code, len(down), count.read_text()) == (0, 3, "x\n")


def test_a_verb_asked_for_before_the_service_began_is_not_begun(service: Node, run: RunDir) -> None:
    async def main() -> bytes:
        body = b'{"call":"%s","age_s":3600,"argv":["ps"]}' % (b"0" * 32)
        reader, writer = await asyncio.open_unix_connection(str(service.socket))
        head = b"POST /calls HTTP/1.1\r\nHost: n\r\nUpgrade: holdfast-call\r\nConnection: Upgrade\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = await reader.readuntil(b"\r\n")
        writer.close()
        return answer

    assert b" 410 " in asyncio.run(main())


def test_a_verb_that_a_killed_service_may_have_begun_is_not_begun_by_the_next(own_service: Node, run: RunDir) -> None:
    """Its number was sent, and the answer was lost with the service."""

    def watch(_standing: Standing) -> bool:
        if process.alive(own_service.who):
            own_service.kill(signal.SIGKILL)
            assert start() == 0
        return True

    async def main() -> None:
        async with proxy(own_service.socket, iter([(0, None)])) as between:
            await Calls(unix(between.path), watch).call(["shell", "digits", "--", "true"])

    try:
        with pytest.raises(CallLost):
            asyncio.run(main())
    finally:
        own_service.end_next()


@pytest.mark.parametrize("first", [40_000, 1 << 16], ids=["the next is begun", "the next is not begun"])
def test_input_that_waits_is_taken_once(own_service: Node, run: RunDir, tmp_path: Path, first: int) -> None:
    """The pipe is full, and the window too, whenever the connection is cut, and the node has told what it has."""
    data = random.Random(first).randbytes(6 << 20)
    script = f"until [ -e {tmp_path}/go ]; do sleep 0.02; echo more; done; exec sha256sum"

    def room() -> int:
        """How much more the verb's pipe takes; all where it has none yet."""
        for verb in own_service.children():
            stdin = Path(f"/proc/{verb}/fd/0")
            if str(stdin.readlink()).startswith("pipe:"):
                with stdin.open("rb", 0) as pipe:
                    (held,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
                    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) - int(held)
        return 1 << 16

    def give(descriptor: int) -> None:
        with os.fdopen(descriptor, "wb", 0) as feed:
            feed.write(data[:first])
            until(lambda: room() == (1 << 16) - first, 20)
            view = memoryview(data)[first:]
            while view:
                view = view[feed.write(view) :]

    async def main() -> bytes:
        ours, its = os.pipe()
        async with proxy(own_service.socket, iter(())) as between:
            with os.fdopen(ours, "rb", 0) as stdin, tempfile.TemporaryFile() as out:
                argv = ["shell", "digits", "--", "sh", "-c", script]
                call = Calls(unix(between.path)).call(argv, stdin=stdin.fileno(), stdout=out.fileno())
                both = asyncio.gather(call, asyncio.to_thread(give, its))
                try:
                    for number in range(3):
                        while len(between.up) == number or between.up[number] < WINDOW_BYTES:
                            await asyncio.sleep(0.01)
                        assert room() < os.sysconf("SC_PAGE_SIZE")  # a pipe is full of pages, and not always of bytes
                        told = between.down[number]
                        while between.down[number] < told + 2 * len(frames.output(1, b"more\n").encoded()):
                            await asyncio.sleep(0.01)
                        between.cut()
                    (tmp_path / "go").touch()
                    await both
                finally:
                    both.cancel()
                assert len(between.down) == 4  # and the node has ended none of them
                out.seek(0)
                return out.read().split()[-2]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == hashlib.sha256(data).hexdigest().encode()


@pytest.mark.parametrize("request_line", ["POST /calls", "GET /calls/{number}?out=1", "GET /calls/{number}?out=4"])
def test_frames_that_are_not_here_are_refused(service: Node, run: RunDir, request_line: str) -> None:
    """Three have come, two of them are acknowledged."""
    number = hashlib.blake2b(request_line.encode(), digest_size=16).hexdigest()
    body = json.dumps({"call": number, "argv": ["shell", "digits", "--", "sh", "-c", "echo 1; echo 2 >&2; exec cat"]})
    head = "{} HTTP/1.1\r\nHost: n\r\nUpgrade: holdfast-call\r\nConnection: Upgrade\r\nContent-Length: {}\r\n\r\n{}"

    async def main() -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(service.socket))
        writer.write(head.format("POST /calls", len(body), body).encode())
        await reader.readuntil(b"\x022\n")
        writer.write(frames.ack(2).encoded() + Frame(Kind.INPUT, b"x").encoded())
        await reader.readuntil(b"\x01x")  # what went before it was heard
        again, to_again = await asyncio.open_unix_connection(str(service.socket))
        sent = body if request_line.startswith("POST") else ""
        to_again.write(head.format(request_line.format(number=number), len(sent), sent).encode())
        answer = await again.readuntil(b"\r\n")
        writer.write(frames.ack(3).encoded() + Frame(Kind.LEAVE, b"").encoded())
        await reader.read()
        for each in (writer, to_again):
            each.close()
        return answer

    assert b" 410 " in asyncio.run(asyncio.wait_for(main(), 60))


def test_who_comes_back_for_frames_that_went_meanwhile_is_hung_up() -> None:
    """Between the answer to a request and its first frame the connection before it may acknowledge more."""

    async def main() -> bytes:
        call = Call(Order(()), lambda _argv: print("x") or 0)
        ours, its = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=its)
        attaching = asyncio.create_task(call.attach(reader, writer, b"", 0))
        here, to_call = await asyncio.open_connection(sock=ours)
        await here.readuntil(frames.exit_(0).encoded())
        to_call.write(frames.ack(1).encoded())
        to_call.close()
        await attaching
        await call.attach(reader, writer, b"", 0)
        writer.close()
        call.close()
        return await here.read()

    assert asyncio.run(asyncio.wait_for(main(), 30)) == b""


def test_signals_pass_once_though_they_are_sent_again(service: Node, run: RunDir) -> None:
    """A signal is answered over each connection, behind those of before that are sent again there."""
    traps = "trap 'echo one' USR1; trap 'echo two' USR2; trap 'echo end; exit' WINCH"
    script = f"exec 2>/dev/null; {traps}; echo ready; while :; do sleep 0.02; done"

    async def main() -> tuple[bytes, int]:
        ours, its = os.pipe()
        with os.fdopen(its, "wb", 0) as sink, os.fdopen(ours, "rb", 0) as seen:
            riding = Riding(None, sink.fileno(), sink.fileno(), None)
            order = {"call": "a" * 32, "argv": ["shell", "digits", "--", "sh", "-c", script]}
            async with proxy(service.socket, iter(())) as between:
                calls = Calls(unix(between.path))
                feeding = asyncio.create_task(riding.feed())
                carrying = asyncio.create_task(calls._carry(order, riding))
                loop = asyncio.get_running_loop()
                said = await loop.run_in_executor(None, seen.readline)
                for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
                    riding.signal(number)
                    said += await loop.run_in_executor(None, seen.readline)
                    if number != signal.SIGWINCH:
                        between.cut()
                await carrying
                await feeding
            sink.close()
            return said + seen.read(), len(between.down)

    assert asyncio.run(asyncio.wait_for(main(), 60)) == (b"ready\none\ntwo\nend\n", 3)


def test_what_is_not_written_yet_is_not_acknowledged(own_home: Path) -> None:
    """A signal of the laptop comes behind what was acknowledged before."""

    async def node(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(frames.output(1, bytes(frames.PAYLOAD_BYTES - 1)).encoded())  # a pipe takes one of them
        decoder = Decoder()
        while not any(frame.kind is Kind.SIGNAL for frame in heard):
            heard.extend(decoder.fed(await reader.read(1 << 16)))
        writer.close()
        is_heard.set()

    async def main() -> None:
        ours, its = os.pipe()
        with os.fdopen(its, "wb", 0) as sink, os.fdopen(ours, "rb", 0):
            async with await asyncio.start_unix_server(node, str(own_home / "node.sock")):
                stream = await unix(own_home / "node.sock")()
                riding = Riding(None, sink.fileno(), sink.fileno(), None)
                going = asyncio.create_task(riding.ride(stream, b""))
                while riding.received < 2:
                    await asyncio.sleep(0.01)
                riding.signal(signal.SIGUSR1)
                await is_heard.wait()
                await stop(going)
                await stream.close()

    heard: list[Frame] = []
    is_heard = asyncio.Event()
    asyncio.run(asyncio.wait_for(main(), 30))
    assert max((frames.ack_of(frame) for frame in heard if frame.kind is Kind.ACK), default=0) == 1


def test_who_has_waited_long_enough_gives_up(service: Node, run: RunDir) -> None:
    told: list[Standing] = []

    def watch(standing: Standing) -> bool:
        told.append(standing)
        return len(told) < 3

    async def main() -> None:
        async with proxy(service.socket, itertools.repeat((0, 0))) as between:
            await Calls(unix(between.path), watch).call(["ps"])

    with pytest.raises(HostUnreachable, match="the connection to the node is gone"):
        asyncio.run(main())
    assert [standing.away_s is not None for standing in told] == [True, True, True]


def test_a_later_connection_ends_the_one_before(run: RunDir) -> None:
    with node() as service:
        number = "b" * 32

        async def main() -> bytes:
            head = b"HTTP/1.1\r\nHost: n\r\nUpgrade: holdfast-call\r\nConnection: Upgrade\r\nContent-Length: %d\r\n\r\n"
            body = b'{"call":"%s","argv":["shell","digits","--","cat"]}' % number.encode()
            first, to_first = await asyncio.open_unix_connection(str(service.socket))
            to_first.write(b"POST /calls " + head % len(body) + body)
            assert b"101" in await first.readuntil(b"\r\n\r\n")
            later, to_later = await asyncio.open_unix_connection(str(service.socket))
            to_later.write(b"GET /calls/" + number.encode() + b"?out=0 " + head % 0)
            assert b"101" in await later.readuntil(b"\r\n\r\n")
            left = await first.read()  # what was under way, then its end
            to_later.write(b"\x00\x00\x00\x00\x02hi" + b"\x00\x00\x00\x00\x00")
            seen = await later.readuntil(b"\x04\x00\x00\x00\x04\x00\x00\x00\x00")
            to_later.write(b"\x02\x00\x00\x00\x08" + (2).to_bytes(8, "big"))
            assert await later.read() == b""
            to_first.close()
            to_later.close()
            assert len(left) <= 13
            return seen

        assert b"\x01\x00\x00\x00\x03\x01hi" in asyncio.run(asyncio.wait_for(main(), 60))
