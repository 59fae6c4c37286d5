//! Why the stack did not take a packet or a connection: one name each, for logs, metrics and tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// Names every way in which the stack can refuse something.
macro_rules! stack_drops {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why something was refused; `name` is the value of the label `reason`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum StackDrop { $($(#[doc = $doc])+ $variant,)+ }

        impl StackDrop {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name in logs and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

stack_drops! {
    /// No whole IP packet, or no whole transport header in it.
    Malformed = "malformed",
    /// Part of a packet: fragments are not put together.
    Fragment = "fragment",
    /// From an address that nobody may send from, or from one of ours.
    Martian = "martian",
    /// To an address that is not ours.
    NotOurs = "not_ours",
    /// Neither TCP, UDP nor ICMP, or behind extension headers.
    Protocol = "protocol",
    /// A connection that another peer began, or a packet of one: its address has changed hands.
    PeerChanged = "peer_changed",
    /// TCP to a port where nobody listens, or of a connection that is over: reset.
    PortClosed = "port_closed",
    /// UDP to a port where nobody listens: told so by ICMP.
    UdpPortClosed = "udp_port_closed",
    /// An answer to something refused that was itself left out: its peer gets too many.
    AnswerRate = "answer_rate",
    /// An answer for which the queue had no room.
    AnswersFull = "answers_full",
    /// Opening beyond the number of connections that may be half open.
    HalfOpen = "half_open",
    /// Opening beyond the number that one peer may have half open.
    HalfOpenPeer = "half_open_peer",
    /// Opening towards a listener that does not keep up with accepting.
    Backlog = "backlog",
    /// Opening for whose buffers there is no room left.
    Budget = "budget",
    /// Opening for whose buffers its peer has no room left.
    BudgetPeer = "budget_peer",
    /// Outgoing connection beyond the number that may wait for the lane.
    ConnectsFull = "connects_full",
    /// Outgoing connection for which no local port is free.
    PortsExhausted = "ports_exhausted",
    /// Datagram for a socket that does not keep up with receiving.
    UdpReceiveFull = "udp_receive_full",
    /// Datagram that found the queue towards the lane full.
    UdpSendFull = "udp_send_full",
    /// Datagram longer than a packet of the mesh may be.
    UdpTooLong = "udp_too_long",
}

/// One counter for each [`StackDrop`].
#[derive(Debug)]
pub(super) struct DropCounters([AtomicU64; StackDrop::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl DropCounters {
    pub(super) fn count(&self, reason: StackDrop) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
        tracing::trace!(reason = reason.name(), "the stack refuses");
    }

    pub(super) fn of(&self, reason: StackDrop) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}
