//! `X-Forwarded-*`: what an entry point tells everything behind it about a visitor (ingress-features.md §3.0).
//!
//! The fields are set once, before the first middleware, by [`ForwardedPolicy::apply`]. `X-Forwarded-For` is special:
//! middlewares count its entries as they came, so this hop's entry is added only when the request leaves, by
//! [`append_for`], if [`ForwardedPolicy::appends`] says so.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use adit_route::mesh::MeshIdentity;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::fields::{Fields, Kinds};
use crate::headers::X_FORWARDED_FOR;
use crate::message::{Request, Visitor};

/// Whom an entry point believes, and what it adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedPolicy {
    /// Peers whose fields are kept.
    pub trusted: Vec<IpNet>,
    /// Everybody's fields are kept.
    pub insecure: bool,
    /// Fields that `Connection` may name without losing them before the last hop (`forwardedHeaders.connection`).
    pub connection: Vec<HeaderName>,
    /// Leaves `X-Forwarded-For` as it came from a trusted peer (`notAppendXForwardedFor`).
    pub not_append: bool,
    /// Adds `X-Forwarded-Scheme` and `X-Scheme` (`addXForwardedSchemeHeaders`).
    pub scheme_headers: bool,
    /// Says `ws` or `wss` for a WebSocket handshake, as Traefik does, in place of `http` or `https`.
    pub websocket_scheme: bool,
    /// Value of `X-Forwarded-Server`; absent = the field is not set.
    pub server: Option<HeaderValue>,
}

impl Default for ForwardedPolicy {
    fn default() -> Self {
        Self {
            trusted: Vec::new(),
            insecure: false,
            connection: Vec::new(),
            not_append: false,
            scheme_headers: false,
            websocket_scheme: true,
            server: None,
        }
    }
}

impl ForwardedPolicy {
    /// True if the fields of this peer are believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.insecure || self.trusted.iter().any(|network| network.contains(&peer))
    }

    /// Sets the fields of a request that has just been read; true if the peer's own were believed.
    pub fn apply(&self, request: &mut Request) -> bool {
        let is_websocket = request.upgrade.as_deref() == Some("websocket");
        if request.headers.lack(UNCLAIMED) && self.connection.is_empty() && !is_websocket {
            return self.apply_plainly(request);
        }
        let host = std::mem::take(&mut request.host);
        let trusted = self.apply_to(&mut request.headers, &request.visitor, &host, is_websocket);
        request.host = host;
        trusted
    }

    /// [`Self::apply`] for a request that says nothing about its visitor, so that there is nothing to look up or take off.
    fn apply_plainly(&self, request: &mut Request) -> bool {
        let Request { headers, visitor, host, .. } = request;
        headers.drop_lines(Kinds::PERSISTENCE);
        if let Some(address) = visitor.address_text() {
            headers.add(&ours::X_REAL_IP, address.clone());
        }
        let scheme = HeaderValue::from_static(if visitor.secure { "https" } else { "http" });
        headers.add(&ours::X_FORWARDED_PROTO, scheme.clone());
        let value = headers.shared(Kinds::HOST, host).or_else(|| HeaderValue::from_str(host).ok());
        if let Some(value) = value.filter(|_| !host.is_empty()) {
            headers.add(&ours::X_FORWARDED_HOST, value);
        }
        let port = match port_of(host) {
            Some(port) => HeaderValue::from_str(port).ok(),
            None => Some(HeaderValue::from_static(if visitor.secure { "443" } else { "80" })),
        };
        if let Some(port) = port {
            headers.add(&ours::X_FORWARDED_PORT, port);
        }
        if self.scheme_headers {
            headers.add(&ours::X_FORWARDED_SCHEME, scheme.clone());
            headers.add(&ours::X_SCHEME, scheme);
        }
        if let Some(server) = &self.server {
            headers.add(&ours::X_FORWARDED_SERVER, server.clone());
        }
        self.trusts(visitor.remote.ip())
    }

    /// [`Self::apply`] on the parts of a request: `host` as the visitor sent it, with its port.
    pub fn apply_to(
        &self,
        headers: &mut HeaderMap,
        visitor: &Visitor,
        host: &str,
        is_websocket: bool,
    ) -> bool {
        let peer = visitor.remote.ip().to_canonical();
        let trusted = self.trusts(peer);
        // One look at each name: most visitors claim nothing, and then there is nothing to look up.
        let claims = headers.keys().any(|name| name.as_str().starts_with("x-"));
        if !trusted && claims {
            for name in &CLAIMS {
                headers.remove(name);
            }
        }
        remove_lookalikes(headers);
        remove_mesh_claims(headers);
        let believed = trusted && claims;
        let scheme = match (visitor.secure, is_websocket && self.websocket_scheme) {
            (true, false) => "https",
            (false, false) => "http",
            (true, true) => "wss",
            (false, true) => "ws",
        };
        set_absent(headers, believed, &X_REAL_IP, || visitor.address_text().cloned());
        set_absent(headers, believed, &X_FORWARDED_PROTO, || Some(HeaderValue::from_static(scheme)));
        if !host.is_empty() {
            set_absent(headers, believed, &X_FORWARDED_HOST, || HeaderValue::from_str(host).ok());
        }
        let is_secure = visitor.secure
            || (believed
                && headers.get(&X_FORWARDED_PROTO).is_some_and(|proto| proto == "https" || proto == "wss"));
        set_absent(headers, believed, &X_FORWARDED_PORT, || match port_of(host) {
            Some(port) => HeaderValue::from_str(port).ok(),
            None => Some(HeaderValue::from_static(if is_secure { "443" } else { "80" })),
        });
        if self.scheme_headers {
            // Never what came: three fields that contradict each other would each be believed by somebody.
            for name in [X_FORWARDED_SCHEME, X_SCHEME] {
                match headers.get(&X_FORWARDED_PROTO).cloned() {
                    Some(scheme) => headers.insert(name, scheme),
                    None => headers.remove(name),
                };
            }
        }
        if let Some(server) = &self.server {
            headers.insert(X_FORWARDED_SERVER, server.clone());
        }
        self.remove_named_by_connection(headers);
        trusted
    }

    /// Whether this hop's entry is to be added to `X-Forwarded-For` when the request leaves for a server.
    ///
    /// `trusted` is what [`Self::apply`] answered: without it nothing came that could be left as it is.
    pub fn appends(&self, trusted: bool) -> bool {
        !(self.not_append && trusted)
    }

    /// RFC 9110 §7.6.1, except that `Connection` cannot take off what hops say about the visitor.
    fn remove_named_by_connection(&self, headers: &mut HeaderMap) {
        if !headers.contains_key(header::CONNECTION) {
            return;
        }
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !CLAIMS.contains(name) && !is_mesh_claim(name))
            .collect();
        let mut kept: Vec<&str> = Vec::new();
        for name in &named {
            if *name == header::UPGRADE || self.connection.contains(name) {
                kept.push(name.as_str());
            } else {
                headers.remove(name);
            }
        }
        match HeaderValue::try_from(kept.join(", ")) {
            Ok(value) if !kept.is_empty() => headers.insert(header::CONNECTION, value),
            _ => headers.remove(header::CONNECTION),
        };
    }
}

/// Takes off what only this process says of the mesh's peers, whoever sends it: no hop before us can know.
pub fn remove_mesh_claims(headers: &mut HeaderMap) {
    if !headers.keys().any(is_mesh_claim) {
        return;
    }
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_mesh_claim(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// Tells whoever is behind us which peer of the mesh asks, after [`ForwardedPolicy::apply`] took off what others claim.
pub fn set_mesh_claims(headers: &mut HeaderMap, peer: &MeshIdentity, address: IpAddr) {
    let mut set = |name: HeaderName, value: &str| {
        // Names of peers and groups are checked to be printable: this never fails.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    set(X_ADIT_MESH_PEER, &peer.name);
    set(X_ADIT_MESH_KEY, &peer.key.to_string());
    set(X_ADIT_MESH_ADDRESS, &address.to_canonical().to_string());
    if !peer.groups.is_empty() {
        set(X_ADIT_MESH_GROUPS, &peer.groups.join(","));
    }
}

/// Takes off a visitor's wish that a server act for somebody else than the credential says, which may be one of ours.
pub fn remove_impersonation(headers: &mut HeaderMap) {
    let asks = |name: &&HeaderName| IMPERSONATION.iter().any(|start| name.as_str().starts_with(start));
    let asked: Vec<HeaderName> = headers.keys().filter(asks).cloned().collect();
    for name in asked {
        headers.remove(name);
    }
}

/// Asks a Kubernetes API to act for the mesh's peer: its name is the user, its groups are the groups. The visitor's own
/// wishes are to be taken off before: see [`remove_impersonation`].
pub fn set_impersonation(headers: &mut HeaderMap, peer: &MeshIdentity) {
    // Names of peers and groups have no colon: nobody is `system:masters`.
    if let Ok(user) = HeaderValue::try_from(&*peer.name) {
        headers.insert(IMPERSONATE_USER, user);
    }
    for group in peer.groups.iter().filter_map(|group| HeaderValue::try_from(&**group).ok()) {
        headers.append(IMPERSONATE_GROUP, group);
    }
}

/// Whether a name is one of those that [`set_mesh_claims`] sets, or one that some servers take for it.
fn is_mesh_claim(name: &HeaderName) -> bool {
    claims_mesh(name.as_str().as_bytes())
}

/// Whether a field of this name, in any letter case, is one of those that [`remove_mesh_claims`] takes off.
pub fn claims_mesh(name: &[u8]) -> bool {
    let Some(start) = name.get(..MESH_CLAIMS.len()) else { return false };
    start
        .iter()
        .zip(MESH_CLAIMS)
        .all(|(byte, wanted)| byte.eq_ignore_ascii_case(wanted) || (*wanted == b'-' && *byte == b'_'))
}

/// Adds a client's address behind those that are there already, all lines joined into one.
///
/// It is that of the visitor, whose connection has it as text, unless somebody has said otherwise since.
pub fn append_for(headers: &mut Fields, visitor: &Visitor, client: IpAddr) {
    match visitor.address_text() {
        Some(address)
            if headers.lack(Kinds::CLAIM)
                && !headers.has_added(&ours::X_FORWARDED_FOR)
                && visitor.remote.ip().to_canonical() == client =>
        {
            headers.add(&ours::X_FORWARDED_FOR, address.clone());
        }
        Some(address) if visitor.remote.ip().to_canonical() == client => {
            crate::headers::append_forwarded_text(headers, address);
        }
        _ => crate::headers::append_forwarded_for(headers, client.to_canonical()),
    }
}

/// This machine's name, for `X-Forwarded-Server`; absent if the system does not tell or it is no field value.
pub fn server_name() -> Option<HeaderValue> {
    let name = std::fs::read_to_string(HOSTNAME_FILE).ok()?;
    Some(HeaderValue::from_static(lasting(name.trim())?))
}

/// A name for as long as the process lives, if it is a field's value: every request hands it on, and nobody counts references
/// to what stays. A machine is renamed by hand, if ever, so that little stays for nothing.
fn lasting(name: &str) -> Option<&'static str> {
    static LAST: Mutex<&'static str> = Mutex::new("");
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if *last != name && HeaderValue::from_str(name).is_ok_and(|value| value.to_str().is_ok()) {
        *last = Box::leak(Box::from(name));
    }
    Some(*last).filter(|last| *last == name && !name.is_empty())
}

/// Go's CGI-style servers and many others read `X_Forwarded_For` as `X-Forwarded-For`.
fn remove_lookalikes(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| name.as_str().contains('_')) {
        return;
    }
    let lookalikes: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().contains('_'))
        .filter(|name| {
            let dashed = name.as_str().replace('_', "-");
            CLAIMS.iter().any(|claim| claim.as_str() == dashed)
        })
        .cloned()
        .collect();
    for name in lookalikes {
        headers.remove(name);
    }
}

/// Sets a field unless a peer that is believed has set it.
fn set_absent(
    headers: &mut HeaderMap,
    believed: bool,
    name: &HeaderName,
    value: impl FnOnce() -> Option<HeaderValue>,
) {
    let is_there = believed && headers.get(name).is_some_and(|value| !value.is_empty());
    if !is_there && let Some(value) = value() {
        headers.insert(name, value);
    }
}

fn port_of(host: &str) -> Option<&str> {
    let (name, port) = host.split_at(host.bytes().rposition(|byte| byte == b':')?);
    let port = &port[1..];
    // A literal without brackets has no port, and a literal in brackets ends in one.
    (!port.is_empty() && !port.ends_with(']') && (name.ends_with(']') || !name.contains(':'))).then_some(port)
}

/// The fields that are set on every request, ready to be written.
mod ours {
    use crate::fields::Ours;

    pub(super) static X_FORWARDED_FOR: Ours =
        Ours { name: super::X_FORWARDED_FOR, start: "X-Forwarded-For: " };
    pub(super) static X_REAL_IP: Ours = Ours { name: super::X_REAL_IP, start: "X-Real-Ip: " };
    pub(super) static X_FORWARDED_PROTO: Ours =
        Ours { name: super::X_FORWARDED_PROTO, start: "X-Forwarded-Proto: " };
    pub(super) static X_FORWARDED_HOST: Ours =
        Ours { name: super::X_FORWARDED_HOST, start: "X-Forwarded-Host: " };
    pub(super) static X_FORWARDED_PORT: Ours =
        Ours { name: super::X_FORWARDED_PORT, start: "X-Forwarded-Port: " };
    pub(super) static X_FORWARDED_SERVER: Ours =
        Ours { name: super::X_FORWARDED_SERVER, start: "X-Forwarded-Server: " };
    pub(super) static X_FORWARDED_SCHEME: Ours =
        Ours { name: super::X_FORWARDED_SCHEME, start: "X-Forwarded-Scheme: " };
    pub(super) static X_SCHEME: Ours = Ours { name: super::X_SCHEME, start: "X-Scheme: " };
}

/// A request with none of these says nothing about its visitor, and names nothing to be taken off.
const UNCLAIMED: Kinds = Kinds::CLAIM.and(Kinds::UNDERSCORE).and(Kinds::HOP);
/// Starts of the names that Kubernetes takes for a wish to act for somebody: its user impersonation, and what proxies with
/// a certificate of their own may say (`--requestheader-…-headers`).
const IMPERSONATION: [&str; 2] = ["impersonate-", "x-remote-"];
const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
/// Start of the names of what is said of the mesh's peers.
const MESH_CLAIMS: &[u8] = b"x-adit-mesh-";
/// Name of the mesh's peer that asks.
pub const X_ADIT_MESH_PEER: HeaderName = HeaderName::from_static("x-adit-mesh-peer");
/// Its groups, separated by commas; absent if it is in none.
pub const X_ADIT_MESH_GROUPS: HeaderName = HeaderName::from_static("x-adit-mesh-groups");
/// Its public key in base64.
pub const X_ADIT_MESH_KEY: HeaderName = HeaderName::from_static("x-adit-mesh-key");
/// The address in the mesh that asks: the peer's own, or one of a network behind it.
pub const X_ADIT_MESH_ADDRESS: HeaderName = HeaderName::from_static("x-adit-mesh-address");
/// `X-Real-Ip`.
pub const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// `X-Forwarded-Proto`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `X-Forwarded-Host`.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `X-Forwarded-Port`.
pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// `X-Forwarded-Server`.
pub const X_FORWARDED_SERVER: HeaderName = HeaderName::from_static("x-forwarded-server");
const X_FORWARDED_SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");
const X_SCHEME: HeaderName = HeaderName::from_static("x-scheme");
/// Fields that only a hop may set: gone when an untrusted peer sends them, and out of `Connection`'s reach.
pub(crate) const CLAIMS: [HeaderName; 13] = [
    X_FORWARDED_FOR,
    X_REAL_IP,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    X_FORWARDED_PORT,
    X_FORWARDED_SERVER,
    HeaderName::from_static("x-forwarded-method"),
    HeaderName::from_static("x-forwarded-uri"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-tls-client-cert"),
    HeaderName::from_static("x-forwarded-tls-client-cert-info"),
    X_FORWARDED_SCHEME,
    X_SCHEME,
];
/// Where Linux tells the machine's name without a call into libc.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn visitor(remote: &str, secure: bool) -> Visitor {
        let remote: SocketAddr = remote.parse().unwrap();
        Visitor {
            remote,
            local: remote,
            secure,
            entry_point: "web".into(),
            peer: None,
            tls: None,
            address: Default::default(),
        }
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn an_untrusted_peer_is_described_by_its_connection_alone() {
        let policy =
            ForwardedPolicy { server: Some(HeaderValue::from_static("gate")), ..ForwardedPolicy::default() };
        let mut headers = map(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-prefix", "/x"),
            ("x-scheme", "https"),
            ("x_forwarded_for", "1.2.3.4"),
            ("cf-connecting-ip", "9.9.9.9"),
            ("forwarded", "for=1.2.3.4"),
        ]);
        let trusted =
            policy.apply_to(&mut headers, &visitor("127.0.0.2:999", false), "example.com:8080", false);
        assert!(!trusted);
        let want = map(&[
            ("x-real-ip", "127.0.0.2"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-port", "8080"),
            ("x-forwarded-host", "example.com:8080"),
            ("x-forwarded-server", "gate"),
            ("cf-connecting-ip", "9.9.9.9"),
            ("forwarded", "for=1.2.3.4"),
        ]);
        assert_eq!(headers, want);
        assert!(policy.appends(trusted));
        let mut headers = Fields::from(headers);
        append_for(&mut headers, &visitor("[::ffff:127.0.0.2]:1", false), "127.0.0.2".parse().unwrap());
        assert_eq!(headers["x-forwarded-for"], "127.0.0.2");
    }

    #[test]
    fn a_trusted_peer_keeps_what_it_sent_and_is_appended() {
        let policy =
            ForwardedPolicy { trusted: vec!["10.0.0.0/8".parse().unwrap()], ..ForwardedPolicy::default() };
        let sent = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-uri", "/u"),
            ("x_forwarded_uri", "/u"),
        ];
        let mut headers = map(&sent);
        let visitor = visitor("[::ffff:10.1.1.1]:4", false);
        assert!(policy.apply_to(&mut headers, &visitor, "a.test", false));
        assert_eq!(headers["x-real-ip"], "1.2.3.4");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-port"], "443", "the trusted scheme decides");
        assert_eq!(headers["x-forwarded-uri"], "/u");
        assert!(!headers.contains_key("x_forwarded_uri"));
        let mut headers = Fields::from(headers);
        append_for(&mut headers, &visitor, visitor.remote.ip());
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 5.6.7.8, 10.1.1.1");
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
    }

    #[test]
    fn appending_can_be_turned_off_for_trusted_peers_only() {
        let policy = ForwardedPolicy { insecure: true, not_append: true, ..ForwardedPolicy::default() };
        assert!(!policy.appends(true) && policy.appends(false));
        assert!(ForwardedPolicy::default().appends(true));
    }

    #[test]
    fn ports_come_from_host_or_scheme() {
        for (host, secure, want) in [
            ("a.test", false, "80"),
            ("a.test", true, "443"),
            ("a.test:8443", true, "8443"),
            ("[::1]:81", false, "81"),
            ("[::1]", false, "80"),
            ("::1", false, "80"),
            ("a.test:", false, "80"),
        ] {
            let mut headers = HeaderMap::new();
            ForwardedPolicy::default().apply_to(&mut headers, &visitor("1.1.1.1:1", secure), host, false);
            assert_eq!(headers["x-forwarded-port"], want, "{host}");
        }
    }

    #[test]
    fn a_websocket_handshake_says_so_by_option() {
        for (secure, option, want) in
            [(false, true, "ws"), (true, true, "wss"), (false, false, "http"), (true, false, "https")]
        {
            let policy = ForwardedPolicy { websocket_scheme: option, ..ForwardedPolicy::default() };
            let mut headers = HeaderMap::new();
            policy.apply_to(&mut headers, &visitor("1.1.1.1:1", secure), "a", true);
            assert_eq!(headers["x-forwarded-proto"], want);
        }
    }

    #[test]
    fn connection_names_are_removed_except_those_of_hops_and_of_the_option() {
        let policy = ForwardedPolicy {
            insecure: true,
            connection: vec![HeaderName::from_static("x-kept")],
            ..ForwardedPolicy::default()
        };
        let mut headers = map(&[
            ("connection", "keep-alive, X-Hop, X-Forwarded-For"),
            ("connection", "x-kept, Upgrade"),
            ("upgrade", "websocket"),
            ("x-hop", "1"),
            ("x-kept", "1"),
            ("x-forwarded-for", "1.2.3.4"),
        ]);
        policy.apply_to(&mut headers, &visitor("1.1.1.1:1", false), "", false);
        assert!(!headers.contains_key("x-hop") && headers.contains_key("x-kept"));
        assert_eq!(headers["connection"], "x-kept, upgrade");
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4");
        assert!(headers.contains_key("upgrade") && !headers.contains_key("x-forwarded-host"));
    }

    #[test]
    fn nobody_claims_to_be_a_peer_of_the_mesh_and_connection_cannot_take_it_off() {
        let policy = ForwardedPolicy { insecure: true, ..ForwardedPolicy::default() };
        let mut headers = HeaderMap::new();
        for name in ["x-adit-mesh-peer", "x-adit-mesh-groups", "x_adit_mesh_peer", "x-adit_mesh-anything"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("admin"));
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("x-adit-mesh-key, x-other"));
        headers.insert("x-adit-mesher", HeaderValue::from_static("kept"));
        let peer = MeshIdentity {
            name: "laptop".into(),
            key: adit_config::PeerKey([7; 32]),
            groups: vec!["admins".into(), "ops".into()],
        };
        policy.apply_to(&mut headers, &visitor("10.9.0.2:1", false), "a.test", false);
        assert!(!headers.keys().any(is_mesh_claim), "{headers:?}");
        assert_eq!(headers["x-adit-mesher"], "kept");
        set_mesh_claims(&mut headers, &peer, "::ffff:10.9.0.2".parse().unwrap());
        policy.remove_named_by_connection(&mut headers);
        for name in ["impersonate-user", "impersonate-group", "impersonate-extra-scopes", "x-remote-group"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("system:masters"));
        }
        remove_impersonation(&mut headers);
        set_impersonation(&mut headers, &peer);
        assert_eq!(headers["impersonate-user"], "laptop");
        assert_eq!(headers.get_all("impersonate-group").iter().collect::<Vec<_>>(), ["admins", "ops"]);
        assert!(!headers.values().any(|value| value == "system:masters"), "{headers:?}");
        assert_eq!(headers[X_ADIT_MESH_PEER], "laptop");
        assert_eq!(headers[X_ADIT_MESH_GROUPS], "admins,ops");
        assert_eq!(headers[X_ADIT_MESH_ADDRESS], "10.9.0.2");
        assert_eq!(headers[X_ADIT_MESH_KEY], peer.key.to_string().as_str());
    }

    #[test]
    fn scheme_fields_are_added_by_option() {
        let policy = ForwardedPolicy { scheme_headers: true, ..ForwardedPolicy::default() };
        let mut headers = HeaderMap::new();
        policy.apply_to(&mut headers, &visitor("1.1.1.1:1", true), "a", true);
        assert!(headers["x-forwarded-scheme"] == "wss" && headers["x-scheme"] == "wss");
    }

    #[test]
    fn scheme_fields_of_a_trusted_peer_follow_its_forwarded_scheme() {
        let policy = ForwardedPolicy { scheme_headers: true, insecure: true, ..ForwardedPolicy::default() };
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        headers.insert("x-scheme", HeaderValue::from_static("s"));
        headers.append("x-scheme", HeaderValue::from_static("t"));
        headers.insert("x-forwarded-scheme", HeaderValue::from_static("fs"));
        policy.apply_to(&mut headers, &visitor("1.1.1.1:1", false), "a", false);
        assert!(headers["x-forwarded-scheme"] == "https" && headers["x-scheme"] == "https");
        assert_eq!(headers.get_all("x-scheme").iter().count(), 1);
    }

    /// The fields that a server gets of a request with these lines, and whether its peer was believed.
    fn forwarded(policy: &ForwardedPolicy, lines: &str, as_map: bool) -> (HeaderMap, bool) {
        let head = format!("GET / HTTP/1.1\r\nHost: a.test:81\r\n{lines}\r\n");
        let head = crate::h1::head::parse_request(&head.into()).unwrap();
        let mut headers = head.headers;
        if as_map {
            headers = headers.into_map().into();
        }
        let mut request = Request {
            method: head.method,
            uri: head.uri,
            version: head.version,
            host: head.host,
            headers,
            body: crate::body::Body::empty(),
            upgrade: head.upgrade,
            visitor: std::sync::Arc::new(visitor("10.1.1.1:4", true)),
        };
        let trusted = policy.apply(&mut request);
        let address = request.visitor.remote.ip();
        if policy.appends(trusted) {
            append_for(&mut request.headers, &request.visitor, address);
        }
        crate::headers::remove_hop_by_hop_but_trailer(&mut request.headers, request.body.length());
        crate::headers::keep_te_trailers(&mut request.headers);
        crate::headers::remove_framing(&mut request.headers);
        let mut written = bytes::BytesMut::new();
        crate::h1::encode::request_head(&mut written, &request.method, &request.uri, "a", &request.headers);
        written.extend_from_slice(b"\r\n");
        let mut sent = crate::h1::head::parse_request(&written.freeze()).unwrap().headers.into_map();
        sent.remove(header::CONTENT_LENGTH);
        (sent, trusted)
    }

    proptest::proptest! {
        #[test]
        fn lines_are_forwarded_as_a_map_of_them_would_be(
            picked in proptest::collection::vec(0..LINES.len(), 0..6),
            trusting: bool,
            named: bool,
            scheme_headers: bool,
        ) {
            let policy = ForwardedPolicy {
                trusted: if trusting { vec!["10.0.0.0/8".parse().unwrap()] } else { Vec::new() },
                connection: if named { vec![HeaderName::from_static("x-hop")] } else { Vec::new() },
                scheme_headers,
                server: Some(HeaderValue::from_static("gate")),
                ..ForwardedPolicy::default()
            };
            let lines: String = picked.iter().map(|line| format!("{}\r\n", LINES[*line])).collect();
            proptest::prop_assert_eq!(forwarded(&policy, &lines, false), forwarded(&policy, &lines, true));
        }
    }

    const LINES: [&str; 20] = [
        "Accept: */*",
        "accept:",
        "X-Custom: one",
        "X-Custom: two",
        "Cookie: a=b",
        "Connection: keep-alive",
        "Connection: Close",
        "Connection: x-hop, x-custom",
        "X-Hop: 1",
        "Close: 1",
        "Keep-Alive: 5",
        "TE: trailers, gzip",
        "Trailer: x-t",
        "Proxy-Authorization: x",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Proto: http",
        "X_Forwarded_For: 6.6.6.6",
        "X-Real-Ip: 7.7.7.7",
        "X-Adit-Mesh-Peer: root",
        "Date: today",
    ];
}
