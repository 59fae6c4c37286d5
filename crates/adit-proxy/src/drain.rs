//! The signal that a listener's connections are to finish what they do and close.

use tokio::sync::watch;

/// Held by every connection; cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    started: watch::Receiver<bool>,
}

/// Starts the drain; dropping it starts it as well, so that nothing outlives its owner.
#[derive(Debug)]
pub struct DrainSignal {
    start: watch::Sender<bool>,
}

/// A new, not yet started drain.
pub fn channel() -> (DrainSignal, Drain) {
    let (start, started) = watch::channel(false);
    (DrainSignal { start }, Drain { started })
}

impl DrainSignal {
    /// Tells all holders.
    pub fn start(&self) {
        self.start.send_replace(true);
    }
}

impl Drain {
    /// True once the drain began.
    pub fn is_started(&self) -> bool {
        *self.started.borrow() || self.started.has_changed().is_err()
    }

    /// Returns when the drain has begun and whoever waits beside it has been told of what had arrived by then: a socket
    /// that was accepted a moment ago has not told anybody yet.
    pub async fn settled(&self) {
        self.started().await;
        tokio::task::yield_now().await;
    }

    /// Returns when the drain begins.
    pub async fn started(&self) {
        let mut started = self.started.clone();
        let _ = started.wait_for(|started| *started).await;
    }
}
