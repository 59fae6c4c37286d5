//! The real binary, someone else's clients and origins: visitor → edge → tunnel → connector → origin.

#[path = "end_to_end/acme.rs"]
mod acme;
#[path = "end_to_end/bench.rs"]
mod bench;
#[path = "end_to_end/bodies.rs"]
mod bodies;
#[path = "end_to_end/comparison.rs"]
mod comparison;
#[path = "end_to_end/failures.rs"]
mod failures;
#[path = "end_to_end/ingress.rs"]
mod ingress;
#[path = "end_to_end/ingress_check.rs"]
mod ingress_check;
#[path = "end_to_end/ingress_heads.rs"]
mod ingress_heads;
#[path = "end_to_end/ingress_own.rs"]
mod ingress_own;
#[path = "end_to_end/ingress_tls.rs"]
mod ingress_tls;
#[path = "end_to_end/limits.rs"]
mod limits;
#[path = "end_to_end/operation.rs"]
mod operation;
#[path = "end_to_end/quickstart.rs"]
mod quickstart;
#[path = "end_to_end/stock.rs"]
mod stock;
mod support;
#[path = "end_to_end/visitors.rs"]
mod visitors;

use support::TempFolder;
use support::adit::Adit;

/// A tunnel's id for configurations of tests.
const TUNNEL_ID: &str = "11111111-2222-3333-4444-555555555555";

/// An edge of its own process with one tunnel `home` for `*.home.test`, certificates and secret in its folder.
#[track_caller]
fn start_edge(listen: &str) -> Adit {
    Adit::start("edge", &edge_configuration(listen))
}

fn edge_configuration(listen: &str) -> String {
    format!(
        "state-dir: state\nentryPoints:\n  web: {{ address: \"127.0.0.1:0\" }}\nedge:\n  listen: \"{listen}\"\n  \
         public: [ web ]\n  tunnels:\n    - {{ name: home, id: {TUNNEL_ID}, secret: \"{SECRET}\", \
         hostnames: [ \"*.home.test\" ] }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n"
    )
}

/// A connector of its own process for that edge; every host goes to `service`.
#[track_caller]
fn start_connector(edge: &Adit, service: &str) -> Adit {
    let folder = TempFolder::new("connector");
    let ca = edge.folder().path().join("state/edge-ca.pem");
    let configuration = connector_configuration(edge, &ca.display().to_string(), service);
    let connector = Adit::start_in(folder, "connector", &configuration);
    edge.wait_for_connections(2);
    connector
}

fn connector_configuration(edge: &Adit, ca: &str, service: &str) -> String {
    let address = edge.edge();
    format!(
        "tunnel:\n  token: \"{TOKEN}\"\n  edge: [ \"{address}\", \"{address}\" ]\n  ca: {ca}\n  connections: 2\n  \
         protocol: quic\n  ingress:\n    - {{ service: \"{service}\" }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         shutdown: {{ grace-period: 5s }}\n"
    )
}

/// 32 times `x`, as in [`TOKEN`].
const SECRET: &str = "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg=";
const TOKEN: &str = support::connector::TOKEN;
