//! Measures what a path carries, as iperf3 does: `adit bench server` and `adit bench client`.
//!
//! One client measures a path directly (TCP, UDP, QUIC with the tunnel's settings) or through whatever carries HTTP: the
//! server is an HTTP origin too, which can stand behind a tunnel, an ingress or somebody else's proxy. Both ends count bytes,
//! losses and CPU time; the client fetches the server's figures, says what limited the run, and fails by thresholds.
//!
//! This crate never knows tunnels, routes or the mesh: it loads addresses, and is handed the transport that QUIC uses
//! ([`QuicParts`]), so that it measures what the product does without depending on it.
//!
//! # Contract
//! [`main`] runs to the end of a run or until a signal, and returns the exit status (`error.rs`). A server bounds everything
//! a client can make it hold or do (`server/registry.rs`, `plan.rs`) and sends load only to an address that has proven itself:
//! by a TCP or QUIC handshake, or over UDP by a token (`udp.rs`).
//!
//! # Where to begin
//! `wire.rs` for what both ends say to each other; `client/socket.rs` and `server/session.rs` for the life of a run;
//! `engine.rs` and `tcp.rs` for the load; `http/run.rs` for the same over HTTP; `verdict.rs` for what limited it.

mod client;
mod command;
mod cpu;
mod engine;
mod error;
mod flow;
mod histogram;
mod http;
mod options;
mod outcome;
mod ping;
mod plan;
mod quic;
mod recorder;
mod report;
mod resolve;
mod results;
mod schedule;
mod server;
mod signals;
mod tcp;
mod tcp_state;
mod udp;
mod units;
mod verdict;
mod wire;

use clap::ArgMatches;

pub use command::command;
pub use error::BenchError;
pub use quic::{Fit, QuicParts};
pub use wire::Refusal;

/// Runs `adit bench …` to its end; the exit status.
#[must_use]
pub fn main(matches: &ArgMatches, parts: QuicParts) -> u8 {
    match start(matches, parts) {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "adit bench: {error}");
            error.exit_code()
        }
    }
}

fn start(matches: &ArgMatches, parts: QuicParts) -> Result<u8, BenchError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(BenchError::io("cannot start the runtime"))?;
    let code = match matches.subcommand() {
        Some(("server", matches)) => {
            let options = server::ServerOptions::parse(matches)?;
            runtime.block_on(Box::pin(server::run(options, parts)))
        }
        Some(("client", matches)) => {
            let options = options::ClientOptions::parse(matches)?;
            runtime.block_on(Box::pin(client::run(options, parts)))
        }
        _ => Err(BenchError::Usage("server or client".to_owned())),
    };
    // A thread that a peer holds does not hold the process.
    runtime.shutdown_background();
    code
}

/// Writes to standard output; a closed pipe is no reason to fail.
fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// A thread for each TCP and UDP stream: of 64 runs with 256 streams each at the greatest limits. Threads are made when needed.
const BLOCKING_THREADS_MAX: usize = 64 * 256;
