//! WireGuard's configuration socket, so that `wg show` sees the mesh: the cross-platform protocol, `get` only.
//!
//! What the mesh is stands in its configuration file: `set` is refused (`EOPNOTSUPP`), which `wg set` shows as such.

use std::fmt::Write as _;
use std::fs::{DirBuilder, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_mesh_proto::{PresharedKey, PrivateKey, PublicKey};
use ipnet::IpNet;
use thiserror::Error;

/// The socket while it is open; dropping it removes it.
#[derive(Debug)]
pub struct Uapi {
    path: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the socket tells of the node.
#[derive(Debug, Clone)]
pub struct UapiDevice {
    /// Its key; `wg` derives the public one from it. The socket is for root alone.
    pub private_key: PrivateKey,
    /// Its UDP port.
    pub listen_port: u16,
    /// Mark on its datagrams; absent = none.
    pub fwmark: Option<u32>,
    /// Its peers.
    pub peers: Vec<UapiPeer>,
}

/// What the socket tells of a peer.
#[derive(Debug, Clone)]
pub struct UapiPeer {
    /// Its key.
    pub public_key: PublicKey,
    /// The secret shared with it; absent = none.
    pub preshared_key: Option<PresharedKey>,
    /// Where datagrams to it go; absent = not known yet.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake completed; absent = never.
    pub last_handshake: Option<SystemTime>,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Bytes received from it.
    pub received_bytes: u64,
    /// Configured keepalive; absent = off.
    pub keepalive: Option<Duration>,
    /// Its networks.
    pub allowed_ips: Vec<IpNet>,
}

/// Why the socket cannot be opened.
#[derive(Debug, Error)]
#[error("cannot open WireGuard's socket {path}")]
pub struct UapiError {
    /// Where.
    pub path: PathBuf,
    /// Why not; [`io::ErrorKind::AddrInUse`] if another process answers there.
    #[source]
    pub source: io::Error,
}

impl Uapi {
    /// Opens `/var/run/wireguard/<interface>.sock` and answers there with what `device` tells at the time.
    ///
    /// # Errors
    /// [`UapiError`]: no right to, or another process answers there.
    pub fn open(
        interface: &str,
        device: impl Fn() -> UapiDevice + Send + 'static,
    ) -> Result<Self, UapiError> {
        Self::open_in(Path::new(SOCKET_DIRECTORY), interface, device)
    }

    fn open_in(
        directory: &Path,
        interface: &str,
        device: impl Fn() -> UapiDevice + Send + 'static,
    ) -> Result<Self, UapiError> {
        let path = directory.join(format!("{interface}.sock"));
        let fail = |source| UapiError { path: path.clone(), source };
        let listener = bind(directory, &path).map_err(fail)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let thread = std::thread::Builder::new()
            .name("mesh-uapi".to_owned())
            .spawn(move || serve(&listener, &seen, &device))
            .map_err(fail)?;
        Ok(Self { path, stopped, thread: Some(thread) })
    }
}

impl Drop for Uapi {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // The thread waits in `accept`: a connection lets it see that it is over.
        let is_woken = UnixStream::connect(&self.path).is_ok();
        // One that somebody else removed or replaced is theirs; the thread ends with the process.
        if let Some(thread) = self.thread.take().filter(|_| is_woken) {
            let _ = thread.join();
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket for this user alone; a file that nobody answers behind is left from a process that died.
fn bind(directory: &Path, path: &Path) -> io::Result<UnixListener> {
    // The directory's mode keeps others out between binding and `set_permissions` below.
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// One client after the other: each has [`CLIENT_TIME_MAX`] between bytes and gets as many requests answered as it sends.
fn serve(listener: &UnixListener, stopped: &AtomicBool, device: &dyn Fn() -> UapiDevice) {
    while let Ok((client, _)) = listener.accept() {
        if stopped.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = answer(client, device) {
            tracing::debug!(%error, "client of WireGuard's socket");
        }
    }
}

fn answer(mut client: UnixStream, device: &dyn Fn() -> UapiDevice) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_TIME_MAX))?;
    client.set_write_timeout(Some(CLIENT_TIME_MAX))?;
    let mut asked = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        // A request ends in an empty line.
        while let Some(end) = asked.windows(2).position(|two| two == b"\n\n") {
            let request: Vec<u8> = asked.drain(..end + 2).collect();
            let answered = match request.as_slice() {
                b"get=1\n\n" => Ok(get(&device())),
                request if request.starts_with(b"set=1\n") => Err(EOPNOTSUPP),
                _ => Err(EINVAL),
            };
            match answered {
                Ok(text) => client.write_all(format!("{text}errno=0\n\n").as_bytes())?,
                Err(errno) => client.write_all(format!("errno=-{errno}\n\n").as_bytes())?,
            }
        }
        if asked.len() > REQUEST_BYTES_MAX {
            return client.write_all(format!("errno=-{EOPNOTSUPP}\n\n").as_bytes());
        }
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            length => asked.extend_from_slice(&buffer[..length]),
        }
    }
}

fn get(device: &UapiDevice) -> String {
    let mut text = String::new();
    // Writing into a `String` cannot fail.
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{key}={value}");
    };
    line("private_key", &Hex(device.private_key.to_bytes()));
    line("listen_port", &device.listen_port);
    if let Some(mark) = device.fwmark {
        line("fwmark", &mark);
    }
    for peer in &device.peers {
        line("public_key", &Hex(peer.public_key.0));
        if let Some(key) = &peer.preshared_key {
            line("preshared_key", &Hex(key.to_bytes()));
        }
        line("protocol_version", &1);
        if let Some(endpoint) = peer.endpoint {
            line("endpoint", &endpoint);
        }
        let since = peer.last_handshake.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let since = since.unwrap_or_default();
        line("last_handshake_time_sec", &since.as_secs());
        line("last_handshake_time_nsec", &since.subsec_nanos());
        line("tx_bytes", &peer.sent_bytes);
        line("rx_bytes", &peer.received_bytes);
        line("persistent_keepalive_interval", &peer.keepalive.unwrap_or_default().as_secs());
        for net in &peer.allowed_ips {
            line("allowed_ip", net);
        }
    }
    text
}

/// Keys are in hexadecimal here, and nowhere else.
struct Hex([u8; 32]);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where `wg` looks.
const SOCKET_DIRECTORY: &str = "/var/run/wireguard";
/// `get=1` has seven bytes; a longer one is a `set`, which is refused whatever it says.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// A client that stops in the middle keeps the next one waiting for so long.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(2);
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> UapiDevice {
        UapiDevice {
            private_key: PrivateKey::new([7; 32]),
            listen_port: 51820,
            fwmark: None,
            peers: vec![UapiPeer {
                public_key: PublicKey([9; 32]),
                preshared_key: None,
                endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
                last_handshake: UNIX_EPOCH.checked_add(Duration::new(5, 6)),
                sent_bytes: 10,
                received_bytes: 20,
                keepalive: Some(Duration::from_secs(25)),
                allowed_ips: vec!["10.9.0.2/32".parse().unwrap(), "fd00::/64".parse().unwrap()],
            }],
        }
    }

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("adit-uapi-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        directory
    }

    fn ask(path: &Path, request: &str) -> String {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn get_tells_everything_and_set_is_refused_by_name() {
        let directory = directory("get");
        let uapi = Uapi::open_in(&directory, "t0", device).unwrap();
        let path = uapi.path.clone();
        let (private, public) = ("07".repeat(32), "09".repeat(32));
        assert_eq!(
            ask(&path, "get=1\n\n"),
            format!(
                "private_key={private}\nlisten_port=51820\npublic_key={public}\nprotocol_version=1\n\
                 endpoint=[2001:db8::1]:51820\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\ntx_bytes=10\n\
                 rx_bytes=20\npersistent_keepalive_interval=25\nallowed_ip=10.9.0.2/32\nallowed_ip=fd00::/64\n\
                 errno=0\n\n"
            )
        );
        assert_eq!(ask(&path, "set=1\nreplace_peers=true\n\n"), "errno=-95\n\n");
        assert_eq!(ask(&path, "hello\n\n"), "errno=-22\n\n");
        assert!(ask(&path, "get=1\n\nget=1\n\n").matches("errno=0").count() == 2);
        assert_eq!(ask(&path, &format!("set=1\n{}", "a".repeat(REQUEST_BYTES_MAX))), "errno=-95\n\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(uapi);
        assert!(!path.exists());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_socket_that_a_dead_process_left_is_replaced_and_a_live_one_is_not() {
        let directory = directory("left");
        std::fs::create_dir_all(&directory).unwrap();
        drop(UnixListener::bind(directory.join("t0.sock")).unwrap());
        let uapi = Uapi::open_in(&directory, "t0", device).unwrap();
        let error = Uapi::open_in(&directory, "t0", device).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        drop(uapi);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
