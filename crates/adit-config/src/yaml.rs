//! YAML (or JSON) text into a tree whose every node knows its place.
//!
//! Serde is not used: it stops at the first error, and an operator wants all of them.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, StrInput};
use serde_json::Value as Json;

use crate::{Position, Problem};

/// One node of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Absent for JSON.
    pub(crate) position: Option<Position>,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    /// `plain` = unquoted in YAML; number or boolean in JSON.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) position: Option<Position>,
    pub(crate) value: Node,
}

impl Node {
    /// Reads one YAML document; duplicate keys are collected beside the tree, anything else ends the reading.
    pub(crate) fn from_yaml(text: &str, file: &str) -> Result<(Self, Vec<Problem>), Box<Problem>> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Box::new(Problem::of_file(file, "file is longer than 1 MiB")));
        }
        Builder::new(file, NODES_MAX).build(text)
    }

    /// As [`Self::from_yaml`] for files that may hold every route of a large site.
    pub(crate) fn from_large_yaml(text: &str, file: &str) -> Result<(Self, Vec<Problem>), Box<Problem>> {
        if text.len() > LARGE_TEXT_BYTES_MAX {
            return Err(Box::new(Problem::of_file(file, "file is longer than 16 MiB")));
        }
        Builder::new(file, LARGE_NODES_MAX).build(text)
    }

    /// As [`Self::from_large_yaml`] for files of which only the first document counts, as in Go; the place of the second
    /// comes back, if there is one.
    pub(crate) fn from_first_document(
        text: &str,
        file: &str,
    ) -> Result<(Self, Vec<Problem>, Option<Position>), Box<Problem>> {
        if text.len() > LARGE_TEXT_BYTES_MAX {
            return Err(Box::new(Problem::of_file(file, "file is longer than 16 MiB")));
        }
        let mut builder = Builder { takes_first: true, ..Builder::new(file, LARGE_NODES_MAX) };
        let root = builder.read(text)?;
        Ok((root, builder.problems, builder.second))
    }

    /// Reads one JSON value; numbers and booleans count as plain scalars.
    pub(crate) fn from_json(text: &str, file: &str) -> Result<Self, Box<Problem>> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Box::new(Problem::of_file(file, "text is longer than 1 MiB")));
        }
        // serde_json itself refuses more than 128 levels.
        let value = serde_json::from_str(text).map_err(|error: serde_json::Error| {
            let position = Some(Position { line: error.line(), column: error.column() });
            Box::new(Problem { position, ..Problem::of_file(file, "not JSON") })
        })?;
        Ok(Self::of_json(value))
    }

    fn of_json(value: Json) -> Self {
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(truth) => Value::Scalar { text: truth.to_string(), plain: true },
            Json::Number(number) => Value::Scalar { text: number.to_string(), plain: true },
            Json::String(text) => Value::Scalar { text, plain: false },
            Json::Array(items) => Value::Sequence(items.into_iter().map(Self::of_json).collect()),
            Json::Object(fields) => Value::Mapping(
                fields
                    .into_iter()
                    .map(|(key, value)| Entry { key, position: None, value: Self::of_json(value) })
                    .collect(),
            ),
        };
        Self { position: None, value }
    }

    /// Levels of collections from this node down.
    fn depth(&self) -> usize {
        match &self.value {
            Value::Null | Value::Scalar { .. } => 0,
            Value::Sequence(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Value::Mapping(entries) => 1 + entries.iter().map(|entry| entry.value.depth()).max().unwrap_or(0),
        }
    }

    /// Nodes of the tree below and including this one.
    fn count(&self) -> usize {
        match &self.value {
            Value::Null | Value::Scalar { .. } => 1,
            Value::Sequence(items) => 1 + items.iter().map(Self::count).sum::<usize>(),
            Value::Mapping(entries) => 1 + entries.iter().map(|entry| 1 + entry.value.count()).sum::<usize>(),
        }
    }
}

/// A collection that is still being filled.
struct Open {
    position: Position,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    Sequence(Vec<Node>),
    /// `keys` are those of `entries`, so that ten thousand of them are still told apart at once.
    Mapping {
        entries: Vec<Entry>,
        keys: HashSet<String>,
        merged: Vec<Node>,
        key: Option<(String, Position, bool)>,
    },
}

struct Builder<'a> {
    file: &'a str,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    nodes_max: usize,
    root: Option<Node>,
    problems: Vec<Problem>,
    /// Whether a second document ends the reading instead of being refused.
    takes_first: bool,
    second: Option<Position>,
}

impl<'a> Builder<'a> {
    fn new(file: &'a str, nodes_max: usize) -> Self {
        let (open, anchors, problems) = (Vec::new(), HashMap::new(), Vec::new());
        let (root, takes_first, second) = (None, false, None);
        Self { file, open, anchors, nodes: 0, nodes_max, root, problems, takes_first, second }
    }

    fn build(mut self, text: &str) -> Result<(Node, Vec<Problem>), Box<Problem>> {
        let root = self.read(text)?;
        Ok((root, self.problems))
    }

    fn read(&mut self, text: &str) -> Result<Node, Box<Problem>> {
        let mut parser = Parser::new(StrInput::new(text));
        while let Some(event) = parser.next_event() {
            match event {
                Ok((event, span)) => self.handle_event(event, position_of(&span.start))?,
                Err(error) => return Err(self.problem(position_of(error.marker()), error.info())),
            }
            if self.second.is_some() {
                break;
            }
        }
        let nothing = || Node { position: Some(Position { line: 1, column: 1 }), value: Value::Null };
        Ok(self.root.take().unwrap_or_else(nothing))
    }

    fn handle_event(&mut self, event: Event<'_>, position: Position) -> Result<(), Box<Problem>> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let value = if plain && is_null(&text) {
                    Value::Null
                } else {
                    Value::Scalar { text: text.into_owned(), plain }
                };
                self.spend(1, position)?;
                self.add(Node { position: Some(position), value }, anchor, position)
            }
            Event::SequenceStart(anchor, _) => self.begin(OpenKind::Sequence(Vec::new()), anchor, position),
            Event::MappingStart(anchor, _) => {
                let kind = OpenKind::Mapping {
                    entries: Vec::new(),
                    keys: HashSet::new(),
                    merged: Vec::new(),
                    key: None,
                };
                self.begin(kind, anchor, position)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                // An alias inside its own anchor is not complete yet and so is unknown here: no cycles.
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.problem(position, "alias of an anchor that is not complete"));
                };
                self.spend(node.count(), position)?;
                self.check_depth(self.open.len() + node.depth(), position)?;
                self.add(node, 0, position)
            }
            Event::DocumentStart(_) if self.root.is_some() && self.takes_first => {
                self.second = Some(position);
                Ok(())
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(self.problem(position, "only one document is allowed in a file"))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn begin(&mut self, kind: OpenKind, anchor: usize, position: Position) -> Result<(), Box<Problem>> {
        self.check_depth(self.open.len() + 1, position)?;
        self.spend(1, position)?;
        self.open.push(Open { position, anchor, kind });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Box<Problem>> {
        let Some(Open { position, anchor, kind }) = self.open.pop() else { return Ok(()) };
        let value = match kind {
            OpenKind::Sequence(items) => Value::Sequence(items),
            OpenKind::Mapping { mut entries, mut keys, merged, .. } => {
                self.merge(&mut entries, &mut keys, merged, position)?;
                Value::Mapping(entries)
            }
        };
        self.add(Node { position: Some(position), value }, anchor, position)
    }

    /// Hands a complete node to its parent. Anchored nodes are kept as copies, which count as nodes too.
    fn add(&mut self, node: Node, anchor: usize, position: Position) -> Result<(), Box<Problem>> {
        if anchor != 0 {
            self.spend(node.count(), position)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.kind {
            OpenKind::Sequence(items) => items.push(node),
            OpenKind::Mapping { entries, keys, merged, key } => match key.take() {
                None => match node.value {
                    Value::Scalar { text, plain } => {
                        *key = Some((text.clone(), position, plain && text == "<<"));
                    }
                    _ => return Err(self.problem(position, "keys must be text")),
                },
                Some((_, _, true)) => merged.push(node),
                Some((key, key_position, false)) => {
                    if !keys.insert(key.clone()) {
                        let problem = self.problem(key_position, format!("key `{key}` is written twice"));
                        self.problems.push(*problem);
                    } else {
                        entries.push(Entry { key, position: Some(key_position), value: node });
                    }
                }
            },
        }
        Ok(())
    }

    /// `<<` takes over keys that are not written here (YAML 1.1 merge); earlier sources win.
    fn merge(
        &mut self,
        entries: &mut Vec<Entry>,
        keys: &mut HashSet<String>,
        merged: Vec<Node>,
        position: Position,
    ) -> Result<(), Box<Problem>> {
        for node in merged {
            let sources = match node.value {
                Value::Sequence(items) => items,
                other => vec![Node { position: node.position, value: other }],
            };
            for source in sources {
                let Value::Mapping(more) = source.value else {
                    return Err(self.problem(position, "`<<` needs a mapping or a list of mappings"));
                };
                for entry in more {
                    if keys.insert(entry.key.clone()) {
                        entries.push(entry);
                    }
                }
            }
        }
        Ok(())
    }

    fn spend(&mut self, nodes: usize, position: Position) -> Result<(), Box<Problem>> {
        self.nodes = self.nodes.saturating_add(nodes);
        match self.nodes > self.nodes_max {
            true => {
                let expected = format!("more than {} values, aliases included", self.nodes_max);
                Err(self.problem(position, expected))
            }
            false => Ok(()),
        }
    }

    /// Aliases put depth on depth, so they are checked as well as brackets.
    fn check_depth(&self, depth: usize, position: Position) -> Result<(), Box<Problem>> {
        match depth > DEPTH_MAX {
            true => Err(self.problem(position, "nested deeper than 64 levels")),
            false => Ok(()),
        }
    }

    fn problem(&self, position: Position, expected: impl Into<String>) -> Box<Problem> {
        Box::new(Problem { position: Some(position), ..Problem::of_file(self.file, expected) })
    }
}

fn position_of(marker: &Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// A hand-written configuration has some KiB; this bounds reading time to milliseconds.
pub(crate) const TEXT_BYTES_MAX: usize = 1 << 20;
/// Ten thousand routers and services take about 3 MiB; reading 16 MiB stays below two seconds.
pub(crate) const LARGE_TEXT_BYTES_MAX: usize = 16 << 20;
/// Bounds the recursion of everything that walks the tree.
const DEPTH_MAX: usize = 64;
/// Nodes after alias expansion, copies kept for anchors included: about 10 MiB beside the text.
const NODES_MAX: usize = 100_000;
/// As [`NODES_MAX`], for [`LARGE_TEXT_BYTES_MAX`]: about 150 MiB while reading.
const LARGE_NODES_MAX: usize = 1_500_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(text: &str) -> Node {
        Node::from_yaml(text, "t.yaml").unwrap().0
    }

    fn error(text: &str) -> String {
        Node::from_yaml(text, "t.yaml").unwrap_err().to_string()
    }

    fn entries(node: &Node) -> &[Entry] {
        match &node.value {
            Value::Mapping(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_node_knows_its_place() {
        let tree = tree("a: 1\nb:\n  - x\n  - \"2\"\n");
        let entries = entries(&tree);
        assert_eq!(entries[1].position, Some(Position { line: 2, column: 1 }));
        let Value::Sequence(items) = &entries[1].value.value else { panic!() };
        assert_eq!(items[1].position, Some(Position { line: 4, column: 5 }));
        assert_eq!(items[1].value, Value::Scalar { text: "2".into(), plain: false });
    }

    #[test]
    fn an_empty_text_is_null() {
        assert_eq!(tree("").value, Value::Null);
        assert_eq!(tree("# only a comment\n").value, Value::Null);
    }

    #[test]
    fn a_key_written_twice_is_a_problem_and_the_first_stays() {
        let (tree, problems) = Node::from_yaml("a: 1\nb: 2\na: 3\n", "t.yaml").unwrap();
        assert_eq!(entries(&tree).len(), 2);
        assert_eq!(problems[0].to_string(), "t.yaml:3:1: key `a` is written twice");
    }

    #[test]
    fn merge_keys_take_over_what_is_absent() {
        let tree = tree("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n");
        let used = entries(&entries(&tree)[1].value);
        let text = |key: &str| used.iter().find(|entry| entry.key == key).map(|entry| &entry.value.value);
        assert_eq!(text("x"), Some(&Value::Scalar { text: "1".into(), plain: true }));
        assert_eq!(text("y"), Some(&Value::Scalar { text: "3".into(), plain: true }));
    }

    #[test]
    fn a_laughing_alias_is_stopped() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..10 {
            let below = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(","));
        }
        assert!(error(&text).contains("100000 values"));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        assert!(error(&"[".repeat(200)).contains("deeper than 64"));
        let nested = |inner: &str| format!("{}{inner}{}", "[".repeat(40), "]".repeat(40));
        let aliased = format!("a: &a {}\nb: {}\n", nested("x"), nested("*a"));
        assert!(error(&aliased).contains("deeper than 64"));
        assert!(error(&" ".repeat(TEXT_BYTES_MAX + 1)).contains("longer than 1 MiB"));
    }

    #[test]
    fn what_yaml_forbids_has_its_place() {
        assert!(error("a:\n\t- b\n").starts_with("t.yaml:2:"), "{}", error("a:\n\t- b\n"));
        assert!(error("a: [1\n").starts_with("t.yaml:"));
        assert!(error("a: *nowhere\n").starts_with("t.yaml:1:"));
        assert!(error("a: &x [*x]\n").contains("anchor"));
        assert!(error("a: 1\n---\nb: 2\n").contains("only one document"));
        assert!(error("{[a]: 1}\n").contains("keys must be text"));
    }

    #[test]
    fn json_is_a_tree_without_places() {
        let tree = Node::from_json(r#"{"a": [1, "1", true, null]}"#, "push").unwrap();
        let Value::Sequence(items) = &entries(&tree)[0].value.value else { panic!() };
        assert_eq!(items[0].value, Value::Scalar { text: "1".into(), plain: true });
        assert_eq!(items[1].value, Value::Scalar { text: "1".into(), plain: false });
        assert_eq!(items[3].value, Value::Null);
    }

    proptest! {
        #[test]
        fn any_text_is_a_tree_or_a_problem(text in "[-\\[\\]{}:,&*#|>!%@`'\"a-c0-2 \\n\\t<~]{0,120}") {
            let _ = Node::from_yaml(&text, "t.yaml");
        }

        #[test]
        fn any_unicode_is_a_tree_or_a_problem(text in "\\PC{0,120}") {
            let _ = Node::from_yaml(&text, "t.yaml");
        }
    }
}
