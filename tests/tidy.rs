//! The house rules that a machine can check: who may depend on whom, how long a file or a function may grow, and what no
//! file of the project may contain. Each finding names its place, so that the message alone tells what to change.
//!
//! The source is read as text with a small lexer (comments and literals blanked out): enough for counting, no parser needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which adit crates a crate may depend on. `adit` itself may depend on all and is therefore absent.
const MAY_DEPEND_ON: [(&str, &[&str]); 11] = [
    ("adit-config", &[]),
    ("adit-auth", &["adit-config"]),
    ("adit-route", &["adit-config", "adit-auth"]),
    ("adit-tunnel-proto", &["adit-config"]),
    ("adit-mesh-proto", &["adit-config"]),
    ("adit-tunnel", &["adit-config", "adit-auth", "adit-tunnel-proto"]),
    ("adit-proxy", &["adit-config", "adit-auth", "adit-route"]),
    ("adit-acme", &["adit-config"]),
    ("adit-mesh", &["adit-config", "adit-mesh-proto"]),
    ("adit-bench", &[]),
    ("adit-kube", &["adit-config", "adit-auth"]),
];

/// Crates that decide without doing: they know no runtime, no socket and no transport.
const PURE: [&str; 5] = ["adit-config", "adit-auth", "adit-route", "adit-tunnel-proto", "adit-mesh-proto"];

/// What a pure crate must not have as an ordinary dependency.
const IMPURE_DEPENDENCIES: [&str; 10] = [
    "tokio",
    "tokio-rustls",
    "tokio-tungstenite",
    "quinn",
    "h2",
    "hyper",
    "socket2",
    "rustls",
    "notify",
    "hickory-resolver",
];

/// Where packages lie that measure and are no part of the product.
const BENCHES: &str = "benches/";
/// Longest file, in lines outside test modules.
const FILE_LINES_MAX: usize = 800;
/// Longest function, in lines that hold code.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest ARCHITECTURE.md: a map that takes longer to read than the code it shows is no map.
const ARCHITECTURE_LINES_MAX: usize = 150;
/// Shortest header that can say what a crate is, what it never does, its contract and what to read first.
const CRATE_HEADER_LINES_MIN: usize = 4;

/// The crate of the TUN device's system calls: the workspace's lints word for word, except that it may allow unsafe blocks one by
/// one. Cargo has no way to change a single inherited lint.
fn has_lints_but_for_unsafe(name: &str, manifest: &str) -> bool {
    let workspace = read(&root().join("Cargo.toml"));
    let lints =
        workspace.split("[workspace.lints.rust]").nth(1).and_then(|rest| rest.split("\n[profile").next());
    let wanted = lints.map(|lints| {
        let lints = lints.replace("[workspace.lints.", "[lints.");
        lints.replacen("unsafe_code = \"forbid\"", "unsafe_code = \"deny\"", 1)
    });
    name == "adit-mesh" && wanted.is_some_and(|wanted| manifest.contains(wanted.trim_end()))
}

#[test]
fn crates_depend_only_downward() {
    let mut findings = Vec::new();
    for package in packages() {
        let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(name, _)| *name == package.name) else {
            if package.name != "adit" && !package.manifest.starts_with(BENCHES) {
                findings.push(format!("{}: not in MAY_DEPEND_ON of tests/tidy.rs", package.manifest));
            }
            continue;
        };
        for (dependency, kind) in &package.dependencies {
            if dependency.starts_with("adit") && !allowed.contains(&dependency.as_str()) {
                findings
                    .push(format!("{}: {} must not depend on {dependency}", package.manifest, package.name));
            }
            let pure = PURE.contains(&package.name.as_str());
            if pure && kind == "normal" && IMPURE_DEPENDENCIES.contains(&dependency.as_str()) {
                findings.push(format!("{}: {} is pure, {dependency} is not", package.manifest, package.name));
            }
        }
    }
    report(&findings);
}

#[test]
fn every_crate_opts_into_the_lints_and_introduces_itself() {
    let mut findings = Vec::new();
    for package in packages() {
        let manifest = read(&root().join(&package.manifest));
        if !manifest.contains("[lints]\nworkspace = true")
            && !has_lints_but_for_unsafe(&package.name, &manifest)
        {
            findings.push(format!("{}: lacks `[lints]` with `workspace = true`", package.manifest));
        }
        let library = package.manifest.replace("Cargo.toml", "src/lib.rs");
        if package.name == "adit" || package.manifest.starts_with(BENCHES) {
            continue;
        }
        let text = read(&root().join(&library));
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        if header.len() < CRATE_HEADER_LINES_MIN {
            findings.push(format!(
                "{library}:1: header of {} lines; say what it is, what it never does, its contract, what to read first",
                header.len()
            ));
        } else if !header.iter().any(|line| line.to_lowercase().contains("never")) {
            findings.push(format!("{library}:1: header does not say what the crate never does"));
        }
    }
    report(&findings);
}

#[test]
fn files_and_functions_stay_short() {
    let mut findings = Vec::new();
    for file in source_files() {
        let masked = mask(&file.text);
        let tests = test_lines(&masked);
        let production = masked.lines().count() - tests.len();
        if production > FILE_LINES_MAX {
            findings
                .push(format!("{}: {production} lines outside tests, at most {FILE_LINES_MAX}", file.name));
        }
        for function in functions(&masked) {
            if function.code_lines > FUNCTION_LINES_MAX && !tests.contains(&function.line) {
                findings.push(format!(
                    "{}:{}: fn {} has {} code lines, at most {FUNCTION_LINES_MAX}",
                    file.name, function.line, function.name, function.code_lines
                ));
            }
        }
    }
    report(&findings);
}

#[test]
fn nothing_is_left_undone_or_without_a_bound() {
    // Split so that this file does not find itself; the search runs over code only, not over strings and comments.
    let banned = [
        (concat!("todo", "!("), "unfinished work"),
        (concat!("unimplemented", "!("), "unfinished work"),
        (concat!("unbounded_", "channel"), "a channel without a bound"),
        (concat!("::unbounded", "("), "a channel without a bound"),
        (concat!("#[ign", "ore"), "a test that never runs"),
    ];
    let mut findings = Vec::new();
    for file in source_files() {
        let masked = mask(&file.text);
        for (number, line) in masked.lines().enumerate() {
            for (word, why) in banned {
                if line.contains(word) {
                    findings.push(format!("{}:{}: `{word}` is {why}", file.name, number + 1));
                }
            }
            // Sleeping hides a race; only the polling loop of the test support may do it.
            let test_file = file.name.starts_with("tests/") && !file.name.starts_with("tests/support/");
            if test_file && line.contains(concat!("sleep", "(")) {
                findings.push(format!(
                    "{}:{}: tests wait for conditions, not for time",
                    file.name,
                    number + 1
                ));
            }
        }
    }
    report(&findings);
}

#[test]
fn no_file_names_one_machine_or_a_package_registry() {
    let hosts = [
        concat!("crates", ".io/api"),
        concat!("index.crates", ".io"),
        concat!("static.crates", ".io"),
        concat!("pypi", ".org"),
        concat!("pythonhosted", ".org"),
        concat!("npmjs", ".org"),
        concat!("deb.debian", ".org"),
        concat!("proxy.golang", ".org"),
        concat!("docker", ".io/"),
        concat!("gcr", ".io/"),
        concat!("ghcr", ".io/"),
        concat!("quay", ".io/"),
    ];
    let machine = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/tmp/pe", "ers")];
    let mut findings = Vec::new();
    for path in all_files() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = relative(&path);
        if name == "Cargo.lock" {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for host in hosts.iter().filter(|host| line.contains(**host)) {
                findings.push(format!("{name}:{}: names the registry host {host}", number + 1));
            }
            for found in machine.iter().filter(|found| starts_path(line, found)) {
                findings.push(format!("{name}:{}: path of one machine, {found}", number + 1));
            }
        }
    }
    report(&findings);
}

#[test]
fn the_lock_file_knows_only_the_public_registry() {
    let mut findings = Vec::new();
    let lock = read(&root().join("Cargo.lock"));
    for (number, line) in lock.lines().enumerate() {
        let Some(source) = line.strip_prefix("source = ") else { continue };
        if !source.contains("github.com/rust-lang/crates.io-index") {
            findings.push(format!("Cargo.lock:{}: {source} is not the public registry", number + 1));
        }
    }
    report(&findings);
}

#[test]
fn the_architecture_page_is_short_and_explains_every_dependency() {
    let mut findings = Vec::new();
    let page = read(&root().join("ARCHITECTURE.md"));
    let length = page.lines().count();
    if length > ARCHITECTURE_LINES_MAX {
        findings.push(format!("ARCHITECTURE.md: {length} lines, at most {ARCHITECTURE_LINES_MAX}"));
    }
    let packages = packages();
    let used: BTreeSet<&str> = packages
        .iter()
        .flat_map(|package| package.dependencies.iter().map(|(name, _)| name.as_str()))
        .collect();
    for name in used.iter().filter(|name| !name.starts_with("adit")) {
        if !page.contains(&format!("`{name}`")) {
            findings.push(format!("ARCHITECTURE.md: does not say why `{name}` is a dependency"));
        }
    }
    for (number, name) in workspace_dependencies() {
        if !used.contains(name.as_str()) {
            findings.push(format!("Cargo.toml:{number}: `{name}` is declared and no crate uses it"));
        }
    }
    report(&findings);
}

#[test]
fn the_lexer_sees_through_comments_strings_and_nested_functions() {
    let text = r####"
fn a() {
    // fn not_a_function() {
    let s = "} fn neither() {"; /* } */

    let r = r#"raw " } "#;
    let c = '}';
    let l: &'static str = s;
}
#[cfg(test)]
mod tests {
    fn b() -> [u8; 2] { [0; 2] }
}
trait T { fn declared(&self); }
"####;
    let masked = mask(text);
    let found: Vec<(String, usize, usize)> =
        functions(&masked).into_iter().map(|f| (f.name, f.line, f.code_lines)).collect();
    assert_eq!(found, [("a".to_owned(), 2, 4), ("b".to_owned(), 12, 1)]);
    assert_eq!(test_lines(&masked), (10..=13).collect());
}

/// One workspace member as `cargo metadata` shows it.
struct Package {
    name: String,
    /// Path of Cargo.toml from the root of the workspace.
    manifest: String,
    /// Name and kind (`normal`, `dev`, `build`).
    dependencies: Vec<(String, String)>,
}

/// One Rust file that people write.
struct SourceFile {
    name: String,
    text: String,
}

/// A function with a body.
struct Function {
    name: String,
    line: usize,
    /// Lines of the body that hold more than white space, braces of the body excluded.
    code_lines: usize,
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo is what runs this test");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().expect("metadata lists packages");
    packages
        .iter()
        .map(|package| Package {
            name: text(&package["name"]),
            manifest: relative(Path::new(package["manifest_path"].as_str().unwrap_or_default())),
            dependencies: package["dependencies"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|dependency| {
                    let kind = dependency["kind"].as_str().unwrap_or("normal");
                    (text(&dependency["name"]), kind.to_owned())
                })
                .collect(),
        })
        .collect()
}

/// Line and name of each entry of `[workspace.dependencies]` that is not one of our own crates.
fn workspace_dependencies() -> Vec<(usize, String)> {
    let manifest = read(&root().join("Cargo.toml"));
    let mut inside = false;
    let mut found = Vec::new();
    for (number, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            inside = line == "[workspace.dependencies]";
        } else if let Some((name, _)) = line.split_once('=')
            && inside
            && !name.starts_with("adit")
            && !name.starts_with('#')
        {
            found.push((number + 1, name.trim().to_owned()));
        }
    }
    found
}

fn source_files() -> Vec<SourceFile> {
    all_files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| SourceFile { name: relative(&path), text: read(&path) })
        // What capnpc writes is nobody's style; a test of its own compares it with the schema.
        .filter(|file| !file.name.contains("/generated/"))
        .collect()
}

/// Every file of the tree, build output and version control excluded.
fn all_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project can be listed").flatten() {
            let name = entry.file_name();
            let skipped = ["target", ".git", "corpus", "__pycache__", "node_modules"];
            if skipped.iter().any(|skip| name == *skip) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// The same text with comments blanked and the inside of literals replaced, so that braces and words in it do not count.
fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut masked = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (end, filler) = token(bytes, at);
        match filler {
            None => masked.extend_from_slice(&bytes[at..end]),
            Some(filler) => {
                masked.extend(bytes[at..end].iter().map(|byte| if *byte == b'\n' { b'\n' } else { filler }));
            }
        }
        at = end;
    }
    String::from_utf8_lossy(&masked).into_owned()
}

/// End of the token that starts at `at`, and what to write instead of it (`None`: leave as it is).
fn token(bytes: &[u8], at: usize) -> (usize, Option<u8>) {
    let rest = &bytes[at..];
    let word_before = at > 0 && is_word(bytes[at - 1]);
    if rest.starts_with(b"//") {
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        return (at + length, Some(b' '));
    }
    if rest.starts_with(b"/*") {
        return (at + block_comment_length(rest), Some(b' '));
    }
    if rest[0] == b'"' {
        return (at + string_length(rest), Some(b's'));
    }
    if rest[0] == b'r'
        && !word_before
        && let Some(length) = raw_string_length(rest)
    {
        return (at + length, Some(b's'));
    }
    if rest[0] == b'\''
        && let Some(length) = char_length(rest)
    {
        return (at + length, Some(b's'));
    }
    (at + 1, None)
}

fn block_comment_length(rest: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at.min(rest.len())
}

fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string_length(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = 2 + hashes;
    let length = rest[body..].windows(close.len()).position(|window| window == close);
    Some(length.map_or(rest.len(), |length| body + length + close.len()))
}

/// Length of a character literal; `None` for a lifetime.
fn char_length(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        let close = rest[3.min(rest.len())..].iter().take(12).position(|byte| *byte == b'\'')?;
        return Some(3 + close + 1);
    }
    // One character of up to four bytes, then the closing quote at once.
    let close = rest[1..].iter().take(5).position(|byte| *byte == b'\'')?;
    let one_character = std::str::from_utf8(&rest[1..1 + close]).is_ok_and(|text| text.chars().count() == 1);
    one_character.then_some(close + 2)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Functions with a body, nested ones included, in order.
fn functions(masked: &str) -> Vec<Function> {
    let bytes = masked.as_bytes();
    let mut found = Vec::new();
    for (at, _) in masked.match_indices("fn ") {
        if at > 0 && is_word(bytes[at - 1]) {
            continue;
        }
        let name: String =
            masked[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue;
        }
        let Some(open) = body_start(bytes, at) else { continue };
        let body = &masked[open + 1..matching_brace(bytes, open)];
        found.push(Function {
            name,
            line: masked[..at].matches('\n').count() + 1,
            code_lines: body.lines().filter(|line| !line.trim().is_empty()).count(),
        });
    }
    found
}

/// The brace that opens the body of the function declared at `at`; `None` for a declaration without body.
fn body_start(bytes: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0i32;
    for (offset, byte) in bytes[at..].iter().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at + offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn matching_brace(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0i32;
    for (offset, byte) in bytes[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + offset;
        }
    }
    bytes.len()
}

/// Numbers of the lines that belong to `#[cfg(test)]` modules, attribute included.
fn test_lines(masked: &str) -> BTreeSet<usize> {
    let bytes = masked.as_bytes();
    let mut lines = BTreeSet::new();
    for (at, attribute) in masked.match_indices("#[cfg(test)]") {
        let rest = masked[at + attribute.len()..].trim_start();
        if !rest.starts_with("mod ") {
            continue;
        }
        let first = masked[..at].matches('\n').count() + 1;
        let end = body_start(bytes, at + attribute.len()).map_or(at, |open| matching_brace(bytes, open));
        lines.extend(first..=masked[..end].matches('\n').count() + 1);
    }
    lines
}

/// Whether `path` begins a path in `line`, rather than continuing one such as `/network/`.
fn starts_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !"/.}_-".contains(c))
    })
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("the binary's crate lies two folders below the root").to_owned()
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    let text = fs::read_to_string(path);
    assert!(text.is_ok(), "{}: {text:?}", relative(path));
    text.unwrap_or_default()
}

fn report(findings: &[String]) {
    assert!(findings.is_empty(), "{} finding(s):\n{}", findings.len(), findings.join("\n"));
}
