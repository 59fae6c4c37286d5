//! From text to [`Dynamic`], and several of them into one.

use std::{
    collections::{BTreeMap, btree_map::Entry as MapEntry},
    path::Path,
};

use super::{Dynamic, read_http, read_tcp, read_tls};
use crate::{
    Position, Problem, Problems,
    read::{Dialect, Field, Findings, Sink},
    yaml::{Entry, Node, Value},
};

/// Language of a dynamic file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.yml`, `.yaml`; JSON is YAML too.
    Yaml,
    /// `.toml`.
    Toml,
}

impl Format {
    /// The language that a file's name says; `None` for files that are no dynamic configuration.
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "yml" | "yaml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            _ => None,
        }
    }
}

impl Dynamic {
    /// Reads one dynamic file; `file` is its name, to whose directory paths in it are relative.
    ///
    /// Unknown keys, wrong types, empty blocks and Go template text refuse the whole file, with every problem in it.
    pub fn parse(text: &str, file: &str, format: Format) -> Result<Self, Problems> {
        if let Some(problem) = template_problem(text, file) {
            return Err(Problems(vec![problem]));
        }
        let (node, duplicates, second) = match format {
            Format::Yaml => {
                Node::from_first_document(text, file).map_err(|problem| Problems(vec![*problem]))?
            }
            Format::Toml => (Node::from_toml(text, file).map_err(Problems)?, Vec::new(), None),
        };
        let ignored = second.map(|position| Problem {
            position: Some(position),
            ..Problem::of_file(file, "ignored: only the first document of a file is read")
        });
        if node.value == Value::Null && duplicates.is_empty() {
            return Ok(Self { warnings: ignored.into_iter().collect(), ..Self::default() });
        }
        let (dynamic, mut findings) = read(&node, file);
        findings.problems.splice(0..0, duplicates);
        findings.warnings.extend(ignored);
        if !findings.problems.is_empty() {
            return Err(Problems(findings.problems));
        }
        Ok(Self { origins: findings.origins, warnings: findings.warnings, ..dynamic })
    }

    /// Adds the objects of a further file. An object whose name is taken is left out, with a warning.
    pub fn merge(&mut self, other: Self) {
        let mut merger = Merger { origins: &other.origins, warnings: other.warnings };
        merger.merge("http.routers", &mut self.http.routers, other.http.routers);
        merger.merge("http.services", &mut self.http.services, other.http.services);
        merger.merge("http.middlewares", &mut self.http.middlewares, other.http.middlewares);
        merger.merge(
            "http.serversTransports",
            &mut self.http.servers_transports,
            other.http.servers_transports,
        );
        merger.merge("tcp.routers", &mut self.tcp.routers, other.tcp.routers);
        merger.merge("tcp.services", &mut self.tcp.services, other.tcp.services);
        merger.merge("tcp.middlewares", &mut self.tcp.middlewares, other.tcp.middlewares);
        merger.merge("tcp.serversTransports", &mut self.tcp.servers_transports, other.tcp.servers_transports);
        merger.merge("udp.routers", &mut self.udp.routers, other.udp.routers);
        merger.merge("udp.services", &mut self.udp.services, other.udp.services);
        merger.merge("tls.options", &mut self.tls.options, other.tls.options);
        merger.merge("tls.stores", &mut self.tls.stores, other.tls.stores);
        let warnings = merger.warnings;
        for certificate in other.tls.certificates {
            if !self.tls.certificates.contains(&certificate) {
                self.tls.certificates.push(certificate);
            }
        }
        for (path, origin) in other.origins {
            self.origins.entry(path).or_insert(origin);
        }
        self.warnings.extend(warnings);
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.http == Default::default()
            && self.tcp == Default::default()
            && self.udp == Default::default()
            && self.tls == Default::default()
    }
}

/// Reads the sections [`SECTIONS`] of `adit.yaml`; the others are somebody else's.
pub(crate) fn read_inline(root: &Node, file: &str) -> (Dynamic, Findings) {
    let Value::Mapping(entries) = &root.value else {
        return (Dynamic::default(), Sink::new(file, Dialect::Traefik).finish());
    };
    let ours = |entry: &&Entry| SECTIONS.contains(&entry.key.as_str());
    let entries = entries.iter().filter(ours).cloned().collect();
    let (dynamic, findings) = read(&Node { position: root.position, value: Value::Mapping(entries) }, file);
    (Dynamic { origins: findings.origins.clone(), ..dynamic }, findings)
}

/// Sections of `adit.yaml` that are dynamic configuration.
pub(crate) const SECTIONS: [&str; 4] = ["http", "tcp", "udp", "tls"];

fn read(node: &Node, file: &str) -> (Dynamic, Findings) {
    let sink = Sink::new(file, Dialect::Traefik);
    let dynamic = read_root(&sink.root(node)).unwrap_or_default();
    (dynamic, sink.finish())
}

fn read_root(field: &Field<'_>) -> Option<Dynamic> {
    let mut root = field.section()?;
    root.reject_twins();
    let dynamic = Dynamic {
        http: root.optional("http", read_http::read_http).unwrap_or_default(),
        tcp: root.optional("tcp", read_tcp::read_tcp).unwrap_or_default(),
        udp: root.optional("udp", read_tcp::read_udp).unwrap_or_default(),
        tls: root.optional("tls", read_tls::read_tls).unwrap_or_default(),
        origins: BTreeMap::new(),
        warnings: Vec::new(),
    };
    root.finish();
    Some(dynamic)
}

/// Traefik runs dynamic files through Go's templates first; we do not, so `{{` outside comments is never meant as it
/// stands.
fn template_problem(text: &str, file: &str) -> Option<Problem> {
    let (index, line) = text
        .lines()
        .enumerate()
        .find(|(_, line)| !line.trim_start().starts_with('#') && line.contains("{{"))?;
    let column = line.split("{{").next().map_or(0, |before| before.chars().count()) + 1;
    Some(Problem {
        position: Some(Position { line: index + 1, column }),
        hint: Some("write the values out, or generate the file before it is read".to_owned()),
        ..Problem::of_file(file, "Go template text (`{{ … }}`) is not supported")
    })
}

/// Moves objects over unless their name is taken.
struct Merger<'a> {
    origins: &'a BTreeMap<String, crate::Origin>,
    warnings: Vec<Problem>,
}

impl Merger<'_> {
    fn merge<T>(&mut self, kind: &str, ours: &mut BTreeMap<String, T>, theirs: BTreeMap<String, T>) {
        for (name, object) in theirs {
            let key = format!("{kind}.{name}");
            match ours.entry(name) {
                MapEntry::Vacant(place) => {
                    place.insert(object);
                    continue;
                }
                MapEntry::Occupied(_) => {}
            }
            let origin = self.origins.get(&key);
            self.warnings.push(Problem {
                position: origin.and_then(|origin| origin.position),
                ..Problem {
                    key,
                    ..Problem::of_file(
                        origin.map_or("", |origin| origin.file.as_str()),
                        "left out, because an earlier file has an object of this name",
                    )
                }
            });
        }
    }
}
