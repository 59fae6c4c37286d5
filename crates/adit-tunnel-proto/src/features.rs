//! Feature strings of a registration (tunnel-protocol.md §1.5).

/// What a connector of ours advertises: the strings that are always sent, those of `extra` that may
/// be given by a user, and `postquantum` when only post-quantum key exchange is offered.
///
/// `support_datagram_v3*` is never sent, not even on request: a v3 connection would be promised
/// UDP sessions that are not served.
pub fn advertised(extra: &[String], post_quantum: bool) -> Vec<String> {
    let mut features: Vec<String> = ALWAYS.map(str::to_owned).to_vec();
    if post_quantum {
        features.push(POST_QUANTUM.to_owned());
    }
    for feature in extra {
        if !feature.starts_with(DATAGRAM_V3_PREFIX) && !features.contains(feature) {
            features.push(feature.clone());
        }
    }
    features
}

/// Which datagram layout an edge uses on a connection that registered with `features` (E16).
pub fn datagram_version(features: &[String]) -> DatagramVersion {
    if features.iter().any(|feature| feature == DATAGRAM_V3) {
        DatagramVersion::V3
    } else {
        DatagramVersion::V2
    }
}

/// A datagram layout (§5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramVersion {
    /// Type and session id at the end.
    V2,
    /// Type and request id in front.
    V3,
}

/// Sent by every connector (§1.5, C7). `support_datagram_v2` and `management_logs` are sent although
/// UDP sessions and the management service are refused: edges take their absence for a connector
/// too old to talk to, and both refusals are answers that they know.
const ALWAYS: [&str; 5] = [
    "allow_remote_config",
    "serialized_headers",
    "support_datagram_v2",
    "support_quic_eof",
    "management_logs",
];
const POST_QUANTUM: &str = "postquantum";
const DATAGRAM_V3: &str = "support_datagram_v3_2";
const DATAGRAM_V3_PREFIX: &str = "support_datagram_v3";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extras_are_added_once_and_datagram_v3_never() {
        let extra = ["x", "support_datagram_v3_2", "x", "allow_remote_config"].map(str::to_owned);
        let features = advertised(&extra, true);
        assert_eq!(features.iter().filter(|feature| *feature == "x").count(), 1);
        assert_eq!(features.iter().filter(|feature| *feature == "allow_remote_config").count(), 1);
        assert!(features.iter().any(|feature| feature == POST_QUANTUM));
        assert_eq!(datagram_version(&features), DatagramVersion::V2);
        assert_eq!(datagram_version(&extra), DatagramVersion::V3);
    }
}
