//! Why a packet or datagram went no further: one name each, for logs, metrics and tests.

/// Names every way a packet can end early.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why something was dropped; `name` is the value of the label `reason`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name in logs and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

drop_reasons! {
    /// Datagram that is no WireGuard message, or one of a wrong length.
    MalformedDatagram = "malformed_datagram",
    /// Handshake message whose first MAC does not prove knowledge of our public key.
    InvalidMac = "invalid_mac",
    /// Handshake message answered by a cookie instead: under load, or its source asks too often.
    CookieRequired = "cookie_required",
    /// Handshake message beyond what its proven source network (/32, /64) may ask for.
    SourceRate = "source_rate",
    /// Handshake message beyond what this lane computes in a second, whoever asks.
    HandshakeRate = "handshake_rate",
    /// Handshake from a key that is no peer, or that does not decrypt.
    UnknownPeer = "unknown_peer",
    /// Handshake of a peer sooner than 20 ms after its last.
    HandshakeTooSoon = "handshake_too_soon",
    /// Handshake that is a replay, an answer to nothing, or fails to authenticate.
    InvalidHandshake = "invalid_handshake",
    /// Message for a session index that nobody has.
    UnknownIndex = "unknown_index",
    /// Data on a session that has ended.
    NoSession = "no_session",
    /// Data whose counter is beyond what a session may ever use.
    CounterOverflow = "counter_overflow",
    /// Data received before, or older than the replay window.
    Replay = "replay",
    /// Data that fails to authenticate.
    InvalidData = "invalid_data",
    /// Packet that met congestion on its way and whose ends do not know the signal for it.
    Congestion = "congestion",
    /// Decrypted data that is no whole IP packet.
    MalformedPacket = "malformed_packet",
    /// Packet from a peer with a source outside its allowed IPs.
    SourceNotAllowed = "source_not_allowed",
    /// Packet to an address that belongs to no peer.
    NoRoute = "no_route",
    /// Packet to a peer whose address nobody knows yet.
    NoEndpoint = "no_endpoint",
    /// Packet that waited for a session longer than a handshake may take, or whose peer went away.
    HandshakeFailed = "handshake_failed",
    /// Packet that found the queue before a session full.
    StagedFull = "staged_full",
    /// Packet that found all outgoing buffers full: outputs were not drained.
    TransmitFull = "transmit_full",
    /// Packet that found all buffers of decrypted packets full: outputs were not drained.
    ReceiveFull = "receive_full",
    /// Packet larger than the mesh carries and not allowed to be split.
    TooBig = "too_big",
    /// Super-packet whose offload fields contradict its headers.
    InvalidOffload = "invalid_offload",
    /// Packet that no rule of the policy allows.
    Policy = "policy",
    /// Fragment, which has no ports to judge, under a policy.
    Fragment = "fragment",
    /// IPv6 extension headers that cannot be judged, under a policy.
    ExtensionHeader = "extension_header",
    /// New flow beyond what the policy's table remembers.
    FlowTableFull = "flow_table_full",
}

/// How often each reason occurred.
#[derive(Debug, Clone)]
pub struct DropCounts([u64; DropReason::ALL.len()]);

impl DropCounts {
    /// Counts one more.
    pub(crate) fn count(&mut self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts several at once.
    pub(crate) fn add(&mut self, reason: DropReason, count: u64) {
        self.0[reason as usize] += count;
    }

    /// Adds another count.
    pub fn absorb(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// How often `reason` occurred.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// All reasons with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.of(*reason)))
    }

    /// All drops together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Default for DropCounts {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: HashSet<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
    }
}
