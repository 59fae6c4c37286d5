"""Malformed HTTP/2 requests that become ambiguous as HTTP/1.1: `h2_shapes.py 127.0.0.1:8000` prints JSON.

Each shape is a connection of its own; its entry is how its stream ended (see raw_h2.py).
"""

import json
import sys

from hyperframe.frame import HeadersFrame
from raw_h2 import Connection, head

SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"


def one(address, headers, content=None):
    connection = Connection(address)
    stream = connection.request(headers, end=content is None)
    if content is not None:
        connection.data(stream, content.encode())
    outcome = connection.outcome(stream)
    connection.close()
    return outcome


def trailers(address, fields):
    """Content, then these fields as trailers."""
    connection = Connection(address)
    announced = ", ".join(name for name, _ in fields if not name.startswith(":"))
    more = [("te", "trailers"), ("trailer", announced)]
    stream = connection.request(head(method="POST", more=more), end=False)
    connection.data(stream, b"hello", end=False)
    block = connection.encoder.encode(fields)
    connection.send(HeadersFrame(stream, block, flags=["END_HEADERS", "END_STREAM"]))
    outcome = connection.outcome(stream)
    connection.close()
    return outcome


def post(*more):
    return head(method="POST", more=more)


SHAPES = {
    "content-length too small": (post(("content-length", "0")), SMUGGLED),
    "content-length too large": (post(("content-length", "100")), "hello"),
    "content-length without content": (post(("content-length", "100")), None),
    "content-length twice": (post(("content-length", "5"), ("content-length", "0")), "hello"),
    "content-length list": (post(("content-length", "5, 5")), "hello"),
    "content-length with a sign": (post(("content-length", "+5")), "hello"),
    "transfer-encoding": (post(("transfer-encoding", "chunked")), "0\r\n\r\n" + SMUGGLED),
    "transfer-encoding and content-length": (
        post(("transfer-encoding", "chunked"), ("content-length", "5")), "0\r\n\r\n"),
    "connection": (head(more=[("connection", "close")]), None),
    "keep-alive": (head(more=[("keep-alive", "timeout=5")]), None),
    "proxy-connection": (head(more=[("proxy-connection", "close")]), None),
    "upgrade": (head(more=[("upgrade", "websocket")]), None),
    "te other than trailers": (head(more=[("te", "gzip")]), None),
    "CRLF in a value": (head(more=[("x", "y\r\ntransfer-encoding: chunked")]), None),
    "LF in a value": (head(more=[("x", "y\nhost: b")]), None),
    "CR in a value": (head(more=[("x", "y\rhost: b")]), None),
    "NUL in a value": (head(more=[("x", "y\0z")]), None),
    "CRLF in a name": (head(more=[("x: y\r\nhost", "b")]), None),
    "colon in a name": (head(more=[("x:y", "b")]), None),
    "space in a name": (head(more=[("x y", "b")]), None),
    "empty name": (head(more=[("", "b")]), None),
    "upper case in a name": (head(more=[("Content-Length", "0")]), None),
    "CRLF in the path": (head("/a HTTP/1.1\r\nHost: a.test\r\n\r\nGET /smuggled"), None),
    "space in the path": (head("/a HTTP/1.1 /smuggled"), None),
    "LF in the path": (head("/a\n/smuggled"), None),
    "empty path": (head(""), None),
    "path without a slash": (head("smuggled"), None),
    "absolute path": (head("http://b.test/smuggled"), None),
    "fragment in the path": (head("/a#x"), None),
    "CRLF in the method": (head(method="GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\nGET"), None),
    "space in the method": (head(method="GET /smuggled"), None),
    "CRLF in the authority": (head(host="a.test\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test"), None),
    "path in the authority": (head(host="a.test/smuggled"), None),
    "user in the authority": (head(host="x@a.test"), None),
    "CRLF in the scheme": (
        [(":method", "GET"), (":scheme", "http://a.test/\r\nx"), (":authority", "a.test"), (":path", "/smuggled")],
        None),
    "host against authority": (head(more=[("host", "b.test")]), None),
    "host twice": (
        [(":method", "GET"), (":scheme", "http"), (":path", "/smuggled"), ("host", "a.test"), ("host", "b.test")],
        None),
    "no host at all": ([(":method", "GET"), (":scheme", "http"), (":path", "/smuggled")], None),
    "pseudo-header twice": (head(more=[(":path", "/smuggled")]), None),
    "pseudo-header after a field": ([*head()[:3], ("x", "y"), (":path", "/smuggled")], None),
    "unknown pseudo-header": (head(more=[(":smuggled", "1")]), None),
    "status in a request": (head(more=[(":status", "200")]), None),
    "no method": (head()[1:], None),
    "no path": (head()[:3], None),
    "connect": ([(":method", "CONNECT"), (":authority", "a.test:80")], None),
}

address = sys.argv[1]
report = {name: one(address, headers, content) for name, (headers, content) in SHAPES.items()}
report["pseudo-header in trailers"] = trailers(address, [(":path", "/smuggled")])
report["transfer-encoding in trailers"] = trailers(address, [("transfer-encoding", "chunked")])
report["CRLF in trailers"] = trailers(address, [("x", "y\r\n\r\n" + SMUGGLED)])
report["framing in trailers"] = trailers(address, [("content-length", "44"), ("host", "evil.test"), ("x-sum", "1")])
print(json.dumps(report))
