//! One generation of the ingress: everything compiled, ready to be swapped in.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use adit_config::dynamic::{ClientAuthType, Dynamic, Router};
use adit_config::{EntryPoint, EntryPointNetwork, EntryPointTransport, Impersonation, UnderscoreHeaders};
use adit_proxy::body::Body;
use adit_proxy::forwarded::{ForwardedPolicy, remove_impersonation, set_impersonation, set_mesh_claims};
use adit_proxy::lanes::LaneName;
use adit_proxy::message::Request;
use adit_proxy::middleware::{Chain, Layers, TlsInfo};
use adit_proxy::service::{Blueprint, Node, Services};
use adit_proxy::tls::hosts::{TlsHostRule, TlsHosts};
use adit_proxy::tls::options::{DEFAULT_OPTIONS, Stamp};
use adit_route::mesh::{MeshIdentity, MeshPeers};
use adit_route::path;
use adit_route::router::{HttpHead, Router as Compiled, RouterSpec, RouterTable, canonical_host};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Uri};

use super::internal::Internal;
use super::redirect::Redirect;
use super::set_target;
use super::view::Verdicts;
use crate::daemon::ingress::TUNNEL;

/// What a generation is made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    /// All providers' objects, names qualified.
    pub(crate) dynamic: Dynamic,
    /// By name; `tunnel` stands for what comes through the tunnel.
    pub(crate) entry_points: BTreeMap<String, EntryPoint>,
    /// Value of `X-Forwarded-Server`.
    pub(crate) server: Option<HeaderValue>,
    /// Who is who on entry points of the mesh; absent without a mesh.
    pub(crate) mesh: Option<Arc<MeshPeers>>,
    /// TCP routers that are not served, with the reason.
    pub(crate) tcp_faults: BTreeMap<String, String>,
    /// UDP routers that are not served, with the reason.
    pub(crate) udp_faults: BTreeMap<String, String>,
    /// What is wrong with TCP and UDP routers that are served nevertheless.
    pub(crate) stream_warnings: Vec<String>,
    /// Files that keep their old content, with what is wrong with them.
    pub(crate) faults: Vec<String>,
    /// TLS options by name, each with its stamp or its fault; none where nobody has compiled them.
    pub(crate) tls_options: Option<BTreeMap<String, Result<Stamp, String>>>,
    /// Names of entry points that stand for the tunnel (`tunnel.entry-points`).
    pub(crate) tunnel_names: Vec<String>,
    /// Our own services.
    pub(crate) internal: Internal,
}

impl Inputs {
    /// The stamp of TLS options, or why they cannot be used.
    fn tls_stamp(&self, name: &str) -> Result<Stamp, String> {
        let unknown = || format!("there are no TLS options {name}");
        match &self.tls_options {
            Some(options) => match options.get(name) {
                Some(Ok(stamp)) => Ok(*stamp),
                Some(Err(why)) => Err(format!("TLS options {name}: {why}")),
                None => Err(unknown()),
            },
            None if name == DEFAULT_OPTIONS || self.dynamic.tls.options.contains_key(name) => {
                Ok(Stamp::default())
            }
            None => Err(unknown()),
        }
    }

    /// Whether requests may come in under this name.
    pub(crate) fn has_entry_point(&self, name: &str) -> bool {
        self.entry_points.contains_key(name) || self.tunnel_names.iter().any(|known| known == name)
    }
}

/// Everything that answers requests, compiled.
pub(crate) struct Generation {
    pub(crate) inputs: Inputs,
    /// Few: found by comparing names, without hashing one.
    entries: BTreeMap<Arc<str>, Entry>,
    pub(crate) table: RouterTable<Served>,
    pub(crate) services: Services,
    layers: Layers,
    pub(crate) verdicts: Verdicts,
}

/// What visitors over TLS are told of HTTP/3.
pub(crate) enum AltSvc {
    Value(HeaderValue),
    /// The system chose the port: it is the one that the visitor came to, because HTTP/3 has the same.
    BoundPort,
}

impl AltSvc {
    /// The field for a visitor who came to the port `local`.
    pub(crate) fn value(&self, local: u16) -> HeaderValue {
        match self {
            Self::Value(value) => value.clone(),
            Self::BoundPort => adit_proxy::h3::alt_svc(local),
        }
    }
}

/// One entry point's part.
pub(crate) struct Entry {
    pub(crate) policy: ForwardedPolicy,
    pub(crate) redirect: Option<Redirect>,
    /// Tells visitors over TLS that there is HTTP/3.
    pub(crate) alt_svc: Option<AltSvc>,
    /// Its HTTPS hosts and their TLS options.
    hosts: TlsHosts,
    /// Stamp of the options that a handshake for no known host is made under.
    default_stamp: Stamp,
    settings: EntryPoint,
}

/// An address on the mesh that no peer has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnknownPeer;

/// A request's target in the forms that rules compare, where they differ from what stands in the request itself.
#[derive(Default)]
pub(crate) struct Cleaned {
    path: Option<String>,
    query: Option<String>,
}

impl Cleaned {
    /// The path for rules.
    pub(crate) fn path<'a>(&'a self, request: &'a Request) -> &'a str {
        self.path.as_deref().unwrap_or(request.uri.path())
    }

    pub(crate) fn query<'a>(&'a self, request: &'a Request) -> &'a str {
        self.query.as_deref().or(request.uri.query()).unwrap_or_default()
    }
}

/// A router ready to serve on one entry point.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) name: Arc<LaneName>,
    pub(crate) chain: Chain,
    pub(crate) target: Arc<Node>,
    /// Whether its requests are logged and counted.
    pub(crate) observed: Observed,
    /// The TLS options that it names.
    options: Option<String>,
    stamp: Stamp,
}

impl Served {
    /// The TLS options that its hosts' handshakes are to be made under.
    pub(super) fn options(&self) -> &str {
        self.options.as_deref().unwrap_or(DEFAULT_OPTIONS)
    }
}

/// Whether requests are seen from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed {
    pub(crate) in_log: bool,
    pub(crate) in_metrics: bool,
}

impl Generation {
    /// Compiles everything; what is wrong with one object disables that object alone. State (health, positions, buckets,
    /// pools) of objects that did not change comes over from `previous`. To be called inside a runtime, or nothing probes.
    pub(crate) fn compile(inputs: Inputs, previous: Option<&Self>) -> Self {
        let mut verdicts = Verdicts {
            faults: inputs.faults.clone(),
            tcp_routers: inputs.tcp_faults.clone(),
            udp_routers: inputs.udp_faults.clone(),
            defaults: inputs
                .entry_points
                .iter()
                .filter(|(_, at)| at.as_default && at.transport == EntryPointTransport::Tcp)
                .map(|(name, _)| name.clone())
                .collect(),
            ..Verdicts::default()
        };
        let http = &inputs.dynamic.http;
        let layers = Layers::compile(&http.middlewares, previous.map(|p| &p.layers));
        let services = Services::compile(
            Blueprint {
                services: &http.services,
                transports: &http.servers_transports,
                internal: &inputs.internal.targets(),
                chains: &|user, names, resolve| layers.chain(user, names, resolve),
            },
            previous.map(|p| &p.services),
        );
        for (name, why) in layers.faults() {
            verdicts.middlewares.insert(name.to_owned(), why.to_owned());
        }
        for (name, why) in services.faults() {
            verdicts.services.insert(name.to_owned(), why.to_owned());
        }
        let mut compiler =
            Compiler { inputs: &inputs, layers: &layers, services: &services, verdicts: &mut verdicts };
        let (mut entries, specs, refused) = compiler.entries();
        let (table, disabled) = RouterTable::build(specs);
        let (refused, _) = RouterTable::build(refused);
        for fault in disabled {
            verdicts.using.remove(&fault.name);
            verdicts.routers.insert(fault.name, fault.reason);
        }
        for shadow in table.shadows() {
            verdicts.warnings.push(format!(
                "router {} never answers on {} for requests such as {}: {} comes first",
                shadow.router, shadow.entry_point, shadow.example, shadow.by
            ));
        }
        for router in table.routers() {
            let seen = router.suspicions();
            verdicts.warnings.extend(seen.iter().map(|seen| format!("router {}: {seen}", router.name)));
        }
        verdicts.warnings.extend(super::mesh_names::warnings(&inputs));
        verdicts.warnings.extend(inputs.stream_warnings.iter().cloned());
        verdicts.warnings.extend(inputs.dynamic.warnings.iter().map(ToString::to_string));
        for (name, entry) in &mut entries {
            entry.hosts = tls_hosts(&table, &refused, name);
            let splits = super::tls_splits::warnings(&table, &entry.hosts, name);
            entry.hosts.warn(splits);
            verdicts.warnings.extend(entry.hosts.warnings().iter().cloned());
        }
        // A router on several entry points is looked at once for each.
        verdicts.warnings.sort();
        verdicts.warnings.dedup();
        Self { entries, table, services, layers, verdicts, inputs }
    }

    /// Servers by service, with whether each is up.
    pub(crate) fn servers(&self) -> BTreeMap<String, Vec<(String, bool)>> {
        let of = |status: adit_proxy::service::ServiceStatus| {
            let servers = status.servers.iter().map(|server| (server.url.to_string(), server.up)).collect();
            (status.name.to_string(), servers)
        };
        self.services.statuses().map(of).collect()
    }

    /// Hosts of the HTTPS routers of one entry point, with their TLS options.
    pub(crate) fn tls_hosts(&self, entry_point: &str) -> TlsHosts {
        self.entries.get(entry_point).map(|entry| entry.hosts.clone()).unwrap_or_default()
    }

    /// What is not done as written about TLS.
    pub(crate) fn tls_warnings(&self) -> BTreeSet<&String> {
        self.entries.values().flat_map(|entry| entry.hosts.warnings()).collect()
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// True if a router or redirect of ours answers the request, or if it is to be refused: decided on what
    /// [`super::Gateway`] will see, so that no spelling chooses who answers.
    pub(crate) fn finds(&self, request: &Request) -> bool {
        let Some(entry) = self.entry(&request.visitor.entry_point) else { return false };
        if !self.table.has_routers(&request.visitor.entry_point)
            && entry.redirect.is_none()
            && entry.takes_as_is(request)
        {
            return false;
        }
        let mut seen = Request {
            method: request.method.clone(),
            uri: request.uri.clone(),
            version: request.version,
            host: request.host.clone(),
            headers: request.headers.clone(),
            body: Body::empty(),
            upgrade: request.upgrade.clone(),
            visitor: Arc::clone(&request.visitor),
        };
        if !entry.tidy_fields(&mut seen) {
            return true;
        }
        entry.policy.apply(&mut seen);
        let Ok(cleaned) = entry.clean(&mut seen) else { return true };
        let redirects = entry
            .redirect
            .as_ref()
            .is_some_and(|redirect| !redirect.spares(cleaned.path(&seen)) && !redirect.is_done(&seen));
        let mesh = entry.identify(self, seen.visitor.remote.ip()).ok().flatten();
        redirects || self.decide(&seen, &cleaned, mesh.map(|peer| &**peer)).is_some()
    }

    /// The router that answers; `peer` is who asks on an entry point of the mesh.
    pub(crate) fn decide(
        &self,
        request: &Request,
        cleaned: &Cleaned,
        peer: Option<&MeshIdentity>,
    ) -> Option<&Compiled<Served>> {
        self.table.decide(&HttpHead {
            entry_point: &request.visitor.entry_point,
            tls: request.visitor.secure,
            host: &request.host,
            path: cleaned.path(request),
            query: cleaned.query(request),
            method: &request.method,
            headers: &request.headers,
            content_length: request.content_length(),
            peer: request.visitor.remote.ip().to_canonical(),
            mesh: peer,
        })
    }

    /// The mesh's peer behind an address: `Ok(None)` where an entry point is not on the mesh, an error where it is and
    /// nobody has the address.
    pub(crate) fn identify(
        &self,
        entry_point: &str,
        address: IpAddr,
    ) -> Result<Option<&Arc<MeshIdentity>>, UnknownPeer> {
        self.entry(entry_point).map_or(Ok(None), |entry| entry.identify(self, address))
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("entry_points", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Entry {
    /// As [`Generation::identify`], on this entry point.
    pub(crate) fn identify<'a>(
        &self,
        generation: &'a Generation,
        address: IpAddr,
    ) -> Result<Option<&'a Arc<MeshIdentity>>, UnknownPeer> {
        if !self.is_on_mesh() {
            return Ok(None);
        }
        let identity = generation.inputs.mesh.as_ref().and_then(|peers| peers.identify(address));
        identity.map(Some).ok_or(UnknownPeer)
    }

    /// Puts the target into the form that is forwarded; returns the forms that rules compare.
    pub(crate) fn clean(&self, request: &mut Request) -> Result<Cleaned, &'static str> {
        let raw = request.uri.path();
        path::check_encoded(raw, &self.settings.encoded_characters).map_err(|refusal| refusal.reason())?;
        let path = path::normalize(raw, self.settings.sanitize_path).map_err(|refusal| refusal.reason())?;
        if is_normal(&request.uri, &path, self.settings.encode_query_semicolons) {
            return Ok(Cleaned::default());
        }
        let (mut target, routing_path) = (path.upstream_path.into_owned(), path.routing_path.into_owned());
        let mut routing_query = String::new();
        if let Some(query) = request.uri.query() {
            let query = path::normalize_query(query, self.settings.encode_query_semicolons);
            target.push('?');
            target.push_str(&query.upstream);
            routing_query = query.routing.into_owned();
        }
        if request.uri.path_and_query().map(|p| p.as_str()) != Some(&target) && !set_target(request, &target)
        {
            return Err("bad_path");
        }
        Ok(Cleaned { path: Some(routing_path), query: Some(routing_query) })
    }

    /// True if a request is neither refused nor brought into another form, which costs little to find out.
    fn takes_as_is(&self, request: &Request) -> bool {
        let raw = request.uri.path();
        let is_normal = |path: &path::Normalized<'_>| {
            is_normal(&request.uri, path, self.settings.encode_query_semicolons)
        };
        let mut names = request.headers.pairs().map(|(name, _)| name);
        (self.settings.underscore_headers == UnderscoreHeaders::Keep
            || !names.any(|name| name.contains(&b'_')))
            && path::check_encoded(raw, &self.settings.encoded_characters).is_ok()
            && path::normalize(raw, self.settings.sanitize_path).is_ok_and(|path| is_normal(&path))
    }

    /// True if the answer must be 421 (Misdirected Request): the handshake did not ask what this router wants asked, so a
    /// client certificate could be stepped around.
    pub(crate) fn misdirects(&self, router: &Compiled<Served>, tls: &TlsInfo, host: &str) -> bool {
        // Options are chosen by host: those of a router that names none apply to no handshake, nor do those of a host that
        // it disputes with another.
        let disputes = || {
            let host = canonical_host(host);
            let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
            router.hosts().iter().any(|named| *named == *host || Some(named) == wildcard.as_ref())
        };
        let is_chosen = router.names_host() && !(self.hosts.is_disputed(host) && disputes());
        tls.options != if is_chosen { router.target.stamp } else { self.default_stamp }
    }

    /// Whether only peers of the mesh reach it.
    pub(crate) fn is_on_mesh(&self) -> bool {
        self.settings.on == EntryPointNetwork::Mesh
    }

    /// Tells servers which peer of the mesh asks, and for whom they are to act.
    pub(crate) fn tell_peer(&self, headers: &mut HeaderMap, peer: &MeshIdentity, address: IpAddr) {
        set_mesh_claims(headers, peer, address);
        if self.settings.impersonate != Impersonation::Visitor {
            remove_impersonation(headers);
        }
        if self.settings.impersonate == Impersonation::Peer {
            set_impersonation(headers, peer);
        }
    }

    /// For requests that no router answers.
    pub(crate) fn observed(&self) -> Observed {
        Observed { in_log: self.settings.access_logs, in_metrics: self.settings.metrics }
    }

    /// Deletes or refuses fields with an underscore; false = refused.
    pub(crate) fn tidy_fields(&self, request: &mut Request) -> bool {
        if self.settings.underscore_headers == UnderscoreHeaders::Keep {
            return true;
        }
        let odd: Vec<HeaderName> =
            request.headers.keys().filter(|n| n.as_str().contains('_')).cloned().collect();
        if self.settings.underscore_headers == UnderscoreHeaders::Reject {
            return odd.is_empty();
        }
        for name in odd {
            request.headers.remove(name);
        }
        true
    }
}

/// True if a target is sent and compared as it came, which costs nothing.
fn is_normal(uri: &Uri, path: &path::Normalized<'_>, encode_semicolons: bool) -> bool {
    let is_path_normal =
        matches!((&path.upstream_path, &path.routing_path), (Cow::Borrowed(_), Cow::Borrowed(_)));
    let has_path = uri.path_and_query().is_some_and(|target| target.as_str().starts_with('/'));
    is_path_normal
        && has_path
        && uri.query().is_none_or(|query| {
            let query = path::normalize_query(query, encode_semicolons);
            matches!((query.upstream, query.routing), (Cow::Borrowed(_), Cow::Borrowed(_)))
        })
}

struct Compiler<'a> {
    inputs: &'a Inputs,
    layers: &'a Layers,
    services: &'a Services,
    verdicts: &'a mut Verdicts,
}

impl Compiler<'_> {
    /// Entry points, the routers that are served, and those refused because of their TLS options.
    fn entries(&mut self) -> (BTreeMap<Arc<str>, Entry>, Specs, Vec<RouterSpec<Served>>) {
        for (name, router) in &self.inputs.dynamic.http.routers {
            match self.check(name, router) {
                Err(why) => drop(self.verdicts.routers.insert(name.clone(), why)),
                Ok(missing) => {
                    self.verdicts.partial.entry(name.clone()).or_default().extend(missing);
                }
            }
        }
        let (mut entries, mut specs, mut refused) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (name, settings) in &self.inputs.entry_points {
            self.add_routers(name, settings, &mut specs, &mut refused);
            let entry = Entry {
                policy: policy(settings, self.inputs.server.as_ref()),
                redirect: self.redirect(settings),
                alt_svc: settings.http3.map(|http3| {
                    let port = http3.advertised_port.unwrap_or(settings.address.port());
                    if port == 0 { AltSvc::BoundPort } else { AltSvc::Value(adit_proxy::h3::alt_svc(port)) }
                }),
                hosts: TlsHosts::default(),
                default_stamp: self.inputs.tls_stamp(DEFAULT_OPTIONS).unwrap_or_default(),
                settings: settings.clone(),
            };
            entries.insert(Arc::from(name.as_str()), entry);
        }
        // What is served nowhere is disabled, what is served somewhere is worth a warning.
        for (name, reasons) in std::mem::take(&mut self.verdicts.partial) {
            if self.verdicts.routers.contains_key(&name) || reasons.is_empty() {
                continue;
            }
            if self.verdicts.using.contains_key(&name) {
                let lines = reasons.iter().map(|why| format!("router {name}: {why}"));
                self.verdicts.warnings.extend(lines);
                self.verdicts.partial.insert(name, reasons);
            } else {
                self.verdicts.routers.insert(name, reasons.join("; "));
            }
        }
        (entries, specs, refused)
    }

    /// What is wrong with a router wherever it is; if nothing, entry points of its that do not exist.
    fn check(&self, name: &str, router: &Router) -> Result<Vec<String>, String> {
        if let Some(fault) = &router.fault {
            return Err(fault.clone());
        }
        let unknown: Vec<&String> =
            router.entry_points.iter().filter(|name| !self.inputs.has_entry_point(name)).collect();
        let missing = unknown.iter().map(|name| format!("there is no entry point {name}")).collect();
        if !unknown.is_empty() && unknown.len() == router.entry_points.len() {
            return Err(format!("there is no entry point {}", unknown[0]));
        }
        self.services.node(&router.service)?;
        self.chain(name, &router.middlewares)?;
        Ok(missing)
    }

    fn chain(&self, user: &str, names: &[String]) -> Result<Chain, String> {
        self.layers.chain(user, names, &mut |service| Ok(self.services.node(service)? as Arc<_>))
    }

    /// The routers of one entry point; its own middlewares come before theirs.
    fn add_routers(
        &mut self,
        name: &str,
        settings: &EntryPoint,
        specs: &mut Specs,
        refused: &mut Vec<RouterSpec<Served>>,
    ) {
        let prepended: Vec<String> = settings.middlewares.iter().map(|m| self.find_middleware(m)).collect();
        let routers = &self.inputs.dynamic.http.routers;
        for (router_name, router) in routers {
            if !self.is_on(name, settings, router) || self.verdicts.routers.contains_key(router_name) {
                continue;
            }
            let at_fault = |why: String| format!("not served on {name}: {why}");
            let names = [prepended.as_slice(), &router.middlewares].concat();
            let (chain, target) = match (self.chain(router_name, &names), self.services.node(&router.service))
            {
                (Ok(chain), Ok(target)) => (chain, target),
                (Err(why), _) | (_, Err(why)) => {
                    self.verdicts.partial.entry(router_name.clone()).or_default().push(at_fault(why));
                    continue;
                }
            };
            let options = tls_options(router_name, router, settings);
            if name == TUNNEL && router.tls.is_some() && self.asks_for_certificates(options.as_deref()) {
                let why = at_fault(
                    "its TLS options ask for client certificates, which nobody can show there".to_owned(),
                );
                self.verdicts.partial.entry(router_name.clone()).or_default().push(why);
                continue;
            }
            let stamp = match &options {
                // The tunnel's other end has made the handshake.
                Some(options) if name != TUNNEL => self.inputs.tls_stamp(options),
                _ => self.inputs.tls_stamp(DEFAULT_OPTIONS).or(Ok(Stamp::default())),
            };
            let served = Served {
                name: Arc::new(router_name.as_str().into()),
                chain,
                target,
                // The router's word goes before the entry point's.
                observed: Observed {
                    in_log: router.observability.access_logs.unwrap_or(settings.access_logs),
                    in_metrics: router.observability.metrics.unwrap_or(settings.metrics),
                },
                options,
                stamp: *stamp.as_ref().unwrap_or(&Stamp::default()),
            };
            let spec = RouterSpec {
                name: router_name.clone(),
                rule: router.rule.clone(),
                priority: router.priority,
                provider: u32::from(router_name.ends_with("@file")),
                is_internal: false,
                entry_points: vec![name.to_owned()],
                tls: router.tls.is_some() || settings.router_tls.is_some(),
                any_scheme: name == TUNNEL,
                target: served,
            };
            match stamp {
                Ok(_) => {
                    self.verdicts.using.entry(router_name.clone()).or_default().push(name.to_owned());
                    specs.push(spec);
                }
                Err(why) => {
                    self.verdicts.partial.entry(router_name.clone()).or_default().push(at_fault(why));
                    refused.push(spec);
                }
            }
        }
    }

    /// Whether TLS options let nobody in without a certificate.
    fn asks_for_certificates(&self, options: Option<&str>) -> bool {
        let options = self.inputs.dynamic.tls.options.get(options.unwrap_or(DEFAULT_OPTIONS));
        options.is_some_and(|options| {
            matches!(options.client_auth.kind, ClientAuthType::RequireAny | ClientAuthType::RequireAndVerify)
        })
    }

    /// Whether a router answers on an entry point.
    fn is_on(&self, name: &str, settings: &EntryPoint, router: &Router) -> bool {
        let stands_here = |wanted: &String| {
            wanted == name
                || (name == TUNNEL
                    && self.inputs.tunnel_names.contains(wanted)
                    && !self.inputs.entry_points.contains_key(wanted))
        };
        match router.entry_points.is_empty() {
            true => settings.as_default && settings.transport == EntryPointTransport::Tcp,
            false => router.entry_points.iter().any(stands_here),
        }
    }

    /// An entry point's middleware names its provider, or is looked for in all.
    fn find_middleware(&self, name: &str) -> String {
        let known = |name: &String| self.inputs.dynamic.http.middlewares.contains_key(name);
        let candidates = ["inline", "file"].map(|provider| super::merge::qualified(name, provider));
        candidates.into_iter().find(known).unwrap_or_else(|| name.to_owned())
    }

    fn redirect(&self, settings: &EntryPoint) -> Option<Redirect> {
        let redirection = settings.redirection.as_ref()?;
        let named = self.inputs.entry_points.get(&redirection.to).map(|to| to.address.port());
        let port = named.or_else(|| redirection.to.trim_start_matches(':').parse().ok())?;
        Some(Redirect::new(redirection, port))
    }
}

fn policy(settings: &EntryPoint, server: Option<&HeaderValue>) -> ForwardedPolicy {
    ForwardedPolicy {
        trusted: settings.forwarded_trusted.clone(),
        insecure: settings.forwarded_insecure,
        connection: settings.forwarded_connection.iter().filter_map(|name| name.parse().ok()).collect(),
        not_append: settings.forwarded_not_append,
        scheme_headers: settings.forwarded_scheme_headers,
        websocket_scheme: settings.forwarded_websocket_scheme,
        server: server.cloned(),
    }
}

/// The TLS options that a router names on an entry point, which are its provider's unless it says otherwise.
fn tls_options(name: &str, router: &Router, settings: &EntryPoint) -> Option<String> {
    if let Some(tls) = &router.tls {
        return tls.options.clone();
    }
    let options = settings.router_tls.as_ref()?.options.as_deref()?;
    let provider = name.rsplit_once('@').map_or("", |(_, provider)| provider);
    Some(match options {
        DEFAULT_OPTIONS => options.to_owned(),
        options => super::merge::qualified(options, provider),
    })
}

/// Which TLS options each HTTPS host of an entry point has.
fn tls_hosts(table: &RouterTable<Served>, refused: &RouterTable<Served>, entry_point: &str) -> TlsHosts {
    let is_here =
        |router: &&Compiled<Served>| router.tls && router.entry_points.iter().any(|on| on == entry_point);
    let rules = |table: &'_ RouterTable<Served>, is_refused| {
        let rule = move |router: &'_ Compiled<Served>| {
            (router.name.clone(), router.hosts().to_vec(), router.target.options.clone(), is_refused)
        };
        table.routers().iter().filter(is_here).map(rule).collect::<Vec<_>>()
    };
    let all = [rules(table, false), rules(refused, true)].concat();
    TlsHosts::compile(all.iter().map(|(router, hosts, options, is_refused)| TlsHostRule {
        router,
        hosts,
        options: options.as_deref(),
        is_refused: *is_refused,
    }))
}

/// Routers to be put into a table.
type Specs = Vec<RouterSpec<Served>>;
