"""One request over HTTP/3 by aioquic: `h3_client.py 127.0.0.1:443 name method path content-bytes`.

Prints JSON: status, headers and the length and SHA-256 of the body. The server's certificate is not checked: what is asked is
HTTP/3, not trust.
"""

import asyncio
import hashlib
import json
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration


class Client(QuicConnectionProtocol):
    """Collects what one stream answers."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.done = asyncio.get_running_loop().create_future()
        self.headers, self.length, self.digest = [], 0, hashlib.sha256()

    def quic_event_received(self, event):
        for item in self.http.handle_event(event):
            if isinstance(item, HeadersReceived):
                self.headers += [[name.decode(), value.decode()] for name, value in item.headers]
            elif isinstance(item, DataReceived):
                self.length += len(item.data)
                self.digest.update(item.data)
            if getattr(item, "stream_ended", False) and not self.done.done():
                self.done.set_result(None)

    async def ask(self, authority, method, path, content):
        stream = self._quic.get_next_available_stream_id()
        headers = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        self.http.send_headers(stream, encoded, end_stream=not content)
        if content:
            self.http.send_data(stream, content, end_stream=True)
        self.transmit()
        await asyncio.wait_for(self.done, 20)


async def main(address, name, method, path, length):
    host, port = address.rsplit(":", 1)
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name)
    configuration.verify_mode = ssl.CERT_NONE
    async with connect(host, int(port), configuration=configuration, create_protocol=Client) as client:
        await client.ask(name, method, path, bytes(int(length)))
        headers = dict(client.headers)
        print(json.dumps({
            "status": int(headers[":status"]),
            "headers": headers,
            "length": client.length,
            "sha256": client.digest.hexdigest(),
        }))


asyncio.run(main(*sys.argv[1:]))
