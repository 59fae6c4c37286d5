//! One line for each answered request: put together where it was answered, written by a thread of its own so that a slow disk
//! slows no request.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant, SystemTime};

use adit_config::{AccessLog as Settings, AccessLogFilters, FieldMode};
use adit_proxy::lanes::{LaneArc, LaneShared};
use adit_route::mesh::MeshIdentity;
use http::HeaderMap;
use prometheus::{IntCounter, Registry};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use self::queue::{Batch, Order, Queue};
use crate::observe::lines::Lines;

mod queue;

/// What the log says of a request.
#[derive(Debug)]
pub(crate) struct Entry {
    /// When the request head had arrived.
    pub started: SystemTime,
    /// From then to the last byte of the answer.
    pub duration: Duration,
    /// Id on the visitor's page and in the process log.
    pub request_id: String,
    /// How many requests were logged, this one included; known when the line is written.
    pub(crate) count: u64,
    /// The other end of the socket.
    pub(crate) peer: std::net::SocketAddr,
    /// The visitor's address without port.
    pub client: std::net::IpAddr,
    /// Request line and host.
    pub method: http::Method,
    /// Host as asked.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// The visitor's protocol.
    pub version: http::Version,
    /// Status sent.
    pub status: u16,
    /// Bytes of content sent.
    pub bytes: u64,
    /// Bytes of the request's content.
    pub(crate) received: u64,
    /// Bytes of content the server sent.
    pub(crate) origin_bytes: u64,
    /// Fields of request, server's answer and answer; empty unless the log wants any.
    pub(crate) headers: [HeaderMap; 3],
    /// Which route or tunnel answered.
    pub route: Option<Arc<str>>,
    /// Name of the service.
    pub(crate) service: Option<Arc<str>>,
    /// The server that was asked last.
    pub(crate) service_url: Option<Arc<str>>,
    /// What the server answered.
    pub(crate) origin_status: Option<u16>,
    /// How long it took to its head.
    pub(crate) origin_duration: Option<Duration>,
    /// Attempts after the first.
    pub(crate) retries: u32,
    /// The user a middleware let in, or refused.
    pub(crate) user: Option<Box<str>>,
    /// The mesh's peer that asked, with its groups.
    pub(crate) mesh: Option<Arc<MeshIdentity>>,
    /// Where the visitor came in.
    pub(crate) entry_point: Option<Arc<str>>,
    /// The visitor's TLS session.
    pub(crate) tls: Option<Arc<adit_proxy::middleware::TlsInfo>>,
    /// True if the visitor's hop is encrypted.
    pub(crate) secure: bool,
    /// The failure's name; empty if none.
    pub reason: &'static str,
}

/// The log of a process; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog(Arc<LaneShared<Handle>>);

/// What requests write through, as one lane hands it on.
#[derive(Clone, Debug)]
pub(crate) struct LaneLog(LaneArc<Handle>);

/// What all handles share; the writer ends when the last of them is gone.
#[derive(Debug)]
struct Handle {
    queue: Arc<Queue<Desk>>,
    dropped: IntCounter,
    filters: AccessLogFilters,
    wants_headers: bool,
    add_internals: bool,
}

/// What a lane makes its lines with.
#[derive(Debug)]
struct Desk {
    lines: Lines,
    /// Entries whose lines were written: most requests need no memory of their own.
    #[expect(clippy::vec_box, reason = "entries are handed out and come back behind their pointers")]
    blank: Vec<Box<Entry>>,
}

/// Why the access log cannot be opened.
#[derive(Debug, Error)]
pub(crate) enum AccessLogError {
    /// The file.
    #[error("cannot open the access log {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The writer's thread.
    #[error("cannot start the access log's writer")]
    Thread(#[source] io::Error),
    /// The metric.
    #[error("cannot register the access log's metric")]
    Metrics(#[from] prometheus::Error),
}

impl AccessLog {
    /// Opens the file (append) or standard output and starts the writer.
    ///
    /// # Errors
    /// [`AccessLogError`].
    pub(crate) fn open(settings: &Settings, registry: &Registry) -> Result<Self, AccessLogError> {
        let dropped = IntCounter::new(
            "adit_access_log_dropped_total",
            "Access log lines not written because the writer was behind",
        )?;
        registry.register(Box::new(dropped.clone()))?;
        let out = open(settings.file_path.as_ref())?;
        let fields = &settings.fields;
        let wants_headers = fields.headers_default_mode != FieldMode::Drop
            || fields.headers.values().any(|mode| *mode != FieldMode::Drop);
        let desk = || Desk { lines: Lines::new(settings), blank: Vec::new() };
        let queue = Arc::new(Queue::new(QUEUE_BYTES_MAX, desk));
        let mut writer = Writer {
            out: BufWriter::with_capacity(BUFFER_BYTES, out),
            path: settings.file_path.clone(),
            held: 0,
            held_max: settings.buffered_lines_max,
            flush_at: Instant::now(),
        };
        let waiting = Arc::clone(&queue);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run(&waiting))
            .map_err(AccessLogError::Thread)?;
        reopen_on_signal(&queue);
        let handle = Handle {
            queue,
            dropped,
            filters: settings.filters.clone(),
            wants_headers,
            add_internals: settings.add_internals,
        };
        Ok(Self(Arc::new(LaneShared::new(Arc::new(handle)))))
    }

    /// As this lane hands it on.
    pub(crate) fn own(&self) -> LaneLog {
        LaneLog(self.0.own().clone())
    }

    /// Waits until what was queued is written, but not for a disk that hangs.
    pub(crate) fn flush(&self) {
        let (done, flushed) = sync_channel(1);
        if self.0.queue.order(Order::Flush(done)) {
            let _ = flushed.recv_timeout(FLUSH_TIME_MAX);
        }
    }
}

impl LaneLog {
    /// An entry to be filled in; texts are empty, nothing is known.
    pub(crate) fn blank(&self) -> Box<Entry> {
        self.0.queue.with_own(|desk| desk.blank.pop()).unwrap_or_default()
    }

    /// Queues a line if the filters want it; drops and counts it if the writer is too far behind.
    pub(crate) fn write(&self, mut entry: Box<Entry>) {
        if !wants(&self.0.filters, &entry) {
            return;
        }
        let is_queued = self.0.queue.push(|desk, line, count| {
            entry.count = count;
            desk.lines.write(line, &entry);
            if desk.blank.len() < BLANK_MAX && entry.clear() {
                desk.blank.push(entry);
            }
        });
        if !is_queued {
            self.0.dropped.inc();
        }
    }

    /// Whether any header may be in a line.
    pub(crate) fn wants_headers(&self) -> bool {
        self.0.wants_headers
    }

    /// Whether answers of our own (`…@internal`) are logged.
    pub(crate) fn adds_internals(&self) -> bool {
        self.0.add_internals
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.close();
    }
}

struct Writer {
    out: BufWriter<Box<dyn Write + Send>>,
    path: Option<PathBuf>,
    /// Lines not handed to the file yet.
    held: u32,
    held_max: u32,
    flush_at: Instant,
}

impl Writer {
    fn run(&mut self, queue: &Queue<Desk>) {
        let (mut batch, mut orders) = (Batch::default(), Vec::new());
        loop {
            let until = (self.held > 0).then_some(self.flush_at);
            let is_open = queue.take(&mut batch, &mut orders, until);
            batch.each(|line| self.line(line));
            if self.held > 0 && (self.held_max == 0 || Instant::now() >= self.flush_at) {
                self.flush();
            }
            for order in orders.drain(..) {
                self.obey(&order);
            }
            if !is_open {
                return self.flush();
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        if self.held == 0 && self.held_max > 0 {
            self.flush_at = Instant::now() + HOLD_TIME_MAX;
        }
        // A full disk must not stop requests; the next line may fit again.
        let _ = self.out.write_all(line);
        self.held += 1;
        if self.held_max > 0 && self.held >= self.held_max {
            self.flush();
        }
    }

    fn obey(&mut self, order: &Order) {
        match order {
            Order::Reopen => self.reopen(),
            Order::Flush(done) => {
                self.flush();
                let _ = done.try_send(());
            }
        }
    }

    fn flush(&mut self) {
        let _ = self.out.flush();
        self.held = 0;
    }

    fn reopen(&mut self) {
        self.flush();
        match open(self.path.as_ref()) {
            Ok(out) => self.out = BufWriter::with_capacity(BUFFER_BYTES, out),
            Err(error) => tracing::error!(%error, "the access log stays in its old file"),
        }
    }
}

/// SIGUSR1, as log rotation sends it.
fn reopen_on_signal(queue: &Arc<Queue<Desk>>) {
    let Ok(mut signals) = signal(SignalKind::user_defined1()) else { return };
    let queue = Arc::clone(queue);
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if !queue.order(Order::Reopen) {
                tracing::error!("the access log is behind and could not be reopened");
            }
        }
    });
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            request_id: String::new(),
            count: 0,
            peer: (Ipv4Addr::UNSPECIFIED, 0).into(),
            client: Ipv4Addr::UNSPECIFIED.into(),
            method: http::Method::GET,
            host: String::new(),
            path: String::new(),
            version: http::Version::HTTP_11,
            status: 0,
            bytes: 0,
            received: 0,
            origin_bytes: 0,
            headers: Default::default(),
            route: None,
            service: None,
            service_url: None,
            origin_status: None,
            origin_duration: None,
            retries: 0,
            user: None,
            mesh: None,
            entry_point: None,
            tls: None,
            secure: false,
            reason: "",
        }
    }
}

impl Entry {
    /// Forgets everything but the memory of its texts; false if that is more than is worth keeping.
    fn clear(&mut self) -> bool {
        let [request_id, host, path] =
            [&mut self.request_id, &mut self.host, &mut self.path].map(std::mem::take);
        *self = Self { request_id, host, path, ..Self::default() };
        let texts = [&mut self.request_id, &mut self.host, &mut self.path];
        texts.into_iter().all(|text| {
            text.clear();
            text.capacity() <= BLANK_TEXT_BYTES
        })
    }
}

/// All requests if there is no filter, else those that any filter wants.
fn wants(filters: &AccessLogFilters, entry: &Entry) -> bool {
    let AccessLogFilters { status_codes, retry_attempts, duration_min } = filters;
    let has_none = status_codes.is_empty() && !retry_attempts && duration_min.is_zero();
    has_none
        || status_codes.iter().any(|(from, to)| (*from..=*to).contains(&entry.status))
        || (*retry_attempts && entry.retries > 0)
        || (!duration_min.is_zero() && entry.duration > *duration_min)
}

fn open(path: Option<&PathBuf>) -> Result<Box<dyn Write + Send>, AccessLogError> {
    Ok(match path {
        None => Box::new(io::stdout()),
        Some(path) => Box::new(open_append(path)?),
    })
}

fn open_append(path: &PathBuf) -> Result<File, AccessLogError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|source| AccessLogError::Open { path: path.clone(), source })
}

/// What lines waiting for the writer may hold, and once more those that it has just taken; beyond that they are dropped and
/// counted.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Entries that a lane keeps for the next requests, about 2 KiB each at most.
const BLANK_MAX: usize = 64;
/// Of one text of an entry that is kept.
const BLANK_TEXT_BYTES: usize = 512;
/// What is written at once while lines are held.
const BUFFER_BYTES: usize = 64 * 1024;
/// Lines are held no longer, however few there are.
const HOLD_TIME_MAX: Duration = Duration::from_secs(1);
/// A process that stops waits no longer for its log.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);
