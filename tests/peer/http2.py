"""The test edge over HTTP/2: the connector dials TCP and TLS and is then the HTTP/2 server, the edge its client.

Python's `h2` does the protocol. What tests see are the same commands and events as over QUIC (see edge.py), with these
differences: `connected` tells the connector's SETTINGS; `head` has `meta` (cf-cloudflared-response-meta) and `plain` (headers
outside the serialised one, `headers` being those inside); `response` has `trailers`.
"""

import asyncio
import base64
import hashlib
import json
import ssl

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

UPGRADE = "cf-cloudflared-proxy-connection-upgrade"
RESPONSE_HEADERS = "cf-cloudflared-response-headers"
RESPONSE_META = "cf-cloudflared-response-meta"


def server_context(certificate, key, names):
    """A TLS context that would choose h2 if it were offered, and that remembers the names asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.sni_callback = lambda connection, name, _context: names.__setitem__(id(connection), name)
    return context


def deserialise(text):
    """User headers of a response: base64(name):base64(value), joined with semicolons, without padding."""
    if not text:
        return []
    decode = lambda part: base64.b64decode(part + "=" * (-len(part) % 4), validate=True).decode("latin-1")
    return [[decode(part) for part in pair.split(":")] for pair in text.split(";")]


class Response:
    """One exchange on a stream: head, body, trailers, end."""

    def __init__(self, identifier, connection, emit, pattern):
        self.identifier = identifier
        self.connection = connection
        self.emit = emit
        self.pattern = pattern
        self.head_seen = False
        self.bytes = 0
        self.patterned = True
        self.digest = hashlib.sha256()
        self.text = bytearray()
        self.trailers = []
        self.ended = False
        self.echo = None

    def head(self, headers):
        self.head_seen = True
        found = dict(headers)
        serialised = found.get(RESPONSE_HEADERS)
        try:
            inner, problem = deserialise(serialised), None
        except ValueError as error:
            inner, problem = [], str(error)
        special = (RESPONSE_HEADERS, RESPONSE_META, ":status")
        self.emit(
            "head",
            id=self.identifier,
            error="",
            status=int(found[":status"]),
            headers=inner,
            serialised=serialised,
            problem=problem,
            meta=json.loads(found[RESPONSE_META]) if RESPONSE_META in found else None,
            plain=[[name, value] for name, value in headers if name not in special],
        )

    def receive(self, data):
        if self.bytes == 0 and data:
            self.emit("began", id=self.identifier, text=data[:1024].decode("utf-8", "replace"))
        self.patterned = self.patterned and data == self.pattern(self.bytes, len(data))
        self.bytes += len(data)
        self.digest.update(data)
        self.text += data[: 65536 - len(self.text)]
        if self.echo is not None:
            self.echo["received"] += data
            if len(self.echo["received"]) >= len(self.echo["sent"]):
                same = bytes(self.echo["received"]) == self.echo["sent"]
                self.emit("echoed", id=self.identifier, bytes=len(self.echo["received"]), same=same)
                self.echo = None

    def finish(self, end, code=None):
        if self.ended:
            return
        self.ended = True
        self.emit(
            "response",
            id=self.identifier,
            connection=self.connection,
            head=self.head_seen,
            bytes=self.bytes,
            sha256=self.digest.hexdigest(),
            patterned=self.patterned,
            text=self.text.decode("utf-8", "replace"),
            trailers=self.trailers,
            end=end,
            code=code,
        )


class Configuration(Response):
    """The answer to an update-configuration request."""

    def finish(self, end, code=None):
        if not self.ended:
            self.ended = True
            body = json.loads(self.text) if end == "fin" else {}
            fields = {"version": body.get("lastAppliedVersion"), "error": body.get("err")}
            self.emit("configured", id=self.identifier, keys=sorted(body), **fields)


class Control:
    """The control stream: registration RPC over the two bodies of a request."""

    def __init__(self, rpc):
        self.rpc = rpc
        self.ended = False

    def head(self, headers):
        pass

    def receive(self, data):
        self.rpc.receive(data, False)

    def finish(self, end, code=None):
        if not self.ended:
            self.ended = True
            self.rpc.receive(b"", end == "fin")


class Http2Connection(asyncio.Protocol):
    """One TCP connection of a connector."""

    def __init__(self, edge, edge_index, names, tools):
        self.edge = edge
        self.edge_index = edge_index
        self.names = names
        self.emit, self.pattern, self.content, self.rpc = tools
        self.number = None
        self.remote = None
        self.silent = False
        self.streams = {}
        self.waiting = {}
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.http = h2.connection.H2Connection(config)

    def connection_made(self, transport):
        self.transport = transport
        tls = transport.get_extra_info("ssl_object")
        self.remote = "{}:{}".format(*transport.get_extra_info("peername")[:2])
        self.edge.connections.append(self)
        self.number = len(self.edge.connections)
        offered = tls.selected_alpn_protocol()
        name = self.names.pop(id(tls), None)
        fields = {"sni": name, "alpn": [offered] if offered else [], "version": tls.version(), "transport": "http2"}
        self.emit("hello", connection=self.number, edge=self.edge_index, remote=self.remote, **fields)
        self.http.initiate_connection()
        self.http.increment_flow_control_window(16 * 1024 * 1024)
        stream = self.start("GET", "/", "control.test", [(UPGRADE, "control-stream")])
        self.streams[stream] = Control(self.rpc(self, stream))
        self.flush()

    def data_received(self, data):
        if self.silent:
            return
        try:
            received = self.http.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self.emit("problem", what=f"HTTP/2: {type(error).__name__}: {error}")
            received = []
            self.transport.close()
        for event in received:
            self.handle(event)
        self.push_waiting()
        self.flush()

    def connection_lost(self, error):
        self.emit("closed", connection=self.number, by="peer", application=True, code=0, reason=str(error or ""))
        for stream in self.streams.values():
            stream.finish("lost")

    def handle(self, event):
        if isinstance(event, h2.events.RemoteSettingsChanged):
            settings = {str(int(code)): change.new_value for code, change in event.changed_settings.items()}
            self.emit("connected", connection=self.number, settings=settings)
        elif isinstance(event, h2.events.PingReceived):
            self.emit("ping", connection=self.number, packet_bytes=17)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.emit("goaway", connection=self.number, code=int(event.error_code), last=event.last_stream_id)
        else:
            self.handle_stream(event, self.streams.get(getattr(event, "stream_id", None)))

    def handle_stream(self, event, stream):
        if stream is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            stream.head(event.headers)
        elif isinstance(event, h2.events.InformationalResponseReceived):
            self.emit("informational", id=getattr(stream, "identifier", None), status=dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            stream.receive(event.data)
            if event.flow_controlled_length:
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            stream.trailers = [list(pair) for pair in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            stream.finish("fin")
        elif isinstance(event, h2.events.StreamReset):
            stream.finish("reset", int(event.error_code))

    def start(self, method, path, authority, headers, end=False):
        stream = self.http.get_next_available_stream_id()
        base = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
        self.http.send_headers(stream, base + headers, end_stream=end)
        return stream

    def write(self, stream, data, end=False):
        queue = self.waiting.setdefault(stream, {"data": bytearray(), "end": False})
        queue["data"] += data
        queue["end"] = queue["end"] or end
        self.push_waiting()
        self.flush()

    def push_waiting(self):
        """Sends what the windows allow of everything that waits."""
        for stream, queue in list(self.waiting.items()):
            try:
                self.push_stream(stream, queue)
            except h2.exceptions.ProtocolError as error:
                # The connector ended the stream first; its own event tells the test.
                self.emit("stopped", id=getattr(self.streams.get(stream), "identifier", None), code=str(error))
                del self.waiting[stream]

    def push_stream(self, stream, queue):
        while queue["data"]:
            window = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
            if window <= 0:
                return
            piece = bytes(queue["data"][:window])
            del queue["data"][:window]
            self.http.send_data(stream, piece)
        if queue["end"]:
            self.http.end_stream(stream)
        del self.waiting[stream]

    def flush(self):
        data = self.http.data_to_send()
        if data and not self.silent:
            self.transport.write(data)

    # Commands

    async def request(self, command):
        host = command.get("host", "test.example")
        dest = command.get("dest", f"https://{host}/")
        path = "/" + dest.split("://", 1)[-1].partition("/")[2]
        headers = [(name.lower(), value) for name, value in command.get("headers", [])]
        kind = command.get("kind", "http")
        if kind == "websocket":
            headers.insert(0, (UPGRADE, "websocket"))
        elif kind == "tcp":
            headers.insert(0, ("cf-cloudflared-proxy-src", "test"))
            host = dest
        body = self.content(command["body"]) if "body" in command else b""
        end = command.get("fin", True)
        stream = self.start(command.get("method", "GET"), path, host, headers, end=end and not body)
        response = Response(command["id"], self.number, self.emit, self.pattern)
        response.protocol, response.stream = self, stream
        self.streams[stream] = response
        if body:
            self.emit("sent", id=command["id"], bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
            self.write(stream, body, end)
        self.flush()
        return response

    async def configure(self, command):
        text = command["text"] if "text" in command else json.dumps(command["config"])
        body = f'{{"version": {command["version"]}, "config": {text}}}'.encode()
        stream = self.start("PUT", "/", "control.test", [(UPGRADE, "update-configuration")])
        self.streams[stream] = Configuration(command["id"], self.number, self.emit, self.pattern)
        self.write(stream, body, True)

    def reset(self, stream, code):
        self.http.reset_stream(stream, code)
        self.flush()

    def stop(self, stream, code):
        """HTTP/2 has no half of a stream to stop."""

    def close(self, error_code=0, reason_phrase=""):
        self.http.close_connection(error_code)
        self.flush()
        self.transport.close()


async def listen(edge, index, host, port, certificate, key, tools):
    """A TCP socket beside the UDP socket of the same port."""
    names = {}
    context = server_context(certificate, key, names)
    loop = asyncio.get_running_loop()
    create = lambda: Http2Connection(edge, index, names, tools)
    return await loop.create_server(create, host, port, ssl=context)
