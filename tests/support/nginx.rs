//! nginx from Debian as the origin: an HTTP server that nobody here wrote.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use super::process::Process;
use super::{TempFolder, find_program, free_tcp_port, wait_for};

/// A running nginx with one server on 127.0.0.1.
pub(crate) struct Nginx {
    address: SocketAddr,
    folder: TempFolder,
    process: Process,
}

impl Nginx {
    /// Starts nginx with `server` as the inside of its `server` block; `listen` and `root` (the folder) are given.
    #[track_caller]
    pub(crate) fn start(server: &str) -> Self {
        let folder = TempFolder::new("nginx");
        let port = free_tcp_port();
        let place = folder.path().display();
        let configuration = format!(
            "daemon off; master_process off; worker_processes 1; pid {place}/pid; error_log {place}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n  access_log off; default_type text/plain; client_max_body_size 0; server_tokens off;\n\
             client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;\n\
             uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; root {place}/files;\n{server}\n}} }}\n"
        );
        std::fs::create_dir(folder.path().join("files")).expect("a temporary folder takes a folder");
        let configuration = folder.write("nginx.conf", configuration);
        let nginx = find_program("nginx").expect("the caller required nginx");
        let mut command = Command::new(nginx);
        command
            .args(["-e", &format!("{place}/error.log"), "-p", &format!("{place}"), "-c"])
            .arg(configuration);
        let mut process = Process::start("nginx", command.stdin(Stdio::null()));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_for("nginx to listen", || {
            let ended = process.ended();
            assert!(ended.is_none(), "nginx ended with {ended:?}:\n{}", process.output());
            TcpStream::connect(address).ok()
        });
        Self { address, folder, process }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The server's own folder; what it serves lies below `files`.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Puts a file where the server serves it.
    pub(crate) fn serve_file(&self, name: &str, content: impl AsRef<[u8]>) {
        self.folder.write(&format!("files/{name}"), content);
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }
}
