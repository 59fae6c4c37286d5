//! Content whose sender waits to be asked for it (RFC 9110 §10.1.1), for protocols whose streams are not the connection's.

use std::task::{Context, Poll};

use http::{HeaderMap, Response, StatusCode};
use tokio::sync::oneshot;

use crate::body::{Batch, Body, BodyError, BodySource};

/// Makes `body` tell, by the channel, when somebody wants it for the first time.
pub(crate) fn announced(body: Body) -> (Body, oneshot::Receiver<()>) {
    let (sender, wanted) = oneshot::channel();
    let length = body.length();
    (Body::stream(Announced { body, sender: Some(sender) }, length), wanted)
}

/// The head that asks for it.
pub(crate) fn go_on() -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::CONTINUE;
    head
}

struct Announced {
    body: Body,
    sender: Option<oneshot::Sender<()>>,
}

impl BodySource for Announced {
    fn poll_chunks(&mut self, cx: &mut Context<'_>, out: &mut Batch) -> Poll<Result<bool, BodyError>> {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(());
        }
        self.body.poll_chunks(cx, out)
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        self.body.poll_background(cx);
    }
}
