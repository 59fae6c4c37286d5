//! What a run over the bench's own protocol is to do, as the client asks and the server checks it.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Value, json};

/// Transport of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
    Quic,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) transport: Transport,
    /// Streams from the client to the server.
    pub(crate) up: u16,
    /// Streams from the server to the client.
    pub(crate) down: u16,
    /// What ends it.
    pub(crate) amount: Amount,
    /// Warm-up that is not counted.
    pub(crate) omit: Duration,
    /// Bytes of one write, or of one datagram's payload.
    pub(crate) length: u32,
    /// Bits a second that each stream may send; `None` for as fast as it goes.
    pub(crate) rate: Option<u64>,
    /// Socket buffer, or QUIC window of a stream, in bytes.
    pub(crate) window: Option<u32>,
    /// Congestion control of TCP senders.
    pub(crate) congestion: Option<String>,
    /// QUIC connections that the streams are spread over.
    pub(crate) connections: u16,
    /// Whether TCP senders set TCP_NODELAY.
    pub(crate) no_delay: bool,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    Time(Duration),
    /// Of all streams of one direction together.
    Bytes(u64),
}

/// A plan, and what is wrong with it.
pub(crate) type Parsed = Result<Plan, &'static str>;

impl Plan {
    pub(crate) fn to_json(&self) -> Value {
        let (time_ms, bytes) = match self.amount {
            Amount::Time(time) => (Some(milliseconds(time)), None),
            Amount::Bytes(bytes) => (None, Some(bytes)),
        };
        json!({
            "transport": self.transport.name(), "up": self.up, "down": self.down, "time_ms": time_ms, "bytes": bytes,
            "omit_ms": milliseconds(self.omit), "length": self.length, "rate": self.rate, "window": self.window,
            "congestion": self.congestion, "connections": self.connections, "no_delay": self.no_delay,
        })
    }

    /// Reads what a client asks for. The limits that hold for all servers are checked here.
    pub(crate) fn from_json(value: &Value) -> Parsed {
        let number = |name: &str| value[name].as_u64();
        let small = |name: &str| number(name).and_then(|number| u16::try_from(number).ok());
        let transport = match value["transport"].as_str() {
            Some("tcp") => Transport::Tcp,
            Some("udp") => Transport::Udp,
            Some("quic") => Transport::Quic,
            _ => return Err("unknown transport"),
        };
        let amount = match (number("time_ms"), number("bytes")) {
            (Some(time), None) => Amount::Time(Duration::from_millis(time)),
            (None, Some(bytes)) => Amount::Bytes(bytes),
            _ => return Err("neither a time nor a number of bytes"),
        };
        let congestion = match &value["congestion"] {
            Value::Null => None,
            Value::String(name) if is_name(name) => Some(name.clone()),
            _ => return Err("no name of a congestion control"),
        };
        let plan = Self {
            transport,
            up: small("up").ok_or("no number of streams")?,
            down: small("down").ok_or("no number of streams")?,
            amount,
            omit: Duration::from_millis(number("omit_ms").unwrap_or_default()),
            length: number("length").and_then(|length| u32::try_from(length).ok()).ok_or("no length")?,
            rate: number("rate").filter(|rate| *rate > 0),
            window: number("window").and_then(|window| u32::try_from(window).ok()),
            congestion,
            connections: small("connections").unwrap_or(1),
            no_delay: value["no_delay"].as_bool().unwrap_or_default(),
        };
        plan.check().map(|()| plan)
    }

    /// Streams of both directions.
    pub(crate) fn streams(&self) -> u16 {
        self.up.saturating_add(self.down)
    }

    /// Whether stream `index` goes from the client to the server; those do come first.
    pub(crate) fn is_up(&self, index: u16) -> bool {
        index < self.up
    }

    /// Bytes that stream `index` is to send, if bytes end the run.
    pub(crate) fn share(&self, index: u16) -> Option<u64> {
        let Amount::Bytes(bytes) = self.amount else { return None };
        let (streams, at) = if self.is_up(index) { (self.up, index) } else { (self.down, index - self.up) };
        let streams = u64::from(streams.max(1));
        Some(bytes / streams + u64::from(u64::from(at) < bytes % streams))
    }

    /// What every server and every client refuses.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let lengths = self.transport.lengths();
        if self.streams() == 0 || self.up > STREAMS_MAX || self.down > STREAMS_MAX {
            return Err("between 1 and 128 streams a direction");
        }
        if !lengths.contains(&self.length) {
            return Err("a length is 1 byte to 4 MiB, that of a datagram 24 to 65,507 bytes");
        }
        if self.window.is_some_and(|window| !WINDOWS.contains(&window)) {
            return Err("a window is 2 KiB to 1 GiB");
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return Err("between 1 and 16 QUIC connections");
        }
        if matches!(self.amount, Amount::Bytes(0))
            || matches!(self.amount, Amount::Time(time) if time.is_zero())
        {
            return Err("a run of no length");
        }
        Ok(())
    }
}

impl Transport {
    /// Bytes of a write or of a datagram.
    pub(crate) fn lengths(self) -> RangeInclusive<u32> {
        match self {
            Self::Udp => UDP_LENGTH_MIN..=UDP_LENGTH_MAX,
            Self::Tcp | Self::Quic => 1..=LENGTH_MAX,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Quic => "quic",
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the kernel may have a congestion control of this name.
pub(crate) fn is_name(name: &str) -> bool {
    (1..16).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Streams of a direction, as iperf3 has it: a thread and a buffer of [`LENGTH_MAX`] each, 512 MiB at worst.
pub(crate) const STREAMS_MAX: u16 = 128;
/// Bytes of one write.
pub(crate) const LENGTH_MAX: u32 = 4 * 1024 * 1024;
/// Number, time and size of a datagram stand in it.
pub(crate) const UDP_LENGTH_MIN: u32 = 24;
/// What IPv4 carries.
pub(crate) const UDP_LENGTH_MAX: u32 = 65_507;
/// Socket buffers and windows in bytes: the kernel's least, and what a long line at 10 Gbit/s holds.
pub(crate) const WINDOWS: RangeInclusive<u32> = 2048..=1 << 30;
/// QUIC connections of one run: four times what a tunnel has.
pub(crate) const CONNECTIONS_MAX: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            transport: Transport::Tcp,
            up: 3,
            down: 2,
            amount: Amount::Bytes(11),
            omit: Duration::from_millis(10),
            length: 131_072,
            rate: Some(5),
            window: Some(65_536),
            congestion: Some("cubic".to_owned()),
            connections: 1,
            no_delay: true,
        }
    }

    #[test]
    fn a_plan_reads_back() {
        assert_eq!(Plan::from_json(&plan().to_json()), Ok(plan()));
        let timed = Plan { amount: Amount::Time(Duration::from_secs(10)), ..plan() };
        assert_eq!(Plan::from_json(&timed.to_json()), Ok(timed));
    }

    #[test]
    fn bytes_are_shared_without_loss() {
        let shares: Vec<u64> = (0..5).filter_map(|index| plan().share(index)).collect();
        assert_eq!(shares, [4, 4, 3, 6, 5]);
    }

    #[test]
    fn what_is_beyond_every_bound_is_refused() {
        for bad in [
            Plan { up: 0, down: 0, ..plan() },
            Plan { up: STREAMS_MAX + 1, ..plan() },
            Plan { length: 0, ..plan() },
            Plan { transport: Transport::Udp, length: 10, ..plan() },
            Plan { window: Some(1), ..plan() },
            Plan { connections: 17, ..plan() },
            Plan { amount: Amount::Bytes(0), ..plan() },
        ] {
            assert!(Plan::from_json(&bad.to_json()).is_err(), "{bad:?}");
        }
        let mut value = plan().to_json();
        value["congestion"] = json!("../cubic");
        assert!(Plan::from_json(&value).is_err());
    }
}
