//! A child process that never outlives its test, nor do those that it started, and what it prints.

use std::collections::BTreeSet;
use std::fs::{File, read_dir, read_to_string};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{POLL_INTERVAL, TempFolder, wait_for};

/// A running program. Its output goes to a file, so that a program that talks much never blocks; dropping it kills it, and
/// asks a master first to end its workers.
pub(crate) struct Process {
    name: String,
    child: Child,
    folder: TempFolder,
}

impl Process {
    /// Starts `command`; its standard input stays as the caller set it.
    #[track_caller]
    pub(crate) fn start(name: &str, command: &mut Command) -> Self {
        let folder = TempFolder::new(name);
        let output = File::create(folder.path().join("output")).expect("a temporary folder takes a file");
        let errors = output.try_clone().expect("a file handle can be doubled");
        command.stdout(Stdio::from(output)).stderr(Stdio::from(errors));
        let mut running = running();
        let child = command.spawn();
        assert!(child.is_ok(), "{name} does not start: {child:?}");
        let child = child.expect("asserted just now");
        running.insert(child.id());
        Self { name: name.to_owned(), child, folder }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far, standard output and errors together.
    pub(crate) fn output(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.folder.path().join("output")) {
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until a printed line contains `text` and returns that line.
    #[track_caller]
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        let what = format!("{} to print {text:?}", self.name);
        wait_for(&what, || {
            let output = self.output();
            if let Some(line) = output.lines().find(|line| line.contains(text)) {
                return Some(line.to_owned());
            }
            let ended = self.child.try_wait().ok().flatten();
            assert!(
                ended.is_none(),
                "{} ended with {ended:?} before {text:?}; it printed:\n{output}",
                self.name
            );
            None
        })
    }

    /// Waits until the process ends by itself.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let what = format!("{} to end", self.name);
        wait_for(&what, || self.child.try_wait().ok().flatten())
    }

    /// Whether the process has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal by name, such as `TERM` or `HUP`.
    #[track_caller]
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.id().to_string()]).status();
        assert!(status.as_ref().is_ok_and(ExitStatus::success), "kill -{name} {}: {status:?}", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let id = self.id();
        // Of one that has ended, the id may be another's by now.
        let family = if self.ended().is_none() { descendants(id) } else { Vec::new() };
        let child = &mut self.child;
        end(id, &family, || child.try_wait().is_ok_and(|ended| ended.is_some()));
        let _ = child.kill();
        let _ = child.wait();
        kill(&family);
        running().remove(&id);
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            super::note(&format!("--- last lines of {}:\n{}", self.name, tail.join("\n")));
        }
    }
}

/// Ends every process that runs, with those that it started: for a program that is told to end by a signal, where nothing is
/// dropped. None can be started afterwards: whoever tries waits for the end.
pub(crate) fn end_all() {
    let running = running();
    for id in running.iter().copied() {
        let family = descendants(id);
        // Whoever waits for it is about to end, too: what nobody has waited for is a zombie.
        end(id, &family, || stat(id).is_none_or(|stat| stat.state == "Z"));
        kill(&[&family[..], &stat(id).map_or_else(Vec::new, |stat| vec![(id, stat.started)])].concat());
    }
    std::mem::forget(running);
}

/// Asks a process that has started others to end, and waits a little: a master knows best how to end its workers.
fn end(id: u32, family: &[Member], mut has_ended: impl FnMut() -> bool) {
    if family.is_empty() || has_ended() {
        return;
    }
    send("TERM", &[id]);
    let deadline = Instant::now() + GOODBYE;
    while !has_ended() && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Kills those that are still there.
fn kill(family: &[Member]) {
    let there = family
        .iter()
        .filter(|(id, started)| stat(*id).is_some_and(|stat| stat.started == *started && stat.state != "Z"));
    let there: Vec<u32> = there.map(|(id, _)| *id).collect();
    if !there.is_empty() {
        send("KILL", &there);
    }
}

/// What has ended meanwhile needs no signal.
fn send(signal: &str, to: &[u32]) {
    let mut command = Command::new("kill");
    command.arg(format!("-{signal}")).args(to.iter().map(u32::to_string));
    let _ = command.stderr(Stdio::null()).status();
}

/// Id, and when it was started: an id alone may be another's by now.
type Member = (u32, String);

/// What a process has started, and what those have.
fn descendants(of: u32) -> Vec<Member> {
    let all = read_dir("/proc").into_iter().flatten().flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let all: Vec<(u32, Stat)> = ids.filter_map(|id| Some((id, stat(id)?))).collect();
    let mut found: Vec<Member> = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for (id, stat) in all.iter().filter(|(_, stat)| stat.parent == parent) {
            parents.push(*id);
            found.push((*id, stat.started.clone()));
        }
    }
    found
}

struct Stat {
    state: String,
    parent: u32,
    started: String,
}

/// proc(5): what stands behind the name, which may hold anything.
fn stat(id: u32) -> Option<Stat> {
    let text = read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = text.rsplit(')').next()?.split_whitespace().map(str::to_owned);
    Some(Stat { state: fields.next()?, parent: fields.next()?.parse().ok()?, started: fields.nth(17)? })
}

/// Ids of all processes that are not dropped yet.
fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For a master to end its workers.
const GOODBYE: Duration = Duration::from_secs(2);
