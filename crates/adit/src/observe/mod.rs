//! What is seen of the ingress from outside: Traefik's metrics, the access log's forms, what is disabled.

pub(crate) mod gauges;
pub(crate) mod lines;
pub(crate) mod probe;
pub(crate) mod traefik;
