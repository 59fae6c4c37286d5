"""Frames that a WebSocket server must take or refuse, sent twice: `websocket_client.py DIRECT THROUGH` (addresses).

Every sequence runs on a connection of its own to each address. Prints JSON: the name of each sequence with `ok`, or both
transcripts where what came back through the proxy is not what came back directly. The frames are made and read here, so
that nothing between test and wire repairs them; the server is the `websockets` package.
"""

import base64
import hashlib
import json
import os
import socket
import struct
import sys
import zlib

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(opcode, payload=b"", fin=True, reserved=0, masked=True, length=None):
    size = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | reserved << 4 | opcode])
    bit = 0x80 if masked else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    if not masked:
        return head + payload
    key = os.urandom(4)
    stretched = (key * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")
    return head + key + mixed.to_bytes(len(payload), "big")


def close(code=None, reason=b""):
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def deflated(content):
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(content) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def sequences():
    # A number: that many frames are to come back before the rest is sent, as a close overtakes what is being echoed.
    end = close(1000)
    for size in [0, 1, 125, 126, 127, 65535, 65536, 1 << 20]:
        yield f"text of {size}", [frame(TEXT, b"*" * size), 1, end]
        yield f"binary of {size}", [frame(BINARY, b"\xfe" * size), 1, end]
    yield "binary of 8 MiB", [frame(BINARY, bytes(8 << 20)), 1, end]
    yield "byte by byte", [bytes([byte]) for byte in frame(TEXT, b"slowly")] + [1, end]
    for size in [0, 125, 126]:
        yield f"ping of {size}", [frame(PING, b"p" * size), end]
    yield "ping in pieces", [frame(PING, b"p", fin=False), end]
    yield "pong nobody asked for", [frame(PONG, b"x"), frame(TEXT, b"y"), 1, end]
    yield "ten pings", [frame(PING, bytes([number])) for number in range(10)] + [end]
    yield "fragments", [frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b", fin=False), frame(CONTINUATION, b"c"), 1, end]
    yield "ping between fragments", [frame(TEXT, b"a", fin=False), frame(PING, b"p"), frame(CONTINUATION, b"c"), 2, end]
    yield "4,000 fragments", [frame(BINARY, b"a", fin=False)] + [frame(CONTINUATION, b"b", fin=False)] * 4000 + [
        frame(CONTINUATION), 1, end]
    yield "continuation of nothing", [frame(CONTINUATION, b"x"), end]
    yield "text inside fragments", [frame(TEXT, b"a", fin=False), frame(TEXT, b"b"), end]
    for bits in range(1, 8):
        yield f"reserved bits {bits}", [frame(TEXT, b"x", reserved=bits), end]
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]:
        yield f"reserved opcode {opcode}", [frame(opcode, b"x"), end]
    yield "unmasked", [frame(TEXT, b"x", masked=False), end]
    yield "utf-8", [frame(TEXT, "κόσμε \U0001f30d".encode()), 1, end]
    for name, octets in {"overlong": b"\xc0\xaf", "surrogate": b"\xed\xa0\x80", "cut": b"\xce\xba\xe1", "beyond": b"\xf4\x90\x80\x80"}.items():
        yield f"utf-8 {name}", [frame(TEXT, octets), 1, end]
    yield "utf-8 across fragments", [frame(TEXT, b"\xce", fin=False), frame(CONTINUATION, b"\xba"), 1, end]
    for code in [1000, 1001, 1002, 1003, 1007, 1011, 3000, 3999, 4000, 4999, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535]:
        yield f"close {code}", [close(code, b"why")]
    yield "close without a code", [close()]
    yield "close of one byte", [frame(CLOSE, b"\x03")]
    yield "close with bad utf-8", [close(1000, b"\xc0\xaf")]
    yield "close of 126", [frame(CLOSE, struct.pack("!H", 1000) + b"x" * 124)]
    yield "data after close", [end, frame(TEXT, b"late"), frame(PING, b"late")]
    yield "a length beyond 63 bits", [frame(BINARY, b"x", length=1 << 63)]
    yield "many messages", [frame(TEXT, str(number).encode() * 50) for number in range(3000)] + [3000, end]


def deflated_sequences():
    end = close(1000)
    yield "compressed text", [frame(TEXT, deflated(b"hello " * 500), reserved=4), 1, end]
    yield "compressed binary of 4 MiB", [frame(BINARY, deflated(os.urandom(1 << 20) * 4), reserved=4), 1, end]
    yield "compressed in fragments", [
        frame(TEXT, deflated(b"hello")[:3], fin=False, reserved=4), frame(CONTINUATION, deflated(b"hello")[3:]), 1, end]
    yield "compressed rubbish", [frame(TEXT, b"\xff\xff\xff\xff", reserved=4), 1, end]
    yield "compressed control frame", [frame(PING, b"x", reserved=4), end]


class Peer:
    def __init__(self, address, extensions):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(30)
        key = base64.b64encode(os.urandom(16))
        head = b"GET /chat HTTP/1.1\r\nHost: ws.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        head += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n"
        if extensions:
            head += b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover\r\n"
        self.socket.sendall(head + b"\r\n")
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.fill()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        assert head.startswith(b"HTTP/1.1 101 ") and accept in head, head
        assert (b"permessage-deflate" in head) == extensions, head

    def fill(self):
        more = self.socket.recv(65536)
        if not more:
            raise EOFError
        self.buffer += more

    def take(self, length):
        while len(self.buffer) < length:
            self.fill()
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def frame(self):
        """The next frame: its first byte, its length, and what its content hashes to."""
        first, second = self.take(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.take(8))
        return [first, length, hashlib.sha256(self.take(length)).hexdigest()[:12]]


def run(address, pieces, extensions):
    """Everything that came back until the end."""
    peer = Peer(address, extensions)
    seen = []
    try:
        for piece in pieces:
            if isinstance(piece, int):
                seen += [peer.frame() for _ in range(piece)]
            else:
                peer.socket.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        pass  # Refused before all of it was sent: what came back tells.
    try:
        while True:
            seen.append(peer.frame())
    except (EOFError, ConnectionResetError):
        peer.socket.close()
        return seen


def main(direct, through):
    report = {}
    for extensions, all_sequences in [(False, sequences()), (True, deflated_sequences())]:
        for name, pieces in all_sequences:
            expected, seen = run(direct, pieces, extensions), run(through, pieces, extensions)
            same = expected == seen
            report[name] = "ok" if same else f"direct {expected[-3:]}, through {seen[-3:]}"
    print(json.dumps(report))


main(*sys.argv[1:])
