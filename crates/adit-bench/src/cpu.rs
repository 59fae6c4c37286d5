//! CPU time: our own, that of processes between the two ends, and how busy the whole machine is.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

/// CPU time of a process or a thread since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    pub(crate) user: Duration,
    pub(crate) system: Duration,
}

/// A point in time from which CPU use is counted.
#[derive(Clone, Debug)]
pub(crate) struct CpuMark {
    at: Instant,
    own: CpuTime,
    host: Option<HostTime>,
    others: Vec<(u32, String, CpuTime)>,
}

/// CPU used between two points in time on one end.
#[derive(Clone, Debug, Default)]
pub(crate) struct CpuUse {
    /// Wall clock between them.
    pub(crate) seconds: f64,
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// Share of all CPUs' time that was not idle (0–1), if the system tells.
    pub(crate) host_busy: Option<f64>,
    pub(crate) cores: usize,
    /// Largest share of one CPU that a single thread of ours took (0–1).
    pub(crate) busiest_thread: f64,
    /// Whether other runs used the same process meanwhile, so that their CPU time is in here too.
    pub(crate) shared: bool,
    /// Whether a watched process ended meanwhile, so that its CPU time is unknown.
    pub(crate) incomplete: bool,
    /// Other processes: id, name, CPU-seconds.
    pub(crate) others: Vec<(u32, String, f64)>,
}

/// Ticks of all CPUs.
#[derive(Clone, Copy, Debug)]
struct HostTime {
    busy: u64,
    total: u64,
}

impl CpuMark {
    /// Now, with the processes `pids` as well.
    pub(crate) fn now(pids: &[u32]) -> Self {
        let others =
            pids.iter().filter_map(|pid| process(*pid).map(|(name, cpu)| (*pid, name, cpu))).collect();
        Self { at: Instant::now(), own: own(), host: host(), others }
    }

    /// What was used since.
    pub(crate) fn elapsed(&self) -> CpuUse {
        let own = own();
        let host_busy = self.host.zip(host()).and_then(|(from, to)| {
            let total = to.total.saturating_sub(from.total);
            (total > 0).then(|| to.busy.saturating_sub(from.busy) as f64 / total as f64)
        });
        let mut incomplete = false;
        let others = self.others.iter().map(|(pid, name, from)| {
            let to = process(*pid).map(|(_, cpu)| cpu);
            incomplete |= to.is_none();
            let to = to.unwrap_or(*from);
            (*pid, name.clone(), (to.total().saturating_sub(from.total())).as_secs_f64())
        });
        let others = others.collect();
        CpuUse {
            seconds: self.at.elapsed().as_secs_f64(),
            user: own.user.saturating_sub(self.own.user).as_secs_f64(),
            system: own.system.saturating_sub(self.own.system).as_secs_f64(),
            host_busy,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            busiest_thread: 0.0,
            shared: false,
            incomplete,
            others,
        }
    }
}

impl CpuTime {
    pub(crate) fn total(self) -> Duration {
        self.user + self.system
    }
}

impl CpuUse {
    /// CPU-seconds of the process.
    pub(crate) fn total(&self) -> f64 {
        self.user + self.system
    }

    /// As it travels from the server to the client.
    pub(crate) fn to_json(&self) -> Value {
        let others =
            self.others.iter().map(|(pid, name, cpu)| json!({ "pid": pid, "name": name, "seconds": cpu }));
        json!({
            "seconds": self.seconds, "user": self.user, "system": self.system, "host_busy": self.host_busy,
            "cores": self.cores, "busiest_thread": self.busiest_thread, "shared": self.shared,
            "incomplete": self.incomplete, "others": others.collect::<Vec<_>>(),
        })
    }

    /// What the server told; what it left out is zero.
    pub(crate) fn from_json(value: &Value) -> Self {
        let number = |name: &str| value[name].as_f64().unwrap_or_default();
        let others = value["others"].as_array().into_iter().flatten().take(PIDS_MAX).map(|other| {
            let pid = other["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default();
            let name = other["name"].as_str().unwrap_or_default();
            let name = name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
            (pid, name, other["seconds"].as_f64().unwrap_or_default())
        });
        Self {
            seconds: number("seconds"),
            user: number("user"),
            system: number("system"),
            host_busy: value["host_busy"].as_f64(),
            cores: value["cores"].as_u64().and_then(|cores| usize::try_from(cores).ok()).unwrap_or(1).max(1),
            busiest_thread: number("busiest_thread"),
            shared: value["shared"].as_bool().unwrap_or_default(),
            incomplete: value["incomplete"].as_bool().unwrap_or_default(),
            others: others.collect(),
        }
    }
}

/// CPU time of this process.
fn own() -> CpuTime {
    usage(UsageWho::RUSAGE_SELF)
}

/// CPU time of the calling thread.
pub(crate) fn thread() -> CpuTime {
    usage(UsageWho::RUSAGE_THREAD)
}

/// Whether a process can be watched.
pub(crate) fn is_there(pid: u32) -> bool {
    process(pid).is_some()
}

fn usage(who: UsageWho) -> CpuTime {
    let time = |value: TimeVal| {
        let micros = value.tv_sec().saturating_mul(1_000_000).saturating_add(value.tv_usec());
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    };
    getrusage(who).map_or_else(
        |_| CpuTime::default(),
        |usage| CpuTime { user: time(usage.user_time()), system: time(usage.system_time()) },
    )
}

/// Name and CPU time of a process, from /proc (proc(5)); its resolution is a tick of 10 ms.
fn process(pid: u32) -> Option<(String, CpuTime)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<(String, CpuTime)> {
    // The name stands in parentheses and may hold some itself.
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok().map(|ticks| Duration::from_millis(ticks * TICK_MS));
    Some((name, CpuTime { user: ticks()?, system: ticks()? }))
}

fn host() -> Option<HostTime> {
    parse_host(&std::fs::read_to_string("/proc/stat").ok()?)
}

fn parse_host(stat: &str) -> Option<HostTime> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let total: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or_default();
    Some(HostTime { busy: total.saturating_sub(idle), total })
}

/// USER_HZ is 100 on every architecture that Linux shows it on.
const TICK_MS: u64 = 10;
/// Processes watched beside our own.
pub(crate) const PIDS_MAX: usize = 32;
/// Linux cuts names at 15 bytes; a server that sends more is not believed.
const NAME_CHARS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0";
        let (name, cpu) = parse_stat(stat).unwrap();
        assert_eq!(name, "a) b");
        assert_eq!(cpu, CpuTime { user: Duration::from_millis(1200), system: Duration::from_millis(300) });
    }

    #[test]
    fn waiting_for_a_disk_is_idle() {
        let host = parse_host("cpu  10 0 20 60 5 1 2 2 0 0\ncpu0 …").unwrap();
        assert_eq!((host.busy, host.total), (35, 100));
    }

    #[test]
    fn our_own_time_passes() {
        let mark = CpuMark::now(&[std::process::id()]);
        let mut sum = 0u64;
        while mark.elapsed().total() < 0.02 {
            sum = (0..10_000).fold(sum, |sum: u64, n| sum.wrapping_mul(31).wrapping_add(n));
        }
        let spent = mark.elapsed();
        assert!(spent.seconds > 0.0 && spent.others.len() == 1, "{sum}");
    }

    #[test]
    fn what_travels_is_what_was_measured() {
        let mut spent = CpuMark::now(&[]).elapsed();
        spent.others.push((7, "cloudflared".to_owned(), 1.5));
        let read = CpuUse::from_json(&spent.to_json());
        assert_eq!(read.others, spent.others);
        assert_eq!(read.cores, spent.cores);
        assert!(CpuUse::from_json(&json!({ "cores": "many" })).cores == 1);
    }
}
