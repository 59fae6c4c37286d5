//! Whose turn it is: weighted round robin by earliest deadline.
//!
//! Each member is due again one share after it was chosen, a share being the inverse of its weight. The member that is
//! due first is next. That spreads a heavy member's turns evenly in place of giving them in one run.

/// Turns of a group of members, in the group's order.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule {
    turns: Vec<Turn>,
    /// When the member chosen last was due: newcomers are due one share after it.
    now: f64,
    /// Choices so far.
    choices: u64,
}

#[derive(Clone, Debug)]
struct Turn {
    name: Box<str>,
    share: f64,
    due: f64,
    /// Number of the choice it had its last turn at; 0 if it had none yet.
    last: u64,
}

impl Schedule {
    /// A schedule for members by name and weight (above 0); members that were in `previous` keep their place in line.
    pub(super) fn new<'a>(
        members: impl IntoIterator<Item = (&'a str, u32)>,
        previous: Option<&Self>,
    ) -> Self {
        let now = previous.map_or(0.0, |p| p.now);
        let turns = members
            .into_iter()
            .map(|(name, weight)| {
                debug_assert!(weight > 0, "members without a share are left out before");
                let share = 1.0 / f64::from(weight);
                let before = previous.and_then(|p| p.turns.iter().find(|t| &*t.name == name));
                // A smaller weight than before must not leave the member waiting for a share it no longer has.
                let due = before.map_or(now + share, |turn| turn.due.min(now + share));
                Turn { name: name.into(), share, due, last: before.map_or(0, |turn| turn.last) }
            })
            .collect();
        Self { turns, now, choices: previous.map_or(0, |p| p.choices) }
    }

    /// Chooses among the members that `eligible` allows.
    ///
    /// Members that are passed over because they are not eligible lose their turn: a server that comes back gets its
    /// share, not what it missed.
    pub(super) fn next(&mut self, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let mut chosen: Option<(usize, f64, u64)> = None;
        for (index, turn) in self.turns.iter().enumerate() {
            // Of those that are due together, the one that has waited longest.
            let is_before = |(_, due, last)| turn.due < due || (turn.due <= due && turn.last < last);
            if chosen.is_none_or(is_before) && eligible(index) {
                chosen = Some((index, turn.due, turn.last));
            }
        }
        let (index, due, _) = chosen?;
        self.now = due;
        self.choices += 1;
        self.turns[index].last = self.choices;
        for turn in &mut self.turns {
            if turn.due < due {
                turn.due = due + turn.share;
            }
        }
        self.turns[index].due = due + self.turns[index].share;
        if self.now > REBASE_AT {
            self.rebase();
        }
        Some(index)
    }

    fn rebase(&mut self) {
        for turn in &mut self.turns {
            turn.due -= self.now;
        }
        self.now = 0.0;
    }
}

/// Far below where a float's steps become as large as the share of the heaviest member.
const REBASE_AT: f64 = 1_000_000.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(schedule: &mut Schedule, rounds: usize, up: &[bool]) -> Vec<usize> {
        let mut counts = vec![0; up.len()];
        for _ in 0..rounds {
            if let Some(index) = schedule.next(|i| up[i]) {
                counts[index] += 1;
            }
        }
        counts
    }

    #[test]
    fn of_members_due_together_the_one_that_waited_longest_is_next() {
        let order = |weights: &[(&str, u32)], rounds: usize| -> Vec<usize> {
            let mut schedule = Schedule::new(weights.iter().copied(), None);
            (0..rounds).filter_map(|_| schedule.next(|_| true)).collect()
        };
        assert_eq!(order(&[("a", 3), ("b", 1)], 4), [0, 0, 1, 0]);
        assert_eq!(order(&[("a", 2), ("b", 1)], 6), [0, 1, 0, 0, 1, 0]);
        assert_eq!(order(&[("a", 1), ("b", 1), ("c", 1)], 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn three_to_one_over_eight_requests_is_six_and_two() {
        let mut schedule = Schedule::new([("a", 3), ("b", 1)], None);
        assert_eq!(count(&mut schedule, 8, &[true, true]), [6, 2]);
    }

    #[test]
    fn turns_of_a_heavy_member_are_spread() {
        let mut schedule = Schedule::new([("a", 2), ("b", 1), ("c", 1)], None);
        let order: Vec<_> = (0..8).filter_map(|_| schedule.next(|_| true)).collect();
        assert!(order.windows(3).all(|w| w != [0, 0, 0]), "{order:?}");
    }

    #[test]
    fn a_member_that_comes_back_gets_no_burst() {
        let mut schedule = Schedule::new([("a", 1), ("b", 1)], None);
        assert_eq!(count(&mut schedule, 100, &[true, false]), [100, 0]);
        assert_eq!(count(&mut schedule, 10, &[true, true]), [5, 5]);
    }

    #[test]
    fn nobody_eligible_is_nobody_chosen() {
        let mut schedule = Schedule::new([("a", 1)], None);
        assert_eq!(schedule.next(|_| false), None);
        assert_eq!(Schedule::new([], None).next(|_| true), None);
    }

    #[test]
    fn a_reload_keeps_the_place_in_line() {
        let mut schedule = Schedule::new([("a", 1), ("b", 1)], None);
        assert_eq!(schedule.next(|_| true), Some(0));
        let mut reloaded = Schedule::new([("a", 1), ("b", 1), ("c", 1)], Some(&schedule));
        assert_eq!(reloaded.next(|_| true), Some(1));
    }

    proptest! {
        #[test]
        fn shares_follow_weights(weights in proptest::collection::vec(1u32..20, 1..8)) {
            let names: Vec<String> = (0..weights.len()).map(|i| i.to_string()).collect();
            let mut schedule =
                Schedule::new(names.iter().map(String::as_str).zip(weights.iter().copied()), None);
            let total: u32 = weights.iter().sum();
            let up = vec![true; weights.len()];
            let counts = count(&mut schedule, total as usize * 3, &up);
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert!(count.abs_diff(*weight as usize * 3) <= 1, "{counts:?} for {weights:?}");
            }
        }
    }
}
