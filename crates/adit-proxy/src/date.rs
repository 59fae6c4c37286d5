//! The `Date` field, formatted once a second per thread.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

struct Cached {
    second: u64,
    text: String,
}

thread_local! {
    static NOW: RefCell<Cached> = const { RefCell::new(Cached { second: 0, text: String::new() }) };
}

/// Hands the current date in IMF-fixdate form (RFC 9110 §5.6.7) to `write`.
pub fn with_now<R>(write: impl FnOnce(&[u8]) -> R) -> R {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    NOW.with_borrow_mut(|cached| {
        if cached.second != second {
            cached.second = second;
            cached.text = httpdate::fmt_http_date(now);
        }
        write(cached.text.as_bytes())
    })
}

/// A time in IMF-fixdate form.
pub fn format(time: SystemTime) -> String {
    httpdate::fmt_http_date(time)
}
