//! Load over HTTP, and the origin that answers it.

mod exchange_h1;
mod exchange_h2;
mod framing;
mod load;
pub(crate) mod origin;
mod peer;
mod run;
mod serve_h1;
mod serve_h2;
pub(crate) mod tls;

use std::future::poll_fn;

use bytes::Bytes;

pub(crate) use run::run;

/// Room to send on a stream of HTTP/2: at least a byte, at most `wanted` and a batch.
async fn capacity(stream: &mut h2::SendStream<Bytes>, wanted: u64) -> Result<usize, h2::Error> {
    let batch = origin::PATTERN_BYTES.min(usize::try_from(wanted).unwrap_or(usize::MAX));
    stream.reserve_capacity(batch);
    loop {
        if stream.capacity() > 0 {
            return Ok(stream.capacity().min(batch));
        }
        match poll_fn(|task| stream.poll_capacity(task)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(h2::Error::from(h2::Reason::CANCEL)),
        }
    }
}
