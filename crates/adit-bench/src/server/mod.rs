//! `adit bench server`: the other end of runs, and an HTTP origin to put behind anything.

mod arrivals;
pub(crate) mod census;
mod registry;
mod session;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::error::{BenchError, EXIT_INTERRUPTED};
use crate::http::origin::Origin;
use crate::http::tls::ServerTls;
use crate::print;
use crate::quic::{Certificate, QuicParts, SERVER_NAME};
use crate::wire::{HEADER_BYTES, Header, HeaderError, Kind, Refusal};

use census::Census;
pub(crate) use registry::Limits;
use registry::Registry;

/// What the command line says.
#[derive(Debug)]
pub(crate) struct ServerOptions {
    pub(crate) listen: SocketAddr,
    /// For UDP load; `None` for the port after that of TCP.
    pub(crate) udp_port: Option<u16>,
    pub(crate) secret: Option<hmac::Key>,
    pub(crate) limits: Limits,
    pub(crate) one_off: bool,
    /// Processes on this host whose CPU time is told to clients.
    pub(crate) watched: Vec<u32>,
    /// Certificate and key for HTTPS; without them one is made.
    pub(crate) certificate: Option<(std::path::PathBuf, std::path::PathBuf)>,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Server {
    secret: Option<hmac::Key>,
    registry: Registry,
    watched: Vec<u32>,
    certificate: Certificate,
    parts: QuicParts,
    quic: Option<quinn::Endpoint>,
    quic_port: u16,
    udp_port: u16,
    origin: Arc<Origin>,
    tls: ServerTls,
    stopping: watch::Sender<bool>,
    /// Runs that are done, for `--one-off`.
    done: watch::Sender<u64>,
    /// Keys the tokens of UDP streams.
    token_key: hmac::Key,
}

/// Runs until a signal, or one run with `--one-off`; the exit status.
pub(crate) async fn run(options: ServerOptions, parts: QuicParts) -> Result<u8, BenchError> {
    let listener = listen(options.listen)?;
    let address = listener.local_addr().map_err(BenchError::io("no address"))?;
    let server = Server::new(&options, &parts, address).await?;
    announce(address, &server, &options);
    let accepting = tokio::spawn(accept(Arc::clone(&server), listener));
    let mut done = server.done.subscribe();
    let code = tokio::select! {
        signal = crate::signals::stop() => { signal?; if options.one_off { EXIT_INTERRUPTED } else { 0 } }
        _ = done.wait_for(|count| options.one_off && *count > 0) => 0,
    };
    accepting.abort();
    server.stopping.send_replace(true);
    // Clients that are in the midst are told so.
    server.registry.idle(GOODBYE).await;
    if let Some(endpoint) = &server.quic {
        endpoint.close(0u32.into(), b"stopping");
        let _ = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
    }
    for (reason, count) in server.registry.refused() {
        print(&format!("refused {count} ({reason})\n"));
    }
    Ok(code)
}

impl Server {
    async fn new(
        options: &ServerOptions,
        parts: &QuicParts,
        address: SocketAddr,
    ) -> Result<Arc<Self>, BenchError> {
        let certificate = Certificate::generate(&[SERVER_NAME.to_owned()])?;
        let endpoint = crate::quic::listen(parts, address, &certificate)?;
        let quic_port = endpoint.local_addr().map_err(BenchError::io("no address"))?.port();
        let wanted =
            options.udp_port.unwrap_or(if options.listen.port() == 0 { 0 } else { address.port() + 1 });
        let udp = arrivals::UdpDoor::bind(SocketAddr::new(address.ip(), wanted))?;
        let tls = ServerTls::new(options.certificate.as_ref(), address.ip())?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &crate::wire::random()?);
        let census = Arc::<Census>::default();
        let server = Arc::new(Self {
            secret: options.secret.clone(),
            registry: Registry::new(options.limits.clone(), Arc::clone(&census)),
            watched: options.watched.clone(),
            certificate,
            parts: *parts,
            quic: Some(endpoint.clone()),
            quic_port,
            udp_port: udp.port(),
            origin: Origin::new(
                options.secret.clone(),
                options.limits.clone(),
                options.watched.clone(),
                census,
            ),
            tls,
            stopping: watch::Sender::new(false),
            done: watch::Sender::new(0),
            token_key: key,
        });
        tokio::spawn(arrivals::accept_quic(Arc::clone(&server), endpoint));
        tokio::spawn(udp.run(Arc::clone(&server)));
        tokio::spawn({
            // A run over HTTP that is over counts for `--one-off` too.
            let (origin, server) = (Arc::clone(&server.origin), Arc::clone(&server));
            async move {
                while origin.run_ended().await {
                    server.done.send_modify(|count| *count += 1);
                }
            }
        });
        Ok(server)
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, BenchError> {
    let failed = |source| BenchError::Listen { address, source };
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None);
    let bound = socket.and_then(|socket| {
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    });
    bound.map_err(failed)
}

fn announce(address: SocketAddr, server: &Server, options: &ServerOptions) {
    let host = match address.ip() {
        ip if ip.is_unspecified() => "THIS-HOST".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let port = address.port();
    let suffix = if port == DEFAULT_PORT { String::new() } else { format!(":{port}") };
    let secret = if options.secret.is_some() { " --secret-file FILE" } else { "" };
    print(&format!(
        "Bench server listening on {address} (TCP, HTTP and HTTPS; QUIC on UDP port {}, UDP load on UDP port {})\n\
         reach it with: adit bench client {host}{suffix}{secret}          also -u, --quic, -R, --bidir\n\
         or as HTTP:    adit bench client http://{host}:{port}/{secret}   itself, or whatever it is put behind\n",
        server.quic_port, server.udp_port
    ));
}

async fn accept(server: Arc<Server>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // At the bound, connections wait in the kernel's backlog.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    dispatch(server, stream, peer).await;
                    drop(permit);
                });
            }
            // Out of descriptors, or a connection that is gone already.
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

/// Looks at the first byte: the bench's own protocol, TLS, or HTTP.
async fn dispatch(server: Arc<Server>, stream: TcpStream, peer: SocketAddr) {
    let mut first = [0];
    let peeked = tokio::time::timeout(HEADER_TIMEOUT, stream.peek(&mut first)).await;
    if !matches!(peeked, Ok(Ok(1))) {
        return;
    }
    match first[0] {
        b'a' => own_protocol(server, stream, peer).await,
        TLS_HANDSHAKE => {
            if let Ok(Ok(stream)) = tokio::time::timeout(HEADER_TIMEOUT, server.tls.accept(stream)).await {
                server.origin.serve_tls(stream, peer.ip()).await;
            }
        }
        _ => server.origin.serve_clear(stream, peer.ip()).await,
    }
}

async fn own_protocol(server: Arc<Server>, mut stream: TcpStream, peer: SocketAddr) {
    use tokio::io::AsyncReadExt;
    let mut bytes = [0; HEADER_BYTES];
    if !matches!(tokio::time::timeout(HEADER_TIMEOUT, stream.read_exact(&mut bytes)).await, Ok(Ok(_))) {
        return;
    }
    match Header::decode(&bytes) {
        Ok(Header { kind: Kind::Control, .. }) => session::serve(server, stream, peer).await,
        Ok(header) => {
            let Ok(stream) = stream.into_std() else { return };
            if stream.set_nonblocking(false).is_ok() {
                server.registry.arrive(header, registry::Arrived::Tcp(stream));
            }
        }
        Err(HeaderError::Version(theirs)) => {
            server.registry.count(Refusal::Version);
            let text = format!("the client speaks version {theirs} of the bench's protocol");
            let _ = crate::wire::send(&mut stream, &crate::wire::refusal(Refusal::Version, &text)).await;
        }
        Err(HeaderError::Foreign) => server.registry.count(Refusal::Malformed),
    }
}

/// Beside iperf3's 5201.
pub(crate) const DEFAULT_PORT: u16 = 5210;
const BACKLOG: i32 = 1024;
/// Connections of all kinds at once: a task and at most two buffers of 256 KiB each, 2 GiB at worst.
const CONNECTIONS_MAX: usize = 4096;
/// For the first bytes, and for TLS.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const GOODBYE: Duration = Duration::from_secs(2);
/// First byte of a ClientHello's record (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;
