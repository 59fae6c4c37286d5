//! What is seen of the ingress from outside: Traefik's metrics, the access log's forms, what is disabled.

pub(crate) mod gauges;
pub(crate) mod json_lines;
pub(crate) mod line_time;
pub(crate) mod lines;
pub(crate) mod probe;
pub(crate) mod traefik;
