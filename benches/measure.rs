//! What the benches have in common: CPU time and memory of processes, wrk's durations, medians.
#![allow(dead_code, reason = "each bench uses its own part")]

use std::fs::{read_dir, read_to_string};

/// User and system time of a process and its children in seconds (proc(5)).
pub(crate) fn cpu(process: u32) -> f64 {
    family(process).into_iter().map(cpu_of_one).sum()
}

/// Memory that a process and its children hold, in MiB.
pub(crate) fn resident(process: u32) -> f64 {
    family(process).into_iter().map(|one| status_kib(one, "VmRSS:")).sum::<f64>() / 1024.0
}

/// The most memory a process has held, in MiB.
pub(crate) fn resident_peak(process: u32) -> f64 {
    status_kib(process, "VmHWM:") / 1024.0
}

/// `1.23ms`, `456.00us` or `1.20s`.
pub(crate) fn milliseconds(text: &str) -> Option<f64> {
    let scaled = |suffix: &str, scale: f64| Some(text.strip_suffix(suffix)?.parse::<f64>().ok()? * scale);
    scaled("us", 0.001).or_else(|| scaled("ms", 1.0)).or_else(|| scaled("s", 1000.0))
}

/// Zero if there are none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The process and those it started itself: masters and their workers.
fn family(process: u32) -> Vec<u32> {
    let all = read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children =
        numbers.filter(|child| stat(*child).get(1).is_some_and(|parent| *parent == process.to_string()));
    std::iter::once(process).chain(children).collect()
}

fn cpu_of_one(process: u32) -> f64 {
    let fields = stat(process);
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / TICKS
}

/// The fields behind the name: state, parent, …
fn stat(process: u32) -> Vec<String> {
    let text = read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    text.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn status_kib(process: u32, field: &str) -> f64 {
    let status = read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

/// Clock ticks a second in /proc, the same on every Linux.
const TICKS: f64 = 100.0;
