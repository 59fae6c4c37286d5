//! adit and cloudflared each behind a stock edge of their own: an edge in Go on the QUIC library that cloudflared uses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::load::{Scheme, Transfer, bulk, progress, requests};
use super::machine::peer;
use super::support::TempFolder;
use super::support::process::Process;
use super::table::{ADIT, Against, Bound, Figure, Section};
use super::tunnel::{CLOUDFLARED, HOST, connector};
use super::{ROUNDS, in_turn};

/// Adds what moves behind stock edges to what moves behind ours.
pub(crate) fn measure(section: &mut Section, small: SocketAddr, large: SocketAddr) {
    let Some(edge) = peer("ADIT_STOCK_EDGE", "stock-edge") else {
        return section.absent("stock edge", "stock-edge neither on PATH nor in ADIT_STOCK_EDGE");
    };
    let mut programs = vec![(ADIT, PathBuf::from(env!("CARGO_BIN_EXE_adit")))];
    // Its absence has been noted.
    programs.extend(peer("CLOUDFLARED", CLOUDFLARED).map(|program| (CLOUDFLARED, program)));
    let open = |origin: SocketAddr| -> Vec<Tunnel> {
        programs.iter().map(|(_, program)| Tunnel::open(&edge, program, origin)).collect()
    };
    let (to_small, to_large) = (open(small), open(large));
    for round in 0..ROUNDS {
        for (n, (name, _)) in in_turn(&programs, round) {
            progress(&format!("tunnel, stock edge, round {} of {ROUNDS}: {name}", round + 1));
            let tunnel = &to_large[n];
            for (workload, upload, streams) in BULK {
                let transfer = Transfer { upload, streams, gib: 1 };
                let sample = bulk(Scheme::Http(tunnel.visitors), HOST, transfer, &[tunnel.connector.id()]);
                section.add(workload, name, sample);
            }
            let tunnel = &to_small[n];
            let url = format!("http://{}/1k", tunnel.visitors);
            section.add(SMALL, name, requests(&url, HOST, 64, &[tunnel.connector.id()]));
        }
    }
    for (workload, ..) in BULK {
        section.ask(workload, Figure::GbitPerSecond, Against::Best(&[CLOUDFLARED]), Bound::AtLeast(5.0));
        section.ask(workload, Figure::CpuSecondsPerGib, Against::Best(&[CLOUDFLARED]), Bound::AtMost(0.2));
    }
    section.ask(SMALL, Figure::RequestsPerSecond, Against::Best(&[CLOUDFLARED]), Bound::AtLeast(4.0));
    section.ask(SMALL, Figure::CpuSecondsPer100k, Against::Best(&[CLOUDFLARED]), Bound::AtMost(0.2));
}

/// A connector behind a stock edge.
struct Tunnel {
    connector: Process,
    visitors: SocketAddr,
    _edge: (Process, TempFolder),
}

impl Tunnel {
    fn open(edge: &Path, program: &Path, origin: SocketAddr) -> Self {
        let folder = TempFolder::new("stock-edge");
        let ca = folder.path().join("edge-ca.pem");
        let mut edge = Process::start("edge", Command::new(edge).arg("-ca").arg(&ca).stdin(Stdio::null()));
        let line = edge.wait_for_line("\"visitors\"");
        let ports: Value = serde_json::from_str(&line).expect("the edge's first line is JSON");
        let port = |name: &str| {
            let text = ports[name].as_str().expect("the line names both");
            text.parse().expect("they are addresses")
        };
        let connector = connector(program, port("edge"), &ca, &["--url", &format!("http://{origin}")]);
        edge.wait_for_line("\"registered\"");
        Self { connector, visitors: port("visitors"), _edge: (edge, folder) }
    }
}

/// Name, whether it is an upload, streams.
const BULK: [(&str, bool, u32); 4] = [
    ("download, 1 stream, stock edge", false, 1),
    ("download, 8 streams, stock edge", false, 8),
    ("upload, 1 stream, stock edge", true, 1),
    ("upload, 8 streams, stock edge", true, 8),
];
const SMALL: &str = "1 KiB, 64 in flight, stock edge";
