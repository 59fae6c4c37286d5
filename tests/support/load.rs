//! A bounded stream of small requests, to see what a change under load costs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that ask one request after another until told to stop, or until their time is over.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Vec<Outcome>>>,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered with this status.
    Answered(u16),
    /// The connection was refused: nobody listened.
    Refused,
    /// The connection ended without an answer.
    Broken,
}

impl Load {
    /// `workers` connections at a time, each for one GET of `path` at `host`; ends by itself after 60 s.
    pub(crate) fn start(address: SocketAddr, host: &str, path: &str, workers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = Instant::now() + Duration::from_secs(60);
        let workers = (0..workers)
            .map(|_| {
                let (stop, host, path) = (Arc::clone(&stop), host.to_owned(), path.to_owned());
                std::thread::spawn(move || {
                    let mut outcomes = Vec::new();
                    while !stop.load(Ordering::Relaxed) && Instant::now() < until && outcomes.len() < 100_000
                    {
                        outcomes.push(ask(address, &host, &path));
                        if outcomes.last() == Some(&Outcome::Refused) {
                            break;
                        }
                    }
                    outcomes
                })
            })
            .collect();
        Self { stop, workers }
    }

    /// Stops and returns what happened.
    pub(crate) fn finish(self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect()
    }
}

fn ask(address: SocketAddr, host: &str, path: &str) -> Outcome {
    let Ok(mut stream) = TcpStream::connect(address) else { return Outcome::Refused };
    let patience = Some(Duration::from_secs(20));
    let asked = stream
        .set_read_timeout(patience)
        .and_then(|()| write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
    let mut answer = Vec::new();
    if asked.and_then(|()| stream.read_to_end(&mut answer)).is_err() {
        return Outcome::Broken;
    }
    let text = String::from_utf8_lossy(&answer);
    match text.split(' ').nth(1).and_then(|code| code.parse().ok()) {
        Some(status) => Outcome::Answered(status),
        None => Outcome::Broken,
    }
}
