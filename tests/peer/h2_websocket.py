"""A WebSocket over HTTP/2 (RFC 8441): `h2_websocket.py 127.0.0.1:8000` prints JSON: status, and what a text comes back as."""

import json
import sys

from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame
from raw_h2 import Connection, head

# The text `hello`, masked with zeros.
HELLO = b"\x81\x85\0\0\0\0hello"

connection = Connection(sys.argv[1])
report = {"status": None, "echo": None, "allowed": False}
stream = None
for frame in connection.frames():
    if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
        report["allowed"] = frame.settings.get(SettingsFrame.ENABLE_CONNECT_PROTOCOL) == 1
        fields = head("/chat", "CONNECT", more=[("sec-websocket-version", "13")])
        stream = connection.request([fields[0], (":protocol", "websocket"), *fields[1:]], end=False)
        connection.data(stream, HELLO, end=False)
    if isinstance(frame, HeadersFrame) and frame.stream_id == stream:
        report["status"] = int(dict(connection.decoder.decode(frame.data))[":status"])
    if isinstance(frame, DataFrame) and frame.stream_id == stream and frame.data and report["status"] == 200:
        report["echo"] = frame.data[2:].decode()
        break
    if getattr(frame, "stream_id", 0) == stream and "END_STREAM" in frame.flags:
        break
print(json.dumps(report))
