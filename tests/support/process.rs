//! A child process that never outlives its test, and what it prints.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{TempFolder, wait_for};

/// A running program. Its output goes to a file, so that a program that talks much never blocks; dropping it kills it.
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
        let child = command.stdout(Stdio::from(output)).stderr(Stdio::from(errors)).spawn();
        assert!(child.is_ok(), "{name} does not start: {child:?}");
        Self { name: name.to_owned(), child: child.expect("asserted just now"), folder }
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
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            super::note(&format!("--- last lines of {}:\n{}", self.name, tail.join("\n")));
        }
    }
}
