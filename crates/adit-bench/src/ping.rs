//! Small questions and answers beside the load: what a packet that is in a hurry meets in the queues that the load fills.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::histogram::Histogram;

/// Asks every 10 ms until dropped, whether or not what it asked before has been answered: a silence is as many samples as
/// questions fall into it.
#[derive(Debug)]
pub(crate) struct Pinger {
    task: JoinHandle<()>,
    found: Arc<Mutex<Found>>,
    answers: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Found {
    latency: Histogram,
    /// When those questions were asked that are not answered yet, at most [`UNANSWERED_MAX`].
    asked: VecDeque<Instant>,
}

impl Pinger {
    /// Times a few questions before the load begins, then goes on asking. Fails where nobody answers.
    pub(crate) async fn start<R, W>(mut reader: R, mut writer: W) -> io::Result<(Self, Histogram)>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let idle = tokio::time::timeout(IDLE_MAX, before_the_load(&mut reader, &mut writer));
        let idle = idle.await.map_err(|_| io::ErrorKind::TimedOut)??;
        let (found, answered) = (Arc::new(Mutex::new(Found::default())), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn({
            let (found, answered) = (Arc::clone(&found), Arc::clone(&answered));
            async move {
                tokio::select! {
                    _ = questions(&mut writer, &found) => {}
                    _ = answers(&mut reader, &found, &answered) => {}
                }
                // From now on nobody is answered, which shows as a question that waits.
                let mut found = lock(&found);
                if found.asked.is_empty() {
                    found.asked.push_back(Instant::now());
                }
            }
        });
        Ok((Self { task, found, answers: answered }, idle))
    }

    /// Counts questions that were answered.
    pub(crate) fn answers(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.answers)
    }

    /// Forgets what it found until now (the warm-up).
    pub(crate) fn reset(&self) {
        lock(&self.found).latency = Histogram::default();
    }

    /// What it found so far, with how long each question under way has waited.
    pub(crate) fn found(&self) -> Histogram {
        let found = lock(&self.found);
        let mut latency = found.latency.clone();
        found.asked.iter().for_each(|asked| latency.record(asked.elapsed()));
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

async fn before_the_load<R, W>(reader: &mut R, writer: &mut W) -> io::Result<Histogram>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut idle = Histogram::default();
    for number in 0..IDLE_COUNT {
        let began = Instant::now();
        writer.write_all(&message(number)).await?;
        answer(reader, number).await?;
        idle.record(began.elapsed());
    }
    Ok(idle)
}

async fn questions<W: AsyncWrite + Unpin>(writer: &mut W, found: &Mutex<Found>) -> io::Result<()> {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = IDLE_COUNT;
    loop {
        ticks.tick().await;
        if !lock(found).ask() {
            continue;
        }
        writer.write_all(&message(number)).await?;
        number += 1;
    }
}

async fn answers<R: AsyncRead + Unpin>(
    reader: &mut R,
    found: &Mutex<Found>,
    answered: &AtomicU64,
) -> io::Result<()> {
    for number in IDLE_COUNT.. {
        answer(reader, number).await?;
        lock(found).answered();
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

impl Found {
    /// Notes a question, if there is room for one.
    fn ask(&mut self) -> bool {
        let has_room = self.asked.len() < UNANSWERED_MAX;
        if has_room {
            self.asked.push_back(Instant::now());
        }
        has_room
    }

    /// Answers come in the order of the questions.
    fn answered(&mut self) {
        let asked = self.asked.pop_front();
        asked.into_iter().for_each(|asked| self.latency.record(asked.elapsed()));
    }
}

fn lock(found: &Mutex<Found>) -> MutexGuard<'_, Found> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message(number: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..8].copy_from_slice(&number.to_be_bytes());
    message
}

/// Reads the answer to question `number`.
async fn answer<R: AsyncRead + Unpin>(reader: &mut R, number: u64) -> io::Result<()> {
    let mut answer = [0; MESSAGE_BYTES];
    reader.read_exact(&mut answer).await?;
    if answer == message(number) { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Size of ping's packets.
const MESSAGE_BYTES: usize = 64;
/// 100 a second disturb no load, and give p99 in a run of ten seconds.
const INTERVAL: Duration = Duration::from_millis(10);
/// Before the load.
const IDLE_COUNT: u64 = 20;
/// For all of them: a second each.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Of half a minute: after as long a silence, waiting for more of them says nothing new. 48 KiB.
const UNANSWERED_MAX: usize = 3000;

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

    /// Answers so many questions after those before the load, then none; what it returns keeps the connection open.
    async fn answer_some<S: AsyncRead + AsyncWrite + Unpin>(mut far: S, count: u64) -> S {
        let mut message = [0; MESSAGE_BYTES];
        for _ in 0..IDLE_COUNT + count {
            far.read_exact(&mut message).await.unwrap();
            far.write_all(&message).await.unwrap();
        }
        far
    }

    #[tokio::test]
    async fn a_silence_is_a_sample_for_each_question_that_falls_into_it() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let peer = tokio::spawn(answer_some(far, 5));
        let (reader, writer) = tokio::io::split(near);
        let (pinger, _) = Pinger::start(reader, writer).await.unwrap();
        let _held = peer.await.unwrap();
        // Nobody answers any more, and the questions go on.
        while lock(&pinger.found).asked.len() < 10 {
            tokio::task::yield_now().await;
        }
        let found = pinger.found();
        // The first may have been asked up to 5 ms late without those after it being put off.
        assert!(found.count() >= 15 && found.max() >= Some(8 * INTERVAL), "{found:?}");
        pinger.reset();
        assert!(pinger.found().count() >= 10);
    }

    #[tokio::test]
    async fn a_question_that_nobody_answers_is_in_what_was_found_with_its_time() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let peer = tokio::spawn(answer_some(far, 0));
        let (reader, writer) = tokio::io::split(near);
        let (pinger, _) = Pinger::start(reader, writer).await.unwrap();
        let held = peer.await.unwrap();
        while pinger.found().max() < Some(3 * INTERVAL) {
            tokio::task::yield_now().await;
        }
        // Nor is one that was asked of a connection that broke.
        drop(held);
        let before = pinger.found().max();
        while pinger.found().max() <= before {
            tokio::task::yield_now().await;
        }
    }
}
