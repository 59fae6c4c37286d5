//! Chromium as the visitor: HTTP/3 at once where it is told so, and by `Alt-Svc` where it is not.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::ingress::Ingress;
use crate::support::adit::Adit;
use crate::support::certificates::Certificates;
use crate::support::nginx::Nginx;
use crate::support::origin::Origin;
use crate::support::process::Process;
use crate::support::{TempFolder, require};

/// Says over which protocol it came, sends 5 MB, asks again until HTTP/3 answers, and writes what it saw into itself. Its
/// requests are synchronous, so that all of it is done when the page has loaded.
const PAGE: &str = r#"<!doctype html><title>t</title><body><script>
const ask = (method, path, content) => {
  const request = new XMLHttpRequest();
  request.open(method, path, false);
  request.send(content);
  return request;
};
const content = new Uint8Array(5000000).map((_, index) => index % 251);
const upload = ask('POST', '/upload', new Blob([content]));
const navigation = performance.getEntriesByType('navigation')[0].nextHopProtocol;
let later = navigation;
for (let count = 0; count < 60 && later !== 'h3'; count++) {
  const path = '/again?' + count;
  ask('GET', path);
  const entries = performance.getEntriesByName(new URL(path, location).href);
  later = entries.length ? entries[0].nextHopProtocol : later;
}
document.body.textContent = JSON.stringify(
  { navigation, later, status: upload.status, upload: upload.responseText, secure: isSecureContext });
</script>"#;

/// adit with HTTP/3 before an nginx that serves the page.
struct Site {
    adit: Adit,
    certificates: Certificates,
    _nginx: Nginx,
    _origin: Origin,
}

impl Site {
    fn start() -> Self {
        let certificates = Certificates::for_names(&["localhost"]);
        let origin = Origin::start();
        let nginx = Nginx::start(&format!(
            "location = / {{ default_type text/html; try_files /page.html =404; }}\nlocation /again {{ return 200 ok; }}\n\
             location /upload {{ proxy_pass {}; proxy_request_buffering off; proxy_http_version 1.1; }}",
            origin.url()
        ));
        nginx.serve_file("page.html", PAGE);
        let ingress = Ingress::to(&nginx.url()).with_tls(&certificates).with("http3: {}");
        Self { adit: ingress.start(), certificates, _nginx: nginx, _origin: origin }
    }

    /// What the page saw in a fresh profile.
    fn visit(&self, arguments: &[String]) -> Value {
        let port = self.adit.entry_point("web").port();
        let profile = TempFolder::new("chromium");
        let mut command = Command::new("chromium");
        command
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-dev-shm-usage",
            ])
            .args(["--enable-quic", "--dump-dom", "--host-resolver-rules=MAP localhost 127.0.0.1"])
            .arg(format!("--ignore-certificate-errors-spki-list={}", self.pin()))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(arguments)
            .arg(format!("https://localhost:{port}/"));
        let mut browser = Process::start("chromium", command.stdin(Stdio::null()));
        browser.wait();
        let output = browser.output();
        let report = output.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
        let report = report.and_then(|(inside, _)| serde_json::from_str(&format!("{{{inside}}}")).ok());
        assert!(report.is_some(), "{output}");
        // Its own processes may still write there for a moment.
        crate::support::pause(Duration::from_millis(200));
        report.expect("asserted just now")
    }

    /// SHA-256 of the certificate's public key, by which the browser is told to trust it.
    fn pin(&self) -> String {
        let certificate = self.certificates.certificate().display().to_string();
        let script = format!(
            "openssl x509 -in {certificate} -pubkey -noout | openssl pkey -pubin -outform der | \
             openssl dgst -sha256 -binary | openssl base64"
        );
        let output = Command::new("sh").args(["-c", &script]).output().expect("sh starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

#[test]
fn slow_chromium_loads_a_page_and_uploads_over_http3() {
    if !require("chromium") || !require("nginx") || !require("openssl") {
        return;
    }
    let site = Site::start();
    let port = site.adit.entry_point("web").port();
    let seen = site.visit(&[format!("--origin-to-force-quic-on=localhost:{port}")]);
    assert_eq!(seen["navigation"], "h3", "{seen}");
    assert_eq!(seen["status"], 200, "{seen}");
    assert!(seen["upload"].as_str().is_some_and(|text| text.starts_with("bytes=5000000 ")), "{seen}");
    assert!(seen["upload"].as_str().is_some_and(|text| text.contains("intact=true")), "{seen}");
}

#[test]
fn slow_chromium_comes_over_http2_and_is_led_to_http3() {
    if !require("chromium") || !require("nginx") || !require("openssl") {
        return;
    }
    // Of a host that is forced to QUIC on any port, the browser takes an authority that it does not know; the port is not ours.
    let seen = Site::start().visit(&["--origin-to-force-quic-on=localhost:1".to_owned()]);
    assert_eq!(seen["navigation"], "h2", "{seen}");
    assert_eq!(seen["later"], "h3", "{seen}");
    assert_eq!(seen["status"], 200, "{seen}");
}
