//! Replays the committed corpora of tests/fuzz through the fuzz targets' own functions: what the fuzzer once found stays found.

use std::fs;
use std::path::PathBuf;

mod support;

#[path = "fuzz/src/lib.rs"]
mod targets;

#[test]
fn no_corpus_file_breaks_its_target() {
    for (name, run) in targets::TARGETS {
        let files = corpus(name);
        assert!(!files.is_empty(), "no corpus for {name}");
        for file in files {
            let data = fs::read(&file).expect("a file that was listed can be read");
            // The harness shows this line only if the target panics.
            println!("{name}: {}", file.display());
            run(&data);
        }
    }
}

#[test]
fn no_piece_of_a_corpus_file_breaks_its_target() {
    for (name, run) in targets::TARGETS {
        for file in corpus(name) {
            let data = fs::read(&file).expect("a file that was listed can be read");
            println!("{name}: {}", file.display());
            // Long files in steps: each cut is a run over the whole file.
            for length in (0..data.len()).step_by(1 + data.len() / 200) {
                run(&data[..length]);
            }
        }
    }
}

#[test]
fn every_corpus_folder_has_a_target() {
    let known: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    for entry in fs::read_dir(folder()).expect("the corpora are committed").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(known.contains(&name.as_str()), "tests/fuzz/corpus/{name} belongs to no target");
    }
    for entry in
        fs::read_dir(folder().with_file_name("fuzz_targets")).expect("the targets are committed").flatten()
    {
        let name = entry.file_name().to_string_lossy().replace(".rs", "");
        assert!(known.contains(&name.as_str()), "fuzz_targets/{name}.rs is not in TARGETS");
    }
}

fn folder() -> PathBuf {
    support::project_root().join("tests/fuzz/corpus")
}

fn corpus(target: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder().join(target)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}
