//! What an attack costs: other visitors' answers and the process' memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::{http_get, pause};

/// A visitor who asks for a page again and again, each time on a connection of its own.
pub(crate) struct Bystander {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<Vec<String>>,
}

impl Bystander {
    pub(crate) fn start(web: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let asking = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let status = http_get(web, "/bystander").map(|answer| answer.status);
                seen.push(status.map_or("no answer".to_owned(), |status| status.to_string()));
                pause(Duration::from_millis(50));
            }
            seen
        });
        Self { stop, asking }
    }

    /// Ends; fails if any request was not answered with 200.
    #[track_caller]
    pub(crate) fn finish(self, during: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.asking.join().expect("a bystander does not panic");
        let unserved: Vec<&String> = seen.iter().filter(|status| *status != "200").collect();
        assert!(
            !seen.is_empty() && unserved.is_empty(),
            "{during}: {} answers, among them {unserved:?}",
            seen.len()
        );
    }
}

/// The most memory that a process has used so far, in KiB.
pub(crate) fn peak_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
