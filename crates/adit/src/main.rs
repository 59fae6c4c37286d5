//! adit: tunnel, ingress and mesh in one daemon.
//!
//! The one binary: it reads the command line and the configuration, wires the shells together, serves the admin
//! endpoint, reloads and drains. It never speaks a protocol itself: `adit-proxy` and `adit-tunnel` do.
//!
//! Read first: `daemon/mod.rs` (the life of the process), then `edge_service.rs` and `connector_service.rs`
//! (the way of a request), then `wire.rs`.

mod access;
mod access_log;
mod acme;
mod admin;
mod announce;
mod answer;
mod api;
mod certificates;
mod checking;
mod cli;
mod cloudflared;
mod cloudflared_metrics;
mod conceal;
mod connector_service;
mod daemon;
mod edge_service;
mod edge_token;
mod explain;
mod front;
mod gateway;
mod hello;
mod ingress;
mod listeners;
mod load;
mod mesh_command;
mod mesh_entry;
mod notify_systemd;
mod observe;
mod phase;
mod request_id;
mod status;
mod status_page;
mod telemetry;
mod watch;
mod wire;

use std::process::ExitCode;

use clap::ArgMatches;

use crate::daemon::Daemon;
use crate::load::Source;

/// Allocation is on the path of every request; see ARCHITECTURE.md for the measured gain.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages: 16 MiB more for an idle connector, and no request is faster for it.
    // A kernel that cannot be asked keeps its own counsel.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Err(error) = conceal::conceal(&arguments) {
        report(&format!("the token stays visible on the command line: {error}\n"));
    }
    // One provider for everything that speaks TLS; a second installation cannot happen before this line.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if cloudflared::is_invoked_as_cloudflared(&arguments) {
        return cloudflared::main(&arguments);
    }
    let matches = match cli::command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return usage_error(&error),
    };
    match matches.subcommand() {
        Some(("run", matches)) => run(matches),
        Some(("check", matches)) => check(matches),
        Some(("route", matches)) => route(matches),
        Some(("status", matches)) => status::main(matches),
        Some(("edge", matches)) => edge(matches),
        Some(("mesh", matches)) => mesh_command::main(matches),
        Some(("bench", matches)) => bench(matches),
        Some(("tunnel", matches)) => cloudflared::tunnel(matches),
        _ => ExitCode::from(EXIT_USAGE),
    }
}

/// `adit run`.
fn run(matches: &ArgMatches) -> ExitCode {
    let path = match load::find(cli::config_path(matches)) {
        Ok(path) => path,
        Err(why) => return fail(EXIT_CONFIG, &why),
    };
    start(Source::File(path), !matches.get_flag("quiet"))
}

/// Runs a daemon to its end; the exit code says how it ended (`decisions.md` 12).
fn start(source: Source, announce: bool) -> ExitCode {
    let exit_config = if source.is_cloudflared() { 1 } else { EXIT_CONFIG };
    let begun = std::time::SystemTime::now();
    let config = match source.load() {
        Ok(config) => config,
        Err(problems) => return fail(exit_config, &problems.to_string()),
    };
    let level = telemetry::start(config.log.level, config.log.format);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), configuration = source.describe(), "adit starts");
    // A visitor and its origin take a descriptor each; shells start programs with 1,024, whatever the system allows.
    match rlimit::increase_nofile_limit(DESCRIPTORS_MAX) {
        Ok(descriptors) => tracing::debug!(descriptors, "descriptors"),
        Err(error) => tracing::warn!(%error, "the limit on descriptors stays as it is"),
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start the runtime: {error}")),
    };
    let code = runtime.block_on(async {
        match Daemon::start(source, config, level).await {
            Ok((daemon, signals)) => Box::pin(daemon.run(signals, announce, begun)).await,
            Err(error) => {
                tracing::error!(error = %ingress::chain(&error), "cannot start");
                1
            }
        }
    });
    // What did not finish within the grace period ends here.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// `adit check`.
fn check(matches: &ArgMatches) -> ExitCode {
    let path = match load::find(cli::config_path(matches)) {
        Ok(path) => path,
        Err(why) => return fail(EXIT_CONFIG, &why),
    };
    let config = match load::load_file(&path) {
        Ok(config) => config,
        Err(problems) => return fail(EXIT_CONFIG, &problems.to_string()),
    };
    let findings = checking::check(&config);
    findings.problems.iter().chain(&findings.warnings).for_each(|line| report(&format!("{line}\n")));
    if !findings.problems.is_empty() {
        return ExitCode::from(EXIT_CONFIG);
    }
    if !matches.get_flag("quiet") {
        print(&config.to_effective_yaml());
    }
    ExitCode::SUCCESS
}

/// `adit route explain`.
fn route(matches: &ArgMatches) -> ExitCode {
    match matches.subcommand() {
        Some(("explain", matches)) => explain::main(matches),
        _ => ExitCode::from(EXIT_USAGE),
    }
}

/// `adit edge token`.
fn edge(matches: &ArgMatches) -> ExitCode {
    let Some(("token", matches)) = matches.subcommand() else { return ExitCode::from(EXIT_USAGE) };
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str).unwrap_or_default();
    let config = cli::config_path(matches).or_else(|| load::find(None).ok());
    let file = matches.get_one::<std::path::PathBuf>("credentials-file").map(std::path::PathBuf::as_path);
    match edge_token::mint(text("name"), config.as_deref(), text("account-tag"), file) {
        Ok(minted) => {
            report(&minted.advice);
            if let Some(token) = minted.token {
                print(&format!("{token}\n"));
            }
            ExitCode::SUCCESS
        }
        Err(edge_token::TokenError::Config(problems)) => fail(EXIT_CONFIG, &problems.to_string()),
        Err(error) => fail(1, &ingress::chain(&error)),
    }
}

/// `adit bench`: QUIC is the tunnel's own.
fn bench(matches: &ArgMatches) -> ExitCode {
    use adit_tunnel::quic::{dial, fit, listen, transport};
    let _ = rlimit::increase_nofile_limit(DESCRIPTORS_MAX);
    ExitCode::from(adit_bench::main(matches, adit_bench::QuicParts { transport, dial, listen, fit }))
}

fn usage_error(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
}

/// Says why on standard error.
pub(crate) fn fail(code: u8, why: &str) -> ExitCode {
    report(&format!("{}\n", why.trim_end()));
    ExitCode::from(code)
}

/// Writes to standard output; a closed pipe is no reason to fail.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Writes to standard error.
pub(crate) fn report(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A bad command line (sysexits.h EX_USAGE).
pub(crate) const EXIT_USAGE: u8 = 64;
/// A bad configuration (sysexits.h EX_CONFIG).
pub(crate) const EXIT_CONFIG: u8 = 78;
/// Descriptors that are asked for; the system grants as many as its hard limit allows. Two for each of the visitors of a
/// hundred entry points at their default limit.
const DESCRIPTORS_MAX: u64 = 1 << 20;
