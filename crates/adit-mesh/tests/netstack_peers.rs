//! What a peer's segments must not do to the stack, written by hand: no panic, no busy loop, nothing kept for ever.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like the tests themselves")]

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use adit_mesh::Device;
use adit_mesh::netstack::{BufferClass, Limits, Listener, Netstack, Stack, StackDrop, Stream};
use adit_mesh_proto::segment::Offload;
use adit_mesh_proto::{Incoming, PeerId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;
/// Sequence number of the peer's SYN.
const ISN: u32 = 1000;
/// An MSS of 1,360.
const MSS: [u8; 4] = [2, 4, 5, 0x50];
/// A window scale of 7, padded.
const SCALE: [u8; 4] = [1, 3, 3, 7];

/// A segment from 10.0.0.1:4000 to 10.0.0.2:7000.
#[derive(Clone, Copy, Default)]
struct Segment<'a> {
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    options: &'a [u8],
    payload: &'a [u8],
}

/// What the stack sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    payload_len: u32,
}

impl Segment<'_> {
    fn packet(&self) -> Vec<u8> {
        let len = u16::try_from(40 + self.options.len() + self.payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x45, 0, len[0], len[1], 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend(4000_u16.to_be_bytes());
        packet.extend(7000_u16.to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledged.to_be_bytes());
        let words = u8::try_from((20 + self.options.len()) / 4).unwrap();
        packet.extend([words << 4, self.flags]);
        packet.extend(self.window.to_be_bytes());
        packet.extend([0, 0, 0, 0]);
        packet.extend(self.options);
        packet.extend(self.payload);
        packet
    }
}

impl Sent {
    fn parse(packet: &[u8]) -> Self {
        let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        let header_len = usize::from(packet[32] >> 4) * 4;
        Self {
            flags: packet[33],
            sequence: word(24),
            acknowledged: word(28),
            window: u16::from_be_bytes([packet[34], packet[35]]),
            payload_len: u32::try_from(packet.len() - 20 - header_len).unwrap(),
        }
    }

    /// The sequence number behind it.
    fn end(&self) -> u32 {
        let flags = u32::from(self.flags & (SYN | FIN) != 0);
        self.sequence.wrapping_add(self.payload_len).wrapping_add(flags)
    }
}

/// A stack whose peer is the test, on a clock of the test's.
struct Node {
    device: Netstack,
    stack: Stack,
    listener: Listener,
    buffer: Vec<u8>,
    now: Instant,
}

impl Node {
    fn new(class: BufferClass) -> Self {
        let addresses = vec!["10.0.0.2/24".parse().unwrap()];
        let (device, stack) = Netstack::new(addresses, 1408, Limits::default()).unwrap();
        let listener = stack.listen("10.0.0.2:7000".parse::<SocketAddr>().unwrap(), class).unwrap();
        Self { device, stack, listener, buffer: vec![0; 70_000], now: Instant::now() }
    }

    fn take(&mut self, segment: Segment<'_>) {
        let mut contents = segment.packet();
        let incoming = Incoming { peer: PeerId(0), offload: Offload::NONE, contents: &mut contents };
        self.device.write(&incoming, self.now).unwrap();
    }

    /// Up to `max` packets that it wants to send now.
    fn sent(&mut self, max: usize) -> Vec<Sent> {
        let mut all = Vec::new();
        while all.len() < max {
            let Ok((_, range)) = self.device.read(&mut self.buffer, self.now) else { break };
            all.push(Sent::parse(&self.buffer[range]));
        }
        all
    }

    /// A connection, and the sequence number of the stack's first byte on it.
    fn opened(&mut self) -> (Stream, u32) {
        let options = [MSS, SCALE].concat();
        self.take(Segment {
            flags: SYN,
            sequence: ISN,
            window: 256,
            options: &options,
            ..Segment::default()
        });
        let first = self.sent(9)[0].end();
        self.take(Segment {
            flags: ACK,
            sequence: ISN + 1,
            acknowledged: first,
            window: 256,
            ..Segment::default()
        });
        (self.accepted().unwrap(), first)
    }

    fn accepted(&mut self) -> Option<Stream> {
        match self.listener.poll_accept(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(accepted) => accepted.map(|(stream, _)| stream),
            Poll::Pending => None,
        }
    }

    /// Lets time pass for as long as anything waits for it.
    fn rest(&mut self) {
        for _ in 0..4000 {
            assert!(self.sent(5000).len() < 5000, "it sends without end");
            let Some(at) = self.device.poll_timeout() else { return };
            self.now = self.now.max(at);
        }
        panic!("it finds no rest");
    }
}

fn write(stream: &mut Stream, bytes: &[u8]) -> Option<usize> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(stream).poll_write(&mut cx, bytes) {
        Poll::Ready(written) => written.ok(),
        Poll::Pending => None,
    }
}

#[test]
fn bytes_beyond_the_first_window_end_no_lane() {
    for (class, room) in
        [(BufferClass::Small, 60_000), (BufferClass::Medium, 255_000), (BufferClass::Large, 4_190_000)]
    {
        let mut node = Node::new(class);
        let (_stream, first) = node.opened();
        let data = |sequence, payload| Segment {
            flags: ACK,
            sequence,
            acknowledged: first,
            window: 256,
            payload,
            ..Segment::default()
        };
        // Across the end of the buffer, and then all that lies before.
        node.take(data(ISN + 1 + room, &[7; 60_000]));
        for at in (0..room).step_by(51_000) {
            node.take(data(ISN + 1 + at, &[7; 51_000]));
        }
        node.sent(99);
    }
}

#[test]
fn a_peer_that_has_forgotten_a_connection_learns_it_at_once() {
    let mut node = Node::new(BufferClass::Medium);
    let (_stream, first) = node.opened();
    node.take(Segment { flags: SYN, sequence: 777_000, window: 256, options: &MSS, ..Segment::default() });
    let sent = node.sent(9);
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!((sent[0].flags, sent[0].sequence, sent[0].acknowledged), (ACK, first, ISN + 1));
    // What it says to that is as it should be (RFC 9293 §3.10.7.4), and the way is free.
    node.take(Segment { flags: RST, sequence: ISN + 1, ..Segment::default() });
    node.take(Segment { flags: SYN, sequence: 777_000, window: 256, options: &MSS, ..Segment::default() });
    assert_eq!(node.sent(9).last().map(|sent| (sent.flags, sent.acknowledged)), Some((SYN | ACK, 777_001)));
}

#[test]
fn an_end_that_was_lost_before_duplicates_is_repeated() {
    let mut node = Node::new(BufferClass::Medium);
    let (mut stream, first) = node.opened();
    assert_eq!(write(&mut stream, b"hello"), Some(5));
    node.sent(9);
    let heard =
        Segment { flags: ACK, sequence: ISN + 1, acknowledged: first + 5, window: 256, ..Segment::default() };
    node.take(heard);
    drop(stream);
    assert_eq!(node.sent(9).last().map(|sent| sent.flags & FIN), Some(FIN), "and this is lost");
    for _ in 0..3 {
        node.take(heard);
        node.sent(9);
    }
    let latest = node.now + Duration::from_secs(30);
    loop {
        node.now =
            node.device.poll_timeout().filter(|at| *at <= latest).expect("it is repeated in half a minute");
        let sent = node.sent(99);
        if sent.iter().any(|sent| sent.flags & FIN != 0) {
            break;
        }
        if !sent.is_empty() {
            node.take(heard);
        }
    }
}

#[test]
fn bursts_of_datagrams_wait_or_are_refused() {
    let mut node = Node::new(BufferClass::Small);
    let socket = node.stack.bind_udp("0.0.0.0:0".parse().unwrap()).unwrap();
    let to = "10.0.0.1:53".parse().unwrap();
    let taken = (0..4000).filter(|_| socket.send_to(&[5; 1300], to).is_ok()).count();
    assert!((2000..4000).contains(&taken), "{taken}");
    let mut left = 0;
    while node.device.read(&mut node.buffer, node.now).is_ok() {
        left += 1;
    }
    assert_eq!(left, taken, "what was taken is sent");
    assert_eq!(node.stack.statistics().of(StackDrop::AnswersFull), 0);
    assert!(socket.send_to(&[5; 1300], to).is_ok(), "there is room again");
}

/// Reproducible choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 11) % u64::from(end)).unwrap()
    }
}

/// A peer without manners, and an application that does this and that.
struct Game {
    node: Node,
    choices: Choices,
    streams: Vec<Stream>,
    /// What a well-behaved peer would say next.
    sequence: u32,
    acknowledged: u32,
    window: u32,
}

impl Game {
    fn new(seed: u64) -> Self {
        let mut choices = Choices(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let class = if choices.below(2) == 0 { BufferClass::Small } else { BufferClass::Medium };
        let mut options = MSS.to_vec();
        if choices.below(4) > 0 {
            options.extend([1, 3, 3, u8::try_from(choices.below(15)).unwrap()]);
        }
        if choices.below(2) > 0 {
            // SACK permitted.
            options.extend([4, 2, 1, 1]);
        }
        let mut node = Node::new(class);
        node.take(Segment {
            flags: SYN,
            sequence: ISN,
            window: 65_535,
            options: &options,
            ..Segment::default()
        });
        Self { node, choices, streams: Vec::new(), sequence: ISN + 1, acknowledged: 0, window: 65_535 }
    }

    fn turn(&mut self) {
        match self.choices.below(11) {
            0..=5 => self.segment(),
            6 => self.node.now += Duration::from_millis(self.choices.below(2000).into()),
            7 => self.streams.extend(self.node.accepted()),
            8 => self.read(),
            9 => {
                let len = 1 + self.choices.below(59_999) as usize;
                for stream in &mut self.streams {
                    let _ = write(stream, &vec![9; len]);
                }
            }
            _ => self.end(),
        }
        if self.choices.below(3) > 0 {
            self.listen();
        }
    }

    fn segment(&mut self) {
        let choices = &mut self.choices;
        let flags = match choices.below(24) {
            0 => FIN | ACK,
            1 => RST | ACK,
            2 => SYN,
            3 => SYN | ACK,
            4 => FIN | ACK | URG,
            5 => 0,
            6 => FIN,
            7 => PSH | ACK,
            _ => ACK,
        };
        let ahead = match choices.below(8) {
            0..=3 => 0,
            4 => choices.below(self.window + 2),
            5 => self.window.wrapping_sub(choices.below(3000)),
            6 => 0_u32.wrapping_sub(choices.below(3000)),
            _ => choices.below(1_000_000),
        };
        let beyond = match choices.below(6) {
            0 => choices.below(3),
            1 => 0_u32.wrapping_sub(choices.below(3000)),
            2 => 0_u32.wrapping_sub(choices.below(300_000)),
            _ => 0,
        };
        let len = match choices.below(5) {
            0 | 1 => 0,
            2 => choices.below(3),
            3 => choices.below(1400),
            _ => choices.below(60_000),
        };
        let window = [0, 65_535, u16::try_from(choices.below(65_536)).unwrap()][choices.below(3) as usize];
        self.node.take(Segment {
            flags,
            sequence: self.sequence.wrapping_add(ahead),
            acknowledged: self.acknowledged.wrapping_add(beyond),
            window,
            options: &[],
            payload: &vec![9; len as usize],
        });
    }

    fn read(&mut self) {
        let mut bytes = vec![0; 1 + self.choices.below(100_000) as usize];
        for stream in &mut self.streams {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes));
        }
    }

    fn end(&mut self) {
        match self.choices.below(4) {
            0 => self.streams.clear(),
            1 => {
                for stream in &mut self.streams {
                    let _ = Pin::new(stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
                }
            }
            2 if self.choices.below(4) == 0 => {
                self.node.now += Duration::from_secs(self.choices.below(200).into());
            }
            _ => {}
        }
    }

    fn listen(&mut self) {
        for sent in self.node.sent(40) {
            self.acknowledged = sent.end();
            if sent.flags & ACK != 0 {
                self.sequence = sent.acknowledged;
                self.window = u32::from(sent.window);
            }
        }
    }
}

#[test]
fn a_peer_without_manners_breaks_nothing_and_leaves_nothing() {
    for seed in 1..=600 {
        let mut game = Game::new(seed);
        for _ in 0..60 {
            game.turn();
        }
        let Game { mut node, streams, .. } = game;
        // Whom nobody has accepted goes, too.
        drop(std::mem::replace(
            &mut node.listener,
            node.stack.listen("10.0.0.2:9".parse().unwrap(), BufferClass::Small).unwrap(),
        ));
        drop(streams);
        node.rest();
        let left = node.stack.statistics();
        assert_eq!((left.connections, left.half_open, left.buffer_bytes), (0, 0, 0), "seed {seed}");
    }
}
