//! Small questions and answers beside the load: what a packet that is in a hurry meets in the queues that the load fills.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::histogram::Histogram;

/// Asks every 10 ms until dropped.
#[derive(Debug)]
pub(crate) struct Pinger {
    task: JoinHandle<()>,
    found: Arc<Mutex<Found>>,
}

#[derive(Debug, Default)]
struct Found {
    latency: Histogram,
    /// When the question under way was asked; it stays where nobody answers any more.
    asked: Option<Instant>,
}

impl Found {
    fn answered(&mut self, latency: Duration) {
        self.asked = None;
        self.latency.record_of_many(latency, INTERVAL);
    }
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
        let found = Arc::new(Mutex::new(Found::default()));
        let task = tokio::spawn({
            let found = Arc::clone(&found);
            async move {
                let mut number = IDLE_COUNT;
                loop {
                    lock(&found).asked = Some(Instant::now());
                    let Ok(latency) = ask(&mut reader, &mut writer, number).await else { break };
                    lock(&found).answered(latency);
                    number += 1;
                    tokio::time::sleep(INTERVAL.saturating_sub(latency)).await;
                }
            }
        });
        Ok((Self { task, found }, idle))
    }

    /// Forgets what it found until now (the warm-up).
    pub(crate) fn reset(&self) {
        lock(&self.found).latency = Histogram::default();
    }

    /// What it found so far, with how long the question under way has waited.
    pub(crate) fn found(&self) -> Histogram {
        let found = lock(&self.found);
        let mut latency = found.latency.clone();
        if let Some(asked) = found.asked {
            latency.record_of_many(asked.elapsed(), INTERVAL);
        }
        latency
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

fn lock(found: &Mutex<Found>) -> MutexGuard<'_, Found> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[tokio::test]
    async fn a_question_that_nobody_answers_is_in_what_was_found() {
        let (near, far) = tokio::io::duplex(1024);
        let (mut far_reader, mut far_writer) = tokio::io::split(far);
        // Answers the questions before the load, and then no more.
        let peer = tokio::spawn(async move {
            let mut message = [0; MESSAGE_BYTES];
            for _ in 0..IDLE_COUNT {
                far_reader.read_exact(&mut message).await.unwrap();
                far_writer.write_all(&message).await.unwrap();
            }
            far_reader.read_exact(&mut message).await.unwrap();
            (far_reader, far_writer)
        });
        let (reader, writer) = tokio::io::split(near);
        let (pinger, _) = Pinger::start(reader, writer).await.unwrap();
        let _held = peer.await.unwrap();
        while pinger.found().max() < Some(3 * INTERVAL) {
            tokio::task::yield_now().await;
        }
        assert!(pinger.found().count() >= 3);
    }
}
