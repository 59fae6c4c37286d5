//! One peer's cryptographic session: handshake, keys, timers.
//!
//! [`Session`] is all the engine knows. [`NoiseSession`] implements it with `boringtun::noise`, whose defects are
//! countered from outside: in `noise.rs` where a message passes, in `shadow.rs` where time does. Their numbers are those of
//! the reference, section 1.4.

mod noise;
mod shadow;

use std::time::{Duration, Instant};

use crate::drops::DropReason;

pub(crate) use noise::NoiseSession;
pub(crate) use shadow::{ANSWER_TIMEOUT, JITTER_MAX};

/// Keys and timers of one peer.
pub(crate) trait Session {
    /// Whether [`Self::encrypt`] would work.
    fn is_connected(&self) -> bool;
    /// Whether an initiation waits for its response, and will be repeated.
    fn is_initiating(&self) -> bool;
    /// Whether a response would be taken: also shortly after the peer's own initiation overtook ours.
    fn awaits_response(&self, now: Instant) -> bool;
    /// Whether a session has been agreed on that the peer will confirm any moment.
    fn awaits_confirmation(&self, now: Instant) -> bool;
    /// Seals `packet` (empty: a keepalive) into `datagram`, which holds [`DATA_OVERHEAD`] bytes more, and says how long
    /// the datagram is; `None` without a session.
    fn encrypt(&mut self, packet: &[u8], datagram: &mut [u8], now: Instant) -> Option<usize>;
    /// Opens a data message into `packet`, which is as long as the datagram less 16 bytes, and says how long the packet
    /// is; 0 is a keepalive.
    fn decrypt(&mut self, datagram: &[u8], packet: &mut [u8], now: Instant) -> Result<usize, DropReason>;
    /// Takes a handshake message whose first MAC is known to be right.
    fn handle_handshake(
        &mut self,
        datagram: &[u8],
        out: &mut [u8],
        now: Instant,
    ) -> Result<Reply, DropReason>;
    /// Writes an initiation to `out` unless one waits for its response.
    fn initiate(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Option<usize>;
    /// Does what time demands.
    fn handle_timeout(&mut self, out: &mut [u8], jitter: Duration, now: Instant) -> Tick;
    /// When [`Self::handle_timeout`] should be called next; `None` while nothing can become due.
    fn poll_timeout(&self, now: Instant) -> Option<Instant>;
}

/// What a handshake message led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Nothing to send: a cookie was taken.
    Nothing,
    /// An initiation was accepted; its response has this length.
    Response(usize),
    /// A response was accepted: connected, and the keepalive that confirms it has this length.
    Established(usize),
}

/// What time led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    /// Nothing to send.
    Nothing,
    /// A handshake initiation of this length.
    Initiation(usize),
    /// A keepalive of this length.
    Keepalive(usize),
    /// The session or the attempt to get one ended.
    Expired,
}

/// Bytes that a data message adds to a packet: header and tag.
pub(crate) const DATA_OVERHEAD: usize = 32;
/// Bytes before the ciphertext.
pub(crate) const DATA_HEADER: usize = 16;
/// Longest handshake message; every output buffer is at least this long.
pub(crate) const HANDSHAKE_MAX: usize = 148;
/// Largest index of a peer: boringtun keeps 8 of the 32 bits for the number of the session.
pub(crate) const INDEX_MAX: u32 = (1 << 24) - 1;
