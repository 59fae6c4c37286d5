"""What the test edge adds to aioquic: the hybrid key exchange that connectors offer, and a report of what the peer said.

aioquic knows neither X25519MLKEM768 nor HelloRetryRequest, while a connector sends exactly one key share, of that group. The
additions hook into aioquic's TLS module; a version of aioquic that has the group itself makes them superfluous.
"""

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import pull_quic_transport_parameters
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

X25519MLKEM768 = 0x11EC
ENCAPSULATION_KEY_BYTES = 1184
X25519_KEY_BYTES = 32


class HybridShare:
    """The client's share of X25519MLKEM768: an ML-KEM encapsulation key followed by an X25519 public key."""

    def __init__(self, share):
        if len(share) != ENCAPSULATION_KEY_BYTES + X25519_KEY_BYTES:
            raise ValueError("wrong length of a hybrid key share")
        self.encapsulation_key = mlkem.MLKEM768PublicKey.from_public_bytes(share[:ENCAPSULATION_KEY_BYTES])
        self.public_key = x25519.X25519PublicKey.from_public_bytes(share[ENCAPSULATION_KEY_BYTES:])


class ServerShare:
    """A server's private key that answers a classic or a hybrid share; which of them shows only when the client's is known."""

    def __init__(self):
        self.private_key = x25519.X25519PrivateKey.generate()
        self.ciphertext = None

    @classmethod
    def generate(cls):
        return cls()

    def public_key(self):
        return self

    def exchange(self, peer):
        if isinstance(peer, HybridShare):
            secret, self.ciphertext = peer.encapsulation_key.encapsulate()
            return secret + self.private_key.exchange(peer.public_key)
        return self.private_key.exchange(peer)

    def encode(self):
        public_key = self.private_key.public_key().public_bytes_raw()
        if self.ciphertext is None:
            return (tls.Group.X25519, public_key)
        return (X25519MLKEM768, self.ciphertext + public_key)


class _X25519:
    """Stands where aioquic's TLS module expects the x25519 module."""

    X25519PublicKey = x25519.X25519PublicKey
    X25519PrivateKey = ServerShare


def install(report_hello):
    """Teaches aioquic the hybrid group; `report_hello` is called with each ClientHello, before anything can fail."""
    x25519.X25519PublicKey.register(HybridShare)
    decode, encode, pull_hello = tls.decode_public_key, tls.encode_public_key, tls.pull_client_hello
    prepare = tls.Context.__init__

    def decode_public_key(share):
        return HybridShare(share[1]) if share[0] == X25519MLKEM768 else decode(share)

    def encode_public_key(key):
        return key.encode() if isinstance(key, ServerShare) else encode(key)

    def pull_client_hello(buffer):
        hello = pull_hello(buffer)
        report_hello(hello)
        return hello

    def context(self, *arguments, **options):
        prepare(self, *arguments, **options)
        self._supported_groups.insert(0, X25519MLKEM768)

    tls.decode_public_key = decode_public_key
    tls.encode_public_key = encode_public_key
    tls.pull_client_hello = pull_client_hello
    tls.Context.__init__ = context
    tls.x25519 = _X25519


def describe_hello(hello):
    """The parts of a ClientHello that the protocol fixes, ready for JSON."""
    return {
        "sni": hello.server_name,
        "alpn": hello.alpn_protocols or [],
        "groups": [f"{group:#06x}" for group in hello.supported_groups or []],
        "key_shares": [f"{share[0]:#06x}" for share in hello.key_share or []],
        "ciphers": [f"{suite:#06x}" for suite in hello.cipher_suites],
        "versions": [f"{version:#06x}" for version in hello.supported_versions or []],
        "early_data": hello.early_data,
        "resumption": hello.pre_shared_key is not None,
    }


class ReportingConnection(QuicConnection):
    """A QUIC connection that keeps what its peer announced and how it closed."""

    announced = None
    closed_by_peer = False
    application_close = False
    pings = 0
    packet_bytes = 0

    def _parse_transport_parameters(self, data, from_session_ticket=False):
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        self.announced = {
            name: len(value) if isinstance(value, bytes) else value
            for name, value in vars(parameters).items()
            if isinstance(value, (bool, int, bytes))
        }
        super()._parse_transport_parameters(data, from_session_ticket)

    def _handle_connection_close_frame(self, context, frame_type, buf):
        self.closed_by_peer = True
        # RFC 9000 §19.19: 0x1d is the close of the application, 0x1c of the transport.
        self.application_close = frame_type == 0x1D
        super()._handle_connection_close_frame(context, frame_type, buf)

    def _handle_ping_frame(self, context, frame_type, buf):
        self.pings += 1
        super()._handle_ping_frame(context, frame_type, buf)
