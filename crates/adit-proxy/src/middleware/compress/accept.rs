//! Which encoding a visitor gets: `Accept-Encoding` (RFC 9110 §12.5.3) against the operator's list, with Traefik's
//! reading of it.

use std::cmp::Ordering;

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

/// A content coding that we can produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Brotli,
    Zstd,
}

impl Coding {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "gzip" => Some(Self::Gzip),
            "br" => Some(Self::Brotli),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// The operator's list, most wanted first, and what is used where the visitor leaves it open.
#[derive(Clone, Debug)]
pub(super) struct Preference {
    pub(super) codings: Vec<Coding>,
    pub(super) default: Option<Coding>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The answer does not depend on the field.
    Untouched,
    /// This one was chosen, but its encoder wants to be asked for by name: the answer stays plain.
    PlainFor(Coding),
    Encode(Coding),
}

impl Preference {
    pub(super) fn choose(&self, headers: &HeaderMap) -> Choice {
        if !headers.contains_key(ACCEPT_ENCODING) {
            return self.default.map_or(Choice::Untouched, |coding| by_name(coding, false));
        }
        let mut best: Option<(Wanted, f64)> = None;
        let mut names_gzip = false;
        for (wanted, weight) in headers.get_all(ACCEPT_ENCODING).iter().flat_map(|line| self.items(line)) {
            names_gzip |= wanted == Wanted::Coding(Coding::Gzip);
            let is_better = best.is_none_or(|(other, other_weight)| {
                let order = weight.partial_cmp(&other_weight).unwrap_or(Ordering::Equal);
                order.then_with(|| self.rank(other).cmp(&self.rank(wanted))) == Ordering::Greater
            });
            if is_better {
                best = Some((wanted, weight));
            }
        }
        let chosen = match best {
            None | Some((Wanted::Identity, _)) => None,
            Some((Wanted::Coding(coding), _)) => Some(coding),
            Some((Wanted::Any, _)) => self.default.or_else(|| self.codings.first().copied()),
        };
        chosen.map_or(Choice::Untouched, |coding| by_name(coding, names_gzip))
    }

    /// The items of one line that we know and that are not refused.
    fn items<'a>(&'a self, line: &'a http::HeaderValue) -> impl Iterator<Item = (Wanted, f64)> + 'a {
        let line = line.to_str().unwrap_or_default();
        line.split(',').filter_map(|item| {
            let item: String = item.chars().filter(|c| *c != ' ').collect();
            let (name, parameter) = item.split_once(';').unwrap_or((&item, ""));
            let wanted = match name {
                "*" => Wanted::Any,
                "identity" => Wanted::Identity,
                name => Wanted::Coding(Coding::parse(name).filter(|coding| self.codings.contains(coding))?),
            };
            let weight = match parameter.strip_prefix("q=") {
                Some(weight) => weight.parse().unwrap_or(0.0),
                None => 1.0,
            };
            (weight != 0.0).then_some((wanted, weight))
        })
    }

    /// At one weight: anything first, then the operator's order, plain last.
    fn rank(&self, wanted: Wanted) -> usize {
        match wanted {
            Wanted::Any => 0,
            Wanted::Coding(coding) => {
                1 + self.codings.iter().position(|listed| *listed == coding).unwrap_or(usize::MAX - 1)
            }
            Wanted::Identity => usize::MAX,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Any,
    Identity,
    Coding(Coding),
}

fn by_name(coding: Coding, names_gzip: bool) -> Choice {
    match coding {
        Coding::Gzip if !names_gzip => Choice::PlainFor(coding),
        coding => Choice::Encode(coding),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn choose(codings: &[Coding], accept: Option<&str>) -> Choice {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_str(accept).unwrap());
        }
        Preference { codings: codings.to_vec(), default: None }.choose(&headers)
    }

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    #[test]
    fn weights_decide_and_the_operators_order_breaks_ties() {
        assert_eq!(choose(&ALL, Some("gzip, br, zstd")), Choice::Encode(Coding::Gzip));
        assert_eq!(choose(&ALL, Some("gzip;q=0.5, br;q=0.8")), Choice::Encode(Coding::Brotli));
        assert_eq!(
            choose(&[Coding::Zstd, Coding::Gzip], Some("gzip, br, zstd")),
            Choice::Encode(Coding::Zstd)
        );
        assert_eq!(choose(&ALL, Some("identity, zstd;q=0.9")), Choice::Untouched);
        assert_eq!(choose(&ALL, Some("identity, zstd")), Choice::Encode(Coding::Zstd));
    }

    #[test]
    fn refused_unknown_and_absent_are_plain() {
        for accept in [Some("gzip;q=0"), Some(""), Some("deflate"), None] {
            assert_eq!(choose(&ALL, accept), Choice::Untouched, "{accept:?}");
        }
    }

    #[test]
    fn anything_takes_the_first_but_gzip_wants_its_name() {
        assert_eq!(choose(&ALL, Some("*")), Choice::PlainFor(Coding::Gzip));
        assert_eq!(choose(&[Coding::Brotli, Coding::Gzip], Some("*")), Choice::Encode(Coding::Brotli));
        assert_eq!(choose(&ALL, Some("*;q=0.1, br")), Choice::Encode(Coding::Brotli));
    }

    #[test]
    fn a_default_is_for_those_who_say_nothing() {
        let preference = Preference { codings: ALL.to_vec(), default: Some(Coding::Brotli) };
        assert_eq!(preference.choose(&HeaderMap::new()), Choice::Encode(Coding::Brotli));
    }
}
