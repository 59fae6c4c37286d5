//! Small questions and answers beside the load: what a packet that is in a hurry meets in the queues that the load fills.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::histogram::Histogram;

/// Asks every 10 ms until dropped.
#[derive(Debug)]
pub(crate) struct Pinger {
    task: JoinHandle<()>,
    found: Arc<Mutex<Histogram>>,
}

impl Pinger {
    /// Times a few questions before the load begins, then goes on asking. Fails where nobody answers.
    pub(crate) async fn start<R, W>(mut reader: R, mut writer: W) -> std::io::Result<(Self, Histogram)>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut idle = Histogram::default();
        for number in 0..IDLE_COUNT {
            idle.record(ask(&mut reader, &mut writer, number).await?);
        }
        let found = Arc::new(Mutex::new(Histogram::default()));
        let task = tokio::spawn({
            let found = Arc::clone(&found);
            async move {
                let mut number = IDLE_COUNT;
                while let Ok(latency) = ask(&mut reader, &mut writer, number).await {
                    found.lock().unwrap_or_else(PoisonError::into_inner).record(latency);
                    number += 1;
                    tokio::time::sleep(INTERVAL.saturating_sub(latency)).await;
                }
            }
        });
        Ok((Self { task, found }, idle))
    }

    /// Forgets what it found until now (the warm-up).
    pub(crate) fn reset(&self) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Histogram::default();
    }

    /// What it found so far.
    pub(crate) fn found(&self) -> Histogram {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends back what comes, until the peer ends.
pub(crate) async fn echo<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(mut reader: R, mut writer: W) {
    let mut message = [0; MESSAGE_BYTES];
    while reader.read_exact(&mut message).await.is_ok() {
        if writer.write_all(&message).await.is_err() {
            break;
        }
    }
}

async fn ask<R, W>(reader: &mut R, writer: &mut W, number: u64) -> std::io::Result<Duration>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut message = [0; MESSAGE_BYTES];
    message[..8].copy_from_slice(&number.to_be_bytes());
    let began = Instant::now();
    writer.write_all(&message).await?;
    let mut answer = [0; MESSAGE_BYTES];
    reader.read_exact(&mut answer).await?;
    if answer == message { Ok(began.elapsed()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// Size of ping's packets.
const MESSAGE_BYTES: usize = 64;
/// 100 a second disturb no load, and give p99 in a run of ten seconds.
const INTERVAL: Duration = Duration::from_millis(10);
/// Before the load.
const IDLE_COUNT: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_are_timed_before_and_beside_the_load() {
        let (near, far) = tokio::io::duplex(1024);
        let (far_reader, far_writer) = tokio::io::split(far);
        let echo = tokio::spawn(echo(far_reader, far_writer));
        let (reader, writer) = tokio::io::split(near);
        let (pinger, idle) = Pinger::start(reader, writer).await.unwrap();
        assert_eq!(idle.count(), IDLE_COUNT);
        while pinger.found().count() < 2 {
            tokio::task::yield_now().await;
        }
        drop(pinger);
        echo.await.unwrap();
    }
}
