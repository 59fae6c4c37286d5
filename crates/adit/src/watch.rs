//! Notices that a file of the configuration has changed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Watches the folders of some files; folders, because editors and Kubernetes replace files instead of writing them.
#[derive(Debug)]
pub(crate) struct FileWatch {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
    files: Vec<PathBuf>,
    /// Names of those files: a log in the same folder is none of our business.
    names: Arc<Mutex<BTreeSet<OsString>>>,
    seen: u64,
    /// Something happened that was not looked at yet.
    stirred: bool,
}

impl FileWatch {
    /// Starts watching; where the system cannot, only SIGHUP reloads, and the log says so.
    ///
    /// What was written from `since` on, when the configuration began to be read, may have been read before or after: it
    /// counts as changed.
    pub(crate) fn start(files: Vec<PathBuf>, since: SystemTime) -> Self {
        let (sender, events) = mpsc::channel(1);
        let names = Arc::new(Mutex::new(BTreeSet::new()));
        let watched = Arc::clone(&names);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // One waiting note is enough: the reader looks at the files themselves.
            let is_change =
                |e: notify::Event| !e.kind.is_access() && e.paths.iter().any(|path| is_ours(&watched, path));
            if event.is_ok_and(is_change) {
                let _ = sender.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "files are not watched, reload with SIGHUP"))
            .ok();
        let mut watch = Self {
            watcher,
            folders: BTreeSet::new(),
            events,
            files: Vec::new(),
            names,
            seen: 0,
            stirred: false,
        };
        watch.set_files(files);
        let is_fresh = |file: &PathBuf| {
            let modified = std::fs::metadata(file).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|modified| modified + MODIFIED_GRAIN >= since)
        };
        watch.stirred = watch.files.iter().any(is_fresh);
        watch.seen = fingerprint(&watch.files) ^ u64::from(watch.stirred);
        watch
    }

    /// Watches these files from now on.
    pub(crate) fn set_files(&mut self, files: Vec<PathBuf>) {
        let names = files.iter().filter_map(|file| file.file_name().map(OsString::from)).collect();
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        let folders: BTreeSet<PathBuf> = files.iter().map(|file| folder_of(file)).collect();
        if let Some(watcher) = &mut self.watcher {
            for folder in folders.difference(&self.folders) {
                if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                    tracing::warn!(folder = %folder.display(), %error, "folder is not watched");
                }
            }
            for folder in self.folders.difference(&folders) {
                let _ = watcher.unwatch(folder);
            }
        }
        self.folders = folders;
        if self.files != files {
            self.seen = fingerprint(&files);
            self.files = files;
            // A change between the reading of the configuration and this moment would be taken for the old state.
            self.stirred = true;
            self.seen ^= 1;
        }
    }

    /// Returns when the content of a file is other than it was. Nothing is lost when the future is dropped.
    pub(crate) async fn changed(&mut self) {
        loop {
            if !self.stirred {
                if self.events.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
                self.stirred = true;
            }
            // Writers often need several steps: wait until they pause, but not for ever.
            let settling =
                async { while let Ok(Some(())) = timeout(SETTLE_TIME, self.events.recv()).await {} };
            let _ = timeout(SETTLE_TIME_MAX, settling).await;
            self.stirred = false;
            let now = fingerprint(&self.files);
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

fn fingerprint(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}

/// A watched file, or a link that Kubernetes swaps to change all files of a volume at once (`..data`).
fn is_ours(names: &Mutex<BTreeSet<OsString>>, path: &Path) -> bool {
    let Some(name) = path.file_name() else { return false };
    name.to_string_lossy().starts_with("..")
        || names.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// By how much the times that the system writes beside files lag behind its clock, at most.
const MODIFIED_GRAIN: Duration = Duration::from_millis(10);
/// After the last event.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// After the first.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_changed_while_the_configuration_was_read_is_noticed() {
        let path = std::env::temp_dir().join(format!("adit-watch-{}", std::process::id()));
        let begun = SystemTime::now();
        std::fs::write(&path, "written after it was read").unwrap();
        let mut watch = FileWatch::start(vec![path.clone()], begun);
        timeout(Duration::from_secs(20), watch.changed()).await.unwrap();
        // Long before: nothing is new.
        let mut watch = FileWatch::start(vec![path.clone()], SystemTime::now() + Duration::from_secs(60));
        assert!(timeout(Duration::from_millis(300), watch.changed()).await.is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
