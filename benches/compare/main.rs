//! `cargo bench -p adit --bench compare`: adit and every peer found on the machine over the same origins and with the same
//! clients, in one interleaved run.
//!
//! Prints a table for each path and, if nothing is left out, writes `docs/performance.md` and `docs/performance.json`.
//! `-- tunnel mesh` runs those sections alone and writes nothing, `-- --write tunnel` writes it in the place of what was there. Peers are found on PATH or named by `CLOUDFLARED`, `TRAEFIK`,
//! `FRPC`, `FRPS`, `RATHOLE`, `BORINGTUN`, `GOTATUN` and `WIREGUARD_GO`; those that are absent are listed as absent.
//! The stock edge is ours, on the QUIC library of cloudflared: `cd benches/stock-edge && go build -o stock-edge .`, then on
//! PATH or named by `ADIT_STOCK_EDGE`.
//!
//! As root, everything runs in a network namespace whose loopback has the MTU of Ethernet, because datagrams and segments of
//! 64 KiB exist on no line; the mesh lays cables of its own. Others run on loopback as it is, without the mesh.
//!
//! Ctrl-C and SIGTERM end all that it has started. SIGKILL does not: what would tell its children (PR_SET_PDEATHSIG) has to
//! be set between fork and exec, which only unsafe code can do.
#![allow(clippy::print_stdout, reason = "its tables are what a bench is for")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use tokio::signal::unix::{SignalKind, signal};

mod chain;
mod ingress;
mod line;
mod load;
mod long;
mod machine;
#[path = "../measure.rs"]
mod measure;
mod memory;
mod mesh;
mod netstack;
mod origin;
mod report;
mod stock_edge;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod tunnel;
mod version;

use machine::Machine;
use serde_json::Value;
use support::{find_program, note, project_root};
use table::Section;

fn main() -> ExitCode {
    // Cargo adds a flag of its own.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [flag, to] = wanted.as_slice()
        && flag == RELAY
    {
        return ingress::relay(to);
    }
    let (flags, wanted): (Vec<String>, Vec<String>) =
        wanted.into_iter().partition(|argument| argument == WRITE);
    if let Some(unknown) = wanted.iter().find(|name| !SECTIONS.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        note(&format!("unknown section `{unknown}`; there are {}", known.join(", ")));
        return ExitCode::FAILURE;
    }
    let missing: Vec<&str> = CLIENTS.iter().copied().filter(|name| find_program(name).is_none()).collect();
    if !missing.is_empty() {
        note(&format!("skipped: this bench needs {} on PATH", missing.join(", ")));
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(ETHERNET).is_none() && support::netns::is_root() {
        return enter_ethernet(&[flags, wanted].concat());
    }
    end_with_signals();
    let code = compare(&wanted, !flags.is_empty());
    support::end_all();
    code
}

/// Measures the sections that are wanted, all if none is named, and prints and writes them.
fn compare(wanted: &[String], is_written: bool) -> ExitCode {
    let machine = Machine::look();
    println!("{}\n", machine.markdown());
    let mut sections = Vec::new();
    for (name, measure) in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|other| other == name) {
            let section = measure();
            println!("{}", report::section(&section));
            sections.push(section);
        }
    }
    let written = match (wanted.is_empty(), is_written) {
        (true, _) => {
            let json = report::json(&machine, COMMAND, &sections);
            write(&report::markdown(&machine, COMMAND, &sections), &json)
        }
        (false, true) => replace(&sections),
        (false, false) => Ok(()),
    };
    if let Err(error) = written {
        note(&format!("docs/performance.md cannot be written: {error}"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Has a signal end what the bench has started before it ends the bench; returns when it does.
fn end_with_signals() {
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime of one thread").block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let [mut interrupt, mut terminate, mut hangup] =
                kinds.map(|kind| signal(kind).expect("these signals can be listened for"));
            drop(ready);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        note("ended by a signal");
        support::end_all();
        std::process::exit(INTERRUPTED);
    });
    // Nothing is sent: the sender is dropped when signals are listened for.
    let _: Result<(), _> = is_ready.recv();
}

/// Subjects in the order of a round, each first in its turn: whoever is first finds another machine than who is last.
pub(crate) fn in_turn<T>(all: &[T], round: usize) -> impl Iterator<Item = (usize, &T)> {
    all.iter().enumerate().cycle().skip(round % all.len().max(1)).take(all.len())
}

fn write(page: &str, json: &Value) -> io::Result<()> {
    let docs = project_root().join("docs");
    std::fs::write(docs.join("performance.md"), format!("{}\n", page.trim_end()))?;
    std::fs::write(docs.join("performance.json"), format!("{json:#}\n"))
}

/// Puts sections in the place of what was measured before.
fn replace(sections: &[Section]) -> io::Result<()> {
    let docs = project_root().join("docs");
    let mut page = std::fs::read_to_string(docs.join("performance.md"))?;
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(docs.join("performance.json"))?)?;
    for section in sections {
        page = report::replace(&page, section);
        report::replace_json(&mut json, section);
    }
    write(&page, &json)
}

/// Becomes the same program where loopback is like Ethernet.
fn enter_ethernet(wanted: &[String]) -> ExitCode {
    let own = std::env::current_exe().expect("a program has a path");
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", "ip link set lo mtu 1500 up && exec \"$@\"", "sh"]).arg(own).args(wanted);
    let error = command.env(ETHERNET, "1500").exec();
    note(&format!("`unshare` cannot be run: {error}"));
    ExitCode::FAILURE
}

/// What measures a section.
type Measure = fn() -> Section;

/// Name on the command line, and what measures it.
const SECTIONS: [(&str, Measure); 8] = [
    ("tunnel", tunnel::measure),
    ("long", long::measure),
    ("chain", chain::measure),
    ("ingress", ingress::measure),
    ("mesh", mesh::measure),
    ("flood", mesh::flood),
    ("netstack", netstack::measure),
    ("memory", memory::measure),
];
/// What loads and measures; peers are not among them.
const CLIENTS: [&str; 5] = ["nginx", "wrk", "h2load", "iperf3", "curl"];
const COMMAND: &str = "cargo bench -p adit --bench compare";
/// Runs of each subject under each workload.
const ROUNDS: usize = 3;
/// Set where loopback is like Ethernet; its value is the MTU.
const ETHERNET: &str = "ADIT_COMPARE_MTU";
/// Writes also if sections are named.
const WRITE: &str = "--write";
/// Exit status after a signal, as shells have it for Ctrl-C.
const INTERRUPTED: i32 = 130;
/// First argument of the bench as a relay.
const RELAY: &str = "--relay";
