//! What systemd is told (`Type=notify`, sd_notify(3)); nothing happens where it does not listen.

use sd_notify::NotifyState;

/// Serving.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Reading the configuration again.
pub(crate) fn reloading() {
    tell(&[NotifyState::Status("reloading")]);
}

/// Draining.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// The main loop turns; feeds the watchdog.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
