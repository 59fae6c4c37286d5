//! One thing wrong with what the operator wrote, with its place.

use std::fmt;

/// A place in a text, as editors count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// One mistake: where it stands, what stands there and what was expected.
///
/// `Display` prints `file:line:column: key: expected, found value; hint` on one line, leaving out what is absent.
/// A value that may be a secret is never put into a `Problem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Name of the file (or other source) as the caller gave it.
    pub file: String,
    /// Place in the file; absent where the source has no lines (flags, pushed JSON).
    pub position: Option<Position>,
    /// Key path such as `edge.tunnels[0].hostnames[1]`; empty for the file as a whole.
    pub key: String,
    /// Value as written, shortened; empty if there is none to show.
    pub value: String,
    /// What was expected, or the rule that is broken.
    pub expected: String,
    /// What to do about it, such as the nearest known key.
    pub hint: Option<String>,
}

/// Every problem of one reading, in the order of their places; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problem {
    /// A problem of a whole file or source, without a place in it.
    pub fn of_file(file: &str, expected: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            position: None,
            key: String::new(),
            value: String::new(),
            expected: expected.into(),
            hint: None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.expected)?;
        if !self.value.is_empty() {
            write!(f, ", found `{}`", self.value)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_one_line_with_its_place() {
        let problem = Problem {
            file: "adit.yaml".into(),
            position: Some(Position { line: 3, column: 5 }),
            key: "edge.lisen".into(),
            value: String::new(),
            expected: "unknown key".into(),
            hint: Some("did you mean `listen`?".into()),
        };
        assert_eq!(problem.to_string(), "adit.yaml:3:5: edge.lisen: unknown key; did you mean `listen`?");
    }

    #[test]
    fn what_is_absent_is_left_out() {
        assert_eq!(Problem::of_file("x.yml", "is empty").to_string(), "x.yml: is empty");
    }
}
