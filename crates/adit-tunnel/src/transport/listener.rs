//! Transport of an edge: every connection's windows are made for the line that its address was last seen behind.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use quinn::{
    ServerConfig, VarInt,
    crypto::rustls::{NoInitialCipherSuite, QuicServerConfig},
};

use super::{STREAM_WINDOW_BYTES, STREAM_WINDOW_FIRST_BYTES, announce::Listening, common, stream_window};
use crate::udp::JUMBO_PAYLOAD_BYTES;

/// What an edge accepts connections with, by window of a stream; they begin with a small window of their own
/// (see [`super::admit`]).
#[derive(Clone)]
pub(crate) struct Configs(Arc<BTreeMap<u32, Arc<ServerConfig>>>);

impl Configs {
    pub(crate) fn new(tls: rustls::ServerConfig) -> Result<Self, NoInitialCipherSuite> {
        let crypto = Arc::new(Listening(Arc::new(QuicServerConfig::try_from(tls)?)));
        let windows = (0..).map(|n| STREAM_WINDOW_FIRST_BYTES << n);
        let windows = windows.take_while(|window| *window <= STREAM_WINDOW_BYTES);
        Ok(Self(Arc::new(windows.map(|window| (window, Arc::new(config(&crypto, window)))).collect())))
    }

    /// For addresses that nothing is known of.
    pub(crate) fn first(&self) -> ServerConfig {
        ServerConfig::clone(&self.of(STREAM_WINDOW_FIRST_BYTES))
    }

    pub(in crate::transport) fn of(&self, window: u32) -> Arc<ServerConfig> {
        let found = self.0.get(&window).or_else(|| self.0.values().next());
        Arc::clone(found.expect("there is one for the first window"))
    }
}

/// The configurations in use, and how far away connectors are.
pub(crate) struct Listener {
    configs: ArcSwap<Configs>,
    /// Windows by address, where not the first.
    lines: Mutex<BTreeMap<IpAddr, u32>>,
}

impl Listener {
    pub(crate) fn new(configs: Configs) -> Self {
        Self { configs: ArcSwap::from_pointee(configs), lines: Mutex::default() }
    }

    /// Replaces the configurations for connections to come.
    pub(crate) fn replace(&self, configs: Configs) {
        self.configs.store(Arc::new(configs));
    }

    /// For a connection from `address`.
    pub(crate) fn config(&self, address: IpAddr) -> Arc<ServerConfig> {
        let window = lock(&self.lines).get(&address).copied().unwrap_or(STREAM_WINDOW_FIRST_BYTES);
        self.configs.load().of(window)
    }

    /// Notes how far `address` is.
    pub(crate) fn remember(&self, address: IpAddr, round_trip: Duration) {
        let window = stream_window(round_trip);
        let mut lines = lock(&self.lines);
        if window == STREAM_WINDOW_FIRST_BYTES {
            lines.remove(&address);
            return;
        }
        if lines.len() >= LINES_MAX && !lines.contains_key(&address) {
            // Who loses its place has smaller windows next time.
            lines.pop_first();
        }
        lines.insert(address, window);
    }
}

/// No section that holds a lock can leave its data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(crypto: &Arc<Listening>, stream_window: u32) -> ServerConfig {
    // What a connector announces bounds it further: its first link decides for both directions.
    let mut transport = common(SERVER_IDLE_TIMEOUT_MS, JUMBO_PAYLOAD_BYTES);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(CONNECTOR_STREAMS_MAX));
    transport.receive_window(VarInt::from_u32(UNREGISTERED_WINDOW_BYTES));
    transport.stream_receive_window(VarInt::from_u32(stream_window));
    let mut config = ServerConfig::with_crypto(Arc::<Listening>::clone(crypto));
    config.transport_config(Arc::new(transport));
    config.max_incoming(INCOMING_MAX);
    // A handshake is a few packets; what comes before it is accepted need not be kept.
    config.incoming_buffer_size(INCOMING_BUFFER_BYTES);
    config.incoming_buffer_size_total(INCOMING_BUFFER_BYTES * INCOMING_MAX as u64);
    config
}

/// Addresses far away that are remembered, some 100 bytes each. Strangers can push others out, which costs those the wider
/// windows of their next connection.
const LINES_MAX: usize = 1024;
/// Above 5 s, so that the connector's value holds (E21).
const SERVER_IDLE_TIMEOUT_MS: u32 = 10_000;
/// Streams at once that a connector opens: the control stream and short RPC streams (E15).
const CONNECTOR_STREAMS_MAX: u32 = 16;
/// Unread bytes of a connection that has not registered: enough for the largest RPC message's start,
/// and 4,096 strangers cost 256 MiB at most.
const UNREGISTERED_WINDOW_BYTES: u32 = 64 * 1024;
/// Handshakes not yet looked at.
const INCOMING_MAX: usize = 1024;
/// Bytes kept for each of them: a hybrid ClientHello has two packets (E2).
const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::tls::{QUIC_SERVER_NAME, server_config};

    fn listener() -> Listener {
        let made = rcgen::generate_simple_self_signed([QUIC_SERVER_NAME.to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let tls = server_config(vec![made.cert.der().clone()], key.into()).unwrap();
        Listener::new(Configs::new(tls).unwrap())
    }

    #[test]
    fn windows_are_made_for_ten_gigabits_over_the_round_trip_seen_last() {
        let listener = listener();
        let far = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let window = |listener: &Listener| listener.lines.lock().unwrap().get(&far).copied();
        listener.remember(far, Duration::from_millis(10));
        assert_eq!(window(&listener), None);
        for (milliseconds, mebibytes) in [(20, 32), (50, 64), (100, 128), (1000, 128)] {
            listener.remember(far, Duration::from_millis(milliseconds));
            assert_eq!(window(&listener), Some(mebibytes << 20));
            let config = listener.config(far);
            assert!(Arc::ptr_eq(&config, &listener.configs.load().of(mebibytes << 20)));
        }
        listener.remember(far, Duration::from_millis(1));
        assert_eq!(window(&listener), None);
    }

    #[test]
    fn only_so_many_addresses_are_remembered() {
        let listener = listener();
        for n in 0..2 * LINES_MAX as u32 {
            listener.remember(Ipv4Addr::from_bits(n).into(), Duration::from_secs(1));
        }
        assert_eq!(listener.lines.lock().unwrap().len(), LINES_MAX);
    }
}
