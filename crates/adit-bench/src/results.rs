//! Counters of flows as they travel from the server to the client.

use serde_json::{Value, json};

use crate::flow::{Flow, Look, QuicState};
use crate::tcp_state::TcpState;

/// What one end counted of one flow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) index: u16,
    pub(crate) look: Look,
    pub(crate) failure: Option<String>,
}

impl Counted {
    /// What `flow` counted since `from`.
    pub(crate) fn of(flow: &Flow, from: &Look) -> Self {
        Self { index: flow.index, look: flow.look().since(from), failure: flow.failure() }
    }

    pub(crate) fn to_json(&self) -> Value {
        let look = &self.look;
        let tcp = look.tcp.map(|tcp| {
            [
                tcp.retransmits,
                tcp.segments,
                tcp.rtt_us,
                tcp.rtt_variance_us,
                tcp.congestion_window,
                tcp.path_mtu,
                tcp.segment_bytes,
                tcp.busy_us,
                tcp.receive_window_us,
                tcp.send_buffer_us,
                tcp.pacing_rate,
            ]
        });
        let quic = look.quic.map(|quic| {
            [
                quic.lost_packets,
                quic.sent_packets,
                quic.congestion_events,
                quic.rtt_us,
                quic.congestion_window,
                quic.mtu,
                quic.blocked,
            ]
        });
        json!({
            "index": self.index, "bytes": look.bytes, "packets": look.packets, "lost": look.lost,
            "out_of_order": look.out_of_order, "duplicates": look.duplicates, "numbered": look.numbered,
            "jitter_ns": look.jitter_ns, "tcp": tcp, "quic": quic, "failure": self.failure,
        })
    }

    /// Reads what the server sent; `None` if it is not of that form.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let number = |name: &str| value[name].as_u64();
        let list =
            |name: &str| -> Option<Vec<u64>> { value[name].as_array()?.iter().map(Value::as_u64).collect() };
        let tcp =
            list("tcp").and_then(|numbers| <[u64; 11]>::try_from(numbers).ok()).map(|numbers| TcpState {
                retransmits: numbers[0],
                segments: numbers[1],
                rtt_us: numbers[2],
                rtt_variance_us: numbers[3],
                congestion_window: numbers[4],
                path_mtu: numbers[5],
                segment_bytes: numbers[6],
                busy_us: numbers[7],
                receive_window_us: numbers[8],
                send_buffer_us: numbers[9],
                pacing_rate: numbers[10],
                // For the end that sends alone.
                acknowledged: 0,
            });
        let quic =
            list("quic").and_then(|numbers| <[u64; 7]>::try_from(numbers).ok()).map(|numbers| QuicState {
                lost_packets: numbers[0],
                sent_packets: numbers[1],
                congestion_events: numbers[2],
                rtt_us: numbers[3],
                congestion_window: numbers[4],
                mtu: numbers[5],
                blocked: numbers[6],
            });
        Some(Self {
            index: u16::try_from(number("index")?).ok()?,
            look: Look {
                bytes: number("bytes")?,
                packets: number("packets")?,
                lost: number("lost")?,
                out_of_order: number("out_of_order")?,
                duplicates: number("duplicates")?,
                numbered: number("numbered")?,
                jitter_ns: number("jitter_ns")?,
                tcp,
                quic,
            },
            failure: value["failure"].as_str().map(crate::wire::printable),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_read_back() {
        let look = Look {
            bytes: 1,
            packets: 2,
            lost: 3,
            out_of_order: 4,
            duplicates: 10,
            numbered: 11,
            jitter_ns: 5,
            tcp: Some(TcpState { retransmits: 6, pacing_rate: 7, ..TcpState::default() }),
            quic: Some(QuicState { lost_packets: 8, blocked: 9, ..QuicState::default() }),
        };
        let counted = Counted { index: 3, look, failure: Some("reset".to_owned()) };
        let read = Counted::from_json(&counted.to_json()).unwrap();
        assert_eq!(read.to_json(), counted.to_json());
        assert_eq!((read.look.tcp, read.look.quic), (look.tcp, look.quic));
        assert!(Counted::from_json(&json!({ "index": 70_000 })).is_none());
    }
}
