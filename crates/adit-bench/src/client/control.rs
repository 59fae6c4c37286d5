//! The control connection of one run, on the client's side.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::cpu::CpuUse;
use crate::error::BenchError;
use crate::options::ClientOptions;
use crate::plan::Plan;
use crate::results::Counted;
use crate::tcp;
use crate::wire::{self, Cookie, Header, Kind, Side};

/// A run that the server has agreed to.
#[derive(Debug)]
pub(super) struct Control {
    stream: TcpStream,
    pub(super) remote: SocketAddr,
    pub(super) cookie: Cookie,
    pub(super) quic_port: u16,
    pub(super) udp_port: u16,
    pub(super) fingerprint: Vec<u8>,
}

/// What the server counted.
#[derive(Debug)]
pub(super) struct Results {
    pub(super) cpu: CpuUse,
    pub(super) flows: Vec<Counted>,
    pub(super) congestion: Option<String>,
}

/// A connection to the server that has nothing agreed yet.
pub(super) async fn dial(
    addresses: &[SocketAddr],
    bind: Option<IpAddr>,
) -> Result<(TcpStream, SocketAddr), BenchError> {
    let mut last = None;
    for address in addresses {
        match connect(*address, bind).await {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(BenchError::Resolve { host: String::new(), why: "no address".to_owned() }))
}

/// One TCP connection with no options of a load.
pub(super) async fn connect(address: SocketAddr, bind: Option<IpAddr>) -> Result<TcpStream, BenchError> {
    let connected = tokio::task::spawn_blocking(move || {
        let stream = tcp::connect(address, bind, None)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keep_alive())?;
        Ok(stream)
    });
    let failed = |source| BenchError::Connect { target: address.to_string(), source };
    let stream = connected.await.map_err(|error| failed(error.into()))?.map_err(failed)?;
    TcpStream::from_std(stream).map_err(failed)
}

impl Control {
    /// Agrees on `plan`.
    pub(super) async fn agree(
        mut stream: TcpStream,
        remote: SocketAddr,
        options: &ClientOptions,
        plan: &Plan,
    ) -> Result<Self, BenchError> {
        use tokio::io::AsyncWriteExt;
        let header = Header { kind: Kind::Control, cookie: [0; 16], index: 0 };
        stream.write_all(&header.encode()).await.map_err(BenchError::io("cannot reach the server"))?;
        let hello = answer(&mut stream, "the server's hello", ANSWER_TIMEOUT).await?;
        let theirs = hello["version"].as_u64().and_then(|version| u16::try_from(version).ok());
        match theirs {
            Some(wire::VERSION) => {}
            Some(theirs) => return Err(BenchError::Version { theirs, ours: wire::VERSION }),
            None => return Err(BenchError::Protocol("its hello names no version".to_owned())),
        }
        let server_nonce = wire::unhex16(hello["nonce"].as_str()).ok_or_else(|| malformed("no nonce"))?;
        let nonce = wire::random()?;
        let text = plan.to_json().to_string();
        let secret = options.secret.as_ref();
        let proof = secret.map(|secret| wire::prove(secret, Side::Client, (&server_nonce, &nonce), &text));
        let wish = json!({ "plan": text, "nonce": wire::hex(&nonce), "proof": proof });
        wire::send(&mut stream, &wish).await.map_err(BenchError::io("cannot reach the server"))?;
        let accepted = answer(&mut stream, "the server's agreement", ANSWER_TIMEOUT).await?;
        let text = accepted["accept"].as_str().ok_or_else(|| malformed("no agreement"))?;
        if let Some(secret) = secret {
            let proof = accepted["proof"].as_str().unwrap_or_default();
            if !wire::is_proven(secret, Side::Server, (&nonce, &server_nonce), text, proof) {
                return Err(BenchError::Impostor);
            }
        }
        let accept: Value = serde_json::from_str(text).map_err(|_| malformed("the agreement is no JSON"))?;
        let port = |name: &str| accept[name].as_u64().and_then(|port| u16::try_from(port).ok());
        Ok(Self {
            stream,
            remote,
            cookie: wire::unhex16(accept["cookie"].as_str()).ok_or_else(|| malformed("no cookie"))?,
            quic_port: port("quic_port").ok_or_else(|| malformed("no port"))?,
            udp_port: port("udp_port").ok_or_else(|| malformed("no port"))?,
            fingerprint: accept["certificate"]
                .as_str()
                .and_then(wire::unhex)
                .ok_or_else(|| malformed("no certificate"))?,
        })
    }

    /// Waits until the server has all streams; fails as soon as it says that it gives up.
    pub(super) async fn collected(&mut self) -> Result<(), BenchError> {
        let _ = done(&mut self.stream, "collect", ANSWER_TIMEOUT).await?;
        Ok(())
    }

    /// Has the server begin.
    pub(super) async fn start(&mut self) -> Result<(), BenchError> {
        self.say("start").await?;
        done(&mut self.stream, "start", ANSWER_TIMEOUT).await.map(drop)
    }

    /// Tells that the warm-up is over.
    pub(super) async fn omit(&mut self) -> Result<(), BenchError> {
        self.say("omit").await
    }

    /// Resolves when the server speaks in the midst of a run, which it does only to end it.
    pub(super) async fn broken(&self) -> BenchError {
        let mut byte = [0];
        match self.stream.peek(&mut byte).await {
            Ok(0) => BenchError::Lost("it closed".to_owned()),
            Ok(_) => BenchError::Protocol(String::new()),
            Err(error) => BenchError::Lost(error.to_string()),
        }
    }

    /// What the server says after [`Self::broken`].
    pub(super) async fn last_words(&mut self, broken: BenchError) -> BenchError {
        if matches!(broken, BenchError::Lost(_)) {
            return broken;
        }
        match answer(&mut self.stream, "the server's reason", ANSWER_TIMEOUT).await {
            Ok(_) => malformed("it speaks in the midst of the run"),
            Err(error) => error,
        }
    }

    /// Ends the run and fetches what the server counted.
    /// The server takes `patience` at most for what is under way.
    pub(super) async fn end(&mut self, patience: Duration) -> Result<Results, BenchError> {
        // A server that has given up is not listening, but has said why.
        let _ = self.say("end").await;
        let results = done(&mut self.stream, "end", patience + ANSWER_TIMEOUT).await?;
        let flows = results["flows"].as_array().into_iter().flatten();
        let flows: Option<Vec<Counted>> = flows.map(Counted::from_json).collect();
        Ok(Results {
            cpu: CpuUse::from_json(&results["cpu"]),
            flows: flows.ok_or_else(|| malformed("its results cannot be read"))?,
            congestion: results["congestion"].as_str().map(wire::printable),
        })
    }

    async fn say(&mut self, what: &str) -> Result<(), BenchError> {
        wire::send(&mut self.stream, &json!({ "do": what }))
            .await
            .map_err(|error| BenchError::Lost(error.to_string()))
    }
}

/// The next frame; a refusal is an error.
async fn answer(stream: &mut TcpStream, what: &'static str, timeout: Duration) -> Result<Value, BenchError> {
    let frame = tokio::time::timeout(timeout, wire::receive(stream)).await;
    let frame = frame.map_err(|_| BenchError::Timeout { what, seconds: timeout.as_secs() })??;
    match wire::refused(&frame) {
        Some(error) => Err(error),
        None => Ok(frame),
    }
}

async fn done(stream: &mut TcpStream, what: &'static str, timeout: Duration) -> Result<Value, BenchError> {
    let frame = answer(stream, what, timeout).await?;
    if frame["did"] == what { Ok(frame) } else { Err(malformed("an answer to another question")) }
}

fn malformed(why: &str) -> BenchError {
    BenchError::Protocol(why.to_owned())
}

/// Longer than the server waits for the last streams.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Notices a path that is cut where nothing else can (`watch.rs`): after a minute, by many probes, because load over UDP may
/// lose nine in ten of them.
fn keep_alive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(1))
        .with_retries(55)
}
