//! One line for each answered request, written by a thread of its own so that a slow disk slows no request.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_config::{AccessLog as Settings, LogFormat};
use prometheus::{IntCounter, Registry};
use serde_json::json;
use thiserror::Error;

/// What the log says of a request.
#[derive(Debug)]
pub(crate) struct Entry {
    /// When the request head had arrived.
    pub started: SystemTime,
    /// From then to the last byte of the answer.
    pub duration: Duration,
    /// Id on the visitor's page and in the process log.
    pub request_id: String,
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
    /// Which route or tunnel answered; empty if none.
    pub route: String,
    /// The failure's name; empty if none.
    pub reason: &'static str,
}

/// The handle that requests write through.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<Entry>,
    dropped: IntCounter,
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
        let out: Box<dyn Write + Send> = match &settings.file_path {
            None => Box::new(io::stdout()),
            Some(path) => Box::new(open_append(path)?),
        };
        let (lines, received) = sync_channel(QUEUE_LINES_MAX);
        let format = settings.format;
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&received, BufWriter::with_capacity(64 * 1024, out), format))
            .map_err(AccessLogError::Thread)?;
        Ok(Self { lines, dropped })
    }

    /// Queues a line; drops and counts it if the writer is too far behind.
    pub(crate) fn write(&self, entry: Entry) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send(entry) {
            self.dropped.inc();
        }
    }
}

fn open_append(path: &PathBuf) -> Result<File, AccessLogError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|source| AccessLogError::Open { path: path.clone(), source })
}

fn write_lines(lines: &Receiver<Entry>, mut out: BufWriter<Box<dyn Write + Send>>, format: LogFormat) {
    while let Ok(entry) = lines.recv() {
        write_line(&mut out, &entry, format);
        while let Ok(entry) = lines.try_recv() {
            write_line(&mut out, &entry, format);
        }
        let _ = out.flush();
    }
}

fn write_line(out: &mut impl Write, entry: &Entry, format: LogFormat) {
    let time = entry.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let result = match format {
        LogFormat::Json => writeln!(
            out,
            "{}",
            json!({
                "time": time.as_secs_f64(), "ClientHost": entry.client.to_string(), "RequestMethod": entry.method.as_str(),
                "RequestHost": entry.host, "RequestPath": entry.path, "RequestProtocol": format!("{:?}", entry.version),
                "DownstreamStatus": entry.status, "DownstreamContentSize": entry.bytes,
                "Duration": u64::try_from(entry.duration.as_nanos()).unwrap_or(u64::MAX),
                "RouterName": entry.route, "RequestId": entry.request_id, "reason": entry.reason,
            })
        ),
        LogFormat::Text => writeln!(
            out,
            "{} {} \"{} {}{} {:?}\" {} {} {:.3}ms {} {} {}",
            adit_proxy::date::format(entry.started),
            entry.client,
            entry.method,
            quoted(&entry.host),
            quoted(&entry.path),
            entry.version,
            entry.status,
            entry.bytes,
            entry.duration.as_secs_f64() * 1000.0,
            if entry.route.is_empty() { "-" } else { &entry.route },
            entry.request_id,
            if entry.reason.is_empty() { "-" } else { entry.reason },
        ),
    };
    // A full disk must not stop requests; the next line may fit again.
    let _ = result;
}

/// A visitor's text on a line of ours: quotes and controls cannot break out of it.
fn quoted(text: &str) -> std::borrow::Cow<'_, str> {
    if text.bytes().any(|b| b == b'"' || b == b'\\' || b < 0x20) {
        text.escape_default().to_string().into()
    } else {
        text.into()
    }
}

/// Lines waiting for the writer, about 4 MiB; beyond that they are dropped and counted.
const QUEUE_LINES_MAX: usize = 8192;
