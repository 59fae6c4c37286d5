//! Compiled rules of either kind, HTTP's and TCP's.

use crate::{index::Anchor, rule::Expression};

/// A compiled rule over matchers of type `L`.
#[derive(Debug)]
pub(crate) enum Condition<L> {
    And(Vec<Condition<L>>),
    Or(Vec<Condition<L>>),
    Not(Box<Condition<L>>),
    Leaf(L),
}

/// A compiled matcher call.
pub(crate) trait Leaf: Sized {
    /// What it is compared with.
    type Subject<'a>;

    fn matches(&self, subject: &Self::Subject<'_>) -> bool;

    /// Host and path that are necessary for a match.
    fn anchor(&self) -> Anchor;
}

impl<L: Leaf> Condition<L> {
    /// Compiles a rule; the error is one line.
    pub(crate) fn new(
        expression: &Expression,
        compile: &impl Fn(&crate::rule::Call) -> Result<L, String>,
    ) -> Result<Self, String> {
        let all = |parts: &[Expression]| {
            parts.iter().map(|part| Self::new(part, compile)).collect::<Result<Vec<_>, _>>()
        };
        Ok(match expression {
            Expression::And(parts) => Self::And(all(parts)?),
            Expression::Or(parts) => Self::Or(all(parts)?),
            Expression::Not(part) => Self::Not(Box::new(Self::new(part, compile)?)),
            Expression::Call(call) => Self::Leaf(compile(call)?),
        })
    }

    pub(crate) fn matches(&self, subject: &L::Subject<'_>) -> bool {
        match self {
            Self::And(parts) => parts.iter().all(|part| part.matches(subject)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(subject)),
            Self::Not(part) => !part.matches(subject),
            Self::Leaf(leaf) => leaf.matches(subject),
        }
    }
}
