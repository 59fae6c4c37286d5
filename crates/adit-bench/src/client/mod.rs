//! `adit bench client`: loads a path and tells what it carries.

mod control;
mod socket;
mod watch;

use crate::error::{BenchError, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_THRESHOLD};
use crate::options::{ClientOptions, Target};
use crate::outcome::Outcome;
use crate::quic::QuicParts;
use crate::report::Reporter;
use crate::{http, verdict};

/// Runs to the end; the exit status.
pub(crate) async fn run(options: ClientOptions, parts: QuicParts) -> Result<u8, BenchError> {
    let mut reporter = Reporter::new(options.json, options.interval);
    let result = match &options.target {
        Target::Server { .. } => Box::pin(socket::run(&options, &parts, &mut reporter)).await,
        Target::Url(url) => Box::pin(http::run(&options, url, &mut reporter)).await,
    };
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(error) if options.json => {
            reporter.failure(&error, options.title.as_deref());
            return Ok(error.exit_code());
        }
        Err(error) => return Err(error),
    };
    let missed = verdict::missed(&outcome, &options.thresholds);
    reporter.end(&outcome, &missed, options.title.as_deref());
    Ok(exit_code(&outcome, &missed))
}

fn exit_code(outcome: &Outcome, missed: &[String]) -> u8 {
    if outcome.interrupted {
        EXIT_INTERRUPTED
    } else if let Some(status) = outcome.broken_by {
        status
    } else if !outcome.failures.is_empty() {
        EXIT_FAILED
    } else if !missed.is_empty() {
        EXIT_THRESHOLD
    } else {
        0
    }
}
