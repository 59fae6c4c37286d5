//! Notices that a file of the configuration has changed.
//!
//! The system's events say when to look; a look compares what the files contain. A slow poll of sizes and times finds what
//! events do not tell: a folder that was replaced as a whole, network file systems, a watch the system refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};

use crate::gateway::files::{Place, is_dynamic_file};
use crate::load::read_file;

/// What is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched {
    /// Files, each of them there or not.
    pub(crate) files: Vec<PathBuf>,
    /// A folder whose dynamic files count, and those that are added to it later.
    pub(crate) folder: Option<PathBuf>,
    /// From one change to the next; also how long a file that became empty is taken for one that is being written.
    pub(crate) throttle: Duration,
}

/// Watches folders; folders, because editors and Kubernetes replace files instead of writing them.
#[derive(Debug)]
pub(crate) struct FileWatch {
    watcher: Option<RecommendedWatcher>,
    /// Folders that the system watches for us, with which folder that was: another one may take its name.
    armed: BTreeMap<PathBuf, Identity>,
    /// Folders that the system does not watch; said once.
    refused: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
    concern: Arc<Mutex<Concern>>,
    watched: Watched,
    seen: Contents,
    stamp: u64,
    /// Something happened that was not looked at yet.
    stirred: bool,
    /// Until when a file that became empty may still be filled.
    half_written: Option<Instant>,
    /// Changes before this moment wait.
    quiet_until: Instant,
    poll: Interval,
    /// A poll under way: kept here so that it outlives a dropped future, and there is never more than one.
    polling: Option<JoinHandle<Survey>>,
}

/// Device and inode.
type Identity = (u64, u64);
/// What each file contains.
type Contents = BTreeMap<PathBuf, Content>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Unreadable,
    Empty,
    Hash(u64),
}

/// Which events are about us: a log in the same folder is none of our business.
#[derive(Debug, Default)]
struct Concern {
    /// Names of single files.
    names: BTreeSet<OsString>,
    /// Folders of dynamic files, absolute.
    folders: BTreeSet<PathBuf>,
}

/// What is there, without reading it.
#[derive(Debug)]
struct Survey {
    files: BTreeSet<PathBuf>,
    folders: BTreeMap<PathBuf, Identity>,
    dynamic_folders: BTreeSet<PathBuf>,
    /// Changes with every name, size, time and identity.
    stamp: u64,
}

impl FileWatch {
    /// Starts watching; where the system cannot, only the poll notices changes, and the log says so.
    ///
    /// What was written from `since` on, when the configuration began to be read, may have been read before or after: it
    /// counts as changed.
    pub(crate) fn start(watched: Watched, since: SystemTime) -> Self {
        let (sender, events) = mpsc::channel(1);
        let concern = Arc::new(Mutex::new(Concern::default()));
        let ours = Arc::clone(&concern);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // One waiting note is enough: the reader looks at the files themselves.
            if event.is_ok_and(|event| ours.lock().unwrap_or_else(PoisonError::into_inner).is_about(&event)) {
                let _ = sender.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(
                |error| tracing::warn!(%error, "files are only polled: reload with SIGHUP to be quick"),
            )
            .ok();
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Self {
            watcher,
            armed: BTreeMap::new(),
            refused: BTreeSet::new(),
            events,
            concern,
            watched,
            seen: Contents::new(),
            stamp: 0,
            stirred: false,
            half_written: None,
            quiet_until: Instant::now(),
            poll,
            polling: None,
        };
        watch.seen = watch.look();
        let is_fresh = |file: &PathBuf| {
            let modified = std::fs::metadata(file).and_then(|metadata| metadata.modified());
            modified.is_ok_and(|modified| modified + MODIFIED_GRAIN >= since)
        };
        if watch.seen.keys().any(is_fresh) {
            (watch.seen, watch.stirred) = (Contents::new(), true);
        }
        watch
    }

    /// Watches these from now on.
    pub(crate) fn watch(&mut self, watched: Watched) {
        if self.watched == watched {
            return;
        }
        self.watched = watched;
        // A new file may have changed between its being read and this moment, which would be taken for its old state.
        self.stirred |= self.look().keys().any(|file| !self.seen.contains_key(file));
    }

    /// Returns when the content of a file is other than it was, or there is another file. Nothing is lost when the
    /// future is dropped.
    pub(crate) async fn changed(&mut self) {
        loop {
            if !self.stirred {
                self.stir().await;
                self.stirred = true;
            }
            sleep_until(self.quiet_until).await;
            // Writers often need several steps: wait until they pause, but not for ever.
            let settling =
                async { while let Ok(Some(())) = timeout(SETTLE_TIME, self.events.recv()).await {} };
            let _ = timeout(SETTLE_TIME_MAX, settling).await;
            let now = self.look();
            if now == self.seen {
                (self.stirred, self.half_written) = (false, None);
                continue;
            }
            if is_emptied(&self.seen, &now) {
                let end = Instant::now() + self.watched.throttle;
                let end = *self.half_written.get_or_insert(end);
                if Instant::now() < end {
                    let _ = tokio::time::timeout_at(end, self.stir()).await;
                    continue;
                }
            }
            (self.stirred, self.half_written) = (false, None);
            // What is only read a second time at the start delays no first change.
            if !self.seen.is_empty() {
                self.quiet_until = Instant::now() + self.watched.throttle;
            }
            self.seen = now;
            return;
        }
    }

    /// Returns when there is a reason to look.
    async fn stir(&mut self) {
        loop {
            tokio::select! {
                event = self.events.recv(), if self.watcher.is_some() => {
                    if event.is_none() {
                        self.watcher = None;
                    }
                    return;
                }
                survey = poll(&mut self.poll, &mut self.polling, &self.watched) => {
                    self.arm(&survey);
                    if survey.stamp != self.stamp {
                        self.stamp = survey.stamp;
                        return;
                    }
                }
            }
        }
    }

    /// Reads everything, and has new folders watched before it does.
    fn look(&mut self) -> Contents {
        self.arm(&Survey::of(&self.watched));
        let survey = Survey::of(&self.watched);
        self.stamp = survey.stamp;
        survey.files.into_iter().map(|file| (file.clone(), content(&file))).collect()
    }

    /// Has the system watch the folders as they are now.
    fn arm(&mut self, survey: &Survey) {
        let names =
            self.watched.files.iter().filter_map(|file| file.file_name().map(OsString::from)).collect();
        let folders = survey.dynamic_folders.iter().flat_map(std::path::absolute).collect();
        *self.concern.lock().unwrap_or_else(PoisonError::into_inner) = Concern { names, folders };
        let Some(watcher) = &mut self.watcher else { return };
        self.armed.retain(|folder, identity| {
            let is_same = survey.folders.get(folder) == Some(identity);
            if !is_same {
                let _ = watcher.unwatch(folder);
            }
            is_same
        });
        for (folder, identity) in &survey.folders {
            if self.armed.contains_key(folder) {
                continue;
            }
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.armed.insert(folder.clone(), *identity);
                    self.refused.remove(folder);
                }
                Err(error) if self.refused.insert(folder.clone()) => {
                    tracing::warn!(folder = %folder.display(), %error, "folder is only polled");
                }
                Err(_) => {}
            }
        }
        self.refused.retain(|folder| survey.folders.contains_key(folder));
    }
}

impl Survey {
    fn of(watched: &Watched) -> Self {
        let mut files: BTreeSet<PathBuf> = watched.files.iter().cloned().collect();
        let mut dynamic_folders = BTreeSet::new();
        if let Some(folder) = &watched.folder {
            let listing = Place::Folder(folder.clone()).list();
            files.extend(listing.paths);
            dynamic_folders.extend(listing.folders);
        }
        let parents = watched.files.iter().map(|file| folder_of(file));
        let all_folders: BTreeSet<PathBuf> = parents.chain(dynamic_folders.iter().cloned()).collect();
        let identity = |folder: PathBuf| {
            let found = std::fs::metadata(&folder).ok()?;
            Some((folder, (found.dev(), found.ino())))
        };
        let folders: BTreeMap<PathBuf, Identity> = all_folders.into_iter().filter_map(identity).collect();
        let mut hasher = DefaultHasher::new();
        folders.hash(&mut hasher);
        for file in &files {
            let times = |m: std::fs::Metadata| {
                (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())
            };
            (file, std::fs::metadata(file).ok().map(times)).hash(&mut hasher);
        }
        Self { files, folders, dynamic_folders, stamp: hasher.finish() }
    }
}

impl Concern {
    fn is_about(&self, event: &Event) -> bool {
        let renames = matches!(
            event.kind,
            EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        );
        !event.kind.is_access() && event.paths.iter().any(|path| self.is_ours(path, renames))
    }

    /// A watched file, a dynamic file, a folder that comes or goes, or a link that Kubernetes swaps to change all files of
    /// a volume at once (`..data`).
    fn is_ours(&self, path: &Path, renames: bool) -> bool {
        let Some(name) = path.file_name() else { return false };
        let in_dynamic_folder = || path.parent().is_some_and(|parent| self.folders.contains(parent));
        name.to_string_lossy().starts_with("..")
            || self.names.contains(name)
            || self.folders.contains(path)
            || ((renames || is_dynamic_file(path)) && in_dynamic_folder())
    }
}

/// The next survey, on a thread of its own: a network file system that hangs holds up nothing else.
async fn poll(
    interval: &mut Interval,
    polling: &mut Option<JoinHandle<Survey>>,
    watched: &Watched,
) -> Survey {
    loop {
        if polling.is_none() {
            interval.tick().await;
        }
        let surveying = polling.get_or_insert_with(|| {
            let watched = watched.clone();
            tokio::task::spawn_blocking(move || Survey::of(&watched))
        });
        let survey = surveying.await;
        *polling = None;
        if let Ok(survey) = survey {
            return survey;
        }
    }
}

fn content(file: &Path) -> Content {
    match read_file(file) {
        Ok(bytes) if bytes.is_empty() => Content::Empty,
        Ok(bytes) => {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            Content::Hash(hasher.finish())
        }
        Err(_) => Content::Unreadable,
    }
}

/// Whether a file that had a content is empty: writers truncate first.
fn is_emptied(before: &Contents, now: &Contents) -> bool {
    let had_content = |file| matches!(before.get(file), Some(Content::Hash(_)));
    now.iter().any(|(file, content)| *content == Content::Empty && had_content(file))
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
/// One `stat` a file (at most some thousand).
const POLL_INTERVAL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        root: PathBuf,
        watch: FileWatch,
    }

    impl Scene {
        fn new(name: &str, throttle: Duration) -> Self {
            let root = std::env::temp_dir().join(format!("adit-watch-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&root);
            std::fs::create_dir_all(root.join("dyn")).unwrap();
            std::fs::write(root.join("dyn/a.yml"), "a").unwrap();
            let watched = Watched { files: Vec::new(), folder: Some(root.join("dyn")), throttle };
            Self { watch: FileWatch::start(watched, SystemTime::now() + Duration::from_secs(60)), root }
        }

        fn write(&self, file: &str, text: &str) {
            std::fs::write(self.root.join(file), text).unwrap();
        }

        async fn changes(&mut self) -> bool {
            timeout(Duration::from_secs(20), self.watch.changed()).await.is_ok()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }

    #[tokio::test]
    async fn new_files_folders_and_files_in_new_folders_are_noticed() {
        let mut scene = Scene::new("new", Duration::ZERO);
        scene.write("dyn/b.yml", "b");
        assert!(scene.changes().await);
        std::fs::create_dir(scene.root.join("dyn/sub")).unwrap();
        scene.write("dyn/sub/c.toml", "c");
        assert!(scene.changes().await);
        scene.write("dyn/sub/c.toml", "d");
        assert!(scene.changes().await);
        std::fs::remove_file(scene.root.join("dyn/b.yml")).unwrap();
        assert!(scene.changes().await);
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_watched_again() {
        let mut scene = Scene::new("replaced", Duration::ZERO);
        std::fs::rename(scene.root.join("dyn"), scene.root.join("old")).unwrap();
        assert!(scene.changes().await);
        std::fs::create_dir(scene.root.join("dyn")).unwrap();
        scene.write("dyn/a.yml", "b");
        assert!(scene.changes().await);
        scene.write("dyn/a.yml", "c");
        assert!(scene.changes().await);
    }

    #[tokio::test]
    async fn a_new_key_of_a_mounted_config_map_is_noticed() {
        use std::os::unix::fs::symlink;
        let mut scene = Scene::new("map", Duration::ZERO);
        let folder = scene.root.join("dyn");
        std::fs::create_dir(folder.join("..1")).unwrap();
        scene.write("dyn/..1/b.yml", "b");
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/b.yml", folder.join("b.yml")).unwrap();
        assert!(scene.changes().await);
        std::fs::create_dir(folder.join("..2")).unwrap();
        scene.write("dyn/..2/b.yml", "other");
        symlink("..2", folder.join("..swap")).unwrap();
        std::fs::rename(folder.join("..swap"), folder.join("..data")).unwrap();
        assert!(scene.changes().await);
    }

    #[tokio::test]
    async fn a_file_that_is_emptied_and_filled_again_is_one_change() {
        let mut scene = Scene::new("emptied", Duration::from_secs(10));
        scene.write("dyn/a.yml", "");
        // Longer than a writer's pause has to be to be noticed.
        assert!(timeout(SETTLE_TIME * 5, scene.watch.changed()).await.is_err());
        scene.write("dyn/a.yml", "b");
        assert!(timeout(Duration::from_secs(5), scene.watch.changed()).await.is_ok());
        assert_eq!(scene.watch.seen.values().filter(|content| **content == Content::Empty).count(), 0);
    }

    #[tokio::test]
    async fn a_file_that_stays_empty_is_taken_in_the_end() {
        let mut scene = Scene::new("empty", Duration::from_millis(300));
        scene.write("dyn/a.yml", "");
        assert!(scene.changes().await);
        assert_eq!(scene.watch.seen.values().filter(|content| **content == Content::Empty).count(), 1);
    }

    #[tokio::test]
    async fn what_changed_while_the_configuration_was_read_is_noticed() {
        let scene = Scene::new("begun", Duration::ZERO);
        let mut watch = FileWatch::start(scene.watch.watched.clone(), SystemTime::UNIX_EPOCH);
        timeout(Duration::from_secs(20), watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn the_first_change_is_taken_at_once_and_the_next_one_waits() {
        let mut scene = Scene::new("throttled", Duration::from_secs(3600));
        scene.watch.seen.clear();
        scene.watch.stirred = true;
        assert!(scene.changes().await, "nothing is known of what was there at the start");
        scene.write("dyn/a.yml", "b");
        assert!(scene.changes().await);
        scene.write("dyn/a.yml", "c");
        assert!(timeout(SETTLE_TIME * 5, scene.watch.changed()).await.is_err());
    }

    #[test]
    fn a_log_in_the_same_folder_is_none_of_our_business() {
        let concern = Concern {
            names: BTreeSet::from(["adit.yaml".into()]),
            folders: BTreeSet::from(["/etc/dyn".into()]),
        };
        let is_ours = |path: &str, renames| concern.is_ours(Path::new(path), renames);
        assert!(!is_ours("/etc/access.log", false));
        assert!(!is_ours("/etc/dyn/access.log", false));
        assert!(!is_ours("/etc/other.yml", true));
        assert!(is_ours("/etc/adit.yaml", false));
        assert!(is_ours("/etc/dyn/new.YAML", false));
        assert!(is_ours("/etc/dyn/sub", true));
        assert!(is_ours("/etc/dyn", true));
        assert!(is_ours("/etc/dyn/..data", true));
    }
}
