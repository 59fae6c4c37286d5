//! `adit run` with a case's dynamic file and the entry point that the case asks for.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::TempFolder;
use crate::support::adit::Adit;

/// A running ingress.
pub(crate) struct Daemon {
    adit: Adit,
}

impl Daemon {
    /// Starts with the file; `entry_point` is the case's `entrypoint`.
    pub(crate) fn start(dynamic: &str, entry_point: &Value) -> Self {
        let folder = TempFolder::new("case");
        // JSON is YAML.
        folder.write("dynamic.yml", dynamic);
        let mut web = json!({ "address": "127.0.0.1:0" });
        for key in ["trustedIPs", "insecure", "notAppendXForwardedFor"] {
            if let Some(value) = entry_point.get(key) {
                web["forwardedHeaders"][key] = value.clone();
            }
        }
        for key in ["sanitizePath", "encodeQuerySemicolons", "underscoreHeadersStrategy"] {
            if let Some(value) = entry_point.get(key) {
                web["http"][key] = value.clone();
            }
        }
        let configuration = json!({
            "entryPoints": { "web": web },
            "providers": { "file": { "filename": "dynamic.yml", "watch": false } },
            "admin": { "address": "127.0.0.1:0" },
        });
        Self { adit: Adit::start_in(folder, "case", &configuration.to_string()) }
    }

    /// Where visitors come in; HTTP and HTTPS share the port, as they may in Traefik.
    pub(crate) fn address(&self) -> SocketAddr {
        self.adit.entry_point("web")
    }

    /// Names (without provider) and states of the HTTP routers.
    pub(crate) fn routers(&self) -> Vec<(String, String)> {
        let answer = self.adit.get("/api/http/routers");
        let routers: Vec<Value> = serde_json::from_str(&answer.body).unwrap_or_default();
        routers
            .iter()
            .map(|router| {
                let name = router["name"].as_str().unwrap_or_default();
                let name = name.split('@').next().unwrap_or_default().to_owned();
                (name, router["status"].as_str().unwrap_or_default().to_owned())
            })
            .collect()
    }
}
