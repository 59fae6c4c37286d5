//! pebble from Debian as the CA, with names from its own DNS server or from a real one: an ACME server that nobody here wrote.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::certificates::Certificates;
use super::process::Process;
use super::{TempFolder, free_tcp_port, wait_for};

/// How a CA is to be.
pub(crate) struct PebbleOptions {
    /// Life of certificates.
    pub(crate) seconds: u64,
    /// Whether challenges are looked at, or believed.
    pub(crate) looks: bool,
    /// The DNS server to ask; absent = one that says 127.0.0.1 to everything.
    pub(crate) dns: Option<SocketAddr>,
    /// Whether accounts need a key given beforehand: `kid-1` with [`EXTERNAL_KEY`].
    pub(crate) external_accounts: bool,
}

/// A running CA.
pub(crate) struct Pebble {
    folder: TempFolder,
    certificates: Certificates,
    address: SocketAddr,
    management: SocketAddr,
    /// Where it looks for http-01.
    pub(crate) http_port: u16,
    /// Where it looks for tls-alpn-01.
    pub(crate) tls_port: u16,
    process: Process,
    _dns: Option<Process>,
}

impl Default for PebbleOptions {
    fn default() -> Self {
        Self { seconds: 90 * 24 * 3600, looks: true, dns: None, external_accounts: false }
    }
}

impl Pebble {
    #[track_caller]
    pub(crate) fn start(options: &PebbleOptions) -> Self {
        let folder = TempFolder::new("pebble");
        let certificates = Certificates::for_names(&["127.0.0.1", "localhost"]);
        let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (address, management) = (local(free_tcp_port()), local(free_tcp_port()));
        let (http_port, tls_port) = (free_tcp_port(), free_tcp_port());
        let keys = match options.external_accounts {
            true => format!(", \"externalAccountMACKeys\": {{ \"kid-1\": \"{EXTERNAL_KEY}\" }}"),
            false => String::new(),
        };
        let configuration = format!(
            "{{ \"pebble\": {{ \"listenAddress\": \"{address}\", \"managementListenAddress\": \"{management}\", \
             \"certificate\": \"{}\", \"privateKey\": \"{}\", \"httpPort\": {http_port}, \"tlsPort\": {tls_port}, \
             \"ocspResponderURL\": \"\", \"externalAccountBindingRequired\": {}, \
             \"certificateValidityPeriod\": {seconds}, \"profiles\": {{ \"default\": {{ \
             \"description\": \"newer versions read this\", \"validityPeriod\": {seconds} }} }}{keys} }} }}",
            certificates.certificate().display(),
            certificates.key().display(),
            options.external_accounts,
            seconds = options.seconds,
        );
        let configuration = folder.write("pebble.json", configuration);
        let (dns, names) = match options.dns {
            Some(address) => (None, address),
            None => start_names(),
        };
        let mut command = Command::new("pebble");
        command.arg("-config").arg(configuration).args(["-dnsserver", &names.to_string(), "-strict"]);
        command
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "10")
            .env("PEBBLE_AUTHZREUSE", "0");
        command.env("PEBBLE_ALTERNATE_ROOTS", "1");
        if !options.looks {
            command.env("PEBBLE_VA_ALWAYS_VALID", "1");
        }
        let mut process = Process::start("pebble", command.stdin(Stdio::null()));
        wait_for("pebble to listen", || {
            let ended = process.ended();
            assert!(ended.is_none(), "pebble ended with {ended:?}:\n{}", process.output());
            TcpStream::connect(address).and(TcpStream::connect(management)).ok()
        });
        Self { folder, certificates, address, management, http_port, tls_port, process, _dns: dns }
    }

    /// What a resolver's `acme` section needs to find this CA.
    pub(crate) fn resolver(&self) -> String {
        format!(
            "caServer: \"https://{}/dir\", caCertificates: [ {} ]",
            self.address,
            self.certificates.authority().display()
        )
    }

    /// A file with a root that issued certificates lead to: 0 by the first chain, 1 by the second.
    pub(crate) fn root(&self, number: usize) -> PathBuf {
        let path = self.folder.path().join(format!("root-{number}.pem"));
        let root = self.ask(&format!("https://{}/roots/{number}", self.management), &[]);
        std::fs::write(&path, root).expect("a temporary folder takes a file");
        path
    }

    /// Whether this version can say when a certificate is to be renewed (RFC 9773).
    pub(crate) fn has_renewal_information(&self) -> bool {
        self.ask(&format!("https://{}/dir", self.address), &[]).contains("renewalInfo")
    }

    /// Makes it say so of a certificate.
    pub(crate) fn set_renewal_information(&self, certificate_pem: &str, answer: &str) {
        let command =
            serde_json::json!({ "Certificate": certificate_pem, "ARIResponse": answer }).to_string();
        self.ask(&format!("https://{}/set-renewal-info/", self.management), &["--data-binary", &command]);
    }

    fn ask(&self, url: &str, arguments: &[&str]) -> String {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert"])
            .arg(self.certificates.authority())
            .args(arguments)
            .arg(url)
            .output()
            .expect("the caller required curl");
        assert!(output.status.success(), "{url}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How many certificates were issued.
    pub(crate) fn issued(&self) -> usize {
        self.process.output().matches("Issued certificate serial").count()
    }
}

/// pebble's own DNS server; it listens on UDP and TCP of one port, and answers as soon as it listens.
fn start_names() -> (Option<Process>, SocketAddr) {
    let (port, management) = (free_tcp_port(), free_tcp_port());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut command = Command::new("pebble-challtestsrv");
    command.args([
        "-defaultIPv6",
        "",
        "-defaultIPv4",
        "127.0.0.1",
        "-http01",
        "",
        "-https01",
        "",
        "-tlsalpn01",
        "",
    ]);
    command.args(["-dns01", &address.to_string(), "-management", &format!("127.0.0.1:{management}")]);
    let process = Process::start("names", command.stdin(Stdio::null()));
    wait_for("pebble's names", || TcpStream::connect(address).ok());
    (Some(process), address)
}

/// HMAC key for accounts.
pub(crate) const EXTERNAL_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
