"""An edge for tests: someone else's QUIC (aioquic) and Cap'n Proto (pycapnp) speaking cloudflared's tunnel protocol.

    edge.py --certificate CERT.pem --key KEY.pem --listen 127.0.0.1:0 [--listen …] [--transport quic|http2|both]

With `http2` or `both` each address also listens for TCP (http2.py says what differs there); with `http2` alone, datagrams
arrive at a socket that never answers.

Commands are JSON objects on standard input, one a line; events are JSON objects on standard output, one a line. The end of
standard input ends the edge. Connections are numbered from 1 in the order of their ClientHello; where a command leaves
`connection` out, the last one registered is meant.

Commands (`do`)
  policy     {answers: [answer…], default: answer}    how registrations are answered: `answers` first, each once, then `default`
             answer: {accept: true, location, remote} | {cause, retry_after_ns, should_retry} | {silent: true}
             with `bootstrap_last: true` the call is answered before the bootstrap it was pipelined on
  request    {id, connection?, kind: "http"|"websocket"|"tcp"|number, method, host, dest, headers: [[name, value]…],
             metadata: [[key, value]…] (instead of the five before), body: {text}|{size}, fin: bool = true,
             split: [lengths…] (the preamble in pieces of these lengths, each in packets of its own)}
  raw        {id, connection?, hex, fin: bool = false}     a stream of arbitrary bytes
  send       {id, text|size, fin: bool = false}            more bytes on the stream of a request
  echo       {id, size}                                    sends bytes, then reports whether the same came back
  reset|stop {id, code}                                    RESET_STREAM or STOP_SENDING
  configure  {id, connection?, version, config (JSON)|text}  pushes a configuration over an RPC stream of its own
  udp        {id, connection?}                             asks for a UDP session over an RPC stream of its own
  close      {connection?, code, reason}                   CONNECTION_CLOSE of the application
  silence    {connection?}                                 neither hears nor says anything on it any more

Events (`event`), each with `n`, its number, and `at`, seconds of a clock that never goes back
  listening {edges}, hello {connection, edge, remote, sni, alpn, groups, key_shares, …}, connected {connection, parameters,
  source_id_bytes}, ping {connection, packet_bytes}, opened {connection, stream, first (hex)}, rpc {connection, stream, message,
  …}, registered {connection, fields of the registration, answer}, local-configuration {connection, config},
  unregistered {connection}, control-ended {connection}, sent {id, bytes, sha256}, head {id, error, status, headers, metadata},
  began {id, text (of the first piece of the body)},
  response {id, bytes, sha256, patterned, text, end: fin|reset|lost|malformed, code, stopped}, stopped {id, code},
  echoed {id, bytes, same}, configured {id, version, error}, udp {id, error}, closed {connection, by, application, code, reason},
  problem {what}
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import sys
import time
import uuid

import aioquic.asyncio.server
from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

import handshake
import http2
import messages
from messages import tunnel

TEXT_BYTES_MAX = 64 * 1024
# Long enough that two writes never share a packet, short enough not to be felt.
SPLIT_PAUSE_S = 0.03
# How often a port that the system chose may turn out to be taken for the other protocol.
PORT_ATTEMPTS_MAX = 10
PERIOD = bytes(range(251))
COUNT = itertools.count()


def emit(event, **fields):
    sys.stdout.write(json.dumps({"event": event, "n": next(COUNT), "at": time.monotonic(), **fields}) + "\n")
    sys.stdout.flush()


def pattern(start, size):
    """A piece of the pattern that test bodies consist of: bytes 0 to 250 again and again, so that no power of two fits."""
    start %= len(PERIOD)
    return (PERIOD * (size // len(PERIOD) + 2))[start : start + size]


def content(command):
    """The bytes that a command describes: text as it is, a size as a piece of the pattern."""
    return command["text"].encode() if "text" in command else pattern(0, command.get("size", 0))


class Exchange:
    """A stream opened by the edge, from the first byte of its preamble to the end of the answer."""

    def __init__(self, identifier, connection, stream):
        self.identifier = identifier
        self.connection = connection
        self.stream = stream
        self.head = bytearray()
        self.head_seen = False
        self.bytes = 0
        self.digest = hashlib.sha256()
        self.text = bytearray()
        self.patterned = True
        self.stopped = None
        self.ended = False
        self.echo = None

    def receive(self, data, end):
        if not self.head_seen:
            self.head += data
            data = b""
            # Signature and version, then one message.
            if len(self.head) >= 8:
                if not self.head.startswith(messages.DATA_SIGNATURE):
                    return self.finish("malformed")
                rest = self.head[8:]
                message = messages.take_message(rest)
                if message is not None:
                    self.report_head(message)
                    data = bytes(rest)
        if data and self.bytes == 0:
            emit("began", id=self.identifier, text=data[:1024].decode("utf-8", "replace"))
        if data:
            self.patterned = self.patterned and data == pattern(self.bytes, len(data))
            self.bytes += len(data)
            self.digest.update(data)
            self.text += data[: TEXT_BYTES_MAX - len(self.text)]
            self.check_echo(data)
        if end:
            self.finish("fin")

    def report_head(self, message):
        self.head_seen = True
        error, metadata = messages.read_response(message)
        headers = [[key.split(":", 1)[1], value] for key, value in metadata if key.startswith("HttpHeader:")]
        status = next((int(value) for key, value in metadata if key == "HttpStatus"), None)
        version = bytes(self.head[6:8]).decode("latin-1")
        emit("head", id=self.identifier, error=error, status=status, headers=headers, metadata=metadata, version=version)

    def check_echo(self, data):
        if self.echo is None:
            return
        self.echo["received"] += data
        if len(self.echo["received"]) >= len(self.echo["sent"]):
            same = bytes(self.echo["received"]) == self.echo["sent"]
            emit("echoed", id=self.identifier, bytes=len(self.echo["received"]), same=same)
            self.echo = None

    def finish(self, end, code=None):
        if self.ended:
            return
        self.ended = True
        emit(
            "response",
            id=self.identifier,
            connection=self.connection,
            stream=self.stream,
            head=self.head_seen,
            bytes=self.bytes,
            sha256=self.digest.hexdigest(),
            patterned=self.patterned,
            text=self.text.decode("utf-8", "replace"),
            end=end,
            code=code,
            stopped=self.stopped,
        )

    def connection_lost(self):
        self.finish("lost")


class EdgeCall:
    """One call on the connector, on an RPC stream of its own: bootstrap, the call pipelined on it, finish of both."""

    def __init__(self, identifier, answered):
        self.identifier = identifier
        self.answered = answered
        self.buffer = bytearray()
        self.done = False

    def receive(self, data, end):
        self.buffer += data
        while (message := messages.take_message(self.buffer)) is not None:
            with messages.rpc.Message.from_bytes(message) as decoded:
                if decoded.which() == "return" and getattr(decoded, "return").answerId == 1:
                    self.done = True
                    self.answered(self.identifier, getattr(decoded, "return"))
        if end and not self.done:
            self.finish("lost")

    def finish(self, _end, _code=None):
        if not self.done:
            self.done = True
            emit("problem", what=f"call {self.identifier}: the stream ended without an answer")

    def connection_lost(self):
        self.finish("lost")


class ConnectorRpc:
    """The edge's side of an RPC stream that the connector opened: the control stream, or a call of its own."""

    def __init__(self, protocol, stream, signature):
        self.protocol = protocol
        self.stream = stream
        self.signature = signature
        self.buffer = bytearray()
        self.bootstrap_answer = None
        self.silent = False
        self.control = not signature

    def receive(self, data, end):
        self.buffer += data
        if self.signature and len(self.buffer) >= len(messages.RPC_SIGNATURE):
            del self.buffer[: len(messages.RPC_SIGNATURE)]
            self.signature = False
        while not self.signature and (message := messages.take_message(self.buffer)) is not None:
            with messages.rpc.Message.from_bytes(message, traversal_limit_in_words=1 << 24) as decoded:
                self.handle(decoded)
        if end and self.control:
            emit("control-ended", connection=self.protocol.number)
        if end:
            self.protocol.write(self.stream, b"", end=True)

    def report(self, kind, **fields):
        emit("rpc", connection=self.protocol.number, stream=self.stream, message=kind, **fields)

    def handle(self, message):
        kind = message.which()
        if kind == "bootstrap":
            self.report("bootstrap", question=message.bootstrap.questionId)
            self.bootstrap_answer = messages.bootstrap_answer(message.bootstrap.questionId)
            if not self.protocol.edge.next_answer().get("bootstrap_last"):
                self.send_bootstrap_answer()
        elif kind == "call":
            self.handle_call(message.call)
        elif kind == "finish":
            self.report("finish", question=message.finish.questionId, release=message.finish.releaseResultCaps)
        elif kind == "release":
            self.report("release", id=message.release.id, count=message.release.referenceCount)
        elif kind == "abort":
            self.report("abort", reason=message.abort.reason)
        else:
            self.report(str(kind))

    def send_bootstrap_answer(self):
        if self.bootstrap_answer is not None:
            self.protocol.write(self.stream, self.bootstrap_answer)
            self.bootstrap_answer = None

    def handle_call(self, call):
        target = call.target.which()
        pipelined = target == "promisedAnswer"
        self.report(
            "call",
            question=call.questionId,
            interface=f"{call.interfaceId:#x}",
            method=call.methodId,
            target=str(target),
            target_id=call.target.promisedAnswer.questionId if pipelined else call.target.importedCap,
            transform=len(call.target.promisedAnswer.transform) if pipelined else None,
        )
        handler = {
            (messages.REGISTRATION, 0): self.register,
            (messages.REGISTRATION, 1): self.unregister,
            (messages.REGISTRATION, 2): self.update_local_configuration,
            (messages.SESSIONS, 1): self.unregister_udp_session,
        }.get((call.interfaceId, call.methodId))
        answer = handler(call) if handler else messages.failure(call.questionId, "no such method here")
        if answer is not None:
            self.protocol.write(self.stream, answer)
        if not self.silent:
            self.send_bootstrap_answer()

    def register(self, call):
        params = call.params.content.as_struct(tunnel.RegisterConnectionParams)
        answer = self.protocol.edge.take_answer()
        options, client = params.options, params.options.client
        emit(
            "registered" if answer.get("accept") else "refused",
            connection=self.protocol.number,
            edge=self.protocol.edge_index,
            remote=self.protocol.remote,
            account=params.auth.accountTag,
            secret=params.auth.tunnelSecret.hex(),
            tunnel=params.tunnelId.hex(),
            index=params.connIndex,
            client=client.clientId.hex(),
            features=list(client.features),
            version=client.version,
            arch=client.arch,
            origin_ip_bytes=len(options.originLocalIp),
            replace_existing=options.replaceExisting,
            compression=options.compressionQuality,
            previous_attempts=options.numPreviousAttempts,
            answer=answer,
        )
        self.silent = answer.get("silent", False)
        if self.silent:
            return None
        reply = tunnel.RegisterConnectionResults.new_message()
        result = reply.init("result").result
        if answer.get("accept"):
            details = result.init("connectionDetails")
            details.uuid = uuid.uuid4().bytes
            details.locationName = answer.get("location", "tst01")
            details.tunnelIsRemotelyManaged = answer.get("remote", False)
            self.protocol.edge.last_registered = self.protocol
        else:
            error = result.init("error")
            error.cause = answer.get("cause", "refused by the test")
            error.retryAfter = answer.get("retry_after_ns", 0)
            error.shouldRetry = answer.get("should_retry", True)
            # On HTTP/2 the connector leaves the closing to the edge (tunnel-protocol.md §3.5).
            if isinstance(self.protocol, http2.Http2Connection):
                asyncio.get_running_loop().call_later(SPLIT_PAUSE_S, self.protocol.close)
        return messages.results(call.questionId, reply)

    def unregister(self, call):
        emit("unregistered", connection=self.protocol.number)
        return messages.results(call.questionId, tunnel.Empty.new_message())

    def update_local_configuration(self, call):
        params = call.params.content.as_struct(tunnel.UpdateLocalConfigurationParams)
        emit("local-configuration", connection=self.protocol.number, config=json.loads(params.config))
        return messages.results(call.questionId, tunnel.Empty.new_message())

    def unregister_udp_session(self, call):
        return messages.results(call.questionId, tunnel.Empty.new_message())

    def finish(self, end, code=None):
        emit("control-ended", connection=self.protocol.number, end=end, code=code)

    def connection_lost(self):
        pass


class EdgeProtocol(QuicConnectionProtocol):
    """One connection of a connector."""

    def __init__(self, quic, stream_handler=None, *, edge, edge_index):
        super().__init__(quic, stream_handler)
        self.edge = edge
        self.edge_index = edge_index
        self.number = None
        self.remote = None
        self.silent = False
        self.streams = {}

    def datagram_received(self, data, addr):
        if self.silent:
            return
        self.remote = f"{addr[0]}:{addr[1]}"
        self.edge.hearing = self
        before = self._quic.pings
        super().datagram_received(data, addr)
        if self._quic.pings > before:
            emit("ping", connection=self.number, packet_bytes=len(data))

    def transmit(self):
        if not self.silent:
            super().transmit()

    def hello(self, hello):
        self.edge.connections.append(self)
        self.number = len(self.edge.connections)
        described = handshake.describe_hello(hello)
        emit("hello", connection=self.number, edge=self.edge_index, remote=self.remote, **described)

    def write(self, stream, data, end=False):
        # The peer may have ended the stream or the connection in the meantime; its event tells.
        try:
            self._quic.send_stream_data(stream, data, end)
        except (AssertionError, RuntimeError, ValueError) as error:
            emit("problem", what=f"write on stream {stream}: {error}")
        self.transmit()

    def open(self, command):
        stream = self._quic.get_next_available_stream_id()
        exchange = Exchange(command["id"], self.number, stream)
        exchange.protocol = self
        self.streams[stream] = exchange
        return exchange

    async def request(self, command):
        metadata = command.get("metadata")
        if metadata is None:
            metadata = [["HttpMethod", command.get("method", "GET")], ["HttpHost", command.get("host", "test.example")]]
            metadata += [[f"HttpHeader:{name}", value] for name, value in command.get("headers", [])]
        dest = command.get("dest", f"https://{command.get('host', 'test.example')}/")
        preamble = messages.request_preamble(dest, command.get("kind", "http"), metadata)
        exchange = self.open(command)
        for length in command.get("split", []):
            self.write(exchange.stream, preamble[:length])
            preamble = preamble[length:]
            await asyncio.sleep(SPLIT_PAUSE_S)
        end = command.get("fin", True)
        if "body" not in command:
            self.write(exchange.stream, preamble, end)
            return exchange
        body = content(command["body"])
        self.write(exchange.stream, preamble + body, end)
        emit("sent", id=command["id"], bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
        return exchange

    async def configure(self, command):
        def answered(identifier, answer):
            if answer.which() == "exception":
                emit("configured", id=identifier, version=None, error=answer.exception.reason)
                return
            result = answer.results.content.as_struct(tunnel.UpdateConfigurationResults).result
            emit("configured", id=identifier, version=result.latestAppliedVersion, error=result.err)

        params = tunnel.UpdateConfigurationParams.new_message()
        params.version = command["version"]
        params.config = command["text"].encode() if "text" in command else json.dumps(command["config"]).encode()
        self.call(command, messages.CONFIGURATION, 0, params, answered)

    def call(self, command, interface, method, params, answered):
        stream = self._quic.get_next_available_stream_id()
        self.streams[stream] = EdgeCall(command["id"], answered)
        sent = messages.bootstrap(0) + messages.call_on_bootstrap(1, 0, interface, method, params)
        self.write(stream, messages.RPC_SIGNATURE + sent)

    def reset(self, stream, code):
        self._quic.reset_stream(stream, code)
        self.transmit()

    def stop(self, stream, code):
        self._quic.stop_stream(stream, code)
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, events.HandshakeCompleted):
            source = self._quic._remote_initial_source_connection_id
            parameters = self._quic.announced
            emit("connected", connection=self.number, parameters=parameters, source_id_bytes=len(source))
        elif isinstance(event, events.StreamDataReceived):
            self.stream_data(event)
        elif isinstance(event, events.StreamReset):
            if event.stream_id in self.streams:
                self.streams[event.stream_id].finish("reset", event.error_code)
        elif isinstance(event, events.StopSendingReceived):
            stream = self.streams.get(event.stream_id)
            if isinstance(stream, Exchange):
                stream.stopped = event.error_code
                emit("stopped", id=stream.identifier, code=event.error_code)
        elif isinstance(event, events.ConnectionTerminated):
            by = "peer" if self._quic.closed_by_peer else "silence" if event.reason_phrase == "Idle timeout" else "edge"
            application = self._quic.application_close
            fields = {"code": event.error_code, "reason": event.reason_phrase}
            emit("closed", connection=self.number, by=by, application=application, **fields)
            for stream in self.streams.values():
                stream.connection_lost()

    def stream_data(self, event):
        stream = self.streams.get(event.stream_id)
        if stream is None:
            first = event.data[:8].hex()
            emit("opened", connection=self.number, stream=event.stream_id, first=first)
            stream = ConnectorRpc(self, event.stream_id, signature=event.stream_id != 0)
            self.streams[event.stream_id] = stream
        stream.receive(event.data, event.end_stream)


class Edge:
    """All connections, and the commands that act on them."""

    def __init__(self):
        self.connections = []
        self.hearing = None
        self.last_registered = None
        self.answers = []
        self.default_answer = {"accept": True, "location": "tst01", "remote": False}
        self.exchanges = {}
        self.servers = []

    def next_answer(self):
        return self.answers[0] if self.answers else self.default_answer

    def take_answer(self):
        return self.answers.pop(0) if self.answers else self.default_answer

    def connection(self, command):
        if "connection" in command:
            return self.connections[command["connection"] - 1]
        return self.last_registered

    async def obey(self, command):
        await getattr(self, "do_" + command["do"])(command)

    async def do_policy(self, command):
        self.answers = command.get("answers", [])
        self.default_answer = command.get("default", {"accept": True})

    async def do_request(self, command):
        self.exchanges[command["id"]] = await self.connection(command).request(command)

    async def do_raw(self, command):
        exchange = self.connection(command).open(command)
        self.exchanges[command["id"]] = exchange
        exchange.protocol.write(exchange.stream, bytes.fromhex(command["hex"]), command.get("fin", False))

    async def do_send(self, command):
        exchange = self.exchanges[command["id"]]
        exchange.protocol.write(exchange.stream, content(command), command.get("fin", False))

    async def do_echo(self, command):
        exchange = self.exchanges[command["id"]]
        data = content(command)
        exchange.echo = {"sent": data, "received": bytearray()}
        exchange.protocol.write(exchange.stream, data)

    async def do_reset(self, command):
        exchange = self.exchanges[command["id"]]
        exchange.protocol.reset(exchange.stream, command.get("code", 0))

    async def do_stop(self, command):
        exchange = self.exchanges[command["id"]]
        exchange.protocol.stop(exchange.stream, command.get("code", 0))

    async def do_configure(self, command):
        await self.connection(command).configure(command)

    async def do_udp(self, command):
        def answered(identifier, answer):
            if answer.which() == "exception":
                emit("udp", id=identifier, error=answer.exception.reason)
                return
            result = answer.results.content.as_struct(tunnel.RegisterUdpSessionResults).result
            emit("udp", id=identifier, error=result.err)

        params = tunnel.RegisterUdpSessionParams.new_message()
        params.sessionId = uuid.uuid4().bytes
        params.dstIp = bytes([127, 0, 0, 1])
        params.dstPort = 9
        self.connection(command).call(command, messages.SESSIONS, 0, params, answered)

    async def do_close(self, command):
        protocol = self.connection(command)
        protocol.close(error_code=command.get("code", 0), reason_phrase=command.get("reason", ""))

    async def do_silence(self, command):
        self.connection(command).silent = True


class DeafSocket(asyncio.DatagramProtocol):
    """Takes the place of QUIC where the edge speaks HTTP/2 only: datagrams vanish, as behind a firewall."""


async def listen(edge, configuration, arguments):
    """One UDP socket for each address, with a TCP socket beside it where HTTP/2 is wanted; returns what they got."""
    bound = []
    for index, address in enumerate(arguments.listen):
        host, port = address.rsplit(":", 1)
        attempts = PORT_ATTEMPTS_MAX if port == "0" else 1
        for attempt in range(attempts):
            try:
                bound.append(await listen_at(edge, configuration, arguments, index, (host, int(port))))
                break
            except OSError:
                # The port that was free for UDP was taken for TCP: another one.
                if attempt + 1 == attempts:
                    raise
    return bound


async def listen_at(edge, configuration, arguments, index, address):
    """Both sockets of one address."""

    def create(quic, stream_handler=None):
        return EdgeProtocol(quic, stream_handler, edge=edge, edge_index=index)

    def server():
        if arguments.transport == "http2":
            return DeafSocket()
        return QuicServer(configuration=configuration, create_protocol=create)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(server, local_addr=address)
    host, port = transport.get_extra_info("sockname")[:2]
    if arguments.transport != "quic":
        tools = (emit, pattern, content, lambda protocol, stream: ConnectorRpc(protocol, stream, signature=False))
        try:
            listener = await http2.listen(edge, index, host, port, arguments.certificate, arguments.key, tools)
        except OSError:
            transport.close()
            raise
        edge.servers.append(listener)
    return f"{host}:{port}"


async def main():
    parser = argparse.ArgumentParser(description="an edge for tests")
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--listen", action="append", required=True)
    parser.add_argument("--transport", choices=["quic", "http2", "both"], default="quic")
    arguments = parser.parse_args()
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=["argotunnel"],
        idle_timeout=30.0,
        max_datagram_frame_size=65536,
        max_data=32 * 1024 * 1024,
        max_stream_data=8 * 1024 * 1024,
    )
    configuration.load_cert_chain(arguments.certificate, arguments.key)
    edge = Edge()
    handshake.install(lambda hello: edge.hearing.hello(hello))
    # QuicServer creates connections by this name.
    aioquic.asyncio.server.QuicConnection = handshake.ReportingConnection
    emit("listening", edges=await listen(edge, configuration, arguments))

    commands = asyncio.StreamReader(limit=64 * 1024 * 1024)
    reading = lambda: asyncio.StreamReaderProtocol(commands)
    await asyncio.get_running_loop().connect_read_pipe(reading, sys.stdin)
    while line := await commands.readline():
        # A command that fails must not take the edge down with it: the test sees the event.
        try:
            await edge.obey(json.loads(line))
        except Exception as error:
            emit("problem", what=f"{line.decode().strip()}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(main())
