//! What became of each wanted certificate, for the status page.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// One certificate that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// The resolver that gets it.
    pub resolver: String,
    /// Its names.
    pub names: Vec<String>,
    /// Where it stands.
    pub state: CertificateState,
    /// End of validity of the one in use.
    pub not_after: Option<SystemTime>,
    /// When something is done about it next.
    pub next: Option<SystemTime>,
    /// Name and text of what went wrong last, if nothing went right since.
    pub problem: Option<(&'static str, String)>,
}

/// Where a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateState {
    /// There is one; it may be due for renewal.
    Valid,
    /// None yet, and none has been refused.
    Waiting,
    /// None, and the last order failed.
    Failed,
}

impl CertificateState {
    /// Its name in metrics and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        }
    }
}

/// The status of all resolvers, written by their tasks and read by whoever asks.
#[derive(Debug, Default)]
pub struct Board(Mutex<BTreeMap<String, Vec<CertificateStatus>>>);

impl Board {
    /// All wanted certificates, by resolver.
    pub fn all(&self) -> Vec<CertificateStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect()
    }

    pub(crate) fn set(&self, resolver: &str, statuses: Vec<CertificateStatus>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(resolver.to_owned(), statuses);
    }

    pub(crate) fn forget(&self, resolver: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(resolver);
    }
}
