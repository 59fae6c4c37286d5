//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{BenchError, EXIT_INTERRUPTED};

/// Resolves at the first signal; a second one ends the process at once.
pub(crate) async fn stop() -> Result<(), BenchError> {
    let listen = |kind| signal(kind).map_err(BenchError::io("cannot listen for signals"));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(i32::from(EXIT_INTERRUPTED));
    });
    Ok(())
}
