//! What is installed beside the binary: systemd units that systemd accepts and that give little away, a container file and
//! Kubernetes manifests that keep the promises of their comments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

mod support;

/// Worst exposure that `systemd-analyze security` may report, in its tenths (2.0 on its scale of 0 to 10).
const EXPOSURE_TENTHS_MAX: &str = "20";

const UNITS: [&str; 2] = ["adit.service", "adit-tunnel.service"];

#[test]
fn systemd_accepts_the_units() {
    if !support::require("systemd-analyze") {
        return;
    }
    for name in UNITS {
        let unit = InstalledUnit::new(name);
        let output = analyze(&["verify", unit.path()]);
        let said = said(&output);
        assert!(output.status.success() && said.is_empty(), "{name}: {said}");
    }
}

#[test]
fn systemd_finds_little_exposed() {
    if !support::require("systemd-analyze") {
        return;
    }
    for name in UNITS {
        let unit = InstalledUnit::new(name);
        let threshold = format!("--threshold={EXPOSURE_TENTHS_MAX}");
        let output = analyze(&["security", "--offline=true", "--no-pager", &threshold, unit.path()]);
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
}

#[test]
fn systemd_accepts_what_the_mesh_needs_in_addition() {
    if !support::require("systemd-analyze") {
        return;
    }
    let unit = InstalledUnit::new("adit.service");
    let folder = unit.path.with_extension("service.d");
    fs::create_dir_all(&folder).expect("a temporary folder takes a folder");
    fs::write(folder.join("mesh.conf"), project_file("systemd/mesh.conf")).expect("a folder takes a file");
    let said = said(&analyze(&["verify", unit.path()]));
    assert!(said.is_empty(), "{said}");
}

#[test]
fn units_reload_and_stop_as_the_daemon_expects() {
    let unit = project_file("systemd/adit.service");
    for line in [
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
        // Longer than the longest grace period of three minutes.
        "TimeoutStopSec=200",
        "RestartPreventExitStatus=64 78",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
    ] {
        assert!(unit.lines().any(|found| found == line), "adit.service lacks {line}");
    }
    let connector = project_file("systemd/adit-tunnel.service");
    assert!(
        connector.lines().any(|line| line == "CapabilityBoundingSet="),
        "the connector needs no capability"
    );
    assert!(!connector.contains("--token "), "a token on a command line is readable by every user");
}

#[test]
fn the_image_is_empty_but_for_the_binary_and_runs_as_nobody() {
    let file = project_file("deploy/Containerfile");
    let last_stage = file.rsplit("\nFROM ").next().unwrap_or_default();
    assert!(last_stage.starts_with("scratch\n"), "the last stage starts from nothing");
    assert!(
        last_stage.contains("\nUSER 65532:65532\n"),
        "not root, by number so that runAsNonRoot can check it"
    );
    assert!(!last_stage.contains("\nRUN "), "there is no shell to run anything with");
}

#[test]
fn manifests_ask_for_no_privilege() {
    for name in ["connector.yaml", "sidecar.yaml"] {
        let manifest = project_file(&format!("deploy/kubernetes/{name}"));
        for line in [
            "runAsNonRoot: true",
            "readOnlyRootFilesystem: true",
            "allowPrivilegeEscalation: false",
            "capabilities: { drop: [ALL] }",
            "automountServiceAccountToken: false",
            "httpGet: { path: /ready, port: admin }",
        ] {
            assert!(manifest.contains(line), "{name} lacks {line}");
        }
        assert!(
            !manifest.contains("TUNNEL_TOKEN"),
            "{name}: the token comes from a file, not from the environment"
        );
    }
}

/// A unit as it would be installed, with the binary under test in place of /usr/bin/adit: verify checks that it exists.
struct InstalledUnit {
    path: PathBuf,
    _folder: support::TempFolder,
}

impl InstalledUnit {
    fn new(name: &str) -> Self {
        let folder = support::TempFolder::new("unit");
        let path = folder.path().join(name);
        let text =
            project_file(&format!("systemd/{name}")).replace("/usr/bin/adit", env!("CARGO_BIN_EXE_adit"));
        fs::write(&path, text).expect("a temporary folder takes a file");
        Self { path, _folder: folder }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("temporary folders have plain names")
    }
}

fn analyze(arguments: &[&str]) -> Output {
    Command::new("systemd-analyze").args(arguments).output().expect("systemd-analyze was found just now")
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).into_owned()
}

fn project_file(name: &str) -> String {
    let path = support::project_root().join(name);
    let text = fs::read_to_string(Path::new(&path));
    assert!(text.is_ok(), "{name}: {text:?}");
    text.unwrap_or_default()
}
