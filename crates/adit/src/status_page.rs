//! The status page, and the same as text for `adit status`.

use std::fmt::Write as _;

use serde_json::Value;

/// The page; one render of what `/api/status` tells.
pub(crate) fn html(status: &Value) -> String {
    let mut body = String::new();
    html_ingress(&mut body, status);
    html_connector(&mut body, status);
    html_edge(&mut body, status);
    html_mesh(&mut body, &status["mesh"]);
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <meta http-equiv=refresh content=5><title>adit: {phase}</title><style>{STYLE}</style><main>\
         <h1>adit <span class=\"phase {phase}\">{phase}</span></h1>\
         <p>version {version}, up {uptime} s · <a href=/metrics>metrics</a> · <a href=/config>configuration</a> · \
         <a href=/api/status>JSON</a></p>{body}</main>",
        phase = text(&status["phase"]),
        version = text(&status["version"]),
        uptime = text(&status["uptime_seconds"]),
    )
}

/// What is wrong, what waits, routers and entry points.
fn html_ingress(body: &mut String, status: &Value) {
    if let Some(problem) = status["reload_problem"].as_str() {
        let _ = write!(
            body,
            "<section class=bad><h2>The last reload was refused; the configuration before it is in force</h2><pre>{}</pre></section>",
            escape(problem)
        );
    }
    let waiting: Vec<String> = array(&status["restart_needed"]).map(raw).collect();
    if !waiting.is_empty() {
        let _ = write!(body, "<p class=bad>Waiting for a restart: {}</p>", escape(&waiting.join(", ")));
    }
    let problems: Vec<String> = array(&status["problems"]).map(raw).collect();
    if !problems.is_empty() {
        let _ = write!(
            body,
            "<section class=bad><h2>Disabled</h2><pre>{}</pre></section>",
            escape(&problems.join("\n"))
        );
    }
    let warnings: Vec<String> = array(&status["warnings"]).map(raw).collect();
    if !warnings.is_empty() {
        let _ = write!(body, "<h2>Warnings</h2><pre>{}</pre>", escape(&warnings.join("\n")));
    }
    if array(&status["routers"]).next().is_some() {
        let rows = array(&status["routers"]).map(|router| {
            ["name", "rule", "priority", "service", "using", "status"].map(|k| text(&router[k])).to_vec()
        });
        table(body, "Routers", &["name", "rule", "priority", "service", "entry points", "status"], rows);
    }
    if array(&status["certificates"]).next().is_some() {
        let rows = array(&status["certificates"]).map(|c| {
            let left =
                c["not_after_in_seconds"].as_u64().map(|left| (left / 86_400).into()).unwrap_or(Value::Null);
            let cells = [&c["resolver"], &c["names"], &c["state"], &left, &c["reason"], &c["problem"]];
            cells.map(text).to_vec()
        });
        table(
            body,
            "Certificates by ACME",
            &["resolver", "names", "state", "days left", "reason", "last problem"],
            rows,
        );
    }
    let entry_points = array(&status["entry_points"])
        .map(|e| ["name", "address", "scheme"].map(|key| text(&e[key])).to_vec());
    table(body, "Entry points", &["name", "address", "protocol"], entry_points);
}

/// The connector, if there is one.
fn html_connector(body: &mut String, status: &Value) {
    if status["tunnel"].is_object() {
        let tunnel = &status["tunnel"];
        if let Some(why) = tunnel["stopped"].as_str() {
            let _ = write!(
                body,
                "<section class=bad><h2>The tunnel has stopped</h2><pre>{}</pre></section>",
                escape(why)
            );
        }
        let _ = write!(
            body,
            "<p>Tunnel <code>{}</code>, connector <code>{}</code></p>",
            text(&tunnel["id"]),
            text(&tunnel["connector_id"])
        );
        let rows = array(&tunnel["connections"]).map(|c| {
            ["index", "phase", "protocol", "edge", "location", "since_seconds"].map(|k| text(&c[k])).to_vec()
        });
        table(
            body,
            "Connections to the edge",
            &["#", "state", "protocol", "edge", "location", "for (s)"],
            rows,
        );
    }
}

/// The edge, if there is one.
fn html_edge(body: &mut String, status: &Value) {
    if status["edge"].is_object() {
        let _ =
            write!(body, "<p>Edge for connectors at <code>{}</code></p>", text(&status["edge"]["address"]));
    }
    for tunnel in array(&status["edge"]["tunnels"]) {
        let title = format!("Tunnel {} at this edge", text(&tunnel["name"]));
        let rows = array(&tunnel["connections"]).map(|c| {
            ["index", "connector_id", "version", "remote", "in_flight", "rtt_ms", "draining", "since_seconds"]
                .map(|k| text(&c[k]))
                .to_vec()
        });
        table(
            body,
            &title,
            &["#", "connector", "version", "from", "in flight", "rtt (ms)", "draining", "for (s)"],
            rows,
        );
    }
}

/// The mesh, if there is one.
fn html_mesh(body: &mut String, mesh: &Value) {
    if !mesh.is_object() {
        return;
    }
    if mesh["running"] == false {
        body.push_str("<section class=bad><h2>The mesh has ended: its interface is gone</h2></section>");
    }
    let _ = write!(
        body,
        "<p>Mesh <code>{}</code> at {}, UDP port {}, public key <code>{}</code></p>",
        text(&mesh["interface"]),
        text(&mesh["addresses"]),
        text(&mesh["listenPort"]),
        text(&mesh["publicKey"])
    );
    let keys = ["name", "reachable", "endpoint", "allowedIps", "groups", "latestHandshakeSeconds"];
    let more = ["latencyMs", "loss", "receivedBytes", "sentBytes"];
    let rows = array(&mesh["peers"])
        .take(PEERS_SHOWN_MAX)
        .map(|peer| keys.iter().chain(&more).map(|key| text(&peer[*key])).collect());
    let columns = [
        "peer",
        "answers",
        "endpoint",
        "allowed IPs",
        "groups",
        "handshake (s ago)",
        "latency (ms)",
        "loss",
        "received",
        "sent",
    ];
    table(body, "Peers", &columns, rows);
}

/// The same for a terminal.
pub(crate) fn plain(status: &Value) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "adit {}: {} for {} s",
        raw(&status["version"]),
        raw(&status["phase"]),
        raw(&status["uptime_seconds"])
    );
    for entry_point in array(&status["entry_points"]) {
        let scheme = raw(&entry_point["scheme"]);
        let _ = writeln!(
            out,
            "  entry point {}: {scheme}://{}",
            raw(&entry_point["name"]),
            raw(&entry_point["address"])
        );
    }
    for certificate in array(&status["certificates"]) {
        let problem = certificate["problem"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
        let _ = writeln!(
            out,
            "  certificate {} by {}: {}{problem}",
            raw(&certificate["names"]),
            raw(&certificate["resolver"]),
            raw(&certificate["state"])
        );
    }
    let tunnel = &status["tunnel"];
    if tunnel.is_object() {
        let _ = writeln!(
            out,
            "  tunnel {}: {} connections ready",
            raw(&tunnel["id"]),
            raw(&tunnel["ready_connections"])
        );
        for c in array(&tunnel["connections"]) {
            let _ = writeln!(
                out,
                "    #{} {} over {} to {} ({}) for {} s",
                raw(&c["index"]),
                raw(&c["phase"]),
                raw(&c["protocol"]),
                raw(&c["edge"]),
                raw(&c["location"]),
                raw(&c["since_seconds"])
            );
        }
        if let Some(why) = tunnel["stopped"].as_str() {
            let _ = writeln!(out, "    STOPPED: {why}");
        }
    }
    plain_edge(&mut out, status);
    plain_mesh(&mut out, &status["mesh"]);
    for problem in array(&status["problems"]) {
        let _ = writeln!(out, "  DISABLED {}", raw(problem));
    }
    if let Some(problem) = status["reload_problem"].as_str() {
        let _ = writeln!(out, "  THE LAST RELOAD WAS REFUSED:\n{problem}");
    }
    out
}

fn plain_edge(out: &mut String, status: &Value) {
    for tunnel in array(&status["edge"]["tunnels"]) {
        let count = array(&tunnel["connections"]).count();
        let _ = writeln!(
            out,
            "  edge, tunnel {}: {}",
            raw(&tunnel["name"]),
            if count == 0 {
                "DOWN, no connector is connected".to_owned()
            } else {
                format!("{count} connections")
            }
        );
        for c in array(&tunnel["connections"]) {
            let _ = writeln!(
                out,
                "    #{} from {} ({}) {} in flight, rtt {:.1} ms{}",
                raw(&c["index"]),
                raw(&c["remote"]),
                raw(&c["version"]),
                raw(&c["in_flight"]),
                c["rtt_ms"].as_f64().unwrap_or_default(),
                if c["draining"] == true { ", draining" } else { "" }
            );
        }
    }
}

fn plain_mesh(out: &mut String, mesh: &Value) {
    if !mesh.is_object() {
        return;
    }
    let peers: Vec<&Value> = array(&mesh["peers"]).collect();
    let count = |key: &str| peers.iter().filter(|peer| peer[key] == true).count();
    let _ = writeln!(
        out,
        "  mesh {} at {}, port {}: {}",
        raw(&mesh["interface"]),
        raw(&mesh["addresses"]),
        raw(&mesh["listenPort"]),
        match mesh["running"] == true {
            true => format!("{} peers, {} with a session", peers.len(), count("connected")),
            false => "ENDED, its interface is gone".to_owned(),
        }
    );
    for peer in peers.iter().filter(|peer| peer["connected"] == true && peer["reachable"] == false) {
        let _ = writeln!(out, "    {} DOES NOT ANSWER", raw(&peer["name"]));
    }
}

fn table(out: &mut String, title: &str, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let _ = write!(out, "<h2>{}</h2><table><tr>", escape(title));
    for column in columns {
        let _ = write!(out, "<th>{column}</th>");
    }
    out.push_str("</tr>");
    let mut empty = true;
    for row in rows {
        empty = false;
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>");
    }
    if empty {
        let _ = write!(out, "<tr><td colspan={} class=none>none</td></tr>", columns.len());
    }
    out.push_str("</table>");
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn raw(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".to_owned(),
        Value::Array(items) => items.iter().map(raw).collect::<Vec<_>>().join(", "),
        Value::Number(number) if number.is_f64() => format!("{:.1}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

fn text(value: &Value) -> String {
    escape(&raw(value))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// More are for `adit mesh show`.
const PEERS_SHOWN_MAX: usize = 200;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:0;background:#f6f7f9;color:#1c2430}\
main{max-width:64rem;margin:2rem auto;padding:0 1.5rem}h1{font-size:1.6rem}h2{font-size:1.05rem;margin:2rem 0 .5rem}\
.phase{font-size:.9rem;padding:.15rem .6rem;border-radius:1rem;background:#b6bec9;color:#fff;vertical-align:middle}\
.phase.ready{background:#2e9e5b}.phase.draining,.phase.closing{background:#d28b22}\
table{border-collapse:collapse;width:100%;background:#fff;border-radius:.5rem}\
th,td{text-align:left;padding:.4rem .75rem;border-bottom:1px solid #e6e9ee;overflow-wrap:anywhere}\
th{font-weight:500;color:#5a6675}td{font:13px/1.4 ui-monospace,monospace}.none{color:#8b95a3}\
.bad{background:#fdecec;border-left:4px solid #d23f3f;padding:.5rem 1rem;border-radius:.25rem}.bad h2{margin-top:.5rem}\
pre{white-space:pre-wrap}@media(prefers-color-scheme:dark){body{background:#14181f;color:#e6eaf0}table{background:#1e242e}\
th,td{border-color:#2b3340}.bad{background:#3a1f22}a{color:#7db7ff}}";
