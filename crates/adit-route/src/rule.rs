//! Traefik's rule language: text into an expression of matcher calls (`ingress-features.md §1.1`).
//!
//! Rules are Go expressions there, so Go's lexical rules hold here: its two kinds of quotes, its escapes, its comments,
//! and its automatic semicolon, by which a line may end after an operator but not before one.

mod lexer;
mod parser;

/// A rule: matcher calls joined by operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// All of these; at least two.
    And(Vec<Expression>),
    /// Any of these; at least two.
    Or(Vec<Expression>),
    /// Not this.
    Not(Box<Expression>),
    /// One matcher.
    Call(Call),
}

/// One matcher with its arguments, none of them empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Name as documented, whatever the case it was written in.
    pub matcher: &'static str,
    /// At least one.
    pub arguments: Vec<String>,
}

/// Why a text is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (at byte {offset} of the rule)")]
pub struct RuleError {
    /// Where, in bytes from the start of the rule.
    pub offset: usize,
    /// What is wrong there.
    pub reason: String,
}

/// Matchers of HTTP routers: Traefik's, and two of our own for entry points on the mesh.
pub const HTTP_MATCHERS: [&str; 13] = [
    "ClientIP",
    "Header",
    "HeaderRegexp",
    "Host",
    "HostRegexp",
    "MeshGroup",
    "MeshPeer",
    "Method",
    "Path",
    "PathPrefix",
    "PathRegexp",
    "Query",
    "QueryRegexp",
];
/// Matchers of TCP routers: Traefik's, and two of our own for entry points on the mesh.
pub const TCP_MATCHERS: [&str; 6] = ["ALPN", "ClientIP", "HostSNI", "HostSNIRegexp", "MeshGroup", "MeshPeer"];
/// Matchers of UDP routers, whose rules are our own: datagrams say nothing of themselves but who sends them.
pub const UDP_MATCHERS: [&str; 3] = ["ClientIP", "MeshGroup", "MeshPeer"];

impl Expression {
    /// Reads a rule that may use the given matchers.
    pub fn parse(rule: &str, matchers: &[&'static str]) -> Result<Self, RuleError> {
        if rule.len() > RULE_BYTES_MAX {
            let reason = format!("the rule is longer than {RULE_BYTES_MAX} bytes");
            return Err(RuleError { offset: RULE_BYTES_MAX, reason });
        }
        parser::Parser::new(rule, matchers).parse()
    }

    /// Every matcher call, with whether it counts as it stands: under an odd number of negations it does not.
    pub fn calls(&self) -> Vec<(&Call, bool)> {
        fn visit<'e>(expression: &'e Expression, is_positive: bool, calls: &mut Vec<(&'e Call, bool)>) {
            match expression {
                Expression::And(parts) | Expression::Or(parts) => {
                    parts.iter().for_each(|part| visit(part, is_positive, calls));
                }
                Expression::Not(part) => visit(part, !is_positive, calls),
                Expression::Call(call) => calls.push((call, is_positive)),
            }
        }
        let mut calls = Vec::new();
        visit(self, true, &mut calls);
        calls
    }

    /// Arguments of a matcher wherever it is not negated, in lower case, such as the hosts that a rule names.
    pub fn positive_arguments(&self, matcher: &str) -> Vec<String> {
        let calls =
            self.calls().into_iter().filter(|(call, is_positive)| *is_positive && call.matcher == matcher);
        calls.flat_map(|(call, _)| &call.arguments).map(|argument| argument.to_lowercase()).collect()
    }

    /// Whether a matcher stands anywhere in it, negated or not.
    pub fn uses(&self, matcher: &str) -> bool {
        self.calls().into_iter().any(|(call, _)| call.matcher == matcher)
    }
}

/// Long enough for a rule of a thousand hosts; bounds the work of one rule.
const RULE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests;
