//! What both ends say to each other beside the load: the header of each connection, frames of JSON, and the proofs that
//! both know the same secret.
//!
//! ```text
//! each connection or QUIC stream, client to server:
//!   "adit-bench" | version: u16 | kind: u8 | 0 | cookie: 16 bytes | index: u16        32 bytes, in every version
//! control connection, both ways: length: u32 | JSON
//!   server  { version, nonce, secret }                      or { error, text, version }, then it closes
//!   client  { plan, nonce, proof }                          plan is text, so that the proof covers it as it was sent
//!   server  { accept, proof }                               accept is text: cookie, ports, certificate
//!   client  { do: "start" } → { did: "start" }, { do: "omit" }, { do: "end" } → { did: "end", … }
//! ```
//! A proof is HMAC-SHA256 over a label, both nonces and the text. A stream of data is let in by its cookie, which only the
//! control connection told.

use aws_lc_rs::{hmac, rand};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::BenchError;

/// Names one run; unguessable.
pub(crate) type Cookie = [u8; 16];
/// Freshness of a proof.
pub(crate) type Nonce = [u8; 16];

/// Why a server does not do what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// As many runs as it allows are under way.
    Busy,
    /// The secret is missing or wrong.
    Secret,
    /// Another version of the protocol.
    Version,
    /// More streams, time or bytes than it allows.
    Limit,
    /// What it was sent cannot be read.
    Malformed,
    /// It is being stopped.
    Stopping,
    /// Streams did not come, or the run went on for too long.
    Timeout,
    /// Something on the server's side failed, such as a socket.
    Failed,
}

impl Refusal {
    /// All of them, for counters.
    pub(crate) const ALL: [Self; 8] = [
        Self::Busy,
        Self::Secret,
        Self::Version,
        Self::Limit,
        Self::Malformed,
        Self::Stopping,
        Self::Timeout,
        Self::Failed,
    ];

    /// The name on the wire and in counters.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Secret => "secret",
            Self::Version => "version",
            Self::Limit => "limit",
            Self::Malformed => "malformed",
            Self::Stopping => "stopping",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.name() == name)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a connection or a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Control,
    Data,
    Ping,
}

/// The first bytes of each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) cookie: Cookie,
    /// Which stream of the run.
    pub(crate) index: u16,
}

/// Why the first bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    Foreign,
    Version(u16),
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..10].copy_from_slice(MAGIC);
        bytes[10..12].copy_from_slice(&VERSION.to_be_bytes());
        bytes[12] = match self.kind {
            Kind::Control => b'C',
            Kind::Data => b'D',
            Kind::Ping => b'P',
        };
        bytes[14..30].copy_from_slice(&self.cookie);
        bytes[30..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        if &bytes[..10] != MAGIC {
            return Err(HeaderError::Foreign);
        }
        let version = u16::from_be_bytes([bytes[10], bytes[11]]);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let kind = match bytes[12] {
            b'C' => Kind::Control,
            b'D' => Kind::Data,
            b'P' => Kind::Ping,
            _ => return Err(HeaderError::Foreign),
        };
        let mut cookie = [0; 16];
        cookie.copy_from_slice(&bytes[14..30]);
        Ok(Self { kind, cookie, index: u16::from_be_bytes([bytes[30], bytes[31]]) })
    }
}

/// Writes one frame.
pub(crate) async fn send<W: AsyncWrite + Unpin>(to: &mut W, message: &Value) -> std::io::Result<()> {
    let text = message.to_string();
    let length = u32::try_from(text.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(4 + text.len());
    frame.extend(length.to_be_bytes());
    frame.extend(text.as_bytes());
    to.write_all(&frame).await?;
    to.flush().await
}

/// Reads one frame; one that is longer than any of ours ends the connection.
pub(crate) async fn receive<R: AsyncRead + Unpin>(from: &mut R) -> Result<Value, BenchError> {
    let lost = |error: std::io::Error| BenchError::Lost(error.to_string());
    let length = from.read_u32().await.map_err(lost)? as usize;
    if length > FRAME_BYTES_MAX {
        return Err(BenchError::Protocol(format!("a message of {length} bytes")));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text).await.map_err(lost)?;
    serde_json::from_slice(&text).map_err(|error| BenchError::Protocol(error.to_string()))
}

/// A refusal as a frame.
pub(crate) fn refusal(reason: Refusal, text: &str) -> Value {
    json!({ "error": reason.name(), "text": text, "version": VERSION })
}

/// Whether a frame is a refusal.
pub(crate) fn refused(frame: &Value) -> Option<BenchError> {
    let name = frame["error"].as_str()?;
    let Some(reason) = Refusal::from_name(name) else {
        return Some(BenchError::Protocol("an unknown refusal".to_owned()));
    };
    let theirs = frame["version"].as_u64().and_then(|version| u16::try_from(version).ok());
    if let (Refusal::Version, Some(theirs)) = (reason, theirs) {
        return Some(BenchError::Version { theirs, ours: VERSION });
    }
    Some(BenchError::Refused { reason, text: printable(frame["text"].as_str().unwrap_or_default()) })
}

/// The proof of one side over what it says.
pub(crate) fn prove(secret: &hmac::Key, side: Side, nonces: (&Nonce, &Nonce), text: &str) -> String {
    hex(hmac::sign(secret, &proven(side, nonces, text)).as_ref())
}

/// Whether `proof` is what [`prove`] gives; in constant time.
pub(crate) fn is_proven(
    secret: &hmac::Key,
    side: Side,
    nonces: (&Nonce, &Nonce),
    text: &str,
    proof: &str,
) -> bool {
    unhex(proof).is_some_and(|tag| hmac::verify(secret, &proven(side, nonces, text), &tag).is_ok())
}

/// Who proves; a proof cannot be sent back to its sender.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Client,
    Server,
}

/// Random bytes of the operating system's quality.
pub(crate) fn random() -> Result<[u8; 16], BenchError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| BenchError::Protocol("no random numbers".to_owned()))?;
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of a hexadecimal text of at most 64 bytes.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() > 128 || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// 16 bytes of a hexadecimal text.
pub(crate) fn unhex16(text: Option<&str>) -> Option<[u8; 16]> {
    unhex(text?)?.try_into().ok()
}

/// What a peer says, for a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

fn proven(side: Side, nonces: (&Nonce, &Nonce), text: &str) -> Vec<u8> {
    let label: &[u8] = match side {
        Side::Client => b"adit-bench 1 client\0",
        Side::Server => b"adit-bench 1 server\0",
    };
    [label, nonces.0, nonces.1, text.as_bytes()].concat()
}

/// Grows with every change that an older end would misunderstand.
pub(crate) const VERSION: u16 = 2;
/// Length of [`Header`], the same in every version.
pub(crate) const HEADER_BYTES: usize = 32;
/// What tells our connections from HTTP (methods are upper case) and TLS (22).
pub(crate) const MAGIC: &[u8; 10] = b"adit-bench";
/// The largest message is a result of 256 streams of less than 400 bytes each.
const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Of a peer's words; more than any of our messages has.
const TEXT_CHARS_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back() {
        let header = Header { kind: Kind::Data, cookie: [7; 16], index: 300 };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn another_version_is_told_from_something_foreign() {
        let mut bytes = Header { kind: Kind::Control, cookie: [0; 16], index: 0 }.encode();
        bytes[11] = 9;
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Version(9)));
        bytes[0] = b'G';
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Foreign));
    }

    #[test]
    fn a_proof_holds_for_one_side_one_text_and_one_secret() {
        let key = |secret: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, secret);
        let nonces = (&[1; 16], &[2; 16]);
        let proof = prove(&key(b"secret"), Side::Client, nonces, "plan");
        assert!(is_proven(&key(b"secret"), Side::Client, nonces, "plan", &proof));
        assert!(!is_proven(&key(b"other"), Side::Client, nonces, "plan", &proof));
        assert!(!is_proven(&key(b"secret"), Side::Server, nonces, "plan", &proof));
        assert!(!is_proven(&key(b"secret"), Side::Client, nonces, "plan!", &proof));
        assert!(!is_proven(&key(b"secret"), Side::Client, (&[2; 16], &[1; 16]), "plan", &proof));
        assert!(!is_proven(&key(b"secret"), Side::Client, nonces, "plan", "zz"));
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_not_read() {
        let frame = [0x7f, 0xff, 0xff, 0xff, b'{'];
        assert!(matches!(receive(&mut frame.as_slice()).await, Err(BenchError::Protocol(_))));
        let mut sent = Vec::new();
        send(&mut sent, &json!({ "do": "start" })).await.unwrap();
        assert_eq!(receive(&mut sent.as_slice()).await.unwrap()["do"], "start");
    }
}
