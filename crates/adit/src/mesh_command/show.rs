//! The running mesh for people, in the words of `wg show`.

use clap::ArgMatches;
use serde_json::Value;

use super::{Failure, fetch};

/// `show`.
pub(super) fn main(matches: &ArgMatches) -> Result<(), Failure> {
    let mut mesh = fetch(matches)?;
    if let Some(name) = matches.get_one::<String>("name") {
        let peers = mesh["peers"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let kept: Vec<Value> = peers.into_iter().filter(|peer| peer["name"] == *name).collect();
        if kept.is_empty() {
            return Err(Failure::new(format!("there is no peer `{name}`")));
        }
        mesh["peers"] = kept.into();
    }
    if matches.get_flag("json") {
        crate::print(&format!("{mesh:#}\n"));
    } else {
        crate::print(&plain(&mesh));
    }
    Ok(())
}

fn plain(mesh: &Value) -> String {
    let mut lines = vec![format!("interface: {}", text(&mesh["interface"]))];
    let mut add = |key: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {key}: {value}"));
        }
    };
    add("public key", text(&mesh["publicKey"]));
    add("private key", "(hidden)".to_owned());
    add("listening port", text(&mesh["listenPort"]));
    add("fwmark", text(&mesh["fwmark"]));
    add("addresses", list(&mesh["addresses"]));
    add("mtu", text(&mesh["mtu"]));
    if mesh["lanes"] != 1 {
        add("lanes", text(&mesh["lanes"]));
    }
    add("drops", drops(&mesh["drops"]));
    for peer in mesh["peers"].as_array().into_iter().flatten() {
        lines.push(String::new());
        lines.extend(peer_lines(peer));
    }
    lines.join("\n") + "\n"
}

fn peer_lines(peer: &Value) -> Vec<String> {
    let mut lines = vec![format!("peer: {} ({})", text(&peer["publicKey"]), text(&peer["name"]))];
    let mut add = |key: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {key}: {value}"));
        }
    };
    if peer["presharedKey"] == true {
        add("preshared key", "(hidden)".to_owned());
    }
    add("endpoint", text(&peer["endpoint"]));
    add("allowed ips", list(&peer["allowedIps"]));
    add("groups", list(&peer["groups"]));
    if let Some(seconds) = peer["latestHandshakeSeconds"].as_u64() {
        add("latest handshake", ago(seconds));
    }
    let (received, sent) = (bytes(&peer["receivedBytes"]), bytes(&peer["sentBytes"]));
    if peer["receivedBytes"] != 0 || peer["sentBytes"] != 0 {
        add("transfer", format!("{received} received, {sent} sent"));
    }
    if let Some(latency) = peer["latencyMs"].as_f64() {
        add("latency", format!("{latency:.1} ms"));
    }
    if let Some(loss) = peer["loss"].as_f64().filter(|loss| *loss > 0.0) {
        add("loss", format!("{:.2} % of what it sends", loss * 100.0));
    }
    if let Some(loss) = peer["sentLoss"].as_f64().filter(|loss| *loss > 0.0) {
        add("sent loss", format!("{:.2} % of what we send", loss * 100.0));
    }
    add("path mtu", text(&peer["pathMtu"]));
    if let (Some(lanes @ 2..), up) = (peer["lanes"].as_u64(), &peer["lanesUp"]) {
        add("lanes", format!("{up} of {lanes} up"));
    }
    if peer["reachable"] == false {
        add("state", "does not answer".to_owned());
    }
    if let Some(seconds) = peer["persistentKeepaliveSeconds"].as_u64() {
        add("persistent keepalive", format!("every {}", span(seconds)));
    }
    add("drops", drops(&peer["drops"]));
    lines
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> String {
    let items: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    items.join(", ")
}

fn drops(value: &Value) -> String {
    let counted = value.as_object().into_iter().flatten().filter(|(_, count)| **count != 0);
    counted.map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}

fn ago(seconds: u64) -> String {
    if seconds == 0 { "now".to_owned() } else { format!("{} ago", span(seconds)) }
}

/// `1 hour, 2 minutes, 3 seconds`.
fn span(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "day"),
        (seconds / 3600 % 24, "hour"),
        (seconds / 60 % 60, "minute"),
        (seconds % 60, "second"),
    ];
    let written = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count} {unit}{}", if count == 1 { "" } else { "s" }));
    written.collect::<Vec<_>>().join(", ")
}

fn bytes(value: &Value) -> String {
    let count = value.as_u64().unwrap_or_default();
    let unit = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match unit.into_iter().find(|(size, _)| count >= *size) {
        #[expect(clippy::cast_precision_loss, reason = "two digits for people")]
        Some((size, name)) => format!("{:.2} {name}", count as f64 / size as f64),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mesh_reads_as_wg_shows_it() {
        let mesh = json!({
            "interface": "adit0", "publicKey": "OWN=", "listenPort": 51820, "addresses": ["10.9.0.1/24"], "mtu": 1408,
            "drops": { "policy": 2, "replay": 0 },
            "peers": [{
                "name": "laptop", "publicKey": "KEY=", "presharedKey": true, "endpoint": "192.0.2.1:51820",
                "allowedIps": ["10.9.0.2/32", "fd00::2/128"], "groups": ["admins"], "latestHandshakeSeconds": 3723,
                "receivedBytes": 2048, "sentBytes": 12, "latencyMs": 12.34, "loss": 0.001, "sentLoss": 0.02, "pathMtu": 1392, "reachable": true,
                "persistentKeepaliveSeconds": 25, "drops": {},
            }, { "name": "phone", "publicKey": "OTHER=", "receivedBytes": 0, "sentBytes": 0, "reachable": false }],
        });
        assert_eq!(
            plain(&mesh),
            "interface: adit0\n  public key: OWN=\n  private key: (hidden)\n  listening port: 51820\n  \
             addresses: 10.9.0.1/24\n  mtu: 1408\n  drops: 2 policy\n\npeer: KEY= (laptop)\n  preshared key: (hidden)\n  \
             endpoint: 192.0.2.1:51820\n  allowed ips: 10.9.0.2/32, fd00::2/128\n  groups: admins\n  \
             latest handshake: 1 hour, 2 minutes, 3 seconds ago\n  transfer: 2.00 KiB received, 12 B sent\n  \
             latency: 12.3 ms\n  loss: 0.10 % of what it sends\n  sent loss: 2.00 % of what we send\n  path mtu: 1392\n  persistent keepalive: every 25 seconds\n\n\
             peer: OTHER= (phone)\n  state: does not answer\n"
        );
    }
}
