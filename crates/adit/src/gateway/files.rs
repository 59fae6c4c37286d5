//! The file provider: one file or a folder of them, each on its own.
//!
//! A file that cannot be read or parsed keeps what it last had, and keeps nothing else from being taken.

use std::collections::BTreeMap;
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
    /// Folders to be watched for new files.
    pub(crate) folders: Vec<PathBuf>,
}

impl Files {
    /// Reads all files again.
    pub(crate) fn look(&mut self, place: &Place) -> Look {
        let mut look = Look::default();
        match place {
            Place::File(path) => look.paths.push(path.clone()),
            Place::Folder(folder) => collect(folder, 0, &mut look),
        }
        look.paths.sort();
        self.last.retain(|path, _| look.paths.contains(path));
        for path in look.paths.clone() {
            match read(&path) {
                Ok(dynamic) => {
                    self.last.insert(path.clone(), dynamic);
                }
                Err(fault) => look.faults.push(fault),
            }
            if let Some(dynamic) = self.last.get(&path) {
                let origin = path.display().to_string();
                look.parts.push(Part { provider: "file", origin, dynamic: dynamic.clone() });
            }
        }
        look
    }
}

fn read(path: &Path) -> Result<Dynamic, String> {
    let name = path.display().to_string();
    let bytes = crate::load::read_file(path).map_err(|why| format!("{name}: cannot be read: {why}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{name}: is not UTF-8"))?;
    let format = if is(path, &["toml"]) { Format::Toml } else { Format::Yaml };
    Dynamic::parse(&text, &name, format).map_err(|problems| problems.to_string())
}

fn collect(folder: &Path, depth: usize, look: &mut Look) {
    look.folders.push(folder.to_owned());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return look.faults.push(format!("{}: cannot be read: {error}", folder.display())),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden || look.paths.len() >= FILES_MAX {
            continue;
        }
        if path.is_dir() && depth < DEPTH_MAX {
            collect(&path, depth + 1, look);
        } else if is(&path, &["yml", "yaml", "toml"]) {
            look.paths.push(path);
        }
    }
}

fn is(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|extension| extensions.iter().any(|e| extension.eq_ignore_ascii_case(e)))
}

/// Files of one folder; more is a folder given by mistake.
const FILES_MAX: usize = 1000;
/// Sub-folders of sub-folders; a loop of links ends here.
const DEPTH_MAX: usize = 8;
