//! Rules that are right and very likely not what was meant.

use crate::rule::{Call, Expression};

/// One line for every matcher that cannot do what it looks like.
pub(super) fn suspicions(expression: &Expression) -> Vec<String> {
    let mut found = Vec::new();
    collect(expression, &mut found);
    found
}

fn collect(expression: &Expression, found: &mut Vec<String>) {
    match expression {
        Expression::And(parts) | Expression::Or(parts) => parts.iter().for_each(|part| collect(part, found)),
        Expression::Not(part) => collect(part, found),
        Expression::Call(call) => {
            if let Some(reason) = suspicion(call).filter(|_| found.len() < SUSPICIONS_MAX) {
                found.push(format!("{}(`{}`) {reason}", call.matcher, call.arguments[0]));
            }
        }
    }
}

fn suspicion(call: &Call) -> Option<&'static str> {
    let text = call.arguments[0].as_str();
    let has_braces = text.contains('{') && text.contains('}');
    match call.matcher {
        "Host" if has_braces => Some("is compared as it stands: patterns are written with HostRegexp"),
        "Path" | "PathPrefix" if has_braces => {
            Some("is compared as it stands: patterns are written with PathRegexp")
        }
        // Two colons are an IPv6 address, which is a host without its brackets.
        "Host" if text.contains(['[', ']', '/']) || text.matches(':').count() == 1 => {
            Some("never matches: a host has no port, no brackets and no path")
        }
        "Host" if text != "*" && text.strip_prefix("*.").unwrap_or(text).contains('*') => {
            Some("never matches: `*` stands for one whole label at the start")
        }
        "Path" | "PathPrefix" if text.contains('?') => {
            Some("never matches: the query is no part of the path")
        }
        _ => None,
    }
}

/// Enough to mend a rule.
const SUSPICIONS_MAX: usize = 8;
