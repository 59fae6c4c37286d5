//! Notices that a file of the configuration has changed.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Watches the folders of some files; folders, because editors and Kubernetes replace files instead of writing them.
#[derive(Debug)]
pub(crate) struct FileWatch {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
    files: Vec<PathBuf>,
    seen: u64,
}

impl FileWatch {
    /// Starts watching; where the system cannot, only SIGHUP reloads, and the log says so.
    pub(crate) fn start(files: Vec<PathBuf>) -> Self {
        let (sender, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // One waiting note is enough: the reader looks at the files themselves.
            if event.is_ok_and(|e| !e.kind.is_access()) {
                let _ = sender.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "files are not watched, reload with SIGHUP"))
            .ok();
        let mut watch = Self { watcher, folders: BTreeSet::new(), events, files: Vec::new(), seen: 0 };
        watch.set_files(files);
        watch
    }

    /// Watches these files from now on.
    pub(crate) fn set_files(&mut self, files: Vec<PathBuf>) {
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
        self.files = files;
        self.seen = self.fingerprint();
    }

    /// Returns when the content of a file is other than it was.
    pub(crate) async fn changed(&mut self) {
        loop {
            if self.events.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            // Writers often need several steps: wait until they pause.
            while let Ok(Some(())) = tokio::time::timeout(SETTLE_TIME, self.events.recv()).await {}
            let now = self.fingerprint();
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for file in &self.files {
            std::fs::read(file).ok().hash(&mut hasher);
        }
        hasher.finish()
    }
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// After the last event.
const SETTLE_TIME: Duration = Duration::from_millis(100);
