"""HTTP/2 frame by frame, by `hyperframe` and `hpack`: for what no well-behaved client sends."""

import socket

import hpack
from hyperframe.frame import (
    DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Connection:
    """One connection in the clear, with prior knowledge. Streams count up from 1."""

    def __init__(self, address, settings=None, patience=20):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), patience)
        self.socket.settimeout(patience)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.decoder.max_header_list_size = 1 << 20
        self.buffer, self.stream, self.ended = b"", -1, None
        self.socket.sendall(PREFACE + SettingsFrame(0, settings=settings or {}).serialize())

    def next_stream(self):
        self.stream += 2
        return self.stream

    def send(self, *frames):
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))

    def request(self, headers, end=True, stream=None):
        """Sends a head; names and values go out exactly as they stand. Returns the stream."""
        stream = stream or self.next_stream()
        block = self.encoder.encode([(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers])
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        self.send(HeadersFrame(stream, block, flags=flags))
        return stream

    def data(self, stream, content, end=True):
        self.send(DataFrame(stream, content, flags=["END_STREAM"] if end else []))

    def frames(self):
        """Frames until the other end closes; SETTINGS and PING are answered."""
        while True:
            try:
                while len(self.buffer) < 9:
                    self.fill()
                frame, length = Frame.parse_frame_header(memoryview(self.buffer[:9]))
                while len(self.buffer) < 9 + length:
                    self.fill()
            except (EOFError, ConnectionError):
                return
            frame.parse_body(memoryview(self.buffer[9 : 9 + length]))
            self.buffer = self.buffer[9 + length :]
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                self.send(SettingsFrame(0, flags=["ACK"]))
            if isinstance(frame, PingFrame) and "ACK" not in frame.flags:
                self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
            yield frame

    def fill(self):
        more = self.socket.recv(65536)
        if not more:
            raise EOFError
        self.buffer += more

    def outcome(self, stream):
        """How the stream ended: `STATUS`, `reset CODE`, `goaway CODE` or `closed`."""
        status = None
        for frame in self.frames():
            if isinstance(frame, HeadersFrame):
                headers = dict(self.decoder.decode(frame.data))
                if frame.stream_id == stream and ":status" in headers:
                    status = headers[":status"]
            if isinstance(frame, DataFrame) and frame.flow_controlled_length:
                self.send(WindowUpdateFrame(0, window_increment=frame.flow_controlled_length))
            if isinstance(frame, GoAwayFrame) and frame.error_code:
                return f"goaway {frame.error_code}"
            if isinstance(frame, RstStreamFrame) and frame.stream_id == stream:
                return status or f"reset {frame.error_code}"
            if getattr(frame, "stream_id", 0) == stream and "END_STREAM" in frame.flags:
                return status or "ended"
        return status or "closed"

    def close(self):
        self.socket.close()


def head(path="/a", method="GET", host="a.test", more=()):
    """The usual pseudo-header fields, and more behind them."""
    return [(":method", method), (":scheme", "http"), (":authority", host), (":path", path), *more]
