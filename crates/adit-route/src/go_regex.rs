//! Go's regular expressions as this process runs them.
//!
//! Both engines are of one family and differ in what classes mean and in what must be escaped. Patterns are rewritten so
//! that they match what they match in Go: `\d`, `\w`, `\s` and `\b` know ASCII only, `\Q…\E` quotes, `[a&&b]` and `[[]`
//! have no operators, a brace that repeats nothing is itself.

use regex::{Regex, RegexBuilder};

/// Compiles a pattern that was written for Go (RE2 syntax); look-around and back references do not exist there either.
///
/// The error is one line.
pub fn compile_go_regex(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("the expression is longer than {PATTERN_BYTES_MAX} bytes"));
    }
    RegexBuilder::new(&translate(pattern)).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| {
        // The engine draws the place over several lines; its last line is the reason.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim();
        format!("`{pattern}`: {}", reason.strip_prefix("error: ").unwrap_or(reason))
    })
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    while let Some(next) = rest.chars().next() {
        let len = match next {
            '\\' => escape(rest, false, &mut out),
            '[' => class(rest, &mut out),
            '{' if repetition_len(rest).is_none() => literal(next, &mut out),
            '}' => literal(next, &mut out),
            '{' => {
                let len = repetition_len(rest).unwrap_or(1);
                out.push_str(&rest[..len]);
                len
            }
            _ => {
                out.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[len..];
    }
    out
}

fn literal(character: char, out: &mut String) -> usize {
    out.push('\\');
    out.push(character);
    character.len_utf8()
}

/// Length of `{n}`, `{n,}` or `{n,m}` at the start; `None` if the brace is only a brace.
fn repetition_len(rest: &str) -> Option<usize> {
    let inner = &rest[1..rest.find('}')?];
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_repetition = match inner.split_once(',') {
        Some((from, to)) => is_number(from) && (to.is_empty() || is_number(to)),
        None => is_number(inner),
    };
    is_repetition.then_some(inner.len() + 2)
}

/// One escape; returns how much of `rest` it takes.
fn escape(rest: &str, in_class: bool, out: &mut String) -> usize {
    let Some(kind) = rest[1..].chars().next() else {
        out.push('\\');
        return 1;
    };
    let ascii = match kind {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\f\\r ",
        'D' => "^0-9",
        'W' => "^0-9A-Za-z_",
        'S' => "^\\t\\n\\f\\r ",
        'b' | 'B' if !in_class => {
            out.push_str(if kind == 'b' { "(?-u:\\b)" } else { "(?-u:\\B)" });
            return 2;
        }
        'Q' if !in_class => {
            let quoted = &rest[2..];
            let len = quoted.find("\\E").unwrap_or(quoted.len());
            out.push_str(&regex::escape(&quoted[..len]));
            return (2 + len + 2).min(rest.len());
        }
        // `\E` without `\Q` is nothing in Go.
        'E' if !in_class => return 2,
        // Octal: this engine has no such escape.
        '0'..='7' => return octal(rest, out),
        _ => {
            out.push('\\');
            out.push(kind);
            return 1 + kind.len_utf8();
        }
    };
    out.push('[');
    out.push_str(ascii);
    out.push(']');
    2
}

/// `\0` with up to two more octal digits, or `\1` to `\7` with one or two; a digit alone is a back reference in both.
fn octal(rest: &str, out: &mut String) -> usize {
    let digits = rest[1..].bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
    let starts_with_zero = rest.as_bytes()[1] == b'0';
    if digits < 2 && !starts_with_zero {
        out.push_str(&rest[..2]);
        return 2;
    }
    let value = u32::from_str_radix(&rest[1..=digits], 8).unwrap_or_default();
    out.push_str(&format!("\\x{{{value:x}}}"));
    1 + digits
}

/// One bracket expression; returns how much of `rest` it takes.
fn class(rest: &str, out: &mut String) -> usize {
    out.push('[');
    let mut offset = 1;
    if rest[offset..].starts_with('^') {
        out.push('^');
        offset += 1;
    }
    let mut is_first = true;
    while let Some(next) = rest[offset..].chars().next() {
        let inner = &rest[offset..];
        if next == ']' && !is_first {
            out.push(']');
            return offset + 1;
        }
        is_first = false;
        if inner.starts_with("[:") && inner[2..].contains(":]") {
            let len = inner[2..].find(":]").unwrap_or_default() + 4;
            out.push_str(&inner[..len]);
            offset += len;
            continue;
        }
        offset += member(inner, out);
        let is_set = next == '\\' && inner[1..].starts_with(['d', 'D', 'w', 'W', 's', 'S', 'p', 'P']);
        let mut after = rest[offset..].chars();
        // A hyphen before the end of the class, or after a set, is only a hyphen.
        if !is_set && after.next() == Some('-') && after.next().is_some_and(|end| end != ']') {
            out.push('-');
            offset += 1 + member(&rest[offset + 1..], out);
        }
    }
    offset
}

/// One character of a bracket expression, with what is an operator in this engine and not in Go's taken as it is.
fn member(rest: &str, out: &mut String) -> usize {
    match rest.chars().next() {
        Some('\\') => escape(rest, true, out),
        Some(next @ ('[' | ']' | '&' | '~' | '-' | '^')) => literal(next, out),
        Some(next) => {
            out.push(next);
            next.len_utf8()
        }
        None => 0,
    }
}

/// As long as a rule may be.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// A thousand routes with the largest expression each would take 2 GiB; usual ones take some KiB.
const COMPILED_BYTES_MAX: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile_go_regex(pattern).unwrap_or_else(|error| panic!("{error}")).is_match(text)
    }

    #[test]
    fn classes_know_ascii_only() {
        assert!(matches(r"^\d+\w\s$", "42_ "));
        assert!(!matches(r"^\d$", "٣"));
        assert!(!matches(r"^\w$", "é"));
        assert!(matches(r"^\W$", "é"));
        assert!(matches(r"^[\w-]+$", "a-b_c"));
        assert!(matches(r"^[^\d]$", "x"));
        assert!(matches(r"\bfoo\b", "a foo b"));
        assert!(matches(r"é\bx", "éx"));
    }

    #[test]
    fn what_is_literal_in_go_is_literal_here() {
        assert!(matches(r"^{id}$", "{id}"));
        assert!(matches(r"^a{,2}$", "a{,2}"));
        assert!(matches(r"^a{1,2}b{3}c{2,}$", "aabbbcc"));
        assert!(matches(r"^[[]$", "["));
        assert!(matches(r"^[]a]$", "]"));
        assert!(matches(r"^[a&&b]+$", "a&b"));
        assert!(matches(r"^[+--]$", ","));
        assert!(matches(r"^[a~~b]+$", "a~b"));
        assert!(matches(r"^[[:alpha:]_]+$", "ab_"));
        assert!(matches(r"^\Qa.b(\E$", "a.b("));
        assert!(!matches(r"^\Qa.b\E$", "axb"));
        assert!(matches(r"^\101\x41\x{42}\0$", "AAB\0"));
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for bad in [r"(?=a)", r"(?<!a)b", r"(a", r"a)", r"*a", r"[a", r"(a)\1", r"[z-a]"] {
            assert!(compile_go_regex(bad).is_err(), "{bad}");
        }
        let error = compile_go_regex("(?=a)").unwrap_err();
        assert!(error.starts_with("`(?=a)`: ") && !error.contains('\n'), "{error}");
    }

    proptest! {
        #[test]
        fn any_pattern_compiles_or_is_refused(pattern in "[a-c0-9\\\\\\[\\](){}|*+?^$.,:&~QEdwsbé-]{0,40}") {
            let _ = compile_go_regex(&pattern);
        }

        #[test]
        fn a_quoted_text_matches_itself(text in "\\PC{0,20}") {
            let pattern = format!("^{}$", regex::escape(&text));
            prop_assert!(matches(&pattern, &text));
        }
    }
}
