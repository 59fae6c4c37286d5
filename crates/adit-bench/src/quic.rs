//! Load over QUIC: streams of one or more connections, with the transport that the binary hands over.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use crate::error::BenchError;
use crate::flow::{Flow, Pace, Switch};
use crate::plan::{CONNECTIONS_MAX, Plan, STREAMS_MAX};
use crate::tcp::pattern;

/// Fits one connection's windows to its line.
pub type Fit = Box<dyn FnMut(&Connection) + Send>;

/// QUIC as the product sets it up; the binary fills this in, so that the bench measures what the tunnel uses.
#[derive(Clone, Copy, Debug)]
pub struct QuicParts {
    /// Windows, congestion control, packet sizes: of a client towards an address, or of a server.
    pub transport: fn(Option<SocketAddr>) -> TransportConfig,
    /// Socket of a client towards an address, from an address if given.
    pub dial: fn(SocketAddr, Option<IpAddr>) -> io::Result<Endpoint>,
    /// Socket of a server.
    pub listen: fn(SocketAddr, ServerConfig) -> io::Result<Endpoint>,
    /// What fits a connection's windows to its line, to be called with it twice a second.
    pub fit: fn() -> Fit,
}

/// Fits a connection's windows to its line for ever: for whoever runs it beside what uses the connection.
pub(crate) async fn fit(parts: &QuicParts, connection: &Connection) {
    let mut look = tokio::time::interval(FIT_INTERVAL);
    let mut fit = (parts.fit)();
    loop {
        look.tick().await;
        fit(connection);
    }
}

/// A certificate of its own for one life of a server; clients know it from the control connection.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// A new one for `names`.
    pub(crate) fn generate(names: &[String]) -> Result<Self, BenchError> {
        let failed = |error: rcgen::Error| BenchError::Tls(error.to_string());
        let made = rcgen::generate_simple_self_signed(names).map_err(failed)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        Ok(Self { der: made.cert.der().clone(), key: key.into() })
    }

    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        fingerprint(&self.der)
    }
}

/// The server's endpoint.
pub(crate) fn listen(
    parts: &QuicParts,
    address: SocketAddr,
    certificate: &Certificate,
) -> Result<Endpoint, BenchError> {
    let config = server_config(parts, certificate, None)?;
    (parts.listen)(address, config).map_err(BenchError::io("cannot bind the UDP port for QUIC"))
}

/// What the server grants a connection; `window` is a stream's, where the client's plan names one.
pub(crate) fn server_config(
    parts: &QuicParts,
    certificate: &Certificate,
    window: Option<u32>,
) -> Result<ServerConfig, BenchError> {
    let failed = |error: rustls::Error| BenchError::Tls(error.to_string());
    let mut tls = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der.clone()], certificate.key.clone_key())
        .map_err(failed)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = QuicServerConfig::try_from(tls).map_err(|error| BenchError::Tls(error.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport(parts, None, window)));
    config.max_incoming(INCOMING_MAX);
    Ok(config)
}

/// A connection to the server whose certificate has this fingerprint.
pub(crate) async fn connect(
    parts: &QuicParts,
    remote: SocketAddr,
    bind: Option<IpAddr>,
    plan: &Plan,
    fingerprint: Vec<u8>,
) -> Result<(Endpoint, Connection), BenchError> {
    let mut tls = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { fingerprint, provider: provider() }))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = QuicClientConfig::try_from(tls).map_err(|error| BenchError::Tls(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport(parts, Some(remote), plan.window)));
    let endpoint = (parts.dial)(remote, bind).map_err(BenchError::io("cannot bind a UDP socket"))?;
    let connecting = endpoint
        .connect_with(config, remote, SERVER_NAME)
        .map_err(|error| BenchError::Quic(error.to_string()))?;
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| BenchError::Timeout { what: "the QUIC connection", seconds: CONNECT_TIMEOUT.as_secs() })?
        .map_err(|error| BenchError::Quic(error.to_string()))?;
    Ok((endpoint, connection))
}

/// Sends until stopped, or until the flow's share is sent.
pub(crate) async fn send(mut stream: SendStream, flow: &Flow, switch: &Switch, plan: &Plan) {
    tokio::select! {
        result = pour(&mut stream, flow, plan) => {
            if let Err(error) = result && !switch.is_stopped() {
                flow.fail(error.to_string());
            }
        }
        () = switch.stopped() => {}
    }
    let _ = stream.finish();
    // What is under way belongs to the run: the peer has it when it has the end.
    let _ = stream.stopped().await;
}

/// Reads until the peer's end.
pub(crate) async fn receive(mut stream: RecvStream, flow: &Flow, switch: &Switch) {
    let mut chunks: [Bytes; 32] = Default::default();
    loop {
        match stream.read_chunks(&mut chunks).await {
            Ok(Some(count)) => {
                let bytes: usize = chunks[..count].iter().map(Bytes::len).sum();
                Flow::count(&flow.counters.bytes, bytes as u64);
                chunks[..count].fill(Bytes::new());
            }
            Ok(None) => break,
            Err(error) => {
                if !switch.is_stopped() {
                    flow.fail(error.to_string());
                }
                break;
            }
        }
    }
}

async fn pour(stream: &mut SendStream, flow: &Flow, plan: &Plan) -> Result<(), quinn::WriteError> {
    let block = Bytes::from(pattern(plan.length as usize));
    let mut left = plan.share(flow.index).unwrap_or(u64::MAX);
    let mut pace = Pace::new(plan.rate);
    let mut rest = Bytes::new();
    while left > 0 {
        if rest.is_empty() {
            rest = block.slice(..block.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        }
        let before = rest.len();
        stream.write_chunks(std::slice::from_mut(&mut rest)).await?;
        let written = before - rest.len();
        left -= written as u64;
        Flow::count(&flow.counters.bytes, written as u64);
        if let Some(pace) = &mut pace {
            tokio::time::sleep(pace.wait(written)).await;
        }
    }
    Ok(())
}

fn transport(parts: &QuicParts, remote: Option<SocketAddr>, window: Option<u32>) -> TransportConfig {
    let mut transport = (parts.transport)(remote);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(u32::from(STREAMS_MAX) * 2 + 1));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    if let Some(window) = window {
        transport.stream_receive_window(VarInt::from_u32(window));
        if window > WIDE_WINDOW_BYTES {
            // One stream of this window must fit the connection, and what its sender keeps until it is acknowledged.
            transport.receive_window(VarInt::from_u32(window)).send_window(u64::from(window));
        }
    }
    transport
}

fn fingerprint(certificate: &CertificateDer<'_>) -> Vec<u8> {
    digest::digest(&digest::SHA256, certificate).as_ref().to_vec()
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

/// Takes the one certificate that the control connection named.
#[derive(Debug)]
struct Pinned {
    fingerprint: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if fingerprint(end_entity) == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What both ends speak inside QUIC.
const ALPN: &[u8] = b"adit-bench/1";
/// In the certificate; clients look at its fingerprint alone.
pub(crate) const SERVER_NAME: &str = "bench.adit.invalid";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The connection's own windows hold this and more.
const WIDE_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Between looks at a line.
const FIT_INTERVAL: Duration = Duration::from_millis(500);
/// A run that is paced slowly has long silences.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Handshakes not looked at yet: those of a few runs.
const INCOMING_MAX: usize = 8 * CONNECTIONS_MAX as usize;
