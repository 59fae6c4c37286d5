//! Statuses as operators list them: `404`, `500-599`.

use http::StatusCode;

/// Ranges of statuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StatusRanges(Vec<(u16, u16)>);

impl StatusRanges {
    pub(super) fn parse<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Self, String> {
        let range = |text: &String| {
            let (low, high) = text.split_once('-').unwrap_or((text, text));
            match (low.trim().parse(), high.trim().parse()) {
                (Ok(low), Ok(high)) => Ok((low, high)),
                _ => Err(format!("{text:?} is not a status or a range of them")),
            }
        };
        texts.into_iter().map(range).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn contains(&self, status: StatusCode) -> bool {
        self.0.iter().any(|(low, high)| (*low..=*high).contains(&status.as_u16()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_ranges_are_read_and_anything_else_is_a_fault() {
        let ranges = StatusRanges::parse(&["404".to_owned(), "500-502".to_owned()]).unwrap();
        assert!(ranges.contains(StatusCode::NOT_FOUND) && ranges.contains(StatusCode::BAD_GATEWAY));
        assert!(!ranges.contains(StatusCode::SERVICE_UNAVAILABLE));
        assert!(StatusRanges::parse(&["5xx".to_owned()]).is_err());
    }
}
