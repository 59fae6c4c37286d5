//! Copies of requests: one service answers, others see the same and are not heard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use adit_config::dynamic::Mirroring as Settings;
use tokio::sync::Semaphore;

use super::failover::duplicate;
use super::node::Node;
use super::replay::{Copies, Overflow, Replay};
use crate::body::{Batch, Body};
use crate::message::{Request, Response};
use crate::middleware::{Ctx, LogFields, Target as _};

/// A service with mirrors.
#[derive(Debug)]
pub(super) struct Mirroring {
    service: Arc<Node>,
    mirrors: Vec<Mirror>,
    turns: Mutex<Turns>,
    mirror_body: bool,
    body_bytes_max: Option<u64>,
    health_check: bool,
}

#[derive(Debug)]
struct Mirror {
    node: Arc<Node>,
    percent: u64,
}

/// Requests so far, and copies by mirror.
#[derive(Debug, Default)]
struct Turns {
    requests: u64,
    copies: Vec<u64>,
}

impl Mirroring {
    /// Takes over settings; `mirrors` are the nodes of `settings.mirrors`, in order.
    ///
    /// # Errors
    /// A share that is none.
    pub(super) fn new(
        settings: &Settings,
        service: Arc<Node>,
        mirrors: Vec<Arc<Node>>,
    ) -> Result<Self, String> {
        let mirrors: Vec<Mirror> = settings
            .mirrors
            .iter()
            .zip(mirrors)
            .map(|(mirror, node)| match u64::try_from(mirror.percent) {
                Ok(percent @ 0..=100) => Ok(Mirror { node, percent }),
                _ => Err(format!("mirror {:?}: percent must be between 0 and 100", mirror.name)),
            })
            .collect::<Result<_, _>>()?;
        let turns = Turns { requests: 0, copies: vec![0; mirrors.len()] };
        Ok(Self {
            service,
            mirrors,
            turns: Mutex::new(turns),
            mirror_body: settings.mirror_body,
            body_bytes_max: settings.body_bytes_max,
            health_check: settings.health_check,
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.service.is_up()
    }

    pub(super) fn reports_health(&self) -> bool {
        self.health_check && self.service.reports_health()
    }

    pub(super) async fn call(&self, request: Request, ctx: &mut Ctx) -> Response {
        let due = self.due();
        // An upgraded connection cannot be copied: there is nobody to answer the other one.
        if due.is_empty() || request.upgrade.is_some() {
            return self.service.call(request, ctx).await;
        }
        let (mut request, copy) = duplicate(request);
        let replay = self.mirror_body.then(|| {
            let body = std::mem::replace(&mut request.body, Body::empty());
            let replay = Replay::new(body, self.body_bytes_max, Overflow::Forget);
            request.body = replay.attempt().unwrap_or_else(Body::empty);
            replay
        });
        let mut copy_ctx = ctx.clone();
        copy_ctx.log = LogFields::default();
        let response = self.service.call(request, ctx).await;
        spawn(copy, copy_ctx, replay, due);
        response
    }

    /// The mirrors that get a copy of this request: each as often as its share of all requests so far says.
    fn due(&self) -> Vec<Arc<Node>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.requests += 1;
        let requests = turns.requests;
        let mut due = Vec::new();
        for (mirror, copies) in self.mirrors.iter().zip(&mut turns.copies) {
            if *copies * 100 < requests * mirror.percent {
                *copies += 1;
                due.push(Arc::clone(&mirror.node));
            }
        }
        due
    }
}

/// Copies that were not sent or not answered, by reason, since the process started; for the metrics.
pub fn dropped_copies() -> [(&'static str, u64); 3] {
    [
        ("mirrors_busy", DROPPED_BUSY.load(Ordering::Relaxed)),
        ("mirror_body", DROPPED_BODY.load(Ordering::Relaxed)),
        ("mirror_late", DROPPED_LATE.load(Ordering::Relaxed)),
    ]
}

/// Sends the copies once the content is through; nothing of it is the visitor's business.
fn spawn(head: Request, ctx: Ctx, replay: Option<Replay>, mirrors: Vec<Arc<Node>>) {
    let Ok(permit) = Arc::clone(&RUNNING).try_acquire_owned() else {
        DROPPED_BUSY.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(reason = "mirrors_busy", "copy dropped: too many under way");
        return;
    };
    tokio::spawn(async move {
        let copies = async {
            let content = match replay {
                None => None,
                Some(replay) => match replay.complete().await {
                    Some(copies) => Some(copies),
                    None => {
                        tracing::debug!(
                            reason = "mirror_body",
                            "copy dropped: content too large or not whole"
                        );
                        return;
                    }
                },
            };
            send(head, ctx, content, &mirrors).await;
        };
        if tokio::time::timeout(COPY_TIME_MAX, copies).await.is_err() {
            DROPPED_LATE.fetch_add(1, Ordering::Relaxed);
        }
        drop(permit);
    });
}

async fn send(mut head: Request, ctx: Ctx, content: Option<Copies>, mirrors: &[Arc<Node>]) {
    for mirror in mirrors {
        let (copy, next) = duplicate(head);
        head = next;
        let body = content.as_ref().map_or_else(Body::empty, Copies::body);
        let mut ctx = ctx.clone();
        let response = mirror.call(Request { body, ..copy }, &mut ctx).await;
        discard(response.body).await;
    }
}

/// Reads an answer to its end, so that its connection can be used again.
async fn discard(mut body: Body) {
    let mut batch = Batch::new();
    while let Ok(true) = std::future::poll_fn(|cx| body.poll_chunks(cx, &mut batch)).await {
        batch.clear();
    }
}

/// Copies under way at once in the whole process: with a mirror that hangs they would pile up, each with a task and its
/// content (which `replay.rs` limits for all together).
static RUNNING: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(COPIES_MAX)));
const COPIES_MAX: usize = 1024;
/// From the main answer to the end of the last copy's answer.
const COPY_TIME_MAX: Duration = Duration::from_secs(300);

static DROPPED_BUSY: AtomicU64 = AtomicU64::new(0);
static DROPPED_BODY: AtomicU64 = AtomicU64::new(0);
static DROPPED_LATE: AtomicU64 = AtomicU64::new(0);
