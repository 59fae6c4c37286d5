//! `cargo run --release -p adit-instructions`: how many instructions the hot paths without system calls take.
//!
//! Time on a shared machine varies by half; instructions vary by less than one in a hundred, so that even there a regression
//! shows. valgrind counts them, and shows every program the same processor (no AVX-512), which makes the counts of two
//! machines comparable: they are for comparing a path with its own past, not one path with another. The count of a path is
//! the difference between two runs of which one does it twice as often, so that what comes before costs nothing.
//!
//! `baseline.txt` holds what was last found right; more than [`TOLERANCE`] above it ends with exit status 1. With
//! `ADIT_BLESS=1` what is measured becomes the baseline. `-- NAME` measures the paths whose names contain NAME.
#![allow(clippy::print_stdout, reason = "its table is what it is for")]

mod mesh;
mod preamble;
mod route;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// One path: name, how often one turn of it does what is counted, and what does `n` turns.
type Measured = (&'static str, u32, fn(u32));

const PATHS: &[Measured] = &[
    ("route: one router", 1, route::one),
    ("route: 100 routers", 1, route::hundred),
    ("route: 10,000 routers", 1, route::ten_thousand),
    ("route: path by expression, header", 1, route::expression),
    ("preamble: encode request", 1, preamble::encode_request),
    ("preamble: encode and decode request", 1, preamble::request),
    ("preamble: encode response", 1, preamble::encode_response),
    ("preamble: encode and decode response", 1, preamble::response),
    ("mesh: split, a packet of 44", mesh::TRAIN, mesh::split),
    ("mesh: coalesce, a packet of 44", mesh::TRAIN, mesh::coalesce),
    ("mesh: split and encrypt, a packet of 44", mesh::TRAIN, mesh::out),
    ("mesh: there and back, a packet of 44", mesh::TRAIN, mesh::there_and_back),
    ("mesh: there and back, one packet of 100 bytes", 1, mesh::small),
];
/// Turns of the shorter run.
const TURNS: u32 = 300;
/// What a count may be of its baseline.
const TOLERANCE: f64 = 1.02;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, turns] = arguments.as_slice()
        && flag == "--run"
    {
        return run(name, turns);
    }
    let wanted = arguments.into_iter().find(|argument| !argument.starts_with("--")).unwrap_or_default();
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed");
        return ExitCode::SUCCESS;
    }
    let baseline = read_baseline();
    let mut counts = BTreeMap::new();
    let mut worse = false;
    println!("{:<48} {:>12} {:>12} {:>8}", "path", "instructions", "baseline", "");
    for (name, each, _) in PATHS.iter().filter(|(name, ..)| name.contains(&wanted)) {
        let [Some(once), Some(twice)] = [TURNS, 2 * TURNS].map(|turns| instructions(name, turns)) else {
            println!("{name}: valgrind did not count it");
            return ExitCode::FAILURE;
        };
        let count = twice.saturating_sub(once) as f64 / f64::from(TURNS * each);
        let before = baseline.get(*name).copied();
        let ratio = before.map(|before| count / before);
        worse |= ratio.is_some_and(|ratio| ratio > TOLERANCE);
        let [before, ratio] = [before.map(|n| format!("{n:.0}")), ratio.map(|n| format!("{n:.3}x"))]
            .map(|text| text.unwrap_or_else(|| "none".to_owned()));
        println!("{name:<48} {count:>12.0} {before:>12} {ratio:>8}");
        counts.insert((*name).to_owned(), count);
    }
    if std::env::var_os("ADIT_BLESS").is_some() {
        return bless(baseline, counts);
    }
    if worse {
        println!(
            "more than {TOLERANCE} times the baseline: a regression, or ADIT_BLESS=1 with the reason in the commit"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Does what the counting run asked for.
fn run(name: &str, turns: &str) -> ExitCode {
    let path = PATHS.iter().find(|(known, ..)| *known == name);
    let (Some((_, _, path)), Ok(turns)) = (path, turns.parse()) else { return ExitCode::FAILURE };
    path(turns);
    ExitCode::SUCCESS
}

/// Instructions that `turns` of a path take, with all that comes before them.
fn instructions(name: &str, turns: u32) -> Option<u64> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(program)
        .args(["--run", name, &turns.to_string()])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("refs:"))?;
    line.rsplit(' ').next()?.replace(',', "").parse().ok()
}

fn baseline_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baseline.txt")
}

/// Lines of a name, two spaces and a number.
fn read_baseline() -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(baseline_file()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.rsplit_once("  "));
    lines.filter_map(|(name, count)| Some((name.trim().to_owned(), count.parse().ok()?))).collect()
}

fn bless(mut baseline: BTreeMap<String, f64>, counts: BTreeMap<String, f64>) -> ExitCode {
    baseline.extend(counts);
    let known = |name: &str| baseline.get(name).map(|count| format!("{name:<48}  {count:.0}\n"));
    let text: String = PATHS.iter().filter_map(|(name, ..)| known(name)).collect();
    match std::fs::write(baseline_file(), text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("the baseline cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
