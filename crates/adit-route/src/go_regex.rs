//! Go's regular expressions as this process runs them.
//!
//! Both engines are of one family and differ in what classes mean and in what must be escaped. Patterns are rewritten so
//! that they match what they match in Go: `\d`, `\w`, `\s` and `\b` know ASCII only, `\Q…\E` quotes, `[a&&b]` and `[[]`
//! have no operators, a brace that repeats nothing is itself.

use regex::{Regex, RegexBuilder};

/// Compiles a pattern that was written for Go (RE2 syntax); look-around and back references do not exist there either.
///
/// What Go refuses is refused, in particular what means something else in this engine. The error is one line.
pub fn compile_go_regex(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("the expression is longer than {PATTERN_BYTES_MAX} bytes"));
    }
    let translated = translate(pattern).map_err(|reason| format!("`{pattern}`: {reason}"))?;
    RegexBuilder::new(&translated).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| {
        // The engine draws the place over several lines; its last line is the reason.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim();
        format!("`{pattern}`: {}", reason.strip_prefix("error: ").unwrap_or(reason))
    })
}

fn translate(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut is_repeated = false;
    while let Some(next) = rest.chars().next() {
        let repetition = repetition_len(rest)?;
        if repetition > 0 && is_repeated {
            return Err(format!("repetition of a repetition at `{rest}`"));
        }
        is_repeated = repetition > 0;
        let len = match next {
            _ if repetition > 0 => {
                // Behind it, a question mark says "as few as possible".
                let len = repetition + usize::from(rest[repetition..].starts_with('?'));
                out.push_str(&rest[..len]);
                len
            }
            '\\' => escape(rest, false, &mut out)?,
            '[' => class(rest, &mut out)?,
            '(' if rest.starts_with("(?") => flags(rest, &mut out)?,
            '{' | '}' => literal(next, &mut out),
            _ => {
                out.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[len..];
    }
    Ok(out)
}

fn literal(character: char, out: &mut String) -> usize {
    out.push('\\');
    out.push(character);
    character.len_utf8()
}

/// Length of `*`, `+`, `?`, `{n}`, `{n,}` or `{n,m}` at the start, without what is behind; 0 for everything else, a brace
/// that is only a brace included.
fn repetition_len(rest: &str) -> Result<usize, String> {
    if rest.starts_with(['*', '+', '?']) {
        return Ok(1);
    }
    let Some((inner, _)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { return Ok(0) };
    // With a zero in front it is no number in Go.
    let is_number = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && (text.len() == 1 || !text.starts_with('0'))
    };
    let (from, to) = inner.split_once(',').unwrap_or((inner, inner));
    if !is_number(from) || !(to.is_empty() && inner != from || is_number(to)) {
        return Ok(0);
    }
    let is_too_many =
        |text: &str| !text.is_empty() && text.parse::<u32>().map_or(true, |n| n > REPETITIONS_MAX);
    match is_too_many(from) || is_too_many(to) {
        true => Err(format!("`{{{inner}}}` repeats more than {REPETITIONS_MAX} times")),
        false => Ok(inner.len() + 2),
    }
}

/// A group that starts with `(?`: a name, or the four flags that Go has; others mean something in this engine only.
fn flags(rest: &str, out: &mut String) -> Result<usize, String> {
    let wrong = || format!("`{}` is no group of Go's", rest.chars().take(8).collect::<String>());
    if let Some(named) = rest.strip_prefix("(?P<").or_else(|| rest.strip_prefix("(?<")) {
        let (name, _) = named.split_once('>').ok_or_else(wrong)?;
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let len = rest.len() - named.len() + name.len() + 1;
        return if is_name {
            out.push_str(&rest[..len]);
            Ok(len)
        } else {
            Err(wrong())
        };
    }
    let end = rest.find([':', ')']).ok_or_else(wrong)?;
    let (on, off) = rest[2..end].split_once('-').map_or((&rest[2..end], None), |(on, off)| (on, Some(off)));
    let are_flags = |flags: &str| flags.chars().all(|flag| "imsU".contains(flag));
    if !are_flags(on) || off.is_some_and(|off| off.is_empty() || !are_flags(off)) {
        return Err(wrong());
    }
    // Written once each: this engine takes no flag twice.
    let off = off.unwrap_or_default();
    let kept =
        |is_kept: &dyn Fn(char) -> bool| "imsU".chars().filter(|flag| is_kept(*flag)).collect::<String>();
    let on = kept(&|flag| on.contains(flag) && !off.contains(flag));
    let off = kept(&|flag| off.contains(flag));
    let dash = if off.is_empty() { "" } else { "-" };
    match &rest[end..=end] {
        // Nothing is changed and no group is opened.
        ")" if on.is_empty() && off.is_empty() => {}
        close => out.push_str(&format!("(?{on}{dash}{off}{close}")),
    }
    Ok(end + 1)
}

/// One escape; returns how much of `rest` it takes.
fn escape(rest: &str, in_class: bool, out: &mut String) -> Result<usize, String> {
    let kind = rest[1..].chars().next().ok_or("it ends in a back slash")?;
    let set = match kind {
        'd' => "[0-9]",
        'w' => "[0-9A-Za-z_]",
        's' => "[\\t\\n\\f\\r ]",
        'D' => "[^0-9]",
        'W' => "[^0-9A-Za-z_]",
        'S' => "[^\\t\\n\\f\\r ]",
        'b' if !in_class => "(?-u:\\b)",
        'B' if !in_class => "(?-u:\\B)",
        'A' if !in_class => "\\A",
        'z' if !in_class => "\\z",
        'a' => "\\x07",
        'f' => "\\x0C",
        'n' => "\\n",
        'r' => "\\r",
        't' => "\\t",
        'v' => "\\x0B",
        // A boundary of words in this engine.
        '<' => "<",
        '>' => ">",
        'Q' if !in_class => {
            let quoted = &rest[2..];
            let len = quoted.find("\\E").unwrap_or(quoted.len());
            out.push_str(&regex::escape(&quoted[..len]));
            return Ok((2 + len + 2).min(rest.len()));
        }
        'p' | 'P' => return unicode_class(rest, out),
        'x' => return hexadecimal(rest, out),
        '0'..='7' => return octal(rest, out),
        _ if kind.is_ascii() && !kind.is_ascii_alphanumeric() => return Ok(1 + literal(kind, out)),
        _ => return Err(format!("there is no escape `\\{kind}`")),
    };
    out.push_str(set);
    Ok(2)
}

/// `\pL`, `\p{Greek}`, `\p{^Greek}` and their negations.
fn unicode_class(rest: &str, out: &mut String) -> Result<usize, String> {
    let wrong = || "a Unicode class is written `\\p{Name}`".to_owned();
    let (name, len) = match rest[2..].chars().next() {
        Some('{') => {
            let (name, _) = rest[3..].split_once('}').ok_or_else(wrong)?;
            (name, 3 + name.len() + 1)
        }
        Some(letter) => (&rest[2..2 + letter.len_utf8()], 2 + letter.len_utf8()),
        None => return Err(wrong()),
    };
    let (is_turned, name) = name.strip_prefix('^').map_or((false, name), |name| (true, name));
    // Go has categories and scripts; with `=` and `:` this engine has more.
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b' '))
    {
        return Err(wrong());
    }
    let is_negated = rest.as_bytes()[1] == b'P';
    out.push_str(if is_negated == is_turned { "\\p{" } else { "\\P{" });
    out.push_str(name);
    out.push('}');
    Ok(len)
}

/// `\x41` or `\x{41}`.
fn hexadecimal(rest: &str, out: &mut String) -> Result<usize, String> {
    let (digits, len) = match rest[2..].strip_prefix('{') {
        Some(braced) => braced.split_once('}').map(|(digits, _)| (digits, 3 + digits.len() + 1)),
        None => rest.get(2..4).map(|digits| (digits, 4)),
    }
    .filter(|(digits, _)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    .ok_or("an escape of a number is written `\\x41` or `\\x{41}`")?;
    out.push_str("\\x{");
    out.push_str(digits);
    out.push('}');
    Ok(len)
}

/// `\0` with up to two more octal digits, or `\1` to `\7` with one or two; a digit alone is a back reference.
fn octal(rest: &str, out: &mut String) -> Result<usize, String> {
    let digits = rest[1..].bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
    if digits < 2 && rest.as_bytes()[1] != b'0' {
        return Err("there are no back references".to_owned());
    }
    let value = u32::from_str_radix(&rest[1..=digits], 8).unwrap_or_default();
    out.push_str(&format!("\\x{{{value:x}}}"));
    Ok(1 + digits)
}

/// One bracket expression; returns how much of `rest` it takes.
fn class(rest: &str, out: &mut String) -> Result<usize, String> {
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
            return Ok(offset + 1);
        }
        is_first = false;
        if let Some((name, _)) = inner.strip_prefix("[:").and_then(|name| name.split_once(":]")) {
            if !POSIX_CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
                return Err(format!("there is no class `[:{name}:]`"));
            }
            let len = name.len() + 4;
            out.push_str(&inner[..len]);
            offset += len;
            continue;
        }
        offset += member(inner, out)?;
        let is_set = next == '\\' && inner[1..].starts_with(['d', 'D', 'w', 'W', 's', 'S', 'p', 'P']);
        let mut after = rest[offset..].chars();
        // A hyphen before the end of the class, or after a set, is only a hyphen.
        if !is_set && after.next() == Some('-') && after.next().is_some_and(|end| end != ']') {
            out.push('-');
            offset += 1 + member(&rest[offset + 1..], out)?;
        }
    }
    Ok(offset)
}

/// One character of a bracket expression, with what is an operator in this engine and not in Go's taken as it is.
fn member(rest: &str, out: &mut String) -> Result<usize, String> {
    Ok(match rest.chars().next() {
        Some('\\') => return escape(rest, true, out),
        Some(next @ ('[' | ']' | '&' | '~' | '-' | '^')) => literal(next, out),
        Some(next) => {
            out.push(next);
            next.len_utf8()
        }
        None => 0,
    })
}

/// Go's, in brackets and colons.
const POSIX_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];
/// Go's limit of a counted repetition.
const REPETITIONS_MAX: u32 = 1000;
/// As long as a rule may be.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// Enough for a class of all letters repeated a hundred times. Usual expressions take some KiB, and all are the operator's.
const COMPILED_BYTES_MAX: usize = 16 << 20;

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
        for bad in [r"(?=a)", r"(?<!a)b", r"(a", r"a)", r"*a", r"[a", r"(a)\1", r"[z-a]", r"a\"] {
            assert!(compile_go_regex(bad).is_err(), "{bad}");
        }
        let error = compile_go_regex("(?=a)").unwrap_err();
        assert!(error.starts_with("`(?=a)`: ") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn unicode_classes_and_numbers_in_braces_are_taken_whole() {
        assert!(matches(r"^\p{L}\p{Lu}\pN\x{e9}\xe9$", "éÉ1éé"));
        assert!(matches(r"^\p{^L}\P{L}\P{^L}[\p{Greek}\d][^\p{Han}]$", "11aαa"));
        assert!(!matches(r"^\P{L}$", "a"));
        assert!(matches(r"^[\x{61}-\x63]+$", "abc"));
        for bad in
            [r"\p{Nonsense}", r"\p{", r"\p", r"\p{}", r"\p{gc=L}", r"\x{}", r"\x{g}", r"\x4", r"\x{110000}"]
        {
            assert!(compile_go_regex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_means_something_else_in_this_engine_is_literal_or_refused() {
        assert!(!matches(r"#?\<", "a"));
        assert!(matches(r"^\<a\>[\<\>]$", "<a><"));
        for bad in [
            r"a**",
            r"a+*",
            r"a++",
            r"a???",
            r"b{1,}+?",
            r"a{2}{3}",
            r"a{1001}",
            r"a{1,1001}",
            r"\u0041",
            r"\u{61}",
            r"\U00000041",
            r"\E",
            r"\Qa\E\E",
            r"(?x)a",
            r"(?u)a",
            r"(?R)a",
            r"(?-)a",
            r"(?i-)a",
            r"(?P<a",
            r"(?P<a.b>c)",
            r"[[:foo:]]",
            r"[\b]",
            r"[\Q]",
            r"\Z",
            r"\C",
            r"\é",
            r"\_\q",
        ] {
            assert!(compile_go_regex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn repetitions_and_flags_are_read_as_go_reads_them() {
        assert!(matches(r"^a*?b+?c??d{2}?$", "aabdd"));
        assert!(matches(r"^a{1000}$", &"a".repeat(1000)));
        assert!(matches(r"^a{02}$", "a{02}"));
        assert!(matches(r"^(?ii-s)A(?i-i:B)(?)(?:c)(?U)d*$", "aBcd"));
        assert!(!matches(r"^(?i-i:B)$", "b"));
        assert!(matches(r"^(?P<a_1>x)(?<b>y)$", "xy"));
        assert!(matches(r"^\a\f\v\t\_\ $", "\x07\x0C\x0B\t_ "));
    }

    proptest! {
        #[test]
        fn any_pattern_compiles_or_is_refused(pattern in "[a-cipPxU0-9<>_\\\\\\[\\](){}|*+?^$.,:&~QEdwsbé-]{0,40}") {
            let _ = compile_go_regex(&pattern);
        }

        #[test]
        fn a_quoted_text_matches_itself(text in "\\PC{0,20}") {
            let pattern = format!("^{}$", regex::escape(&text));
            prop_assert!(matches(&pattern, &text));
        }
    }
}
