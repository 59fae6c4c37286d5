//! What the figures were measured on, and with which versions.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::support::find_program;
use super::version::version_in;

/// The machine and the programs of a run.
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    /// Bytes of an IP packet on loopback.
    mtu: String,
    programs: Vec<(&'static str, String)>,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let processor = processor.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned();
        let meminfo = read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find(|line| line.starts_with("MemTotal:"));
        let kib: Option<f64> = total.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        Self {
            processor,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib.unwrap_or_default() / 1024.0 / 1024.0,
            kernel,
            // In a network namespace of its own, /sys may still show the loopback of another one.
            mtu: std::env::var(super::ETHERNET)
                .ok()
                .or_else(loopback_mtu)
                .unwrap_or_else(|| "unknown".to_owned()),
            programs: programs(),
        }
    }

    pub(crate) fn markdown(&self) -> String {
        let programs: Vec<String> = self.programs.iter().map(|(_, version)| version.clone()).collect();
        format!(
            "Machine: {} cores of {}, {:.0} GiB, Linux {}, loopback with an MTU of {}. {}.",
            self.cores,
            self.processor,
            self.memory_gib,
            self.kernel,
            self.mtu,
            programs.join("; ")
        )
    }

    pub(crate) fn json(&self) -> Value {
        let programs: serde_json::Map<String, Value> =
            self.programs.iter().map(|(name, version)| ((*name).to_owned(), json!(version))).collect();
        json!({
            "processor": self.processor, "cores": self.cores, "memory_gib": self.memory_gib,
            "kernel": self.kernel, "mtu": self.mtu, "programs": programs,
        })
    }
}

/// A peer's program: named by an environment variable, or on PATH.
pub(crate) fn peer(variable: &str, name: &str) -> Option<PathBuf> {
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(named) => {
            assert!(named.is_file(), "{variable} names {}, which is no file", named.display());
            Some(named)
        }
        None => find_program(name),
    }
}

/// What programs say about their versions.
fn programs() -> Vec<(&'static str, String)> {
    let all: [(&str, Option<PathBuf>, &[&str]); 17] = [
        ("adit", Some(env!("CARGO_BIN_EXE_adit").into()), &["--version"]),
        ("cloudflared", peer("CLOUDFLARED", "cloudflared"), &["--version"]),
        ("stock-edge on quic-go", peer("ADIT_STOCK_EDGE", "stock-edge"), &["-version"]),
        ("nginx", find_program("nginx"), &["-v"]),
        ("haproxy", find_program("haproxy"), &["-v"]),
        ("caddy", find_program("caddy"), &["version"]),
        ("traefik", peer("TRAEFIK", "traefik"), &["version"]),
        ("frpc", peer("FRPC", "frpc"), &["--version"]),
        ("rathole", peer("RATHOLE", "rathole"), &["--version"]),
        ("wireguard-go", find_program("wireguard-go"), &["--version"]),
        ("wireguard-go (new)", std::env::var_os("WIREGUARD_GO").map(PathBuf::from), &["--version"]),
        ("boringtun-cli", peer("BORINGTUN", "boringtun-cli"), &["--version"]),
        ("gotatun", peer("GOTATUN", "gotatun"), &["--version"]),
        ("wrk", find_program("wrk"), &["-v"]),
        ("h2load", find_program("h2load"), &["--version"]),
        ("iperf3", find_program("iperf3"), &["--version"]),
        ("curl", find_program("curl"), &["--version"]),
    ];
    let version = |(name, program, arguments): (&'static str, Option<PathBuf>, &[&str])| {
        let program = program?;
        let output = Command::new(&program).args(arguments).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let said = version_in(&String::from_utf8_lossy(&text));
        let named = |version: String| format!("{name} {version}");
        Some((name, said.map_or_else(|| unversioned(name, &program), named)))
    };
    all.into_iter().filter_map(version).collect()
}

/// A build that does not say which it is, by what can be compared: its content.
fn unversioned(name: &str, program: &Path) -> String {
    let output = Command::new("sha256sum").arg(program).output().ok();
    let sum = output.filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
    let sum = String::from_utf8_lossy(&sum).chars().take(16).collect::<String>();
    match sum.is_empty() {
        true => format!("{name}, a build that names no version"),
        false => format!("{name}, a build that names no version (SHA-256 {sum}…)"),
    }
}

fn loopback_mtu() -> Option<String> {
    read_to_string("/sys/class/net/lo/mtu").ok().map(|text| text.trim().to_owned())
}
