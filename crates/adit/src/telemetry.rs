//! The process log on stderr.

use std::fmt;
use std::io::IsTerminal;

use adit_config::{LogFormat, LogLevel};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// Changes the level of the running log.
#[derive(Clone, Debug)]
pub(crate) struct LevelHandle {
    handle: reload::Handle<Targets, Registry>,
}

/// Starts the log; a second call in a process changes nothing.
pub(crate) fn start(level: LogLevel, format: LogFormat) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(to_filter(level));
    let registry = tracing_subscriber::registry().with(filter);
    let writer = std::io::stderr;
    let ansi = std::io::stderr().is_terminal();
    let result = match format {
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_target(false)
                    .with_writer(writer),
            )
            .try_init(),
        LogFormat::Text => {
            let fields = debug_fn(|writer, field, value| match field.name() {
                "message" => write!(writer, "{value:?}"),
                name => write!(writer, "{name}={value:?}"),
            });
            registry
                .with(
                    tracing_subscriber::fmt::layer()
                        .fmt_fields(fields.delimited(" "))
                        .event_format(Line)
                        .with_ansi(ansi)
                        .with_writer(writer),
                )
                .try_init()
        }
    };
    // Only a test that starts two daemons in one process gets here.
    let _ = result;
    LevelHandle { handle }
}

impl LevelHandle {
    /// Takes a new level at once.
    pub(crate) fn set(&self, level: LogLevel) {
        let _ = self.handle.modify(|filter| *filter = to_filter(level));
    }
}

/// Ours from `level` on. Libraries warn once for each connection of an attacker, which would let it fill the log; what is
/// worth knowing of that is counted under a name of ours. Who looks for more, at DEBUG, sees theirs too.
fn to_filter(level: LogLevel) -> Targets {
    let (ours, theirs) = match level {
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::TRACE),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::DEBUG),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::ERROR),
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
    };
    // Every peer that is switched off is an error to it.
    let mesh = if theirs == LevelFilter::ERROR { LevelFilter::OFF } else { theirs };
    Targets::new().with_default(theirs).with_target("boringtun", mesh).with_target("adit", ours)
}

/// `2026-01-02T03:04:05Z INF message key=value`: the form that log shippers of cloudflared already parse
/// (tunnel-protocol.md §8.5).
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        tracing_subscriber::fmt::time::SystemTime.format_time(&mut writer)?;
        let (word, colour) = match *event.metadata().level() {
            Level::TRACE => ("TRC", "35"),
            Level::DEBUG => ("DBG", "34"),
            Level::INFO => ("INF", "32"),
            Level::WARN => ("WRN", "33"),
            Level::ERROR => ("ERR", "31"),
        };
        if writer.has_ansi_escapes() {
            write!(writer, " \x1b[{colour}m{word}\x1b[0m ")?;
        } else {
            write!(writer, " {word} ")?;
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
