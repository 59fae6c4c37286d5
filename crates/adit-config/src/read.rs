//! Typed reading of a located tree: every mistake is noted in the [`Sink`] and reading goes on.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Problem,
    model::Origin,
    units::{format_duration, format_size, parse_duration, parse_size},
    yaml::{Entry, Node, Value},
};

/// Whose rules a text follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `adit.yaml`: unknown keys and empty values are problems, paths are relative to the file.
    Adit,
    /// cloudflared's `config.yml`: unknown keys only warn, paths are relative to the working directory.
    Cloudflared,
    /// Traefik's dynamic files: keys match in any case, unknown keys are problems, empty values count as absent.
    Traefik,
    /// Pushed JSON: unknown keys are ignored, keys match in any case, durations are whole seconds.
    Pushed,
}

/// Collects what is wrong with one text, and where each key was written.
pub(crate) struct Sink<'a> {
    file: &'a str,
    pub(crate) dialect: Dialect,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    origins: RefCell<BTreeMap<String, Origin>>,
    faults: RefCell<Vec<String>>,
}

/// What a [`Sink`] has collected.
pub(crate) struct Findings {
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
    pub(crate) origins: BTreeMap<String, Origin>,
}

/// One value at its key path.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    pub(crate) sink: &'a Sink<'a>,
    pub(crate) path: String,
    pub(crate) node: &'a Node,
}

/// A mapping that is being read; [`Section::finish`] reports the keys that nobody took.
pub(crate) struct Section<'a> {
    field: Field<'a>,
    entries: &'a [Entry],
    taken: Vec<&'static str>,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(file: &'a str, dialect: Dialect) -> Self {
        Self {
            file,
            dialect,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            origins: RefCell::default(),
            faults: RefCell::default(),
        }
    }

    pub(crate) fn root(&'a self, node: &'a Node) -> Field<'a> {
        Field { sink: self, path: String::new(), node }
    }

    /// A value at its path, whose place is remembered.
    fn field(&'a self, path: String, node: &'a Node) -> Field<'a> {
        let origin = Origin { file: self.file.to_owned(), position: node.position };
        self.origins.borrow_mut().insert(path.clone(), origin);
        Field { sink: self, path, node }
    }

    pub(crate) fn report(&self, problem: Problem) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < PROBLEMS_MAX {
            problems.push(problem);
        }
    }

    /// Reports what only shows when several keys are seen together, at the place of one of them.
    pub(crate) fn reject_at(&self, path: &str, value: &str, expected: impl Into<String>) {
        let position = self.origins.borrow().get(path).and_then(|origin| origin.position);
        self.report(Problem {
            position,
            key: path.to_owned(),
            value: value.to_owned(),
            ..Problem::of_file(self.file, expected)
        });
    }

    /// As [`Self::reject_at`] for what is accepted and still worth a line.
    pub(crate) fn warn_at(&self, path: &str, value: &str, note: impl Into<String>) {
        let position = self.origins.borrow().get(path).and_then(|origin| origin.position);
        self.warn(Problem {
            position,
            key: path.to_owned(),
            value: value.to_owned(),
            ..Problem::of_file(self.file, note)
        });
    }

    /// Whether anything was written at a key path.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.origins.borrow().contains_key(path)
    }

    /// What is wrong with the object that was just read, as one reason; see [`Field::fault`].
    pub(crate) fn take_fault(&self) -> Option<String> {
        let faults = self.faults.take();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    /// Notes what is accepted and still worth a line.
    pub(crate) fn warn(&self, problem: Problem) {
        let mut warnings = self.warnings.borrow_mut();
        if warnings.len() < PROBLEMS_MAX {
            warnings.push(problem);
        }
    }

    /// Takes over what another reading of the same text has found.
    pub(crate) fn absorb(&self, findings: Findings) {
        findings.problems.into_iter().for_each(|problem| self.report(problem));
        findings.warnings.into_iter().for_each(|problem| self.warn(problem));
        self.origins.borrow_mut().extend(findings.origins);
    }

    pub(crate) fn finish(self) -> Findings {
        let file = self.file;
        let by_place = |mut problems: Vec<Problem>| {
            // Stable: problems of other files keep their order behind those of the first.
            problems.sort_by_key(|problem| (problem.file != file, problem.position));
            problems
        };
        Findings {
            problems: by_place(self.problems.into_inner()),
            warnings: by_place(self.warnings.into_inner()),
            origins: self.origins.into_inner(),
        }
    }
}

impl<'a> Field<'a> {
    /// Notes that this value is not what was expected.
    pub(crate) fn reject(&self, expected: impl Into<String>) {
        self.sink.report(self.problem(expected, self.shown()));
    }

    /// As [`Self::reject`], with advice.
    pub(crate) fn reject_with(&self, expected: impl Into<String>, hint: impl Into<String>) {
        let problem = self.problem(expected, self.shown());
        self.sink.report(Problem { hint: Some(hint.into()), ..problem });
    }

    /// Notes that this value is accepted and has no effect, or not the one expected.
    pub(crate) fn warn(&self, note: impl Into<String>) {
        self.sink.warn(self.problem(note, self.shown()));
    }

    /// Notes what is wrong with the object that this value is a part of: the object is disabled, the text is not refused.
    pub(crate) fn fault(&self, expected: impl std::fmt::Display) {
        let shown = self.shown();
        let found = if shown.is_empty() { String::new() } else { format!(", found `{shown}`") };
        let mut faults = self.sink.faults.borrow_mut();
        if faults.len() < FAULTS_MAX {
            faults.push(format!("{}: {expected}{found}", self.path));
        }
    }

    /// As [`Self::reject`] for a value that may be a secret.
    pub(crate) fn reject_hidden(&self, expected: impl Into<String>) {
        self.sink.report(self.problem(expected, String::new()));
    }

    /// The scalar's text.
    pub(crate) fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, plain } if !*plain || self.sink.dialect != Dialect::Pushed => Some(text),
            _ => {
                self.reject("expected text");
                None
            }
        }
    }

    /// The scalar's text, converted; `expected` completes "expected …".
    pub(crate) fn parse<T>(&self, expected: &str, convert: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let converted = self.scalar().and_then(convert);
        if converted.is_none() {
            self.reject(format!("expected {expected}"));
        }
        converted
    }

    /// The scalar's text, converted; the error says what is wrong.
    pub(crate) fn try_parse<T, E: std::fmt::Display>(
        &self,
        convert: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match convert(self.text()?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.reject(error.to_string());
                None
            }
        }
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        let lenient = self.sink.dialect == Dialect::Cloudflared;
        let plain = matches!(self.node.value, Value::Scalar { plain: true, .. });
        self.parse("`true` or `false`", |text| match text {
            _ if !plain => None,
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            // YAML 1.1's words, and those of Go's flag parser for values from the environment.
            "yes" | "on" | "y" | "1" | "t" | "T" if lenient => Some(true),
            "no" | "off" | "n" | "0" | "f" | "F" if lenient => Some(false),
            _ => None,
        })
    }

    pub(crate) fn integer<T>(&self, range: RangeInclusive<u64>) -> Option<T>
    where
        T: TryFrom<u64>,
    {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.parse(&expected, |text| {
            let number = match self.sink.dialect {
                Dialect::Traefik => u64::try_from(self.whole_of(text)?).ok()?,
                _ => text.parse::<u64>().ok()?,
            };
            T::try_from(number).ok().filter(|_| range.contains(&number))
        })
    }

    /// A duration; in pushed JSON a whole number of seconds (`tunnel-protocol.md §3.7`).
    pub(crate) fn duration(&self) -> Option<Duration> {
        if self.sink.dialect == Dialect::Pushed {
            let plain = matches!(self.node.value, Value::Scalar { plain: true, .. });
            return self.parse("a whole number of seconds", |text| {
                let seconds = text.parse::<u64>().ok().filter(|_| plain)?;
                Some(Duration::from_secs(seconds)).filter(|duration| *duration <= crate::units::DURATION_MAX)
            });
        }
        let parsed = self.scalar().and_then(parse_duration);
        if parsed.is_none() {
            match self.scalar().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())) {
                Some(number) => {
                    self.reject_with("expected a duration with a unit", format!("such as `{number}s`"))
                }
                None => self.reject("expected a duration such as `30s` or `1m30s`"),
            }
        }
        parsed
    }

    pub(crate) fn duration_in(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let duration = self.duration()?;
        if range.contains(&duration) {
            return Some(duration);
        }
        let [start, end] = [range.start(), range.end()].map(|bound| format_duration(*bound));
        self.reject(format!("expected a duration from {start} to {end}"));
        None
    }

    pub(crate) fn size<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let [start, end] = [range.start(), range.end()].map(|bound| format_size(*bound));
        self.parse(&format!("a size from {start} to {end}"), |text| {
            T::try_from(parse_size(text).filter(|size| range.contains(size))?).ok()
        })
    }

    /// A path, relative to the directory of the file it stands in, except in cloudflared's own files.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let text = self.text()?;
        if text.is_empty() {
            self.reject("expected a path");
            return None;
        }
        Some(self.beside(text))
    }

    /// A path as [`Self::path`] reads it from this field's file.
    pub(crate) fn beside(&self, text: &str) -> PathBuf {
        let base = Path::new(self.sink.file).parent();
        let base = base.filter(|_| matches!(self.sink.dialect, Dialect::Adit | Dialect::Traefik));
        base.map_or_else(|| PathBuf::from(text), |base| base.join(text))
    }

    /// The texts of a list; in cloudflared's files one text stands for a list of one.
    pub(crate) fn texts(&self) -> Vec<(&'a str, Field<'a>)> {
        let one = self.sink.dialect == Dialect::Cloudflared && self.scalar().is_some();
        let items = if one { vec![self.clone()] } else { self.items() };
        items.into_iter().filter_map(|item| Some((item.text()?, item))).collect()
    }

    /// The elements of a list.
    pub(crate) fn items(&self) -> Vec<Field<'a>> {
        let Value::Sequence(items) = &self.node.value else {
            self.reject("expected a list");
            return Vec::new();
        };
        let child = |(index, node)| self.sink.field(format!("{}[{index}]", self.path), node);
        items.iter().enumerate().map(child).collect()
    }

    /// The mapping's keys, for reading.
    pub(crate) fn section(&self) -> Option<Section<'a>> {
        match &self.node.value {
            Value::Mapping(entries) => Some(Section { field: self.clone(), entries, taken: Vec::new() }),
            _ => {
                self.reject("expected a mapping");
                None
            }
        }
    }

    /// The mapping's keys and values where the keys are names that the operator chose.
    pub(crate) fn named(&self) -> Vec<(&'a str, Field<'a>)> {
        let Some(section) = self.section() else { return Vec::new() };
        let child = |entry: &'a Entry| (entry.key.as_str(), section.child(entry));
        section.entries.iter().map(child).collect()
    }

    pub(crate) fn is_null(&self) -> bool {
        self.node.value == Value::Null
    }

    pub(crate) fn scalar(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    fn problem(&self, expected: impl Into<String>, value: String) -> Problem {
        Problem {
            position: self.node.position,
            key: self.path.clone(),
            value,
            ..Problem::of_file(self.sink.file, expected)
        }
    }

    fn shown(&self) -> String {
        match &self.node.value {
            Value::Null => String::new(),
            Value::Scalar { text, .. } if text.chars().count() > SHOWN_CHARS_MAX => {
                text.chars().take(SHOWN_CHARS_MAX).chain(['…']).collect()
            }
            Value::Scalar { text, .. } => text.clone(),
            Value::Sequence(_) => "[…]".to_owned(),
            Value::Mapping(_) => "{…}".to_owned(),
        }
    }
}

impl<'a> Section<'a> {
    /// The value of a key, if it is there. From now on the key is known.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.taken.push(key);
        // Under the key's proper name, whatever case it was written in: that is where it is looked for.
        let field = self.child_as(key, self.entries.iter().find(|entry| self.is_key(entry, key))?);
        if !field.is_null() {
            return Some(field);
        }
        if field.sink.dialect == Dialect::Adit {
            field.reject_with("expected a value", "remove the key, or write `{}` for a section of defaults");
        }
        None
    }

    /// Takes a key that must be there.
    pub(crate) fn require(&mut self, key: &'static str) -> Option<Field<'a>> {
        let present = self.entries.iter().any(|entry| self.is_key(entry, key));
        let field = self.take(key);
        if !present {
            self.field.sink.report(self.field.problem(format!("`{key}` is missing"), String::new()));
        }
        field
    }

    /// Takes keys that the design knows and this version does not serve: each is a problem, none is ignored.
    pub(crate) fn refuse(&mut self, keys: &[&'static str]) {
        for key in keys {
            if let Some(entry) = self.entries.iter().find(|entry| self.is_key(entry, key)) {
                self.taken.push(key);
                let field = self.child(entry);
                field.reject_hidden("not implemented in this version");
            }
        }
    }

    /// Leaves keys to another reader: they are neither read here nor unknown.
    pub(crate) fn leave(&mut self, keys: &[&'static str]) {
        self.taken.extend(keys);
    }

    /// Sets `place` to the key's value if it is there and right.
    pub(crate) fn set<T>(
        &mut self,
        key: &'static str,
        place: &mut T,
        read: impl FnOnce(&Field<'a>) -> Option<T>,
    ) {
        if let Some(value) = self.take(key).and_then(|field| read(&field)) {
            *place = value;
        }
    }

    /// Reads an optional key.
    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Field<'a>) -> Option<T>,
    ) -> Option<T> {
        self.take(key).and_then(|field| read(&field))
    }

    /// The mapping itself, to reject it as a whole.
    pub(crate) fn itself(&self) -> &Field<'a> {
        &self.field
    }

    /// Keys that were not taken: for cloudflared's file they are flag names.
    pub(crate) fn rest(&self) -> Vec<(&'a str, Field<'a>)> {
        let is_taken = |entry: &Entry| self.taken.iter().any(|key| self.is_key(entry, key));
        let untaken = self.entries.iter().filter(|entry| !is_taken(entry));
        untaken.map(|entry| (entry.key.as_str(), self.child(entry))).collect()
    }

    /// Reports every key that was not taken, with the nearest one that could have been meant.
    pub(crate) fn finish(self) {
        for (key, field) in self.rest() {
            let position =
                self.entries.iter().find(|entry| entry.key == key).and_then(|entry| entry.position);
            let problem = Problem {
                position,
                hint: nearest(key, &self.taken).map(|near| format!("did you mean `{near}`?")),
                ..field.problem("unknown key", String::new())
            };
            match field.sink.dialect {
                Dialect::Adit | Dialect::Traefik => field.sink.report(problem),
                Dialect::Cloudflared => field.sink.warnings.borrow_mut().push(problem),
                Dialect::Pushed => {}
            }
        }
    }

    /// Whether the mapping has no keys at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reports keys that differ from an earlier one only in case, where case does not count.
    pub(crate) fn reject_twins(&self) {
        // The comparison is quadratic; a longer mapping has unknown keys, which are problems already.
        if self.entries.len() > SECTION_KEYS_MAX {
            return;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if self.entries[..index].iter().any(|earlier| earlier.key.eq_ignore_ascii_case(&entry.key)) {
                self.child(entry).reject_hidden("this key is written twice, in different case");
            }
        }
    }

    fn is_key(&self, entry: &Entry, key: &str) -> bool {
        match self.field.sink.dialect {
            Dialect::Traefik | Dialect::Pushed => entry.key.eq_ignore_ascii_case(key),
            Dialect::Adit | Dialect::Cloudflared => entry.key == key,
        }
    }

    fn child(&self, entry: &'a Entry) -> Field<'a> {
        self.child_as(&entry.key, entry)
    }

    fn child_as(&self, key: &str, entry: &'a Entry) -> Field<'a> {
        let path = match self.field.path.as_str() {
            "" => key.to_owned(),
            parent => format!("{parent}.{key}"),
        };
        self.field.sink.field(path, &entry.value)
    }
}

/// The candidate nearest to `word`, if it is near enough to be what was meant.
pub(crate) fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let folded = word.to_ascii_lowercase().replace(['-', '_'], "");
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    candidates
        .iter()
        .map(|candidate| {
            (distance(&folded, &candidate.to_ascii_lowercase().replace(['-', '_'], "")), *candidate)
        })
        .filter(|(distance, _)| *distance <= 1 + folded.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in bytes, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, left_byte) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, right_byte) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(left_byte != right_byte);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

/// Enough to mend a file; more is one mistake repeated.
const PROBLEMS_MAX: usize = 100;
/// Reasons for one object; more is one mistake repeated.
const FAULTS_MAX: usize = 8;
/// Enough of a value to find it again.
const SHOWN_CHARS_MAX: usize = 80;
/// Twice the keys of the largest section.
const SECTION_KEYS_MAX: usize = 64;
/// Keys longer than this are not compared: the comparison is quadratic.
const WORD_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(text: &str, dialect: Dialect, read: impl FnOnce(&mut Section<'_>)) -> Vec<String> {
        let (node, _) = Node::from_yaml(text, "dir/t.yaml").unwrap();
        let sink = Sink::new("dir/t.yaml", dialect);
        let mut section = sink.root(&node).section().unwrap();
        read(&mut section);
        section.finish();
        sink.finish().problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn all_problems_are_found_in_the_order_of_their_places() {
        let problems = problems_of("b: x\na: 5\nlisen: 1\n", Dialect::Adit, |section| {
            section.optional("a", Field::boolean);
            section.optional("b", |field| field.integer::<u8>(1..=9));
            section.optional("listen", |field| field.text());
        });
        assert_eq!(
            problems,
            [
                "dir/t.yaml:1:4: b: expected a number from 1 to 9, found `x`",
                "dir/t.yaml:2:4: a: expected `true` or `false`, found `5`",
                "dir/t.yaml:3:1: lisen: unknown key; did you mean `listen`?",
            ]
        );
    }

    #[test]
    fn a_number_without_unit_gets_the_unit_as_advice() {
        let problems = problems_of("t: 30\n", Dialect::Adit, |section| {
            section.optional("t", Field::duration);
        });
        assert_eq!(
            problems,
            ["dir/t.yaml:1:4: t: expected a duration with a unit, found `30`; such as `30s`"]
        );
    }

    #[test]
    fn paths_of_our_file_are_relative_to_it() {
        for (dialect, expected) in [(Dialect::Adit, "dir/x.pem"), (Dialect::Cloudflared, "x.pem")] {
            problems_of("p: x.pem\n", dialect, |section| {
                assert_eq!(section.optional("p", Field::path), Some(PathBuf::from(expected)));
            });
        }
    }

    #[test]
    fn an_empty_value_is_a_problem_only_in_our_file() {
        let read = |section: &mut Section<'_>| assert!(section.take("a").is_none());
        assert_eq!(problems_of("a:\n", Dialect::Adit, read).len(), 1);
        assert_eq!(problems_of("a:\n", Dialect::Cloudflared, read).len(), 0);
    }

    #[test]
    fn the_nearest_key_is_found_across_spellings() {
        assert_eq!(nearest("certfile", &["certFile", "keyFile"]), Some("certFile"));
        assert_eq!(nearest("grace_period", &["grace-period", "retries"]), Some("grace-period"));
        assert_eq!(nearest("zebra", &["certFile", "keyFile"]), None);
    }
}
