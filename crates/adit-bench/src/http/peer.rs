//! What a client asks of a bench origin beside the load: to begin a run, what it counted, its CPU time.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::BytesMut;
use http::{Method, Uri};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::exchange_h1::text_of;
use super::load::{Failure, Load, SILENCE_MAX, connect};
use super::origin::HTTP_TEXT;
use crate::cpu::CpuUse;
use crate::error::BenchError;
use crate::wire::{self, Refusal, Side};

/// A bench origin, wherever it is.
#[derive(Debug)]
pub(super) struct Peer {
    /// Path of the origin's own documents, such as `/adit-bench`.
    base: String,
    run: String,
    fields: String,
}

/// What the origin counted of a run.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) cpu: CpuUse,
}

/// Tells the origin every two seconds that the client is still there; ends when dropped.
#[derive(Debug)]
pub(super) struct Alive(JoinHandle<()>);

impl Alive {
    pub(super) fn keep(peer: Arc<Peer>, load: Arc<Load>) -> Self {
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(ALIVE_INTERVAL).await;
                let path = format!("/runs/{}/ping", peer.run);
                // One that is lost is followed by another.
                let _ = tokio::time::timeout(ALIVE_INTERVAL, peer.ask(&load, &Method::GET, &path)).await;
            }
        }))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Peer {
    /// Begins a run at the origin behind `url`.
    pub(super) async fn begin(
        load: &Load,
        url: &Uri,
        fields: &str,
        secret: Option<&hmac::Key>,
    ) -> Result<Self, BenchError> {
        let base = match url.path() {
            "/" | "" => "/adit-bench".to_owned(),
            path => path.to_owned(),
        };
        let mut peer = Self { base, run: String::new(), fields: fields.to_owned() };
        let hello = peer.ask(load, &Method::GET, "").await?;
        let foreign = || {
            let why = "no adit bench server answers there; a URL with a path of its own is loaded as it is";
            BenchError::Http(why.to_owned())
        };
        let version = hello["adit-bench"].as_u64().and_then(|version| u16::try_from(version).ok());
        match version.ok_or_else(foreign)? {
            wire::VERSION => {}
            theirs => return Err(BenchError::Version { theirs, ours: wire::VERSION }),
        }
        let theirs = wire::unhex16(hello["nonce"].as_str()).ok_or_else(foreign)?;
        let ours = wire::random()?;
        let proof = secret.map(|secret| wire::prove(secret, Side::Client, (&theirs, &ours), HTTP_TEXT));
        let query = format!("/runs?nonce={}&proof={}", wire::hex(&ours), proof.unwrap_or_default());
        let begun = peer.ask(load, &Method::POST, &query).await?;
        let run =
            begun["run"].as_str().filter(|run| wire::unhex16(Some(run)).is_some()).ok_or_else(foreign)?;
        if let Some(secret) = secret {
            let proof = begun["proof"].as_str().unwrap_or_default();
            if !wire::is_proven(secret, Side::Server, (&ours, &theirs), run, proof) {
                return Err(BenchError::Impostor);
            }
        }
        run.clone_into(&mut peer.run);
        Ok(peer)
    }

    /// Path of the run's own `part`.
    pub(super) fn path(&self, part: &str) -> String {
        format!("{}/runs/{}/{part}", self.base, self.run)
    }

    /// Counting begins here.
    pub(super) async fn mark(&self, load: &Load) -> Result<(), BenchError> {
        self.ask(load, &Method::POST, &format!("/runs/{}/mark", self.run)).await.map(drop)
    }

    /// Ends the run.
    pub(super) async fn end(&self, load: &Load) -> Result<Counted, BenchError> {
        let counted = self.ask(load, &Method::DELETE, &format!("/runs/{}", self.run)).await?;
        let number = |name: &str| counted[name].as_u64().unwrap_or_default();
        Ok(Counted {
            sent: number("sent"),
            received: number("received"),
            cpu: CpuUse::from_json(&counted["cpu"]),
        })
    }

    /// One question on a connection of its own, over HTTP/1.1 or with TLS whatever its ALPN gives.
    async fn ask(&self, load: &Load, method: &Method, path: &str) -> Result<Value, BenchError> {
        let request =
            format!("{method} {}{path} HTTP/1.1\r\n{}content-length: 0\r\n\r\n", self.base, self.fields);
        let (status, text) = one(load, &request).await?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let why = || wire::printable(value["error"].as_str().unwrap_or("no reason"));
        match status {
            200..300 => Ok(value),
            403 => Err(BenchError::Refused { reason: Refusal::Secret, text: why() }),
            503 if !value["error"].is_null() => {
                Err(BenchError::Refused { reason: Refusal::Busy, text: why() })
            }
            status => Err(BenchError::Http(format!(
                "{} answers {status} to {method} {}{path}",
                load.address, self.base
            ))),
        }
    }
}

async fn one(load: &Load, request: &str) -> Result<(u16, String), BenchError> {
    let stream = connect(load).await.map_err(|_| refused(load))?;
    let exchange = async {
        match &load.tls_h1 {
            None => converse(stream, request).await,
            Some(tls) => {
                let stream = tls.connect(stream).await.map_err(|error| BenchError::Tls(error.to_string()))?;
                converse(stream, request).await
            }
        }
    };
    let what = "an answer over HTTP";
    tokio::time::timeout(SILENCE_MAX, exchange)
        .await
        .map_err(|_| BenchError::Timeout { what, seconds: SILENCE_MAX.as_secs() })?
}

/// Says why, by trying once more in the way that tells.
fn refused(load: &Load) -> BenchError {
    let source = std::net::TcpStream::connect_timeout(&load.address, Duration::from_secs(1)).err();
    let source = source.unwrap_or_else(|| std::io::ErrorKind::ConnectionRefused.into());
    BenchError::Connect { target: load.address.to_string(), source }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    request: &str,
) -> Result<(u16, String), BenchError> {
    let lost = |error: std::io::Error| BenchError::Http(format!("the connection ended early: {error}"));
    stream.write_all(request.as_bytes()).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut buffer = BytesMut::with_capacity(4096);
    loop {
        match text_of(&buffer) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if buffer.len() < ANSWER_BYTES_MAX => {}
            Ok(None) | Err(Failure::Malformed) => {
                return Err(BenchError::Http("an answer that cannot be read".to_owned()));
            }
            Err(failure) => return Err(BenchError::Http(failure.name().to_owned())),
        }
        if stream.read_buf(&mut buffer).await.map_err(lost)? == 0 {
            return Err(BenchError::Http("the connection ended early".to_owned()));
        }
    }
}

/// A fifth of what the origin waits for.
const ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// The origin's own documents are a few hundred bytes, pages of what stands between may be longer.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
