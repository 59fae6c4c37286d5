//! TOML text into the same located tree as YAML.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    Position, Problem,
    yaml::{Entry, LARGE_TEXT_BYTES_MAX, Node, Value},
};

impl Node {
    /// Reads one TOML document; every problem of its syntax at once.
    pub(crate) fn from_toml(text: &str, file: &str) -> Result<Self, Vec<Problem>> {
        if text.len() > LARGE_TEXT_BYTES_MAX {
            return Err(vec![Problem::of_file(file, "file is longer than 16 MiB")]);
        }
        let lines = Lines::new(text);
        // The parser bounds nesting itself; its tables hold no more values than the text has bytes.
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Self { position: Some(lines.position(0)), value: lines.mapping(table.into_inner()) });
        }
        let problem = |error: toml::de::Error| Problem {
            position: error.span().map(|span| lines.position(span.start)),
            ..Problem::of_file(file, error.message().replace('\n', ", "))
        };
        let mut problems: Vec<Problem> = errors.into_iter().map(problem).collect();
        problems.sort_by_key(|problem| problem.position);
        Err(problems)
    }
}

/// Where lines of a text begin.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(index, _)| index + 1);
        Self { text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    fn position(&self, offset: usize) -> Position {
        let line = self.starts.partition_point(|start| *start <= offset);
        let before = self.text.get(self.starts[line - 1]..offset).unwrap_or_default();
        Position { line, column: before.chars().count() + 1 }
    }

    fn node(&self, value: Spanned<DeValue<'_>>) -> Node {
        let position = Some(self.position(value.span().start));
        let value = match value.into_inner() {
            DeValue::String(text) => Value::Scalar { text: text.into_owned(), plain: false },
            DeValue::Integer(number) => {
                // Hexadecimal, octal and binary numbers become decimal, as everything behind this expects.
                let text = i64::from_str_radix(number.as_str(), number.radix())
                    .map_or_else(|_| number.to_string(), |number| number.to_string());
                Value::Scalar { text, plain: true }
            }
            DeValue::Float(number) => Value::Scalar { text: number.to_string(), plain: true },
            DeValue::Boolean(truth) => Value::Scalar { text: truth.to_string(), plain: true },
            DeValue::Datetime(time) => Value::Scalar { text: time.to_string(), plain: false },
            DeValue::Array(items) => Value::Sequence(items.into_iter().map(|item| self.node(item)).collect()),
            DeValue::Table(table) => self.mapping(table),
        };
        Node { position, value }
    }

    /// Entries in the order of the text: the parser's table is sorted by key.
    fn mapping(&self, table: DeTable<'_>) -> Value {
        let mut entries: Vec<Entry> = table
            .into_iter()
            .map(|(key, value)| Entry {
                position: Some(self.position(key.span().start)),
                key: key.into_inner().into_owned(),
                value: self.node(value),
            })
            .collect();
        entries.sort_by_key(|entry| entry.position);
        Value::Mapping(entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tables_arrays_and_scalars_know_their_places() {
        let text = "[http.routers.r]\nrule = \"Host(`a`)\"\npriority = 0x10\n[[tls.certificates]]\ncertFile = 'é' # x\n";
        let node = Node::from_toml(text, "t.toml").unwrap();
        let Value::Mapping(root) = &node.value else { panic!() };
        assert_eq!(root.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["http", "tls"]);
        let Value::Mapping(http) = &root[0].value.value else { panic!() };
        let Value::Mapping(routers) = &http[0].value.value else { panic!() };
        let Value::Mapping(router) = &routers[0].value.value else { panic!() };
        assert_eq!(router[0].key, "rule");
        assert_eq!(router[0].position, Some(Position { line: 2, column: 1 }));
        assert_eq!(router[1].value.value, Value::Scalar { text: "16".into(), plain: true });
    }

    #[test]
    fn every_mistake_of_syntax_is_named_with_its_place() {
        let problems = Node::from_toml("a = \nb = [1\nc = 2\n", "t.toml").unwrap_err();
        assert!(problems[0].to_string().starts_with("t.toml:1:"), "{problems:?}");
        assert!(Node::from_toml("a = 1\na = 2\n", "t.toml").is_err());
        assert!(Node::from_toml(&" ".repeat(LARGE_TEXT_BYTES_MAX + 1), "t.toml").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_tree_or_problems(text in "[-\\[\\]{}=.,#'\"a-c0-2 \\n\\t]{0,120}") {
            let _ = Node::from_toml(&text, "t.toml");
        }
    }
}
