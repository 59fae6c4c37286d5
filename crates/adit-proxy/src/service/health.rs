//! Active health checks: one task for each service that asks for them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use adit_config::dynamic::HealthCheck;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::probe::Probe;
use super::state::ServerState;
use super::transport::Transport;
use super::url::ServerUrl;

/// The probes of one service; they end when the last owner is gone.
pub(super) struct HealthTask {
    settings: HealthCheck,
    transport: Arc<Transport>,
    servers: Vec<Arc<str>>,
    abort: Option<AbortHandle>,
}

/// A server to probe.
pub(super) struct Probed {
    pub(super) text: Arc<str>,
    pub(super) url: ServerUrl,
    pub(super) state: Arc<ServerState>,
}

impl HealthTask {
    /// Starts probing, the first time at once; `previous` goes on if it does the same already.
    ///
    /// Outside a runtime, as where a configuration is only checked, nothing runs.
    ///
    /// # Errors
    /// A probe that cannot be made.
    pub(super) fn start(
        service: &Arc<str>,
        settings: &HealthCheck,
        transport: &Arc<Transport>,
        servers: Vec<Probed>,
        previous: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, String> {
        let texts: Vec<Arc<str>> = servers.iter().map(|server| Arc::clone(&server.text)).collect();
        if let Some(previous) = previous
            && previous.settings == *settings
            && previous.servers == texts
            && Arc::ptr_eq(&previous.transport, transport)
        {
            return Ok(Arc::clone(previous));
        }
        let targets = servers
            .into_iter()
            .map(|server| {
                let probe = Probe::new(settings, &server.url, Arc::clone(transport))?;
                Ok(Watched { text: server.text, state: server.state, probe: Arc::new(probe), due: None })
            })
            .collect::<Result<Vec<_>, String>>()?;
        let intervals = Intervals {
            up: positive(settings.interval, INTERVAL),
            down: positive(settings.unhealthy_interval, INTERVAL),
            timeout: positive(settings.timeout, TIMEOUT),
        };
        let service = Arc::clone(service);
        let abort = Handle::try_current()
            .ok()
            .map(|runtime| runtime.spawn(run(service, targets, intervals)).abort_handle());
        Ok(Arc::new(Self {
            settings: settings.clone(),
            transport: Arc::clone(transport),
            servers: texts,
            abort,
        }))
    }
}

impl Drop for HealthTask {
    fn drop(&mut self) {
        if let Some(abort) = &self.abort {
            abort.abort();
        }
    }
}

impl fmt::Debug for HealthTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthTask").field("servers", &self.servers).finish_non_exhaustive()
    }
}

struct Watched {
    text: Arc<str>,
    state: Arc<ServerState>,
    probe: Arc<Probe>,
    /// None while a probe is under way.
    due: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Intervals {
    up: Duration,
    down: Duration,
    timeout: Duration,
}

async fn run(service: Arc<str>, mut targets: Vec<Watched>, intervals: Intervals) {
    let mut running: JoinSet<(usize, Result<(), String>)> = JoinSet::new();
    let start = Instant::now();
    for target in &mut targets {
        target.due = Some(start);
    }
    loop {
        let next = targets.iter().enumerate().filter_map(|(i, t)| Some((t.due?, i))).min();
        let room = running.len() < PROBES_AT_ONCE_MAX;
        let due = next.map_or_else(Instant::now, |(due, _)| due);
        tokio::select! {
            Some(finished) = running.join_next() => {
                let Ok((index, result)) = finished else { continue };
                let target = &mut targets[index];
                note(&service, target, &result);
                let interval = if result.is_ok() { intervals.up } else { intervals.down };
                target.due = Some(Instant::now() + interval);
            }
            () = tokio::time::sleep_until(due), if room && next.is_some() => {
                let Some((_, index)) = next else { continue };
                targets[index].due = None;
                let probe = Arc::clone(&targets[index].probe);
                running.spawn(async move {
                    let result = tokio::time::timeout(intervals.timeout, probe.run()).await;
                    (index, result.unwrap_or_else(|_| Err("no answer in time".to_owned())))
                });
            }
            else => return,
        }
    }
}

fn note(service: &str, target: &Watched, result: &Result<(), String>) {
    let is_news = target.state.probed(result.is_ok());
    let url = &*target.text;
    match result {
        Ok(()) if is_news => tracing::info!(service, url, "server is up again"),
        Ok(()) => {}
        Err(why) if is_news => tracing::warn!(service, url, why, "server is down"),
        Err(why) => tracing::debug!(service, url, why, "server is still down"),
    }
}

fn positive(duration: Duration, default: Duration) -> Duration {
    if duration.is_zero() { default } else { duration }
}

/// Probes of one service under way at once: a service of hundreds of servers is through in one interval even if many do
/// not answer, and no burst of connections leaves the machine.
const PROBES_AT_ONCE_MAX: usize = 16;
/// Traefik's defaults, which also stand in for values that are not positive.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(5);
