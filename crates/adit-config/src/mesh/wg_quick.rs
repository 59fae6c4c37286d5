//! wg-quick files as they are: each key is used, ignored with a warning that says why, or refused.

use super::{
    PEERS_MAX,
    draft::{Draft, PeerDraft, WG_QUICK},
};
use crate::{
    Position, Problem,
    document::Loader,
    read::{Dialect, Field, Findings, Section, Sink},
    yaml::{Entry, Node, Value},
};

/// Reads a file's text into a draft, with everything that is wrong in it.
pub(super) fn read(text: &str, file: &str, loader: &Loader<'_>) -> (Draft, Findings) {
    let sink = Sink::new(file, Dialect::Traefik);
    let mut draft = Draft::default();
    let tree = Tree::parse(text, file, &sink);
    match &tree.interface {
        Some(node) => {
            let field = Field { path: "Interface".to_owned(), ..sink.root(node) };
            if let Some(section) = field.section() {
                read_interface(section, &mut draft, loader);
            }
        }
        None => sink.report(Problem::of_file(file, "there is no `[Interface]`: this is not a wg-quick file")),
    }
    for (index, node) in tree.peers.iter().enumerate() {
        let field = Field { path: format!("Peer[{index}]"), ..sink.root(node) };
        if let Some(section) = field.section() {
            read_peer(section, &mut draft, loader);
        }
    }
    let findings = sink.finish();
    // The keys of the file are not ours: nobody looks their places up.
    (draft, Findings { origins: std::collections::BTreeMap::new(), ..findings })
}

fn read_interface(mut section: Section<'_>, draft: &mut Draft, loader: &Loader<'_>) {
    draft.read(&mut section, &WG_QUICK, loader);
    for (key, reason) in IGNORED {
        if let Some(field) = section.take(key) {
            // `SaveConfig = false` is what happens anyway.
            if field.scalar() != Some("false") {
                let place = Node { position: field.node.position, value: Value::Null };
                Field { node: &place, ..field }.warn(format!("ignored: {reason}"));
            }
        }
    }
    for key in HOOKS {
        if let Some(field) = section.take(key) {
            field.reject_hidden(
                "refused: adit runs no commands, and one that restricts access would be missing silently; \
                 remove the line and do its work in `policy`, `advertise` or a service of its own",
            );
        }
    }
    section.finish();
}

fn read_peer(mut section: Section<'_>, draft: &mut Draft, loader: &Loader<'_>) {
    let Some(key) = PeerDraft::read_public_key(&mut section, &WG_QUICK) else { return };
    if draft.peers.iter().any(|peer| peer.public_key == key) {
        section.itself().reject_hidden("another peer has this key");
        return;
    }
    let mut peer = PeerDraft::new(key);
    peer.read(&mut section, &WG_QUICK, loader);
    section.finish();
    draft.peers.push(peer);
}

/// The file as sections of keys, each value with its place.
#[derive(Default)]
struct Tree {
    interface: Option<Node>,
    peers: Vec<Node>,
}

/// Which section lines belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    None,
    Interface,
    Peer,
    Unknown,
}

impl Tree {
    fn parse(text: &str, file: &str, sink: &Sink<'_>) -> Self {
        let mut tree = Self::default();
        let mut part = Part::None;
        for (index, raw) in text.lines().enumerate() {
            let line = raw.split('#').next().unwrap_or_default();
            let start = line.chars().take_while(|c| c.is_whitespace()).count();
            let trimmed = line.trim();
            if trimmed.is_empty() {
                continue;
            }
            let position = Position { line: index + 1, column: start + 1 };
            let report = |expected: &str, value: &str| {
                sink.report(Problem {
                    position: Some(position),
                    value: value.to_owned(),
                    ..Problem::of_file(file, expected)
                });
            };
            if trimmed.starts_with('[') {
                part = tree.begin(trimmed, position);
                if part == Part::Unknown {
                    report("expected `[Interface]` or `[Peer]`", trimmed);
                }
                continue;
            }
            // Not shown: a line without `=` may be a key that lost its name.
            let Some((key, value)) = trimmed.split_once('=') else {
                report("expected `Key = value`", "");
                continue;
            };
            let value_start = line.find('=').map_or(0, |at| line[..=at].chars().count());
            let spaces = line.chars().skip(value_start).take_while(|c| c.is_whitespace()).count();
            let place = Position { line: index + 1, column: value_start + spaces + 1 };
            match tree.open(part) {
                Some(entries) => add(entries, (key.trim(), position), (value.trim(), place)),
                None if part == Part::None => report("expected `[Interface]` or `[Peer]` first", ""),
                None => {}
            }
        }
        if tree.peers.len() > PEERS_MAX {
            sink.report(Problem::of_file(file, format!("expected at most {PEERS_MAX} peers")));
            tree.peers.clear();
        }
        tree
    }

    fn begin(&mut self, header: &str, position: Position) -> Part {
        let empty = || Node { position: Some(position), value: Value::Mapping(Vec::new()) };
        if header.eq_ignore_ascii_case("[Interface]") {
            // As `wg` reads it: a second one goes on where the first ended.
            self.interface.get_or_insert_with(empty);
            Part::Interface
        } else if header.eq_ignore_ascii_case("[Peer]") {
            self.peers.push(empty());
            Part::Peer
        } else {
            Part::Unknown
        }
    }

    fn open(&mut self, part: Part) -> Option<&mut Vec<Entry>> {
        let node = match part {
            Part::Interface => self.interface.as_mut(),
            Part::Peer => self.peers.last_mut(),
            Part::None | Part::Unknown => None,
        }?;
        match &mut node.value {
            Value::Mapping(entries) => Some(entries),
            _ => None,
        }
    }
}

/// Keys that may stand several times add up, others take the last value, as `wg` has it.
fn add(entries: &mut Vec<Entry>, (key, key_place): (&str, Position), (value, place): (&str, Position)) {
    let node = Node { position: Some(place), value: Value::Scalar { text: value.to_owned(), plain: true } };
    let is_list = LISTS.iter().any(|list| list.eq_ignore_ascii_case(key));
    let known = entries.iter_mut().find(|entry| entry.key.eq_ignore_ascii_case(key));
    match (known, is_list) {
        (Some(entry), true) => {
            if let Value::Sequence(items) = &mut entry.value.value {
                items.push(node);
            }
        }
        (Some(entry), false) => entry.value = node,
        (None, _) => {
            let position = Some(key_place);
            let value = if is_list {
                Node { position: Some(place), value: Value::Sequence(vec![node]) }
            } else {
                node
            };
            entries.push(Entry { key: key.to_owned(), position, value });
        }
    }
}

/// Keys that add up over lines.
const LISTS: [&str; 7] = ["Address", "AllowedIPs", "DNS", "PreUp", "PostUp", "PreDown", "PostDown"];
/// Commands of wg-quick.
const HOOKS: [&str; 4] = ["PreUp", "PostUp", "PreDown", "PostDown"];
/// What has no effect here, and why.
const IGNORED: [(&str, &str); 2] = [
    ("DNS", "adit does not change how this machine resolves names"),
    ("SaveConfig", "adit never writes its configuration"),
];
