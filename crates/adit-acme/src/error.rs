//! Why there is no certificate yet.

use std::path::PathBuf;
use std::sync::Arc;

use instant_acme::Problem;
use thiserror::Error;

/// Why an order, or the storage behind it, failed; each has one name for log, metric and status.
#[derive(Clone, Debug, Error)]
pub enum AcmeError {
    /// The storage cannot be read or written.
    #[error("storage {path}: {source}")]
    Store {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: Arc<std::io::Error>,
    },
    /// The storage holds something else, or is open to others.
    #[error("storage {path}: {why}")]
    StoreContent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never its content.
        why: String,
    },
    /// The authorities for the CA's own server cannot be read.
    #[error("the CA's own certificate cannot be checked: {0}")]
    Trust(String),
    /// The CA cannot be reached or does not answer in time.
    #[error("the CA cannot be asked: {0}")]
    Unreachable(String),
    /// The CA has had enough of us for now.
    #[error("the CA limits us: {0}")]
    RateLimited(String),
    /// The CA refuses the account or the order.
    #[error("the CA refuses: {0}")]
    Refused(String),
    /// The CA answers something that is not ACME.
    #[error("the CA's answer cannot be used: {0}")]
    Answer(String),
    /// The CA does not know the account we have kept.
    #[error("the CA does not know our account any more: {0}")]
    AccountGone(String),
    /// The CA offers other challenges than the one configured.
    #[error("the CA does not offer {challenge} for {name}")]
    NotOffered {
        /// Whose challenge.
        name: String,
        /// Such as `http-01`.
        challenge: &'static str,
    },
    /// The CA looked at the challenge's answer and did not like it.
    #[error("{name} is not validated: {why}")]
    Validation {
        /// Which name.
        name: String,
        /// The CA's words.
        why: String,
    },
    /// A step of the order took too long.
    #[error("the order was not {0} in time")]
    Timeout(&'static str),
    /// The name server does not take the challenge's record.
    #[error("{name} cannot be set in DNS: {why}")]
    DnsUpdate {
        /// The record.
        name: String,
        /// What the server says.
        why: String,
    },
    /// The record was set and is not seen.
    #[error("{name} is not visible at {server}: {why}")]
    DnsPropagation {
        /// The record.
        name: String,
        /// Who was asked.
        server: String,
        /// What it says.
        why: String,
    },
    /// A key or a request for a certificate cannot be made.
    #[error("cannot make a key or certificate request: {0}")]
    Key(String),
    /// The CA's certificate does not fit what was asked for.
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    /// Too many challenges at once.
    #[error("too many challenges are pending")]
    TooManyChallenges,
    /// The process stops, or the configuration does not want the certificate any more.
    #[error("given up because it is not wanted any more")]
    Cancelled,
}

/// How soon another try makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Nothing was spent at the CA.
    Soon,
    /// The CA counts failed validations.
    Later,
    /// The CA said so.
    MuchLater,
}

impl AcmeError {
    /// The name of this error in logs, metric labels and status.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store { .. } => "store",
            Self::StoreContent { .. } => "store_content",
            Self::Trust(_) => "ca_trust",
            Self::Unreachable(_) => "ca_unreachable",
            Self::RateLimited(_) => "ca_rate_limited",
            Self::Refused(_) => "ca_refused",
            Self::Answer(_) => "ca_answer",
            Self::AccountGone(_) => "account_gone",
            Self::NotOffered { .. } => "challenge_not_offered",
            Self::Validation { .. } => "validation",
            Self::Timeout(_) => "timeout",
            Self::DnsUpdate { .. } => "dns_update",
            Self::DnsPropagation { .. } => "dns_propagation",
            Self::Key(_) => "key",
            Self::Certificate(_) => "certificate",
            Self::TooManyChallenges => "too_many_challenges",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::Store { .. }
            | Self::StoreContent { .. }
            | Self::Trust(_)
            | Self::Unreachable(_)
            | Self::AccountGone(_)
            | Self::TooManyChallenges
            | Self::Cancelled => Retry::Soon,
            Self::RateLimited(_) => Retry::MuchLater,
            _ => Retry::Later,
        }
    }

    /// What the CA said, sorted by what can be done about it (RFC 8555 §6.7).
    pub(crate) fn of_problem(problem: &Problem) -> Self {
        let text = shortened(&problem.to_string());
        let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next());
        match kind {
            Some("rateLimited") => Self::RateLimited(text),
            Some("accountDoesNotExist") => Self::AccountGone(text),
            Some("serverInternal") => Self::Unreachable(text),
            _ if problem.status.is_some_and(|status| matches!(status, 502..=504)) => Self::Unreachable(text),
            _ => Self::Refused(text),
        }
    }
}

impl From<instant_acme::Error> for AcmeError {
    fn from(error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::of_problem(&problem),
            instant_acme::Error::Other(other) => Self::Unreachable(shortened(&other.to_string())),
            instant_acme::Error::Timeout(_) => Self::Timeout("processed"),
            other => Self::Answer(shortened(&other.to_string())),
        }
    }
}

/// What a CA says goes into logs and pages: one line of bounded length.
fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Problem documents with a subproblem for each of 100 names fit in their interesting part.
const TEXT_CHARS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str) -> Problem {
        let text = format!(r#"{{"type":"urn:ietf:params:acme:error:{kind}","detail":"a\nb"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn problems_of_the_ca_get_the_name_that_says_what_to_do() {
        for (kind, reason, retry) in [
            ("rateLimited", "ca_rate_limited", Retry::MuchLater),
            ("accountDoesNotExist", "account_gone", Retry::Soon),
            ("rejectedIdentifier", "ca_refused", Retry::Later),
        ] {
            let error = AcmeError::of_problem(&problem(kind));
            assert_eq!((error.reason(), error.retry()), (reason, retry));
            assert!(!error.to_string().contains('\n'));
        }
    }
}
