//! The admin endpoint: readiness, metrics, the effective configuration, the status page.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use adit_proxy::headers;
use adit_proxy::message::{Request, Response, Service};
use adit_tunnel::{ConnectionPhase, ConnectorHandle, EdgeHandle, Protocol};
use arc_swap::{ArcSwap, ArcSwapOption};
use http::{Method, StatusCode};
use prometheus::{Registry, TextEncoder};
use serde_json::{Value, json};

use crate::api::{Surroundings, json_response};
use crate::daemon::mesh::MeshView;
use crate::gateway::internal::Part;
use crate::gateway::{Gateway, view};
use crate::ingress::IngressState;
use crate::listeners::Listening;
use crate::phase::{Phase, PhaseCell};
use crate::status_page;

/// What the endpoint can tell; filled as the process starts.
#[derive(Debug)]
pub(crate) struct Admin {
    /// Where the process is in its life.
    pub phase: PhaseCell,
    /// All metrics.
    pub registry: Registry,
    /// The connector, if there is one.
    pub connector: ArcSwapOption<ConnectorView>,
    /// The ingress.
    pub(crate) gateway: Arc<Gateway>,
    /// The edge and where it listens, if there is one.
    pub edge: Option<(EdgeHandle, std::net::SocketAddr)>,
    /// The effective configuration with secrets masked.
    pub config: ArcSwap<Value>,
    /// What went wrong at the last reload, and when.
    pub reload_problem: ArcSwapOption<(Instant, String)>,
    /// Keys whose new values wait for a restart.
    pub(crate) restart_needed: ArcSwap<Vec<&'static str>>,
    /// Entry points: name, address, whether TLS.
    pub listeners: ArcSwap<Vec<Listening>>,
    /// The mesh, if there is one.
    pub(crate) mesh: ArcSwapOption<MeshView>,
    /// Where this endpoint listens.
    pub address: std::net::SocketAddr,
    /// When the process started.
    pub started: Instant,
}

/// The connector as the endpoint sees it.
#[derive(Debug)]
pub(crate) struct ConnectorView {
    /// The tunnel it serves.
    pub tunnel: adit_config::TunnelId,
    /// Its connections.
    pub handle: ConnectorHandle,
    /// Its rules.
    pub ingress: Arc<IngressState>,
    /// Shown beside the rules.
    pub warp_routing: adit_config::WarpRouting,
    /// Its metrics.
    pub registry: Registry,
    /// Why it stopped for good, if it did.
    pub stopped: ArcSwapOption<String>,
}

impl Service for Admin {
    async fn call(&self, request: Request) -> Response {
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Response::status(StatusCode::METHOD_NOT_ALLOWED);
        }
        if self.address.ip().is_loopback() && !is_local(&request.host) {
            return Response::text(StatusCode::MISDIRECTED_REQUEST, TEXT, "this endpoint has no such name\n");
        }
        match request.uri.path() {
            "/" => page(&self.status_with_mesh().await),
            "/api/status" => json_response(StatusCode::OK, &self.status_with_mesh().await),
            "/api/mesh" => match self.mesh().await {
                Value::Null => Response::text(StatusCode::NOT_FOUND, TEXT, "no mesh in this process\n"),
                mesh => json_response(StatusCode::OK, &mesh),
            },
            "/ready" => self.ready(),
            "/healthcheck" => Response::text(StatusCode::OK, TEXT, "OK\n"),
            "/ping" => self.ping(),
            "/metrics" => self.metrics(),
            "/config" => self.config(),
            path if path.starts_with("/api/") => self.api(&request),
            "/diag/tunnel" => self.diag_tunnel(),
            "/diag/configuration" => json_response(StatusCode::OK, &self.config.load()),
            _ => Response::text(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        }
    }
}

impl Admin {
    /// What `api@internal` and its like answer: the same as here, and nothing beside their part.
    pub(crate) fn answer_part(&self, part: Part, request: &Request) -> Response {
        match (part, request.uri.path()) {
            (Part::Ping, _) => self.ping(),
            (Part::Prometheus, _) => self.metrics(),
            (Part::Api | Part::Dashboard, "/" | "/dashboard" | "/dashboard/") => page(&self.status()),
            (Part::Api, path) if path.starts_with("/api/") => self.api(request),
            _ => Response::text(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
        }
    }

    /// The read-only API in Traefik's words.
    fn api(&self, request: &Request) -> Response {
        let generation = self.gateway.load();
        let surroundings = Surroundings {
            entry_points: self.entry_points(),
            started: SystemTime::now().checked_sub(self.started.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
            generation: &generation,
        };
        surroundings.answer(request)
    }

    fn entry_points(&self) -> Vec<Value> {
        let listeners = self.listeners.load();
        // Traefik has one entry a name: that of HTTP/3 goes with its TCP side.
        let one = listeners.iter().filter(|at| at.scheme != "h3");
        one.map(|at| json!({ "name": at.entry_point, "address": at.address.to_string() })).collect()
    }

    /// Traefik's: a balancer takes us out of its pool as soon as we are stopping.
    fn ping(&self) -> Response {
        match self.phase.load() {
            Phase::Starting | Phase::Ready => Response::text(StatusCode::OK, TEXT, "OK"),
            _ => Response::text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "Service Unavailable"),
        }
    }

    fn ready(&self) -> Response {
        let serving = self.phase.load() == Phase::Ready;
        let connector = self.connector.load();
        let connections = connector.as_ref().map_or(0, |c| c.handle.ready_connections());
        // A process with a tunnel is ready when requests can come through it; an edge alone when it listens.
        let ready = serving && (connector.is_none() || connections > 0);
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut body = json!({ "status": status.as_u16(), "readyConnections": connections });
        if let Some(connector) = connector.as_ref() {
            body["connectorId"] = connector.handle.connector_id().to_string().into();
        }
        json_response(status, &body)
    }

    fn metrics(&self) -> Response {
        let mut families = self.registry.gather();
        if let Some(connector) = self.connector.load().as_ref() {
            families.extend(connector.registry.gather());
        }
        match TextEncoder::new().encode_to_string(&families) {
            Ok(text) => Response::text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        }
    }

    /// cloudflared's form where there is a connector, with our own effective configuration beside it.
    fn config(&self) -> Response {
        let mut body = match self.connector.load().as_ref() {
            Some(connector) => json!({
                "version": connector.ingress.version(),
                "config": connector.ingress.ingress().to_config_page(&connector.warp_routing),
            }),
            None => json!({}),
        };
        body["adit"] = Value::clone(&self.config.load());
        json_response(StatusCode::OK, &body)
    }

    fn diag_tunnel(&self) -> Response {
        let Some(connector) = self.connector.load_full() else {
            return Response::text(StatusCode::NOT_FOUND, TEXT, "no tunnel in this process\n");
        };
        let connections: Vec<Value> = connector
            .handle
            .connections()
            .iter()
            .map(|c| {
                let mut entry = json!({ "isConnected": c.phase == ConnectionPhase::Registered });
                if let Some(edge) = c.edge {
                    entry["edgeAddress"] = edge.ip().to_string().into();
                }
                // cloudflared omits what is zero.
                if c.protocol == Protocol::Quic {
                    entry["protocol"] = 1.into();
                }
                if c.index != 0 {
                    entry["index"] = c.index.into();
                }
                entry
            })
            .collect();
        json_response(
            StatusCode::OK,
            &json!({
                "tunnelID": connector.tunnel.to_string(),
                "connectorID": connector.handle.connector_id().to_string(),
                "connections": connections,
                "icmp_sources": [],
            }),
        )
    }

    /// The mesh and its peers; null if there is none.
    async fn mesh(&self) -> Value {
        let Some(mesh) = self.mesh.load_full() else { return Value::Null };
        // The lane answers when it comes to it.
        tokio::task::spawn_blocking(move || mesh.show()).await.unwrap_or(Value::Null)
    }

    async fn status_with_mesh(&self) -> Value {
        let mut status = self.status();
        status["mesh"] = self.mesh().await;
        status
    }

    /// Everything the status page and `adit status` show, except the mesh.
    fn status(&self) -> Value {
        let listeners: Vec<Value> = self
            .listeners
            .load()
            .iter()
            .map(|at| {
                let (name, address) = (&at.entry_point, at.address.to_string());
                json!({ "name": name, "address": address, "scheme": at.scheme, "tls": at.scheme == "https" })
            })
            .collect();
        let problem = self.reload_problem.load_full();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": self.phase.load().name(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "admin": self.address.to_string(),
            "entry_points": listeners,
            "tunnel": self.connector.load().as_ref().map(|c| connector_status(c)),
            "edge": self.edge.as_ref().map(|(edge, address)| {
                json!({ "address": address.to_string(), "tunnels": edge_status(edge) })
            }),
            "certificates": self.gateway.acme().status(),
            "restart_needed": &**self.restart_needed.load(),
            "problems": self.gateway.load().verdicts.problems(),
            "warnings": self.gateway.load().verdicts.warnings,
            "routers": view::routers(&self.gateway.load().inputs.dynamic, &self.gateway.load().verdicts),
            "reload_problem": problem.as_ref().map(|p| p.1.clone()),
        })
    }
}

/// Whether a host can be meant for a loopback address: a page from elsewhere whose name suddenly points here (DNS rebinding)
/// is not to read what a local process may.
fn is_local(host: &str) -> bool {
    let host = headers::without_port(host);
    host.is_empty()
        || host.parse::<std::net::IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
}

fn page(status: &Value) -> Response {
    Response::text(StatusCode::OK, "text/html; charset=utf-8", status_page::html(status))
}

fn connector_status(connector: &ConnectorView) -> Value {
    let connections: Vec<Value> = connector
        .handle
        .connections()
        .iter()
        .map(|c| {
            json!({
                "index": c.index,
                "phase": format!("{:?}", c.phase).to_ascii_lowercase(),
                "protocol": c.protocol.to_string(),
                "edge": c.edge.map(|e| e.to_string()),
                "location": c.location.as_deref(),
                "since_seconds": c.since.elapsed().as_secs(),
            })
        })
        .collect();
    json!({
        "id": connector.tunnel.to_string(),
        "connector_id": connector.handle.connector_id().to_string(),
        "ready_connections": connector.handle.ready_connections(),
        "connections": connections,
        "stopped": connector.stopped.load_full().map(|s| String::clone(&s)),
    })
}

fn edge_status(edge: &EdgeHandle) -> Value {
    edge.tunnels()
        .iter()
        .map(|tunnel| {
            let connections: Vec<Value> = tunnel
                .connections
                .iter()
                .map(|c| {
                    json!({
                        "index": c.index,
                        "connector_id": c.connector_id.to_string(),
                        "version": c.version,
                        "arch": c.arch,
                        "remote": c.remote.to_string(),
                        "in_flight": c.in_flight,
                        "draining": c.draining,
                        "rtt_ms": c.rtt.as_secs_f64() * 1000.0,
                        "since_seconds": c.since.elapsed().as_secs(),
                    })
                })
                .collect();
            json!({ "id": tunnel.id.to_string(), "name": tunnel.name, "connections": connections })
        })
        .collect()
}

const TEXT: &str = "text/plain; charset=utf-8";
