//! Two ends of a connection over a line that exists in virtual time only, so that what congestion control does over a line of
//! gigabits is the same on a busy machine.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event,
    ServerConfig, StreamId, VarInt,
};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::{CONNECTION_WINDOW_BYTES, SEND_WINDOW_BYTES, STREAM_WINDOW_BYTES, STREAM_WINDOW_FIRST_BYTES};
use crate::{
    bdp::Bdp,
    credit::LINE_BYTES_MAX,
    liveness::LOOK_INTERVAL,
    tls::{QUIC_SERVER_NAME, TlsTransport, client_config, server_config},
    udp::ETHERNET_PAYLOAD_BYTES,
};

/// A line's bottleneck towards the receiver of bulk; the way back has no limit.
#[derive(Clone, Copy, Debug)]
struct Shape {
    round_trip: Duration,
    bits_per_second: f64,
    /// What waits in front of the bottleneck at most; the rest is dropped.
    buffer_bytes: f64,
    /// One packet of so many is lost besides; none if zero.
    lost_one_in: u64,
}

/// One end.
struct Node {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    inbound: VecDeque<(Instant, BytesMut)>,
    remote: SocketAddr,
    /// When its timers ring, as a runtime with ticks of a millisecond does it.
    alarm: Option<Instant>,
    lost: Option<String>,
}

/// A sender that always has more, and a receiver that reads at once if it reads at all.
struct Bulk {
    shape: Shape,
    start: Instant,
    now: Instant,
    sender: Node,
    receiver: Node,
    stream: Option<StreamId>,
    written: u64,
    reads: bool,
    /// When the bottleneck is free again.
    free_at: Instant,
    packets: u64,
    dropped: u64,
    received: u64,
    chunk: Bytes,
}

impl Bulk {
    /// Dials.
    fn new(shape: Shape, client: ClientConfig, server: ServerConfig) -> Self {
        let now = Instant::now();
        let addresses: [SocketAddr; 2] = ["192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap()];
        let config = Arc::new(EndpointConfig::default());
        let node = |server: Option<ServerConfig>, remote| Node {
            endpoint: Endpoint::new(Arc::clone(&config), server.map(Arc::new), true, Some([7; 32])),
            connection: None,
            inbound: VecDeque::new(),
            remote,
            alarm: None,
            lost: None,
        };
        let (mut sender, receiver) = (node(None, addresses[1]), node(Some(server), addresses[0]));
        let dialled = sender.endpoint.connect(now, client, addresses[1], QUIC_SERVER_NAME);
        sender.connection = Some(dialled.unwrap());
        let chunk = Bytes::from(vec![7; 256 * 1024]);
        Self {
            shape,
            start: now,
            now,
            sender,
            receiver,
            stream: None,
            written: 0,
            reads: true,
            free_at: now,
            packets: 0,
            dropped: 0,
            received: 0,
            chunk,
        }
    }

    /// Runs until so long after the beginning; bytes received since the call before.
    fn run(&mut self, until: Duration) -> u64 {
        let before = self.received;
        while self.now < self.start + until && self.error().is_none() {
            self.turn();
            let nodes = [&self.sender, &self.receiver];
            let arrivals = nodes.iter().filter_map(|node| node.inbound.front()).map(|(due, _)| *due);
            let alarms = nodes.iter().filter_map(|node| node.alarm);
            let next = arrivals.chain(alarms).min().unwrap_or(self.start + until);
            self.now = next.clamp(self.now, self.start + until);
        }
        self.received - before
    }

    /// What ended the connection.
    fn error(&self) -> Option<&str> {
        self.sender.lost.as_deref().or(self.receiver.lost.as_deref())
    }

    fn sender(&mut self) -> &mut Connection {
        &mut self.sender.connection.as_mut().unwrap().1
    }

    fn receiver(&mut self) -> Option<&mut Connection> {
        self.receiver.connection.as_mut().map(|(_, connection)| connection)
    }

    fn turn(&mut self) {
        let now = self.now;
        for packet in self.sender.handle(now) {
            self.push(packet);
        }
        let answers = self.receiver.handle(now);
        self.back(answers);
        self.write();
        self.read();
        while let Some(packets) = self.sender.transmit(now) {
            for packet in packets {
                self.push(packet);
            }
        }
        while let Some(packets) = self.receiver.transmit(now) {
            self.back(packets);
        }
        self.sender.set_alarm(now, self.start);
        self.receiver.set_alarm(now, self.start);
    }

    fn write(&mut self) {
        let Some((_, connection)) = &mut self.sender.connection else { return };
        if connection.is_handshaking() {
            return;
        }
        let stream = match self.stream {
            Some(stream) => stream,
            None => match connection.streams().open(Dir::Bi) {
                Some(stream) => *self.stream.insert(stream),
                None => return,
            },
        };
        while let Ok(written) = connection.send_stream(stream).write_chunks(&mut [self.chunk.clone()]) {
            self.written += written.bytes as u64;
        }
    }

    fn read(&mut self) {
        let Some((_, connection)) = &mut self.receiver.connection else { return };
        let Some(stream) = self.stream.filter(|_| self.reads) else { return };
        let mut recv = connection.recv_stream(stream);
        let Ok(mut chunks) = recv.read(true) else { return };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.received += chunk.bytes.len() as u64;
        }
        let _ = chunks.finalize();
    }

    /// Into the bottleneck.
    fn push(&mut self, packet: BytesMut) {
        self.packets += 1;
        let rate = self.shape.bits_per_second / 8.0;
        let waits = self.free_at.saturating_duration_since(self.now).as_secs_f64() * rate;
        let every = self.shape.lost_one_in;
        if waits + packet.len() as f64 > self.shape.buffer_bytes
            || (every > 0 && self.packets.is_multiple_of(every))
        {
            self.dropped += 1;
            return;
        }
        self.free_at = self.free_at.max(self.now) + Duration::from_secs_f64(packet.len() as f64 / rate);
        self.receiver.inbound.push_back((self.free_at + self.shape.round_trip / 2, packet));
    }

    fn back(&mut self, packets: Vec<BytesMut>) {
        let due = self.now + self.shape.round_trip / 2;
        self.sender.inbound.extend(packets.into_iter().map(|packet| (due, packet)));
    }
}

impl Node {
    /// What arrived and what rang; responses of the endpoint itself.
    fn handle(&mut self, now: Instant) -> Vec<BytesMut> {
        let mut out = Vec::new();
        while self.inbound.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, packet)) = self.inbound.pop_front() else { break };
            let mut buffer = Vec::new();
            match self.endpoint.handle(now, self.remote, None, None, packet, &mut buffer) {
                Some(DatagramEvent::ConnectionEvent(_, event)) => {
                    if let Some((_, connection)) = &mut self.connection {
                        connection.handle_event(event);
                    }
                }
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = self.endpoint.accept(incoming, now, &mut buffer, None);
                    self.connection = accepted.ok();
                    // As `admit` does it.
                    if let Some((_, connection)) = &mut self.connection {
                        connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
                    }
                }
                Some(DatagramEvent::Response(transmit)) => {
                    out.push(BytesMut::from(&buffer[..transmit.size]));
                }
                None => {}
            }
        }
        let Some((handle, connection)) = &mut self.connection else { return out };
        if self.alarm.is_some_and(|alarm| alarm <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while let Some(event) = connection.poll() {
            if let Event::ConnectionLost { reason } = event {
                self.lost = Some(format!("{reason:?}"));
            }
        }
        out
    }

    fn transmit(&mut self, now: Instant) -> Option<Vec<BytesMut>> {
        let (_, connection) = self.connection.as_mut()?;
        let mut buffer = Vec::new();
        let transmit = connection.poll_transmit(now, 10, &mut buffer)?;
        let segment = transmit.segment_size.unwrap_or(transmit.size);
        Some(buffer[..transmit.size].chunks(segment).map(BytesMut::from).collect())
    }

    fn set_alarm(&mut self, now: Instant, start: Instant) {
        let due = self.connection.as_mut().and_then(|(_, connection)| connection.poll_timeout());
        self.alarm = due.map(|due| {
            let ticks = due.max(now).duration_since(start).as_micros().div_ceil(1000);
            start + Duration::from_millis(u64::try_from(ticks).unwrap())
        });
    }
}

fn parts() -> (ClientConfig, ServerConfig) {
    let made = rcgen::generate_simple_self_signed([QUIC_SERVER_NAME.to_owned()]).unwrap();
    let cert: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = super::Configs::new(server_config(vec![cert.clone()], key.into()).unwrap()).unwrap();
    let server = ServerConfig::clone(&server.of(STREAM_WINDOW_BYTES));
    let client = client_config(vec![cert], TlsTransport::Quic, false).unwrap();
    (
        super::Dialler::new(client, true).unwrap().config(ETHERNET_PAYLOAD_BYTES, STREAM_WINDOW_FIRST_BYTES),
        server,
    )
}

/// Runs a line for so long, with windows by the line; Gbit/s in the last second of it, and what was lost.
fn run(shape: Shape, seconds: u32) -> (f64, u64) {
    let (client, server) = parts();
    let mut bulk = Bulk::new(shape, client, server);
    let (mut received, mut sent) = (Bdp::new(bulk.now), Bdp::new(bulk.now));
    let mut last = [0; 2];
    for look in 1..=seconds * 2 {
        last = [last[1], bulk.run(LOOK_INTERVAL * look)];
        assert_eq!(bulk.error(), None, "after {look} looks over {shape:?}");
        let (now, taken) = (bulk.now, bulk.received);
        let stats = bulk.sender().stats();
        let window = sent.observe(stats.udp_tx.bytes, now, stats.path.rtt);
        bulk.sender().set_send_window(window.clamp(SEND_WINDOW_BYTES, LINE_BYTES_MAX));
        if let Some(receiver) = bulk.receiver() {
            let window = received.observe(taken, now, receiver.rtt());
            let window = window.clamp(CONNECTION_WINDOW_BYTES.into(), LINE_BYTES_MAX);
            receiver.set_receive_window(VarInt::from_u64(window).unwrap());
        }
    }
    ((last[0] + last[1]) as f64 * 8.0 / 1e9, bulk.dropped)
}

fn shape(gigabits: f64, milliseconds: u64, buffer_megabytes: f64) -> Shape {
    Shape {
        round_trip: Duration::from_millis(milliseconds),
        bits_per_second: gigabits * 1e9,
        buffer_bytes: buffer_megabytes * 1e6,
        lost_one_in: 0,
    }
}

#[test]
fn a_line_is_filled_and_its_first_losses_do_not_end_the_connection() {
    for (gigabits, milliseconds, buffer, seconds) in [(0.3, 60, 1.5, 2), (0.5, 40, 0.5, 1)] {
        let shape = shape(gigabits, milliseconds, buffer);
        let (rate, dropped) = run(shape, seconds);
        assert!(rate > 0.5 * gigabits, "{rate} Gbit/s over {shape:?}");
        assert!((1..1024).contains(&dropped), "{dropped} dropped over {shape:?}");
    }
}

#[test]
fn a_stray_loss_costs_a_twentieth() {
    let (rate, dropped) = run(Shape { lost_one_in: 20_000, ..shape(0.3, 20, 5.0) }, 3);
    assert!(rate > 0.26 && dropped > 0, "{rate} Gbit/s, {dropped} dropped");
}

#[test]
fn a_stream_that_is_read_may_hold_more_than_one_that_is_not() {
    let (client, server) = parts();
    let mut bulk = Bulk::new(shape(1.0, 1, 100.0), client, server);
    bulk.reads = false;
    bulk.run(Duration::from_millis(300));
    assert_eq!(bulk.written, u64::from(STREAM_WINDOW_FIRST_BYTES));
    bulk.reads = true;
    bulk.run(Duration::from_millis(320));
    assert!(bulk.received >= u64::from(STREAM_WINDOW_FIRST_BYTES), "{} received", bulk.received);
    bulk.reads = false;
    bulk.run(Duration::from_millis(700));
    // The window of the connection is the smaller one now; it is renewed when an eighth of it was read.
    let (held, window) = (bulk.written - bulk.received, u64::from(CONNECTION_WINDOW_BYTES));
    assert!((window / 8 * 7..=window).contains(&held), "{held} held");
    assert_eq!(bulk.error(), None);
}
