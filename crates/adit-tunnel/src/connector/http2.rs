//! One HTTP/2 connection of a connector (tunnel-protocol.md §2.3, §6).
use std::sync::Arc;
use adit_tunnel_proto::Failure;
use super::shared::{Dial, Shared};
use crate::request::RequestHandler;
pub(super) async fn run<H: RequestHandler>(shared: Arc<Shared<H>>, dial: Dial) -> Failure {
    let _ = (&shared.tcp, dial);
    Failure::Dial
}
