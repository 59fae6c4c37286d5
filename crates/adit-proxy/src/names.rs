//! Names of fields, which come in the same order again and again.

use std::cell::RefCell;

use http::header::HeaderName;
use smallvec::SmallVec;

/// The names that stood at each place of the heads before.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<Known>);

#[derive(Debug)]
struct Known {
    /// In the letter case in which it came.
    text: SmallVec<[u8; TEXT_BYTES_MAX]>,
    name: HeaderName,
}

impl Names {
    /// Looks names up in those that this thread has seen.
    pub(crate) fn with<R>(look: impl FnOnce(&mut Self) -> R) -> R {
        NAMES.with_borrow_mut(look)
    }

    /// The name at a place of a head; none if it is none.
    pub(crate) fn name(&mut self, place: usize, text: &[u8]) -> Option<HeaderName> {
        if let Some(known) = self.0.get(place)
            && known.text[..] == *text
        {
            return Some(known.name.clone());
        }
        let name = HeaderName::from_bytes(text).ok()?;
        if text.len() <= TEXT_BYTES_MAX && place < PLACES_MAX {
            let known = Known { text: text.into(), name: name.clone() };
            // None is kept behind one that was too long.
            if place == self.0.len() {
                self.0.push(known);
            } else if let Some(other) = self.0.get_mut(place) {
                *other = known;
            }
        }
        Some(name)
    }
}

thread_local! {
    static NAMES: RefCell<Names> = RefCell::default();
}

/// Most names are shorter.
const TEXT_BYTES_MAX: usize = 32;
/// Most heads have fewer fields: 2 KiB a thread, and 32 bytes for each name that is not one of the usual.
const PLACES_MAX: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_one_that_stands_there_whatever_stood_there_before() {
        let mut names = Names::default();
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        for (place, text) in [
            (0, "Server"),
            (0, "Server"),
            (0, "server"),
            (0, "X-Own"),
            (0, "X-Own"),
            (1, &long),
            (2, "Date"),
            (1, "Etag"),
            (2, "Date"),
            (PLACES_MAX, "Vary"),
        ] {
            assert_eq!(names.name(place, text.as_bytes()), Some(text.parse().unwrap()), "{place} {text}");
        }
        assert_eq!(names.name(0, b"no name"), None);
        let kept: Vec<_> = names.0.iter().map(|known| known.name.as_str()).collect();
        assert_eq!(kept, ["x-own", "etag", "date"]);
    }
}
