//! Tells loss of trains from loss of anything: sends single datagrams for a while and compares.

use std::time::{Duration, Instant};

/// The trial of one peer's path.
#[derive(Debug)]
pub(crate) struct Trial {
    stage: Stage,
    since: Instant,
    sent: u64,
    repeated: u64,
    repeats: u32,
    /// Rounds in which single datagrams did much better, and when the last of them ended.
    guilty: u32,
    guilty_since: Instant,
    /// No new trial before this; longer after each acquittal.
    quiet_until: Instant,
    quiet: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Trains go out, as always.
    Trains,
    /// Single datagrams go out, after trains of which this share was sent again.
    Singles { share: f64 },
}

/// What to do about a path after an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on as now.
    Undecided,
    /// Send single datagrams until told otherwise.
    TrySingles,
    /// Send trains again: they are as good as single datagrams, or have to prove bad once more.
    BackToTrains,
    /// Twice in a row trains got lost where single datagrams did not.
    Guilty,
}

impl Trial {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            stage: Stage::Trains,
            since: now,
            sent: 0,
            repeated: 0,
            repeats: 0,
            guilty: 0,
            guilty_since: now,
            quiet_until: now,
            quiet: QUIET_MIN,
        }
    }

    /// TCP data of `sent` bytes goes to the peer, `repeated` of them once more.
    pub(crate) fn observe(&mut self, sent: u32, repeated: u32, now: Instant) -> Verdict {
        if now < self.quiet_until {
            return Verdict::Undecided;
        }
        self.sent += u64::from(sent);
        self.repeated += u64::from(repeated);
        self.repeats += u32::from(repeated > 0);
        match self.stage {
            Stage::Trains => self.judge_trains(now),
            Stage::Singles { share } => self.judge_singles(share, now),
        }
    }

    fn judge_trains(&mut self, now: Instant) -> Verdict {
        let share = self.share();
        if self.repeats >= REPEATS_MIN && self.sent >= SENT_MIN && share > SUSPICIOUS {
            self.stage = Stage::Singles { share };
            self.restart(now);
            return Verdict::TrySingles;
        }
        if self.sent >= WINDOW || now.duration_since(self.since) > WINDOW_TIME {
            self.restart(now);
        }
        Verdict::Undecided
    }

    fn judge_singles(&mut self, before: f64, now: Instant) -> Verdict {
        let lasted = now.duration_since(self.since);
        let enough = if lasted > WINDOW_TIME { SENT_MIN } else { SINGLES_WINDOW };
        if lasted < SINGLES_TIME || self.sent < enough {
            return Verdict::Undecided;
        }
        let better = self.share() < before / BETTER;
        tracing::debug!(
            trains = before,
            singles = self.share(),
            bytes = self.sent,
            "share of data sent again"
        );
        self.stage = Stage::Trains;
        self.restart(now);
        if !better {
            self.guilty = 0;
            self.quiet_until = now + self.quiet;
            self.quiet = (self.quiet * 2).min(QUIET_MAX);
            return Verdict::BackToTrains;
        }
        if now.duration_since(self.guilty_since) > MEMORY {
            self.guilty = 0;
        }
        self.guilty += 1;
        self.guilty_since = now;
        if self.guilty < ROUNDS {
            return Verdict::BackToTrains;
        }
        self.guilty = 0;
        Verdict::Guilty
    }

    fn restart(&mut self, now: Instant) {
        (self.sent, self.repeated, self.repeats, self.since) = (0, 0, 0, now);
    }

    #[expect(clippy::cast_precision_loss, reason = "windows are far shorter than 2^53 bytes")]
    fn share(&self) -> f64 {
        self.repeated as f64 / self.sent.max(1) as f64
    }
}

/// Share of repetitions above which trains are suspected: congestion alone stays below.
const SUSPICIOUS: f64 = 0.05;
/// How much rarer repetitions have to be among single datagrams.
const BETTER: f64 = 4.0;
/// Rounds that have to agree within [`MEMORY`], because a burst of congestion may end just when a trial begins.
const ROUNDS: u32 = 2;
const MEMORY: Duration = Duration::from_secs(120);
/// Repetitions and bytes that make a share mean something. A path that swallows all trains moves one
/// segment per retransmission timeout, so this may not be much.
const REPEATS_MIN: u32 = 3;
const SENT_MIN: u64 = 8 << 10;
/// Length of an unsuspicious window.
const WINDOW: u64 = 1 << 20;
const WINDOW_TIME: Duration = Duration::from_secs(5);
/// Length of a window of single datagrams: long enough that what gets lost in it is also sent again in it.
const SINGLES_WINDOW: u64 = 32 << 10;
const SINGLES_TIME: Duration = Duration::from_secs(1);
/// Pause after an acquittal, doubled each time: a path that just loses packets costs little.
const QUIET_MIN: Duration = Duration::from_secs(10);
const QUIET_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends 1,400-byte segments, every n-th of them twice, until a verdict falls or 2 seconds are over.
    fn run(trial: &mut Trial, every: u32, now: &mut Instant) -> Verdict {
        for count in 1..2000 {
            *now += Duration::from_millis(1);
            let repeated = if every > 0 && count % every == 0 { 1400 } else { 0 };
            match trial.observe(1400, repeated, *now) {
                Verdict::Undecided => {}
                verdict => return verdict,
            }
        }
        Verdict::Undecided
    }

    #[test]
    fn trains_that_get_lost_twice_where_singles_do_not_are_given_up() {
        let mut now = Instant::now();
        let mut trial = Trial::new(now);
        assert_eq!(run(&mut trial, 3, &mut now), Verdict::TrySingles);
        assert_eq!(run(&mut trial, 0, &mut now), Verdict::BackToTrains);
        assert_eq!(run(&mut trial, 3, &mut now), Verdict::TrySingles);
        assert_eq!(run(&mut trial, 100, &mut now), Verdict::Guilty);
    }

    #[test]
    fn a_path_that_loses_anything_is_acquitted_and_left_alone() {
        let mut now = Instant::now();
        let mut trial = Trial::new(now);
        assert_eq!(run(&mut trial, 5, &mut now), Verdict::TrySingles);
        assert_eq!(run(&mut trial, 5, &mut now), Verdict::BackToTrains);
        assert_eq!(run(&mut trial, 5, &mut now), Verdict::Undecided);
        now += QUIET_MIN;
        assert_eq!(run(&mut trial, 5, &mut now), Verdict::TrySingles);
    }

    #[test]
    fn a_good_path_is_never_tried() {
        let mut now = Instant::now();
        let mut trial = Trial::new(now);
        for _ in 0..5 {
            assert_eq!(run(&mut trial, 50, &mut now), Verdict::Undecided);
        }
    }
}
