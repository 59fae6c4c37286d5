//! Configurations pushed by the edge: which version is in force (tunnel-protocol.md §3.7, C35).

use std::sync::{Mutex, PoisonError};

use crate::{metrics::ConnectorMetrics, request::RequestHandler};

/// The version in force.
#[derive(Debug)]
pub(super) struct Configuration(Mutex<i32>);

impl Configuration {
    pub(super) fn new(metrics: &ConnectorMetrics) -> Self {
        metrics.config_version.set(i64::from(NO_VERSION));
        Self(Mutex::new(NO_VERSION))
    }

    /// Applies a push; the version then in force and, if it is not the pushed one for a fault of the
    /// push, why. An old version is no fault.
    pub(super) fn apply<H: RequestHandler>(
        &self,
        handler: &H,
        metrics: &ConnectorMetrics,
        version: i32,
        json: &[u8],
    ) -> (i32, Option<String>) {
        // Held while applying, so that of two pushes at once the newer one stays.
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if version <= *current {
            tracing::debug!(version, current = *current, "pushed configuration is old");
            return (*current, None);
        }
        match handler.apply_configuration(version, json) {
            Ok(()) => {
                *current = version;
                metrics.config_version.set(i64::from(version));
                tracing::info!(version, "Updated to new configuration");
                (version, None)
            }
            Err(error) => {
                tracing::warn!(version, current = *current, %error, "pushed configuration is refused");
                (*current, Some(error))
            }
        }
    }
}

/// Before any push.
const NO_VERSION: i32 = -1;
