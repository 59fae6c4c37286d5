//! The cases about TLS, transport and reload: what they ask for is more than one request and one answer, so that each has
//! its own few lines; its configuration is the file's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::case::Case;
use crate::peers;
use crate::servers::Servers;
use crate::support::adit::Adit;
use crate::support::certificates::Certificates;
use crate::support::curl::curl;
use crate::support::{PATIENCE, TempFolder, free_tcp_port, pause, wait_for};

/// One case, its servers, and certificates for what lies under `/certs/`.
pub(crate) struct Transport<'a> {
    case: &'a Value,
    servers: &'a Servers,
}

/// Runs a case by its id; `None` if it is about Kubernetes, which has no configuration file.
pub(crate) fn run(case: &Value, servers: &Servers) -> Option<Result<(), String>> {
    if case["config"]["kubernetes"].is_array() {
        return None;
    }
    let transport = Transport { case, servers };
    Some(match case["id"].as_str().unwrap_or_default() {
        id if id.starts_with("tls-") => transport.tls(id),
        id if id.starts_with("entrypoint-") => transport.entry_point(id),
        id if id.starts_with("tcp-") && id != "tcp-before-http-on-same-port" => transport.tcp(id),
        "udp-one-router" => transport.udp(),
        "websocket-header-case" => transport.websocket(),
        "websocket-survives-reload" => transport.websocket_survives_reload(),
        "sse-flushed-at-once" => transport.event_at_once(),
        "h2c-client-on-plain-port" => transport.h2c(),
        "client-cancel-499" => transport.cancel(),
        "sticky-cookie-default-name" => transport.sticky_name(),
        "sticky-cookie-obeyed" => transport.sticky_obeyed(),
        "healthcheck-down-removed" => transport.health(),
        "mirror-copy-sent" => transport.mirror(),
        "p2c-picks-less-loaded" => transport.less_loaded(),
        "reload-bad-file-in-directory" => transport.bad_file(),
        "sse-not-compressed-when-excluded"
        | "upstream-response-header-timeout"
        | "tcp-before-http-on-same-port" => Case::new(case).run(servers),
        id => Err(format!("nobody knows how to run {id}")),
    })
}

impl Transport<'_> {
    /// The dynamic file with real addresses and files in place of names.
    fn dynamic(&self, replace: &[(&str, &str)]) -> String {
        let text = replace
            .iter()
            .fold(self.case["config"].to_string(), |text, (name, real)| text.replace(name, real));
        self.servers.fill_in(&text)
    }

    /// `adit run` with this file and an entry point `web`, or those given.
    fn start(&self, dynamic: &str, entry_points: Option<Value>, more: &Value) -> Adit {
        let folder = TempFolder::new("transport");
        folder.write("dynamic.yml", dynamic);
        let mut configuration = json!({
            "entryPoints": entry_points.unwrap_or_else(|| json!({ "web": { "address": "127.0.0.1:0" } })),
            "providers": { "file": { "filename": "dynamic.yml" } },
            "admin": { "address": "127.0.0.1:0" },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            configuration[key] = value.clone();
        }
        Adit::start_in(folder, "transport", &configuration.to_string())
    }

    fn plain(&self, replace: &[(&str, &str)]) -> Adit {
        self.start(&self.dynamic(replace), None, &Value::Null)
    }

    fn tls(&self, id: &str) -> Result<(), String> {
        let [app, wildcard] =
            ["app.example.com", "*.example.com"].map(|name| (name, Certificates::for_names(&[name])));
        let path = |path: std::path::PathBuf| path.display().to_string();
        let adit = self.plain(&[
            ("/certs/app.example.com.crt", &path(app.1.certificate())),
            ("/certs/app.example.com.key", &path(app.1.key())),
            ("/certs/_.example.com.crt", &path(wildcard.1.certificate())),
            ("/certs/_.example.com.key", &path(wildcard.1.key())),
            ("/certs/ca.pem", &path(app.1.authority())),
        ]);
        let (request, expected) = (&self.case["request"], &self.case["expected"]);
        let web = adit.entry_point("web");
        let name = request["sni"].as_str().unwrap_or("example.com");
        let host = format!("Host: {}", request["host"].as_str().unwrap_or(name));
        let seen = curl(web, &format!("https://{name}/"), &["--insecure", "-H", &host]);
        let refused = expected["handshake"] == "refused" || id == "tls-options-unknown-name";
        check("exit of curl", refused, seen.exit != Some(0))?;
        if id == "tls-options-unknown-name" {
            let problems = adit.status()["problems"].to_string();
            check("the problem is named", true, problems.contains("nope"))?;
        }
        if let Some(status) = expected["status"].as_u64() {
            check("status", status, u64::from(seen.status))?;
        }
        if let Some(backend) = expected["backend"].as_str() {
            check("backend", true, seen.headers.to_lowercase().contains(&format!("x-backend: {backend}")))?;
        }
        if expected["alpn"] == "h2" {
            check("version", "2", seen.version.as_str())?;
        }
        if let Some(san) = expected["certificate_san"].as_str() {
            let shown = certificate(web, name);
            // Ours has a name of its own, as the case's note asks for.
            let wanted = san.replace("TRAEFIK", "ADIT");
            check(&format!("{wanted} in {shown}"), true, shown.contains(&wanted))?;
        }
        Ok(())
    }

    fn entry_point(&self, id: &str) -> Result<(), String> {
        let text = self.case["static"]["entryPoints"].to_string();
        let port = free_tcp_port();
        let text =
            text.replace("\":80\"", "\"127.0.0.1:0\"").replace("\":443\"", &format!("\"127.0.0.1:{port}\""));
        let entry_points = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let adit = self.start(&self.dynamic(&[]), Some(entry_points), &Value::Null);
        match id {
            "entrypoint-redirect" => {
                let seen = curl(adit.entry_point("web"), "http://example.com:80/p?q=1", &[]);
                check("status", 301, seen.status)?;
                let wanted = format!("Location: https://example.com:{port}/p?q=1");
                check(&seen.headers, true, seen.headers.contains(&wanted))
            }
            "entrypoint-default-tls" => {
                let seen = curl(adit.entry_point("websecure"), "https://example.com/", &["--insecure"]);
                check("status", 200, seen.status)
            }
            "entrypoint-middleware-prepended" => {
                self.servers.forget();
                curl(adit.entry_point("web"), "http://example.com/x", &[]);
                check("target", Some("/2/1/x".to_owned()), self.servers.seen("").map(|seen| seen.target))
            }
            id => Err(format!("nobody knows how to run {id}")),
        }
    }

    fn tcp(&self, id: &str) -> Result<(), String> {
        let (postgres, heard) = peers::postgres();
        let [first, second] = match id {
            "tcp-postgres-starttls" => [postgres, peers::banner("u")],
            _ => [peers::banner("t"), peers::banner("u")],
        };
        let adit =
            self.plain(&[("127.0.0.1:9001", &first.to_string()), ("127.0.0.1:9002", &second.to_string())]);
        let web = adit.entry_point("web");
        match id {
            "tcp-clientip" => {
                let mut stream = TcpStream::connect(web).map_err(|error| error.to_string())?;
                let mut banner = [0; 2];
                stream.read_exact(&mut banner).map_err(|error| error.to_string())?;
                check("banner", b"u\n", &banner)
            }
            "tcp-star-catches-other-sni" => {
                let seen = s_client(web, &["-servername", "zzz.test", "-quiet"]);
                check("banner", "u", seen.trim())
            }
            "tcp-postgres-starttls" => {
                s_client(web, &["-servername", "db.test", "-starttls", "postgres"]);
                let name = b"db.test";
                wait_for("the ClientHello to come through", || {
                    let heard = heard.lock().expect("no one panics");
                    heard.windows(name.len()).any(|window| window == name).then_some(())
                });
                Ok(())
            }
            id => Err(format!("nobody knows how to run {id}")),
        }
    }

    fn udp(&self) -> Result<(), String> {
        let server = peers::udp("t:").to_string();
        let dns = json!({ "dns": { "address": "127.0.0.1:0/udp" } });
        let adit = self.start(&self.dynamic(&[("127.0.0.1:9053", &server)]), Some(dns), &Value::Null);
        let visitor = UdpSocket::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        visitor.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        visitor.send_to(b"query", adit.entry_point("dns")).map_err(|error| error.to_string())?;
        let mut buffer = [0; 64];
        let length = visitor.recv(&mut buffer).map_err(|error| error.to_string())?;
        check("answer", &b"t:query"[..], &buffer[..length])
    }

    fn websocket(&self) -> Result<(), String> {
        let adit = self.plain(&[("echo-a.test", &peers::upgrader("a").to_string())]);
        let mut visitor = Upgraded::open(adit.entry_point("web"))?;
        check("who took it", "a", visitor.read(1)?.as_str())
    }

    fn websocket_survives_reload(&self) -> Result<(), String> {
        let [old, new] = ["o", "n"].map(|name| peers::upgrader(name).to_string());
        let adit = self.plain(&[("echo-a.test", &old)]);
        let web = adit.entry_point("web");
        let mut early = Upgraded::open(web)?;
        check("who took it", "o", early.read(1)?.as_str())?;
        adit.folder().write("dynamic.yml", self.dynamic(&[("echo-a.test", &new)]));
        wait_for("new connections to use the new server", || {
            let name = Upgraded::open(web).and_then(|mut late| late.read(1)).ok()?;
            (name == "n").then_some(())
        });
        early.0.write_all(b"still here").map_err(|error| error.to_string())?;
        check("what comes back", "still here", early.read(10)?.as_str())
    }

    fn event_at_once(&self) -> Result<(), String> {
        let adit = self.plain(&[("echo-a.test", &peers::one_event().to_string())]);
        let mut stream = TcpStream::connect(adit.entry_point("web")).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let request = b"GET / HTTP/1.1\r\nHost: a.test\r\nAccept: text/event-stream\r\n\r\n";
        stream.write_all(request).map_err(|error| error.to_string())?;
        let mut seen = Vec::new();
        // The server sends nothing more: what was held back would never come.
        while !String::from_utf8_lossy(&seen).contains("data: first") {
            let mut buffer = [0; 1024];
            match stream.read(&mut buffer) {
                Ok(length @ 1..) => seen.extend(&buffer[..length]),
                other => return Err(format!("{other:?} after {}", String::from_utf8_lossy(&seen))),
            }
        }
        Ok(())
    }

    fn h2c(&self) -> Result<(), String> {
        let adit = self.plain(&[]);
        let seen = curl(adit.entry_point("web"), "http://a.test/", &["--http2-prior-knowledge"]);
        check("status and version", (200, "2"), (seen.status, seen.version.as_str()))
    }

    fn cancel(&self) -> Result<(), String> {
        let log = json!({ "accessLog": { "filePath": "access.log", "format": "json" } });
        let adit = self.start(&self.dynamic(&[]), None, &log);
        let mut stream = TcpStream::connect(adit.entry_point("web")).map_err(|error| error.to_string())?;
        let request = b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Echo-Delay-Ms: 3000\r\n\r\n";
        stream.write_all(request).map_err(|error| error.to_string())?;
        wait_for("the request to be in flight", || {
            (adit.metric("adit_requests_in_flight ") == 1.0).then_some(())
        });
        drop(stream);
        let line = wait_for("a line in the access log", || {
            let log = std::fs::read_to_string(adit.folder().path().join("access.log")).ok()?;
            serde_json::from_str::<Value>(log.lines().next()?).ok()
        });
        check("status in the log", Some(499), line["DownstreamStatus"].as_u64())
    }

    fn sticky_name(&self) -> Result<(), String> {
        // Nobody is there; the cookie is set all the same, and its value comes from the address alone.
        let mut config = self.case["config"].clone();
        config["http"]["serversTransports"] =
            json!({ "t": { "forwardingTimeouts": { "dialTimeout": "200ms" } } });
        let balancer = &mut config["http"]["services"]["e"]["loadBalancer"];
        balancer["serversTransport"] = json!("t");
        balancer["servers"] = json!([{ "url": "http://10.0.0.1:80" }]);
        let adit = self.start(&config.to_string(), None, &Value::Null);
        let seen = curl(adit.entry_point("web"), "http://a.test/", &[]);
        let wanted = self.case["expected"]["response_headers"]["Set-Cookie"].as_str().unwrap_or_default();
        check(&seen.headers, true, seen.headers.contains(&format!("Set-Cookie: {wanted}")))
    }

    fn sticky_obeyed(&self) -> Result<(), String> {
        let [a, b] = ["a", "b"].map(|name| peers::http(name, |_, _| 200).to_string());
        let adit = self.plain(&[("10.0.0.1:80", &a), ("10.0.0.2:80", &b)]);
        let web = adit.entry_point("web");
        let first = curl(web, "http://a.test/", &[]);
        let cookie = first.headers.split("Set-Cookie: ").nth(1).and_then(|rest| rest.split(';').next());
        let cookie = format!("Cookie: {}", cookie.ok_or(format!("no cookie in {}", first.headers))?);
        let backend = |headers: &str| headers.split("X-Backend: ").nth(1).map(|rest| rest[..1].to_owned());
        for _ in 0..4 {
            let seen = curl(web, "http://a.test/", &["-H", &cookie]);
            check("backend", backend(&first.headers), backend(&seen.headers))?;
            check("a cookie again", false, seen.headers.contains("Set-Cookie"))?;
        }
        Ok(())
    }

    fn health(&self) -> Result<(), String> {
        let a = peers::http("echo-a", |_, _| 200).to_string();
        let b =
            peers::http("echo-b", |line, _| if line.contains("/healthz") { 500 } else { 200 }).to_string();
        let adit = self.plain(&[("echo-a.test", &a), ("echo-b.test", &b)]);
        let web = adit.entry_point("web");
        let backend = || curl(web, "http://a.test/", &[]).headers.contains("X-Backend: echo-a");
        wait_for("the first probes", || adit.get("/api/http/services").body.contains("DOWN").then_some(()));
        check("all four", [true; 4], [backend(), backend(), backend(), backend()])
    }

    fn mirror(&self) -> Result<(), String> {
        let (sender, copies) = sync_channel(16);
        let sender = Mutex::new(sender);
        let b = peers::http("echo-b", move |line, body| {
            let _ = sender.lock().expect("no one panics").try_send(format!("{line} {body}"));
            200
        });
        let adit = self.plain(&[("echo-b.test", &b.to_string())]);
        let seen = curl(adit.entry_point("web"), "http://a.test/", &["--data", "abc"]);
        check("status", 200, seen.status)?;
        check("backend", true, seen.headers.contains("X-Backend: echo-a"))?;
        let copy = copies.recv_timeout(PATIENCE).map_err(|error| error.to_string())?;
        check("the copy", "POST / HTTP/1.1 abc", copy.as_str())
    }

    fn less_loaded(&self) -> Result<(), String> {
        let stuck = Arc::new(Mutex::new(0));
        let count = Arc::clone(&stuck);
        let a = peers::http("echo-a", move |_, _| {
            *count.lock().expect("no one panics") += 1;
            pause(PATIENCE);
            200
        });
        let b = peers::http("echo-b", |_, _| 200);
        let adit = self.plain(&[("echo-a.test", &a.to_string()), ("echo-b.test", &b.to_string())]);
        let web = adit.entry_point("web");
        // The first of two requests at rest may go to either; once one is stuck, no other follows it.
        let mut waiting = Vec::new();
        wait_for("a request that is stuck", || {
            let mut stream = TcpStream::connect(web).ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").ok()?;
            waiting.push(stream);
            pause(Duration::from_millis(50));
            (*stuck.lock().expect("no one panics") == 1).then_some(())
        });
        for _ in 0..10 {
            let seen = curl(web, "http://a.test/", &["--max-time", "10"]);
            check("backend", true, seen.headers.contains("X-Backend: echo-b"))?;
        }
        check("stuck", 1, *stuck.lock().expect("no one panics"))
    }

    fn bad_file(&self) -> Result<(), String> {
        let folder = TempFolder::new("transport");
        std::fs::create_dir(folder.path().join("dynamic")).map_err(|error| error.to_string())?;
        folder.write("dynamic/good.yml", self.dynamic(&[]));
        let configuration = json!({
            "entryPoints": { "web": { "address": "127.0.0.1:0" } },
            "providers": { "file": { "directory": "dynamic" } },
            "admin": { "address": "127.0.0.1:0" },
        });
        let adit = Adit::start_in(folder, "transport", &configuration.to_string());
        adit.folder().write("dynamic/bad.yml", "http:\n  routers:\n    b: { rulez: x }\n");
        let edited = self.dynamic(&[("\"service\":\"a\"", "\"service\":\"b\"")]);
        adit.folder().write("dynamic/good.yml", edited);
        // Ours: the bad file is refused alone, the good edit beside it counts.
        wait_for("the good edit", || {
            let seen = curl(adit.entry_point("web"), "http://a.test/", &[]);
            seen.headers.contains("X-Backend: echo-b").then_some(())
        });
        let problems = adit.status()["problems"].to_string();
        check(&problems, true, problems.contains("bad.yml"))
    }
}

/// A connection that was upgraded.
struct Upgraded(TcpStream);

impl Upgraded {
    fn open(web: SocketAddr) -> Result<Self, String> {
        let mut stream = TcpStream::connect(web).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let request = "GET /ws HTTP/1.1\r\nHost: a.test\r\nconnection: keep-alive, upgrade\r\nupgrade: WebSocket\r\n\r\n";
        stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).map_err(|error| error.to_string())?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        check(&head, true, head.starts_with("HTTP/1.1 101 "))?;
        Ok(Self(stream))
    }

    fn read(&mut self, length: usize) -> Result<String, String> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// What `openssl s_client` prints.
fn s_client(web: SocketAddr, arguments: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command.args(["20", "openssl", "s_client", "-connect", &web.to_string()]).args(arguments);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    String::from_utf8_lossy(&output.expect("openssl is required by .ci/run").stdout).into_owned()
}

/// Subject and names of the certificate that a name is shown.
fn certificate(web: SocketAddr, name: &str) -> String {
    let script = format!(
        "openssl s_client -connect {web} -servername {name} </dev/null 2>/dev/null | \
         openssl x509 -noout -subject -ext subjectAltName"
    );
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[expect(clippy::needless_pass_by_value, reason = "a call reads as what, wanted, got")]
fn check<T: PartialEq + std::fmt::Debug>(what: &str, wanted: T, got: T) -> Result<(), String> {
    if wanted == got { Ok(()) } else { Err(format!("{what}: {got:?}, expected {wanted:?}")) }
}
