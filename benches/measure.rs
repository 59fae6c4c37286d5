//! What the benches have in common: a process's CPU time, wrk's durations, medians.
#![allow(dead_code, reason = "each bench uses its own part")]

/// User and system time of a process in seconds (proc(5)).
pub(crate) fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / TICKS
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

/// Clock ticks a second in /proc, the same on every Linux.
const TICKS: f64 = 100.0;
