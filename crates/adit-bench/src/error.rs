//! Why a run ends without a result, and the exit status that says so.

use std::io;
use std::time::Duration;

use crate::wire::Refusal;

/// Why a client or a server ends without having done its work.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The command line contradicts itself.
    #[error("{0}")]
    Usage(String),
    /// A name has no address of the wanted kind.
    #[error("cannot resolve {host}: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// Nobody takes the connection.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Where to.
        target: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A server cannot take its address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which one.
        address: std::net::SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket or a file fails.
    #[error("{what}: {source}")]
    Io {
        /// While doing what.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The peer speaks, but not this.
    #[error("the peer is no adit bench server, or is broken: {0}")]
    Protocol(String),
    /// The peer says no.
    #[error("refused by the server: {text} ({reason})")]
    Refused {
        /// Which reason.
        reason: Refusal,
        /// The peer's words.
        text: String,
    },
    /// Versions differ.
    #[error(
        "the server speaks version {theirs} of the bench's protocol, this client version {ours}: use the same adit on both ends"
    )]
    Version {
        /// The peer's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The server cannot prove that it knows the secret.
    #[error("the server does not prove that it knows the secret")]
    Impostor,
    /// QUIC fails.
    #[error("QUIC: {0}")]
    Quic(String),
    /// TLS fails.
    #[error("TLS: {0}")]
    Tls(String),
    /// HTTP fails.
    #[error("HTTP: {0}")]
    Http(String),
    /// Something takes too long.
    #[error("waited {seconds} s for {what}")]
    Timeout {
        /// What did not come.
        what: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The peer left in the midst.
    #[error("the connection to the server ended during the run: {0}")]
    Lost(String),
}

impl BenchError {
    /// The exit status: 64 a bad command line, 4 refused by the server, 1 anything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Refused { .. } | Self::Version { .. } | Self::Impostor => EXIT_REFUSED,
            _ => EXIT_FAILED,
        }
    }

    /// For `map_err` on a socket or a file.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// The run could not be done or broke off.
pub(crate) const EXIT_FAILED: u8 = 1;
/// The run is done and misses a threshold.
pub(crate) const EXIT_THRESHOLD: u8 = 3;
/// The server refuses: secret, version, bounds, too busy.
pub(crate) const EXIT_REFUSED: u8 = 4;
/// A bad command line (sysexits.h EX_USAGE), as for all of adit.
pub(crate) const EXIT_USAGE: u8 = 64;
/// Ended by Ctrl-C, as shells have it; what was measured until then is printed.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// For what is under way, and the server's figures, when a signal ends a run: whoever presses Ctrl-C is waiting.
pub(crate) const HURRY: Duration = Duration::from_secs(5);
