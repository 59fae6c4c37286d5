//! The file provider: one file or a folder of them, each on its own.
//!
//! A file that cannot be read or parsed keeps what it last had, and keeps nothing else from being taken; so do the files of
//! a folder that cannot be read. Names that start with a dot are skipped: editors and Kubernetes keep copies there.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use adit_config::dynamic::{Dynamic, Format};

use super::merge::Part;

/// Where dynamic files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `filename`.
    File(PathBuf),
    /// `directory`, with its sub-folders.
    Folder(PathBuf),
}

/// The files with what each last gave.
#[derive(Debug, Default)]
pub(crate) struct Files {
    last: BTreeMap<PathBuf, Dynamic>,
}

/// What one look at the files brought.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// One part a file, in the order of their paths.
    pub(crate) parts: Vec<Part>,
    /// What is wrong, with file, line and column; a file named here is in force as it was before.
    pub(crate) faults: Vec<String>,
    /// Every file that was looked at, to be watched.
    pub(crate) paths: Vec<PathBuf>,
}

/// What a place has, unread.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Files, sorted.
    pub(crate) paths: Vec<PathBuf>,
    /// Folders they were looked for in.
    pub(crate) folders: Vec<PathBuf>,
    /// Folders among them that cannot be read.
    unreadable: Vec<PathBuf>,
    faults: Vec<String>,
    /// Device and inode of each folder: links may lead to one several times.
    visited: BTreeSet<(u64, u64)>,
}

impl Place {
    /// Its files; those of a folder in the order of their paths, so that a limit leaves out the same ones each time.
    pub(crate) fn list(&self) -> Listing {
        let mut listing = Listing::default();
        match self {
            Self::File(path) => listing.paths.push(path.clone()),
            Self::Folder(folder) => listing.collect(folder, 0),
        }
        listing.paths.sort();
        listing.paths.dedup();
        listing
    }
}

impl Files {
    /// Reads all files again.
    pub(crate) fn look(&mut self, place: &Place) -> Look {
        let listing = place.list();
        let mut look = Look { faults: listing.faults, paths: listing.paths, ..Look::default() };
        let is_hidden_from_us =
            |path: &Path| listing.unreadable.iter().any(|folder| path.starts_with(folder));
        self.last.retain(|path, _| look.paths.binary_search(path).is_ok() || is_hidden_from_us(path));
        for path in &look.paths {
            match read(path) {
                Ok(dynamic) => {
                    self.last.insert(path.clone(), dynamic);
                }
                Err(fault) => look.faults.push(fault),
            }
        }
        for (path, dynamic) in &self.last {
            let origin = path.display().to_string();
            look.parts.push(Part { provider: "file", origin, dynamic: dynamic.clone() });
        }
        look
    }
}

impl Listing {
    fn collect(&mut self, folder: &Path, depth: usize) {
        let entries = std::fs::metadata(folder).and_then(|found| {
            if self.visited.contains(&(found.dev(), found.ino())) {
                return Ok(Vec::new());
            }
            self.folders.push(folder.to_owned());
            self.visited.insert((found.dev(), found.ino()));
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
        });
        let mut entries: Vec<PathBuf> = match entries {
            Ok(entries) => entries,
            Err(error) => {
                self.unreadable.push(folder.to_owned());
                let what = "cannot be read, what its files had stays in force";
                return self.faults.push(format!("{}: {what}: {error}", folder.display()));
            }
        };
        entries.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
        entries.sort();
        for path in entries {
            let is_folder = path.is_dir();
            if !is_folder && !is_dynamic_file(&path) {
                continue;
            }
            let limit = match is_folder {
                true if depth >= DEPTH_MAX => Some(format!("folders deeper than {DEPTH_MAX} are not read")),
                true if self.visited.len() >= FOLDERS_MAX => Some(format!("more than {FOLDERS_MAX} folders")),
                false if self.paths.len() >= FILES_MAX => Some(format!("more than {FILES_MAX} files")),
                _ => None,
            };
            match limit {
                // One fault a folder: its other entries would say the same.
                Some(limit) => {
                    return self
                        .faults
                        .push(format!("{}: skipped, and what follows: {limit}", path.display()));
                }
                None if is_folder => self.collect(&path, depth + 1),
                None => self.paths.push(path),
            }
        }
    }
}

/// Whether a name in a folder is that of a dynamic file.
pub(crate) fn is_dynamic_file(path: &Path) -> bool {
    is(path, &["yml", "yaml", "toml"])
}

fn read(path: &Path) -> Result<Dynamic, String> {
    let name = path.display().to_string();
    let bytes = crate::load::read_file(path).map_err(|why| format!("{name}: cannot be read: {why}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{name}: is not UTF-8"))?;
    let format = if is(path, &["toml"]) { Format::Toml } else { Format::Yaml };
    Dynamic::parse(&text, &name, format).map_err(|problems| problems.to_string())
}

fn is(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|extension| extensions.iter().any(|e| extension.eq_ignore_ascii_case(e)))
}

/// Files of one folder with its sub-folders; more is a folder given by mistake. Each is at most 4 MiB.
const FILES_MAX: usize = 1000;
/// Folders looked into; each costs a watch of the system.
const FOLDERS_MAX: usize = 1000;
/// Sub-folders of sub-folders; bounds the stack.
const DEPTH_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("adit-files-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&root);
            std::fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        fn write(&self, file: &str) {
            let text = "http: { routers: { r: { rule: 'Path(`/`)', service: s } } }";
            std::fs::write(self.0.join(file), text).unwrap();
        }

        fn place(&self) -> Place {
            Place::Folder(self.0.join("dyn"))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_read_for_a_moment_keeps_its_routes() {
        let folder = Folder::new("gone");
        std::fs::create_dir(folder.0.join("dyn")).unwrap();
        folder.write("dyn/a.yml");
        let mut files = Files::default();
        assert_eq!(files.look(&folder.place()).parts.len(), 1);
        std::fs::rename(folder.0.join("dyn"), folder.0.join("away")).unwrap();
        let look = files.look(&folder.place());
        assert_eq!(look.parts.len(), 1);
        assert!(look.faults[0].contains("stays in force"), "{:?}", look.faults);
        std::fs::rename(folder.0.join("away"), folder.0.join("dyn")).unwrap();
        assert!(files.look(&folder.place()).faults.is_empty());
        std::fs::remove_file(folder.0.join("dyn/a.yml")).unwrap();
        assert!(files.look(&folder.place()).parts.is_empty());
    }

    #[test]
    fn links_that_lead_back_are_followed_once() {
        let folder = Folder::new("loop");
        std::fs::create_dir_all(folder.0.join("dyn/sub")).unwrap();
        folder.write("dyn/sub/a.yml");
        for name in ["l1", "l2", "l3", "l4", "l5", "l6", "l7", "l8"] {
            std::os::unix::fs::symlink("..", folder.0.join("dyn/sub").join(name)).unwrap();
        }
        let listing = folder.place().list();
        assert_eq!((listing.paths.len(), listing.folders.len()), (1, 2));
    }

    #[test]
    fn files_beyond_the_limit_are_named_and_always_the_same() {
        let folder = Folder::new("many");
        std::fs::create_dir(folder.0.join("dyn")).unwrap();
        for number in (0..=FILES_MAX).rev() {
            std::fs::write(folder.0.join(format!("dyn/{number:04}.yml")), "").unwrap();
        }
        let listing = folder.place().list();
        assert_eq!(listing.paths.len(), FILES_MAX);
        assert_eq!(listing.faults.len(), 1);
        assert!(listing.faults[0].contains("1000.yml") && listing.faults[0].contains("more than 1000"));
    }

    #[test]
    fn hidden_names_are_skipped() {
        let folder = Folder::new("hidden");
        std::fs::create_dir_all(folder.0.join("dyn/..2026")).unwrap();
        for file in ["dyn/.a.yml", "dyn/..2026/a.yml", "dyn/b.YML", "dyn/c.txt"] {
            folder.write(file);
        }
        assert_eq!(folder.place().list().paths, [folder.0.join("dyn/b.YML")]);
    }
}
