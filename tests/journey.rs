//! The whole way with the real binary: visitor → edge → tunnel → connector → origin. Each journey is made with adit's own
//! connector and, where there is one (`CLOUDFLARED` or PATH), with a stock cloudflared (statements E1 to E22).

mod support;

#[path = "journey/change.rs"]
mod change;
#[path = "journey/refusal.rs"]
mod refusal;
#[path = "journey/traffic.rs"]
mod traffic;
#[path = "journey/way.rs"]
mod way;
