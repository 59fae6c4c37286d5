//! gRPC's own implementation on both sides.
//!
//! Not through the tunnel: its QUIC wire has no trailers, in which gRPC says how a call ended.

use crate::ingress::{Ingress, ask, assert_all_ok, serve};
use crate::support::certificates::Certificates;
use crate::support::require_python_with;

#[test]
fn slow_grpc_in_the_clear_keeps_streams_trailers_deadlines_and_cancellation() {
    let Some(python) = require_python_with("grpc") else { return };
    let (_server, address) = serve(&python, "grpc_server.py", &[]);
    let adit = Ingress::to(&format!("h2c://{address}")).start();
    let web = adit.entry_point("web").to_string();
    assert_all_ok(&ask(&python, "grpc_client.py", &[&web, "grpc.test"]));
}

#[test]
fn slow_grpc_over_tls_on_both_sides_is_the_same() {
    let Some(python) = require_python_with("grpc") else { return };
    let certificates = Certificates::for_names(&["grpc.test"]);
    let [certificate, key, authority] =
        [certificates.certificate(), certificates.key(), certificates.authority()]
            .map(|p| p.display().to_string());
    let (_server, address) = serve(&python, "grpc_server.py", &[&certificate, &key]);
    let adit = Ingress::to(&format!("https://{address}")).with_tls(&certificates).start();
    let web = adit.entry_point("web").to_string();
    assert_all_ok(&ask(&python, "grpc_client.py", &[&web, "grpc.test", &authority]));
}
