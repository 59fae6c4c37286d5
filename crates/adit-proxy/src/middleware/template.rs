//! Replacements in Go's form, for patterns that `adit_route::compile_go_regex` has compiled.

use regex::{Captures, Regex};

/// A replacement in Go's form: `$1`, `${1}`, `$name`, `${name}`, `$$`; a name is the longest run of letters, digits and
/// underscores, so `$1x` is the group named `1x`, which is empty unless there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

impl Template {
    /// Reads a template; a `$` that names nothing stands for itself.
    pub(super) fn parse(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            literal.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if let Some(behind) = after.strip_prefix('$') {
                literal.push('$');
                rest = behind;
            } else if let Some((name, behind)) = name(after) {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(part(name));
                rest = behind;
            } else {
                literal.push('$');
                rest = after;
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Self(parts)
    }

    /// All matches in `text` replaced.
    pub(super) fn replace_all(&self, regex: &Regex, text: &str) -> String {
        regex.replace_all(text, |captures: &Captures<'_>| self.expand(captures)).into_owned()
    }

    fn expand(&self, captures: &Captures<'_>) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Index(index) => out.push_str(captures.get(*index).map_or("", |group| group.as_str())),
                Part::Name(name) => out.push_str(captures.name(name).map_or("", |group| group.as_str())),
            }
        }
        out
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Index(usize),
    Name(String),
}

/// The name behind a `$`, and what follows it.
fn name(text: &str) -> Option<(&str, &str)> {
    let (braced, inner) = match text.strip_prefix('{') {
        Some(inner) => (true, inner),
        None => (false, text),
    };
    let end = inner.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(inner.len());
    let (name, behind) = inner.split_at(end);
    if name.is_empty() {
        return None;
    }
    if !braced {
        return Some((name, behind));
    }
    behind.strip_prefix('}').map(|behind| (name, behind))
}

fn part(name: &str) -> Part {
    let is_number = name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    match name.parse() {
        Ok(index) if is_number => Part::Index(index),
        _ => Part::Name(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use adit_route::compile_go_regex;
    use proptest::prelude::*;

    use super::*;

    fn replaced(pattern: &str, template: &str, text: &str) -> String {
        Template::parse(template).replace_all(&compile_go_regex(pattern).unwrap(), text)
    }

    #[test]
    fn a_group_name_is_the_longest_word() {
        assert_eq!(replaced("^/old/(.*)", "/new/$1", "/old/a/b"), "/new/a/b");
        assert_eq!(replaced("^/(.*)", "/$1x", "/a"), "/");
        assert_eq!(replaced("^/(.*)", "/${1}x", "/a"), "/ax");
        assert_eq!(replaced("^/(?P<one>.*)", "$$${one}$-${", "/a"), "$a$-${");
        assert_eq!(replaced("^(a)$", "$2$01", "a"), "");
    }

    #[test]
    fn an_empty_match_behind_a_match_is_not_replaced() {
        assert_eq!(replaced("a*", "x", "baaac"), "xbxcx");
        assert_eq!(replaced("(.*)", "<$1>", "abc"), "<abc>");
    }

    proptest! {
        #[test]
        fn any_text_is_a_template(pattern in ".{0,40}", text in ".{0,40}") {
            if let Ok(regex) = compile_go_regex(&pattern) {
                let _ = Template::parse(&text).replace_all(&regex, &text);
            }
        }
    }
}
