//! The committed generated code is what the schemas give.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the test is about files and a tool, and fails by panicking"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The generated text without the line that names the tool's version.
fn text(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.starts_with("// capnp binary version")).collect::<Vec<_>>().join("\n")
}

#[test]
fn generated_code_is_current() {
    let tool = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("capnp").is_file()));
    if !tool {
        assert!(
            std::env::var_os("ADIT_REQUIRE_PEERS").is_none(),
            "the capnp tool is required but not on PATH"
        );
        println!("skipped: the capnp tool is not on PATH");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made: PathBuf = std::env::temp_dir().join(format!("adit-schema-{}", std::process::id()));
    fs::create_dir_all(&made).unwrap();
    let mut command = capnpc::CompilerCommand::new();
    command
        .src_prefix(root.join("schema"))
        .output_path(&made)
        .default_parent_module(vec!["generated".to_owned()]);
    let names = ["quic_metadata_protocol", "tunnelrpc"];
    for name in names {
        command.file(root.join(format!("schema/{name}.capnp")));
    }
    command.run().unwrap();
    for name in names {
        let file = format!("{name}_capnp.rs");
        let same = text(&made.join(&file)) == text(&root.join("src/generated").join(&file));
        assert!(same, "src/generated/{file} is not what schema/{name}.capnp gives");
    }
    fs::remove_dir_all(&made).unwrap();
}
