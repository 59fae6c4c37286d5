//! haproxy from Debian as the origin: another HTTP parser that nobody here wrote.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use super::process::Process;
use super::{TempFolder, find_program, free_tcp_port, wait_for};

/// A running haproxy with one frontend on 127.0.0.1.
pub(crate) struct Haproxy {
    address: SocketAddr,
    _folder: TempFolder,
    _process: Process,
}

impl Haproxy {
    /// Starts haproxy with `rules` as the inside of its frontend.
    #[track_caller]
    pub(crate) fn start(rules: &str) -> Self {
        let folder = TempFolder::new("haproxy");
        let port = free_tcp_port();
        let configuration = format!(
            "global\n  maxconn 1000\ndefaults\n  mode http\n  timeout client 30s\n  timeout connect 5s\n  \
             timeout server 30s\nfrontend f\n  bind 127.0.0.1:{port}\n  {rules}\n"
        );
        let configuration = folder.write("haproxy.cfg", configuration);
        let haproxy = find_program("haproxy").expect("the caller required haproxy");
        let mut command = Command::new(haproxy);
        command.args(["-db", "-f"]).arg(configuration);
        let mut process = Process::start("haproxy", command.stdin(Stdio::null()));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_for("haproxy to listen", || {
            let ended = process.ended();
            assert!(ended.is_none(), "haproxy ended with {ended:?}:\n{}", process.output());
            TcpStream::connect(address).ok()
        });
        Self { address, _folder: folder, _process: process }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
