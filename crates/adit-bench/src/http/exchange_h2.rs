//! Requests over HTTP/2: workers share connections.

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Mutex;

use super::load::{Failure, Load, SILENCE_MAX, Worker, connect};
use super::origin::PATTERN_BYTES;

/// A connection that is made again when it breaks.
#[derive(Debug, Default)]
pub(super) struct Connection {
    handle: Mutex<Option<SendRequest<Bytes>>>,
}

/// Makes requests on one connection; `Ok` when there are none left, an error when one failed.
pub(super) async fn work(worker: &mut Worker, connection: &Connection) -> Result<(), Failure> {
    worker.waits();
    let handle = connection.handle(&worker.load).await?;
    worker.connected();
    while worker.begin().await {
        let began = worker.waits();
        match exchange(worker, handle.clone()).await {
            Ok(()) => worker.succeeded(began),
            Err(failure @ Failure::Status(_)) => worker.failed(failure),
            Err(failure) => {
                connection.forget().await;
                return Err(failure);
            }
        }
    }
    Ok(())
}

impl Connection {
    async fn handle(&self, load: &Load) -> Result<SendRequest<Bytes>, Failure> {
        let mut handle = self.handle.lock().await;
        if let Some(handle) = handle.as_ref() {
            return Ok(handle.clone());
        }
        let stream = connect(load).await?;
        let made = match &load.tls {
            None => handshake(stream, load).await?,
            Some(tls) => {
                let stream = tokio::time::timeout(SILENCE_MAX, tls.connect(stream)).await;
                let stream = stream.map_err(|_| Failure::Silent)?.map_err(|_| Failure::Tls)?;
                if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    return Err(Failure::Tls);
                }
                handshake(stream, load).await?
            }
        };
        Ok(handle.insert(made).clone())
    }

    async fn forget(&self) {
        *self.handle.lock().await = None;
    }
}

async fn handshake<S>(stream: S, load: &Load) -> Result<SendRequest<Bytes>, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let window = load.window.unwrap_or(STREAM_WINDOW_BYTES);
    let handshake = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(window.max(CONNECTION_WINDOW_BYTES))
        .max_send_buffer_size(PATTERN_BYTES)
        .enable_push(false)
        .handshake(stream);
    let made = tokio::time::timeout(SILENCE_MAX, handshake).await.map_err(|_| Failure::Silent)?;
    let (handle, connection) = made.map_err(|_| Failure::Malformed)?;
    // Ends with the last handle.
    tokio::spawn(async move { drop(connection.await) });
    Ok(handle)
}

async fn exchange(worker: &mut Worker, handle: SendRequest<Bytes>) -> Result<(), Failure> {
    let mut handle = handle.ready().await.map_err(|_| Failure::Closed)?;
    let body = worker.ask().body;
    let request = worker.ask().request.clone();
    let (answer, stream) = handle.send_request(request, body == 0).map_err(|_| Failure::Closed)?;
    if body > 0 {
        upload(worker, stream, body).await?;
    }
    let answer = tokio::time::timeout(SILENCE_MAX, answer).await.map_err(|_| Failure::Silent)?;
    let answer = answer.map_err(|_| Failure::Closed)?;
    let status = answer.status().as_u16();
    let counts = !worker.flow.is_up && status < 400;
    let mut body = answer.into_body();
    loop {
        worker.pause().await;
        let chunk = tokio::time::timeout(SILENCE_MAX, body.data()).await.map_err(|_| Failure::Silent)?;
        let Some(chunk) = chunk else { break };
        let length = chunk.map_err(|_| Failure::Closed)?.len();
        if counts {
            worker.carried(length);
        }
        body.flow_control().release_capacity(length).map_err(|_| Failure::Malformed)?;
    }
    if status >= 400 { Err(Failure::Status(status)) } else { Ok(()) }
}

async fn upload(worker: &mut Worker, mut stream: h2::SendStream<Bytes>, body: u64) -> Result<(), Failure> {
    let pattern = worker.load.pattern.clone();
    let mut left = body;
    while left > 0 {
        worker.pause().await;
        let room = tokio::time::timeout(SILENCE_MAX, super::capacity(&mut stream, left)).await;
        let room = room.map_err(|_| Failure::Silent)?.map_err(|_| Failure::Early)?;
        left -= room as u64;
        stream.send_data(pattern.slice(..room), left == 0).map_err(|_| Failure::Early)?;
        worker.carried(room);
    }
    Ok(())
}

const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
