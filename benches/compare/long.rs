//! Tunnels over long lines: the same path with round trips of 0, 20 and 100 ms between edge and connector.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};

use super::line::{BATCH_BYTES, End, Line, Shape};
use super::load::{cpu_of, progress};
use super::machine::peer;
use super::measure::resident_peak;
use super::support::TempFolder;
use super::support::adit::Adit;
use super::support::process::Process;
use super::table::{ADIT, Against, Bound, Figure, Sample, Section, Target};
use super::tunnel::{EDGE, HOST, dial_by};
use super::{ROUNDS, in_turn, origin};

/// Measures bytes over lines of several lengths, how soon they are filled, and what both ends hold for it.
pub(crate) fn measure() -> Section {
    let mut section = Section::new(
        "Long lines",
        "client → edge → line → connector → origin, one connection between edge and connector. The line is a relay of one thread \
         that holds every datagram back for half the round trip, 250 MB of them at most in each direction; rates are those of \
         3 s after a warm-up of 1.5 s and 130 round trips, as the receiver counts them, CPU is the connector's, and lost are datagrams that \
         the line or a socket had no room for. What the line carries alone bounds the rest: it has a third of two cores where it \
         shares them with both ends. Memory is the most that connector and edge held under all four loads.",
    );
    for (name, round_trip, _) in LINES {
        section.add(ALONE, name, alone(Shape { round_trip, lost_one_in: 0 }));
    }
    let origin = origin::start();
    let mut programs = vec![(ADIT, PathBuf::from(env!("CARGO_BIN_EXE_adit")))];
    match peer("CLOUDFLARED", CLOUDFLARED) {
        Some(program) => programs.push((CLOUDFLARED, program)),
        None => section.absent(CLOUDFLARED, "neither on PATH nor in CLOUDFLARED"),
    }
    for round in 0..ROUNDS {
        for (name, round_trip, subjects) in LINES {
            for (n, program) in in_turn(&programs, round) {
                let subject = subjects[n];
                progress(&format!("long, round {} of {ROUNDS}: {}, {name}", round + 1, program.0));
                let tunnel = Tunnel::open(&program.1, origin, Shape { round_trip, lost_one_in: 0 });
                for (workload, upload, streams) in BULK {
                    section.add(workload, subject, tunnel.carry(upload, streams, round_trip));
                }
                let [connector, edge] = tunnel.memory();
                section.add(CONNECTOR, subject, Some(vec![(Figure::Mebibytes, connector)]));
                section.add(BESIDE, subject, Some(vec![(Figure::Mebibytes, edge)]));
            }
        }
    }
    for (workload, _, _) in BULK {
        for (_, _, subjects) in &LINES[1..] {
            section.targets.push(Target {
                workload,
                subject: subjects[0],
                figure: Figure::GbitPerSecond,
                against: Against::Best(NEAR),
                bound: Bound::AtLeast(OF_NEAR),
            });
        }
    }
    section
}

/// An edge, a line, and a connector at its other end.
struct Tunnel {
    line: Line,
    visitors: SocketAddr,
    /// The connector's and the edge's.
    processes: [u32; 2],
    _running: (Adit, Process),
}

impl Tunnel {
    fn open(program: &Path, origin: SocketAddr, shape: Shape) -> Self {
        let mut edge = Adit::start_in(TempFolder::new("edge"), "edge", EDGE);
        let line = Line::lay(edge.edge(), shape);
        let connector = dial_by(line.address, program, &edge, &["--url", &format!("http://{origin}")]);
        let processes = [connector.id(), edge.process().id()];
        Self { line, visitors: edge.entry_point("web"), processes, _running: (edge, connector) }
    }

    /// Carries bytes for some seconds, of which the first do not count.
    fn carry(&self, upload: bool, streams: u32, round_trip: Duration) -> Option<Sample> {
        let before = (self.line.dropped() + overflowed(), Instant::now());
        let load = Load::start(self.visitors, upload, streams);
        let mut course = Course::default();
        // Congestion control needs longer the longer the line is.
        let warm_up = WARM_UP + round_trip * WARM_UP_ROUND_TRIPS;
        course.follow(&load, before.1, warm_up);
        let (bytes, cpu, begin) = (load.carried(), cpu_of(&self.processes[..1]), Instant::now());
        course.follow(&load, before.1, warm_up + MEASURED);
        let (bytes, seconds) = (load.carried() - bytes, begin.elapsed().as_secs_f64());
        let used = cpu_of(&self.processes[..1]) - cpu;
        load.end();
        let lost = self.line.dropped() + overflowed() - before.0;
        let rate = bytes as f64 / seconds;
        (bytes > 0).then(|| {
            let mut sample = vec![
                (Figure::GbitPerSecond, rate * 8.0 / 1e9),
                (Figure::CpuSecondsPerGib, used / bytes as f64 * f64::from(1 << 30)),
                (Figure::LostDatagrams, lost as f64),
            ];
            sample.extend(course.reached(0.9 * rate).map(|at| (Figure::RampSeconds, at.as_secs_f64())));
            sample
        })
    }

    /// The most that connector and edge have held.
    fn memory(&self) -> [f64; 2] {
        self.processes.map(resident_peak)
    }
}

/// Requests whose bodies do not end before they are told to.
struct Load {
    upload: bool,
    /// What the origin had received before, or nothing.
    before: u64,
    downloaded: Arc<AtomicU64>,
    clients: Vec<(TcpStream, thread::JoinHandle<Option<()>>)>,
}

impl Load {
    fn start(to: SocketAddr, upload: bool, streams: u32) -> Self {
        let downloaded = Arc::<AtomicU64>::default();
        let before = if upload { origin::received() } else { 0 };
        let client = |_| {
            let stream = TcpStream::connect(to).ok()?;
            let (body, count) = (stream.try_clone().ok()?, Arc::clone(&downloaded));
            let run = move || if upload { send(body) } else { receive(body, &count) };
            Some((stream, thread::spawn(run)))
        };
        let clients = (0..streams).filter_map(client).collect();
        Self { upload, before, downloaded, clients }
    }

    fn carried(&self) -> u64 {
        if self.upload { origin::received() - self.before } else { self.downloaded.load(Ordering::Relaxed) }
    }

    /// Breaks the requests off and waits until nothing of them arrives any more.
    fn end(self) {
        for (stream, client) in self.clients {
            // It may have ended by itself.
            drop(stream.shutdown(Shutdown::Both));
            drop(client.join());
        }
        let mut seen = origin::received();
        loop {
            thread::sleep(QUIET);
            let now = origin::received();
            if std::mem::replace(&mut seen, now) == now {
                break;
            }
        }
    }
}

fn receive(mut stream: TcpStream, count: &AtomicU64) -> Option<()> {
    write!(stream, "GET /{ENDLESS} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").ok()?;
    let mut buffer = vec![0; BLOCK];
    loop {
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}

fn send(mut stream: TcpStream) -> Option<()> {
    write!(stream, "PUT /0 HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {ENDLESS}\r\n\r\n").ok()?;
    let zeros = vec![0; BLOCK];
    loop {
        stream.write_all(&zeros).ok()?;
    }
}

/// How the count of bytes grew.
#[derive(Default)]
struct Course(Vec<(Duration, u64)>);

impl Course {
    /// Looks at the load until so long after its beginning.
    fn follow(&mut self, load: &Load, begin: Instant, until: Duration) {
        while begin.elapsed() < until {
            self.0.push((begin.elapsed(), load.carried()));
            thread::sleep(LOOK);
        }
    }

    /// When `rate` bytes a second were reached first, as the mean of half a second.
    fn reached(&self, rate: f64) -> Option<Duration> {
        let windows = self.0.windows(LOOKS_OF_A_MEAN + 1).map(|looks| (looks[0], looks[LOOKS_OF_A_MEAN]));
        let mut means = windows
            .map(|((from, before), (to, after))| (from, (after - before) as f64 / (to - from).as_secs_f64()));
        means.find(|(_, mean)| *mean >= rate).map(|(from, _)| from)
    }
}

/// What a line carries between a sender and a receiver that do nothing else.
fn alone(shape: Shape) -> Option<Sample> {
    let (sender, receiver) = (End::open(), End::open());
    let line = Line::lay(receiver.socket.local_addr().ok()?, shape);
    receiver.socket.set_nonblocking(false).ok()?;
    receiver.socket.set_read_timeout(Some(LOOK)).ok()?;
    let ended = Arc::<AtomicBool>::default();
    let sending = thread::spawn({
        let (ended, to) = (Arc::clone(&ended), line.address);
        move || blast(&sender, to, &ended)
    });
    let (mut buffer, mut bytes, mut begin) = (vec![0; BATCH_BYTES], 0, Instant::now());
    let from = begin + WARM_UP;
    while begin < from || begin.elapsed() < MEASURED {
        let mut meta = [RecvMeta::default()];
        let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
        if receiver.state.recv((&receiver.socket).into(), &mut slices, &mut meta).is_ok() {
            bytes += meta[0].len as u64;
        }
        if begin < from && Instant::now() >= from {
            (begin, bytes) = (Instant::now(), 0);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    ended.store(true, Ordering::Relaxed);
    drop(sending.join());
    Some(vec![(Figure::GbitPerSecond, bytes as f64 * 8.0 / seconds / 1e9)])
}

/// Sends as much as the line takes: it answers nothing, so what it does not take is known by its sender only from the CPU's clock.
fn blast(sender: &End, to: SocketAddr, ended: &AtomicBool) {
    let contents = vec![7; DATAGRAM * DATAGRAMS];
    let transmit = Transmit {
        destination: to,
        ecn: None,
        contents: &contents,
        segment_size: Some(DATAGRAM),
        src_ip: None,
    };
    while !ended.load(Ordering::Relaxed) {
        // A full buffer is tried again.
        let _ = sender.state.try_send((&sender.socket).into(), &transmit);
    }
}

/// Datagrams that sockets of this network namespace had no room for, since it was made.
fn overflowed() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut fields = names.split_whitespace().zip(values.split_whitespace());
    fields.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// Name, round trip, and the subjects over it.
const LINES: [(&str, Duration, [&str; 2]); 3] = [
    ("0 ms", Duration::ZERO, ["adit, 0 ms", "cloudflared, 0 ms"]),
    ("20 ms", Duration::from_millis(20), ["adit, 20 ms", "cloudflared, 20 ms"]),
    ("100 ms", Duration::from_millis(100), ["adit, 100 ms", "cloudflared, 100 ms"]),
];
const NEAR: &[&str] = &["adit, 0 ms"];
/// Of what the same path carries without delay: a tenth is what a line in flight costs in memory that no cache holds, and
/// a tenth what the machine varies.
const OF_NEAR: f64 = 0.8;
/// Name, whether it is an upload, streams.
const BULK: [(&str, bool, u32); 4] = [
    ("download, 1 stream", false, 1),
    ("upload, 1 stream", true, 1),
    ("download, 8 streams", false, 8),
    ("upload, 8 streams", true, 8),
];
const ALONE: &str = "the line alone";
const CONNECTOR: &str = "connector's memory, most";
const BESIDE: &str = "edge's memory, most";
const CLOUDFLARED: &str = "cloudflared";
/// More than any load carries.
const ENDLESS: u64 = 1 << 40;
const BLOCK: usize = 256 * 1024;
const WARM_UP: Duration = Duration::from_millis(1500);
/// On top of it.
const WARM_UP_ROUND_TRIPS: u32 = 130;
const MEASURED: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);
const LOOKS_OF_A_MEAN: usize = 10;
/// Without a byte, after which no more are thought to come.
const QUIET: Duration = Duration::from_millis(400);
/// Payload of the line's own measurement, and how many of them a send has.
const DATAGRAM: usize = 1452;
const DATAGRAMS: usize = 44;
