//! The sample origin's report in three forms.

use std::fmt::Write as _;
use std::time::Duration;

use adit_proxy::message::Request;
use serde_json::{Map, Value, json};

use super::Trip;

/// Everything that is told.
pub(super) struct Report<'a> {
    pub(super) tunnel: &'a str,
    pub(super) trip: &'a Trip,
    pub(super) request: &'a Request,
    pub(super) edge_to_connector: Option<Duration>,
    pub(super) uptime: Duration,
}

impl Report<'_> {
    /// For programs.
    pub(super) fn json(&self) -> String {
        let mut headers = Map::new();
        for name in self.request.headers.keys() {
            let values: Vec<Value> =
                self.request.headers.get_all(name).iter().map(|v| text(v.as_bytes()).into()).collect();
            headers.insert(name.as_str().to_owned(), Value::Array(values));
        }
        let mut out = json!({
            "tunnel": self.tunnel,
            "connection": {
                "index": self.trip.connection.index,
                "location": &*self.trip.connection.location,
                "edge": self.trip.connection.peer.to_string(),
                "protocol": self.trip.connection.protocol.to_string(),
            },
            "request": {
                "method": self.request.method.as_str(),
                "host": self.request.host,
                "path": self.request.uri.path_and_query().map_or("/", |p| p.as_str()),
                "headers": headers,
            },
            "timings_us": {
                "edge_to_connector": self.edge_to_connector.map(micros),
                "in_connector": micros(self.trip.began.elapsed()),
            },
            "uptime_seconds": self.uptime.as_secs(),
        })
        .to_string();
        out.push('\n');
        out
    }

    /// For terminals.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let connection = &self.trip.connection;
        let _ = writeln!(out, "Hello from behind the tunnel.\n");
        let _ = writeln!(out, "way        visitor → edge → tunnel → connector → this origin");
        let _ = writeln!(out, "tunnel     {}", self.tunnel);
        let _ = writeln!(
            out,
            "connection #{} over {} to edge {} at {}",
            connection.index, connection.protocol, connection.location, connection.peer
        );
        let _ = writeln!(out, "timings    {}", self.timings());
        let request = self.request;
        let target = request.uri.path_and_query().map_or("/", |p| p.as_str());
        let _ = writeln!(out, "\nThe origin saw:\n{} {target}\nHost: {}", request.method, request.host);
        for (name, value) in &request.headers {
            let _ = writeln!(out, "{name}: {}", text(value.as_bytes()));
        }
        let _ = writeln!(out, "\nTry:");
        for (path, what) in TRIES {
            let _ = writeln!(out, "  {path:<28} {what}");
        }
        out
    }

    /// For browsers.
    pub(super) fn html(&self) -> String {
        let connection = &self.trip.connection;
        let mut rows = String::new();
        let request = self.request;
        let target = request.uri.path_and_query().map_or("/", |p| p.as_str());
        for (name, value) in
            [("request", format!("{} {target}", request.method)), ("host", request.host.clone())]
        {
            let _ = write!(rows, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
        }
        for (name, value) in &request.headers {
            let _ = write!(rows, "<tr><th>{name}</th><td>{}</td></tr>", escape(&text(value.as_bytes())));
        }
        let tries: String = TRIES
            .iter()
            .map(|(path, what)| format!("<li><a href=\"{0}\"><code>{0}</code></a> {what}</li>", escape(path)))
            .collect();
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8>\
             <meta name=viewport content=\"width=device-width\"><title>adit: it works</title>\
             <style>{STYLE}</style><main><h1>Hello from behind the tunnel</h1>\
             <ol class=way><li><b>Visitor</b><span>you</span></li>\
             <li><b>Edge</b><span>{location}<br>{peer}</span></li>\
             <li><b>Tunnel</b><span>{tunnel}<br>connection {index}, {protocol}</span></li>\
             <li><b>Connector</b><span>{timings}</span></li><li><b>Origin</b><span>this page</span></li></ol>\
             <h2>The request as the origin saw it</h2><table>{rows}</table>\
             <h2>Try</h2><ul>{tries}</ul></main>",
            location = escape(&connection.location),
            peer = connection.peer,
            tunnel = escape(self.tunnel),
            index = connection.index,
            protocol = connection.protocol,
            timings = escape(&self.timings()),
        )
    }

    fn timings(&self) -> String {
        let inside = format!("{} µs in the connector", micros(self.trip.began.elapsed()));
        match self.edge_to_connector {
            Some(before) => format!("{} µs from edge to origin, {inside}", micros(before)),
            None => inside,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const TRIES: [(&str, &str); 7] = [
    ("/json", "this report as JSON"),
    ("/bytes?count=104857600", "100 MiB download, streamed"),
    ("/echo", "POST anything and get it back as it arrives"),
    ("/sse?count=10&every_ms=300", "server-sent events"),
    ("/ws", "WebSocket echo"),
    ("/status?code=418", "any status"),
    ("/uptime", "how long this origin has been running"),
];

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f6f7f9;color:#1c2430}\
main{max-width:60rem;margin:3rem auto;padding:0 1.5rem}h1{font-size:2rem}h2{font-size:1.1rem;margin-top:2rem}\
.way{list-style:none;display:flex;flex-wrap:wrap;gap:.75rem;padding:0}\
.way li{flex:1 1 9rem;padding:.75rem 1rem;border-radius:.5rem;background:#fff;border-top:4px solid #2e9e5b;overflow-wrap:anywhere}\
.way b,.way span{display:block}.way span{font-size:.85rem;color:#5a6675}\
table{border-collapse:collapse;width:100%;background:#fff;border-radius:.5rem}\
th,td{text-align:left;padding:.35rem .75rem;border-bottom:1px solid #e6e9ee;font:14px/1.4 ui-monospace,monospace;overflow-wrap:anywhere}\
th{color:#5a6675;font-weight:500;width:14rem}\
@media(prefers-color-scheme:dark){body{background:#14181f;color:#e6eaf0}.way li,table{background:#1e242e}\
.way span,th{color:#9aa7b8}th,td{border-color:#2b3340}a{color:#7db7ff}}";
