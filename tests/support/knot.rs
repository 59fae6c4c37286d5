//! Knot DNS from Debian as the name server of one zone, with dynamic updates signed by TSIG.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use super::process::Process;
use super::{TempFolder, find_program, free_tcp_port, wait_for};

/// A running name server of `dns.test`.
pub(crate) struct Knot {
    folder: TempFolder,
    address: SocketAddr,
    process: Process,
}

impl Knot {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let folder = TempFolder::new("knot");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()));
        let place = folder.path().display();
        let zone = "$TTL 60\n@ SOA ns.dns.test. admin.dns.test. 1 3600 600 86400 60\n@ NS ns.dns.test.\n\
             ns A 127.0.0.1\nwww A 127.0.0.1\n_acme-challenge.alias CNAME _acme-challenge.elsewhere\n";
        folder.write("dns.test.zone", zone);
        let configuration = folder.write(
            "knot.conf",
            format!(
                "server:\n    rundir: \"{place}\"\n    listen: 127.0.0.1@{}\ndatabase:\n    storage: \"{place}/db\"\n\
                 key:\n  - id: adit\n    algorithm: hmac-sha256\n    secret: {KEY}\nacl:\n  - id: update\n    key: adit\n    \
                 action: update\nzone:\n  - domain: dns.test\n    storage: \"{place}\"\n    file: dns.test.zone\n    \
                 zonefile-sync: -1\n    acl: update\nlog:\n  - target: stderr\n    any: info\n",
                address.port()
            ),
        );
        fs::create_dir(folder.path().join("db")).expect("a temporary folder takes a folder");
        let knot = find_program("knotd").expect("the caller required knotd");
        let mut process =
            Process::start("knotd", Command::new(knot).arg("-c").arg(configuration).stdin(Stdio::null()));
        wait_for("knotd to listen", || {
            let ended = process.ended();
            assert!(ended.is_none(), "knotd ended with {ended:?}:\n{}", process.output());
            TcpStream::connect(address).ok()
        });
        Self { folder, address, process }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the server says of itself.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// Whether a name in the zone has TXT records.
    pub(crate) fn has(&self, name: &str) -> bool {
        let control = find_program("knotc").expect("knotd comes with knotc");
        let output = Command::new(control)
            .arg("-c")
            .arg(self.folder.path().join("knot.conf"))
            .args(["zone-read", "dns.test", name, "TXT"])
            .output()
            .expect("knotc runs");
        let records = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(records.contains("TXT"), "the server does not tell: {records}");
        !records.contains("error")
    }
}

/// TSIG key named `adit`.
pub(crate) const KEY: &str = "c2l4dGVlbiBieXRlcyBrZXkgZm9yIHRlc3RzLi4uLi4=";
