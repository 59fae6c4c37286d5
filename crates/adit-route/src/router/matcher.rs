//! A rule's matchers, compiled.

use adit_config::dynamic::network;
use http::{HeaderName, HeaderValue, header};
use ipnet::IpNet;
use regex::Regex;

use super::Request;
use crate::{
    compile_go_regex,
    condition::{Condition, Leaf},
    host_rule::HostExpression,
    index::Anchor,
    rule::Call,
};

/// A compiled HTTP rule.
pub(super) type Matcher = Condition<HttpLeaf>;

/// A compiled matcher call.
#[derive(Debug)]
pub(super) enum HttpLeaf {
    Host(HostExpression),
    HostRegexp(Regex),
    Path(Box<str>),
    PathPrefix(Box<str>),
    PathRegexp(Regex),
    /// Absent name: no header can have it.
    Header(Option<HeaderName>, Box<[u8]>),
    HeaderRegexp(Option<HeaderName>, Regex),
    Method(Box<str>),
    Query(Box<str>, Box<str>),
    QueryRegexp(Box<str>, Regex),
    ClientIp(IpNet),
    MeshPeer(Box<str>),
    MeshGroup(Box<str>),
}

impl HttpLeaf {
    /// Compiles one matcher call.
    pub(super) fn new(call: &Call) -> Result<Self, String> {
        let text = |index: usize| Box::<str>::from(call.arguments[index].as_str());
        let regex = |index: usize| {
            compile_go_regex(&call.arguments[index]).map_err(|error| format!("{}: {error}", call.matcher))
        };
        check_arity(call)?;
        let first = call.arguments[0].as_str();
        Ok(match call.matcher {
            "Host" => Self::Host(HostExpression::new(ascii(call)?)),
            "HostRegexp" => {
                ascii(call)?;
                Self::HostRegexp(regex(0)?)
            }
            "Path" => Self::Path(absolute(call)?.into()),
            "PathPrefix" => Self::PathPrefix(absolute(call)?.into()),
            "PathRegexp" => Self::PathRegexp(regex(0)?),
            "Header" => Self::Header(header_name(first), call.arguments[1].as_bytes().into()),
            "HeaderRegexp" => Self::HeaderRegexp(header_name(first), regex(1)?),
            "Method" => Self::Method(first.to_uppercase().into()),
            "Query" | "QueryRegexp" if call.arguments.len() == 1 => Self::Query(text(0), "".into()),
            "Query" => Self::Query(text(0), text(1)),
            "QueryRegexp" => Self::QueryRegexp(text(0), regex(1)?),
            "ClientIP" => Self::ClientIp(
                network(first).ok_or_else(|| format!("ClientIP: `{first}` is no address and no network"))?,
            ),
            "MeshPeer" => Self::MeshPeer(text(0)),
            "MeshGroup" => Self::MeshGroup(text(0)),
            other => return Err(format!("there is no matcher `{other}` for HTTP")),
        })
    }
}

impl Leaf for HttpLeaf {
    type Subject<'a> = Request<'a>;

    fn matches(&self, request: &Request<'_>) -> bool {
        let head = request.head;
        match self {
            Self::Host(expression) => expression.matches(&request.host),
            Self::HostRegexp(regex) => regex.is_match(&request.host),
            Self::Path(path) => head.path == &**path,
            Self::PathPrefix(prefix) => head.path.starts_with(&**prefix),
            Self::PathRegexp(regex) => regex.is_match(head.path),
            Self::Header(name, value) => has_line(request, name.as_ref(), |line| line.as_bytes() == &**value),
            Self::HeaderRegexp(name, regex) => has_line(request, name.as_ref(), |line| {
                regex.is_match(&String::from_utf8_lossy(line.as_bytes()))
            }),
            Self::Method(method) => head.method.as_str() == &**method,
            Self::Query(name, value) => {
                request.query().iter().any(|pair| pair.0 == **name && pair.1 == **value)
            }
            Self::QueryRegexp(name, regex) => {
                request.query().iter().any(|pair| pair.0 == **name && regex.is_match(&pair.1))
            }
            // `::ffff:192.0.2.1` is 192.0.2.1.
            Self::ClientIp(network) => network.contains(&head.peer.to_canonical()),
            Self::MeshPeer(name) => head.mesh.is_some_and(|peer| peer.name == *name),
            Self::MeshGroup(group) => head.mesh.is_some_and(|peer| peer.is_in(group)),
        }
    }

    fn anchor(&self) -> Anchor {
        match self {
            Self::Host(host) => Anchor::of_host(host),
            Self::Path(path) => Anchor::of_path(path),
            Self::PathPrefix(prefix) => Anchor::of_prefix(prefix),
            _ => Anchor::ANY,
        }
    }
}

fn has_line(request: &Request<'_>, name: Option<&HeaderName>, is_it: impl Fn(&HeaderValue) -> bool) -> bool {
    match name {
        Some(name) if *name == header::CONTENT_LENGTH => {
            request.head.content_length.is_some_and(|length| is_it(&HeaderValue::from(length)))
        }
        Some(name) => request.head.headers.map().get_all(name).iter().any(is_it),
        None => false,
    }
}

/// `Host` is not among the headers that rules see.
fn header_name(text: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).ok().filter(|name| *name != header::HOST)
}

fn check_arity(call: &Call) -> Result<(), String> {
    let (from, to) = match call.matcher {
        "Header" | "HeaderRegexp" => (2, 2),
        "Query" | "QueryRegexp" => (1, 2),
        _ => (1, 1),
    };
    let count = call.arguments.len();
    if (from..=to).contains(&count) {
        return Ok(());
    }
    let wanted = match (from, to) {
        (1, 1) => "1 argument".to_owned(),
        (from, to) if from == to => format!("{from} arguments"),
        (from, to) => format!("{from} or {to} arguments"),
    };
    let hint = match call.matcher {
        "Host" | "Path" | "PathPrefix" | "Method" | "ClientIP" | "MeshPeer" | "MeshGroup" => {
            format!("; several are written {0}(`a`) || {0}(`b`)", call.matcher)
        }
        _ => String::new(),
    };
    Err(format!("{} takes {wanted}, not {count}{hint}", call.matcher))
}

pub(crate) fn ascii(call: &Call) -> Result<&str, String> {
    let text = call.arguments[0].as_str();
    match text.is_ascii() {
        true => Ok(text),
        false => Err(format!("{}: `{text}` is not ASCII: write it as punycode (`xn--…`)", call.matcher)),
    }
}

fn absolute(call: &Call) -> Result<&str, String> {
    let path = call.arguments[0].as_str();
    match path.starts_with('/') {
        true => Ok(path),
        false => Err(format!("{}: `{path}` does not start with `/`", call.matcher)),
    }
}
