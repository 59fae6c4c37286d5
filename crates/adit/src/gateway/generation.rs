//! One generation of the ingress: everything compiled, ready to be swapped in.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use adit_config::dynamic::{Dynamic, Router};
use adit_config::{EntryPoint, EntryPointNetwork, EntryPointTransport, UnderscoreHeaders};
use adit_proxy::forwarded::ForwardedPolicy;
use adit_proxy::message::Request;
use adit_proxy::middleware::{Chain, Layers};
use adit_proxy::service::{Blueprint, Node, Services};
use adit_proxy::tls::hosts::{TlsHostRule, TlsHosts};
use adit_proxy::tls::options::DEFAULT_OPTIONS;
use adit_route::mesh::{MeshIdentity, MeshPeers};
use adit_route::path;
use adit_route::router::{HttpHead, Router as Compiled, RouterSpec, RouterTable};
use http::header::{HeaderName, HeaderValue};

use super::redirect::Redirect;
use super::set_target;
use super::view::Verdicts;

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
    /// Files that keep their old content, with what is wrong with them.
    pub(crate) faults: Vec<String>,
}

/// Everything that answers requests, compiled.
pub(crate) struct Generation {
    pub(crate) inputs: Inputs,
    entries: HashMap<Arc<str>, Entry>,
    pub(crate) table: RouterTable<Served>,
    pub(crate) hosts: TlsHosts,
    pub(crate) services: Services,
    layers: Layers,
    pub(crate) verdicts: Verdicts,
}

/// One entry point's part.
pub(crate) struct Entry {
    pub(crate) policy: ForwardedPolicy,
    pub(crate) redirect: Option<Redirect>,
    /// Tells visitors over TLS that there is HTTP/3.
    pub(crate) alt_svc: Option<HeaderValue>,
    settings: EntryPoint,
}

/// An address on the mesh that no peer has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnknownPeer;

/// A request's target in the forms that routing needs; what is forwarded stands in the request itself.
pub(crate) struct Cleaned {
    pub(crate) path: String,
    pub(crate) query: String,
}

/// A router ready to serve on one entry point.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) name: Arc<str>,
    pub(crate) chain: Chain,
    pub(crate) target: Arc<Node>,
}

impl Generation {
    /// Compiles everything; what is wrong with one object disables that object alone. State (health, positions, buckets,
    /// pools) of objects that did not change comes over from `previous`. To be called inside a runtime, or nothing probes.
    pub(crate) fn compile(inputs: Inputs, previous: Option<&Self>) -> Self {
        let mut verdicts = Verdicts {
            faults: inputs.faults.clone(),
            tcp_routers: inputs.tcp_faults.clone(),
            udp_routers: inputs.udp_faults.clone(),
            ..Verdicts::default()
        };
        let http = &inputs.dynamic.http;
        let layers = Layers::compile(&http.middlewares, previous.map(|p| &p.layers));
        let services = Services::compile(
            Blueprint {
                services: &http.services,
                transports: &http.servers_transports,
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
        let (entries, specs) = compiler.entries();
        let (table, disabled) = RouterTable::build(specs);
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
        verdicts.warnings.extend(inputs.dynamic.warnings.iter().map(ToString::to_string));
        let hosts = tls_hosts(&inputs, &table, None);
        verdicts.warnings.extend(hosts.warnings().iter().cloned());
        // A router on several entry points is looked at once for each.
        verdicts.warnings.sort();
        verdicts.warnings.dedup();
        Self { entries, table, hosts, services, layers, verdicts, inputs }
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
        tls_hosts(&self.inputs, &self.table, Some(entry_point))
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// True if a router of ours wants the request as it came.
    pub(crate) fn finds(&self, request: &Request) -> bool {
        let Some(entry) = self.entry(&request.visitor.entry_point) else { return false };
        let Ok(path) = path::normalize(request.uri.path(), entry.settings.sanitize_path) else { return true };
        let query = request.uri.query().unwrap_or_default();
        let cleaned = Cleaned { path: path.routing_path.into_owned(), query: query.to_owned() };
        entry.redirect.is_some() || self.decide(request, &cleaned).is_some()
    }

    pub(crate) fn decide(&self, request: &Request, cleaned: &Cleaned) -> Option<&Compiled<Served>> {
        self.table.decide(&HttpHead {
            entry_point: &request.visitor.entry_point,
            tls: request.visitor.secure,
            host: &request.host,
            path: &cleaned.path,
            query: &cleaned.query,
            method: &request.method,
            headers: &request.headers,
            peer: request.visitor.remote.ip().to_canonical(),
            mesh: self.identify(&request.visitor.entry_point, request.visitor.remote.ip()).ok().flatten(),
        })
    }

    /// The mesh's peer behind an address: `Ok(None)` where an entry point is not on the mesh, an error where it is and
    /// nobody has the address.
    pub(crate) fn identify(
        &self,
        entry_point: &str,
        address: IpAddr,
    ) -> Result<Option<&MeshIdentity>, UnknownPeer> {
        let is_on_mesh =
            self.entry(entry_point).is_some_and(|entry| entry.settings.on == EntryPointNetwork::Mesh);
        if !is_on_mesh {
            return Ok(None);
        }
        let identity = self.inputs.mesh.as_ref().and_then(|peers| peers.identify(address));
        identity.map(|identity| Some(&**identity)).ok_or(UnknownPeer)
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("entry_points", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Entry {
    /// Puts the target into the form that is forwarded; returns the forms that rules compare.
    pub(crate) fn clean(&self, request: &mut Request) -> Result<Cleaned, &'static str> {
        let raw = request.uri.path();
        path::check_encoded(raw, &self.settings.encoded_characters).map_err(|refusal| refusal.reason())?;
        let path = path::normalize(raw, self.settings.sanitize_path).map_err(|refusal| refusal.reason())?;
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
        Ok(Cleaned { path: routing_path, query: routing_query })
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

struct Compiler<'a> {
    inputs: &'a Inputs,
    layers: &'a Layers,
    services: &'a Services,
    verdicts: &'a mut Verdicts,
}

impl Compiler<'_> {
    fn entries(&mut self) -> (HashMap<Arc<str>, Entry>, Vec<RouterSpec<Served>>) {
        let usable: Vec<(&String, &Router)> = self.inputs.dynamic.http.routers.iter().collect();
        for (name, router) in &usable {
            if let Err(why) = self.check(name, router) {
                self.verdicts.routers.insert((*name).clone(), why);
            }
        }
        for (name, router) in &usable {
            let options = router.tls.as_ref().and_then(|tls| tls.options.as_ref());
            let known = &self.inputs.dynamic.tls.options;
            if let Some(options) = options.filter(|o| *o != DEFAULT_OPTIONS && !known.contains_key(*o)) {
                // It stays in the tables, so that its hosts are refused and not served under the default's rules.
                let fault =
                    format!("router {name}: there are no TLS options {options}; its hosts are refused");
                self.verdicts.faults.push(fault);
            }
        }
        let mut entries = HashMap::new();
        let mut specs = Vec::new();
        for (name, settings) in &self.inputs.entry_points {
            self.add_routers(name, settings, &usable, &mut specs);
            let entry = Entry {
                policy: policy(settings, self.inputs.server.as_ref()),
                redirect: self.redirect(settings),
                alt_svc: settings.http3.and_then(|http3| {
                    let port = http3.advertised_port.unwrap_or(settings.address.port());
                    (port != 0).then(|| adit_proxy::h3::alt_svc(port))
                }),
                settings: settings.clone(),
            };
            entries.insert(Arc::from(name.as_str()), entry);
        }
        (entries, specs)
    }

    /// What is wrong with a router wherever it is.
    fn check(&self, name: &str, router: &Router) -> Result<(), String> {
        if let Some(fault) = &router.fault {
            return Err(fault.clone());
        }
        for entry_point in &router.entry_points {
            if !self.inputs.entry_points.contains_key(entry_point) {
                return Err(format!("there is no entry point {entry_point}"));
            }
        }
        self.services.node(&router.service)?;
        self.chain(name, &router.middlewares).map(drop)
    }

    fn chain(&self, user: &str, names: &[String]) -> Result<Chain, String> {
        self.layers.chain(user, names, &mut |service| Ok(self.services.node(service)? as Arc<_>))
    }

    /// The routers of one entry point; its own middlewares come before theirs.
    fn add_routers(
        &mut self,
        name: &str,
        settings: &EntryPoint,
        routers: &[(&String, &Router)],
        specs: &mut Vec<RouterSpec<Served>>,
    ) {
        let prepended: Vec<String> = settings.middlewares.iter().map(|m| self.find_middleware(m)).collect();
        for (router_name, router) in routers {
            let here = match router.entry_points.is_empty() {
                true => settings.as_default && settings.transport == EntryPointTransport::Tcp,
                false => router.entry_points.iter().any(|wanted| wanted == name),
            };
            if !here || self.verdicts.routers.contains_key(*router_name) {
                continue;
            }
            let names = [prepended.as_slice(), &router.middlewares].concat();
            let served = match (self.chain(router_name, &names), self.services.node(&router.service)) {
                (Ok(chain), Ok(target)) => Served { name: Arc::from(router_name.as_str()), chain, target },
                (Err(why), _) | (_, Err(why)) => {
                    self.verdicts.routers.insert((*router_name).clone(), why);
                    continue;
                }
            };
            self.verdicts.using.entry((*router_name).clone()).or_default().push(name.to_owned());
            specs.push(RouterSpec {
                name: (*router_name).clone(),
                rule: router.rule.clone(),
                priority: router.priority,
                provider: u32::from(router_name.ends_with("@file")),
                is_internal: false,
                entry_points: vec![name.to_owned()],
                tls: router.tls.is_some() || settings.router_tls.is_some(),
                target: served,
            });
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
        server: server.cloned(),
        ..ForwardedPolicy::default()
    }
}

/// Which TLS options each HTTPS host has.
fn tls_hosts(inputs: &Inputs, table: &RouterTable<Served>, entry_point: Option<&str>) -> TlsHosts {
    let is_here = |router: &&Compiled<Served>| {
        router.tls && entry_point.is_none_or(|name| router.entry_points.iter().any(|on| on == name))
    };
    TlsHosts::compile(table.routers().iter().filter(is_here).map(|router| {
        let written = inputs.dynamic.http.routers.get(&router.name).and_then(|router| router.tls.as_ref());
        let of_entry = || {
            let entry_point = router.entry_points.first().and_then(|name| inputs.entry_points.get(name));
            entry_point.and_then(|settings| settings.router_tls.as_ref())
        };
        let options = written.or_else(of_entry).and_then(|tls| tls.options.as_deref());
        TlsHostRule { router: &router.name, hosts: router.hosts(), options }
    }))
}
