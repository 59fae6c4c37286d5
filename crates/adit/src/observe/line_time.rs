//! Times as log lines have them, put together once a second.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

/// Remembers the second that it wrote last.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    common: Remembered,
    rfc3339: Remembered,
}

/// A text and the second since 1970 that it stands for.
#[derive(Debug, Default)]
struct Remembered {
    second: Option<u64>,
    text: String,
}

impl Clock {
    /// `02/Jan/2026:03:04:05 +0000`.
    pub(crate) fn common(&mut self, line: &mut Vec<u8>, time: SystemTime) {
        let second = since_1970(time).as_secs();
        let text = self.common.at(second, || {
            let [year, month, day, hour, minute, second] = civil(second);
            let month = usize::try_from(month - 1).ok().and_then(|index| MONTHS.get(index)).unwrap_or(&"-");
            format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
        });
        line.extend_from_slice(text.as_bytes());
    }

    /// `2026-01-02T03:04:05Z`, with nanoseconds if wanted.
    pub(crate) fn rfc3339(&mut self, line: &mut Vec<u8>, time: SystemTime, with_nanos: bool) {
        let since = since_1970(time);
        let text = self.rfc3339.at(since.as_secs(), || {
            let [year, month, day, hour, minute, second] = civil(since.as_secs());
            format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
        });
        line.extend_from_slice(text.as_bytes());
        if with_nanos {
            // A vector takes every write.
            let _ = write!(line, ".{:09}", since.subsec_nanos());
        }
        line.push(b'Z');
    }
}

impl Remembered {
    fn at(&mut self, second: u64, make: impl FnOnce() -> String) -> &str {
        if self.second != Some(second) {
            *self = Self { second: Some(second), text: make() };
        }
        &self.text
    }
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Year, month, day, hour, minute, second in UTC of a second since 1970.
fn civil(second: u64) -> [u64; 6] {
    let (mut days, of_day) = (second / 86_400, second % 86_400);
    let mut year = 1970;
    let is_leap =
        |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    [year, month, days + 1, of_day / 3600, of_day / 60 % 60, of_day % 60]
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
