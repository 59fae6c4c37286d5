//! Values in the forms that Traefik accepts in files, which are laxer than ours: numbers and truths may be quoted, lists
//! may be one text with commas, durations may be whole seconds.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::PemSource;
use crate::{
    DURATION_MAX, Secret,
    read::{Dialect, Field, Section},
    units::parse_duration,
    yaml::Value,
};

/// What is written for a block that may be empty.
pub(crate) enum Block<'a> {
    /// Options.
    Section(Section<'a>),
    /// `{}` or `true`: all defaults.
    Defaults,
    /// `false`: as if it were absent.
    Off,
}

impl<'a> Field<'a> {
    /// A block of options, which must not be empty.
    pub(crate) fn block(&self) -> Option<Section<'a>> {
        let section = self.section()?;
        if section.is_empty() && self.sink.dialect == Dialect::Traefik {
            self.reject_hidden("this block is empty: give it an option or remove it");
        }
        section.reject_twins();
        Some(section)
    }

    /// An element of a list, or an object under its own name: unlike a block it may be empty.
    pub(crate) fn element(&self) -> Option<Section<'a>> {
        let section = self.section()?;
        section.reject_twins();
        Some(section)
    }

    /// A block of options that may be empty, or be switched by `true` and `false`.
    pub(crate) fn open_block(&self) -> Block<'a> {
        if self.scalar().is_some() {
            return match self.truth() {
                Some(true) => Block::Defaults,
                Some(false) | None => Block::Off,
            };
        }
        match self.section() {
            Some(section) if section.is_empty() => Block::Defaults,
            Some(section) => {
                section.reject_twins();
                Block::Section(section)
            }
            None => Block::Off,
        }
    }

    /// Objects by the names that the operator chose.
    pub(crate) fn objects<T>(&self, read: impl Fn(&Field<'a>) -> Option<T>) -> Option<BTreeMap<String, T>> {
        let section = self.section()?;
        if section.is_empty() && self.sink.dialect == Dialect::Traefik {
            self.reject_hidden("this block is empty: give it an object or remove it");
        }
        let read_object = |(name, field): (&str, Field<'a>)| Some((name.to_owned(), read(&field)?));
        // A name without a value is as if it were not there, like any other key.
        Some(self.named().into_iter().filter(|(_, field)| !field.is_null()).filter_map(read_object).collect())
    }

    /// Text; numbers and truths count as their text.
    pub(crate) fn string(&self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    /// Text that counts as absent when it is empty.
    pub(crate) fn filled(&self) -> Option<String> {
        self.string().filter(|text| !text.is_empty())
    }

    /// Texts: a list, or one text with commas.
    pub(crate) fn strings(&self) -> Option<Vec<String>> {
        if let Some(text) = self.scalar() {
            if text.is_empty() {
                return Some(Vec::new());
            }
            return Some(text.split(',').map(|part| part.trim().to_owned()).collect());
        }
        Some(self.texts().into_iter().map(|(text, _)| text.to_owned()).collect())
    }

    /// Secrets: a list, or one text with commas.
    pub(crate) fn secrets(&self) -> Option<Vec<Secret>> {
        let texts = self.strings()?;
        Some(texts.into_iter().map(|text| Secret::new(text.into_bytes())).collect())
    }

    /// Texts by name.
    pub(crate) fn string_map(&self) -> Option<BTreeMap<String, String>> {
        self.objects(Field::string)
    }

    /// A truth as Go reads it.
    pub(crate) fn truth(&self) -> Option<bool> {
        self.parse("`true` or `false`", |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    /// A whole number, perhaps negative.
    pub(crate) fn whole(&self) -> Option<i64> {
        self.parse("a whole number", |text| self.whole_of(text))
    }

    /// A whole number that fits.
    pub(crate) fn whole_in<T: TryFrom<u64>>(&self, range: std::ops::RangeInclusive<u64>) -> Option<T> {
        self.integer(range)
    }

    /// A weight: negative ones are Traefik's way to say none, as 0.
    pub(crate) fn weight(&self) -> Option<u32> {
        self.whole().map(|weight| u32::try_from(weight.max(0)).unwrap_or(u32::MAX))
    }

    /// A number of bytes; negative = no limit.
    pub(crate) fn bytes_max(&self) -> Option<Option<u64>> {
        self.whole().map(|bytes| u64::try_from(bytes).ok())
    }

    /// A duration with unit, or whole seconds; a negative one disables the object it belongs to.
    pub(crate) fn go_duration(&self) -> Option<Duration> {
        let duration = self.signed_duration()?;
        if duration.is_none() {
            self.fault("expected a duration that is not negative");
        }
        duration
    }

    /// A duration of which Traefik takes negative ones for none.
    pub(crate) fn go_duration_or_zero(&self) -> Option<Duration> {
        self.signed_duration().map(Option::unwrap_or_default)
    }

    /// A duration for which zero and below mean none.
    pub(crate) fn limit_duration(&self) -> Option<Option<Duration>> {
        self.signed_duration().map(|duration| duration.filter(|duration| !duration.is_zero()))
    }

    /// A period: zero and below are replaced by the default, with a warning.
    pub(crate) fn period(&self, default: Duration) -> Option<Duration> {
        let duration = self.go_duration_or_zero()?;
        if duration.is_zero() {
            self.warn(format!("not a period: {} is used", crate::format_duration(default)));
            return Some(default);
        }
        Some(duration)
    }

    /// PEM text, or the path of a file that has it.
    pub(crate) fn pem(&self) -> Option<PemSource> {
        let text = self.text_hidden()?;
        if text.contains("-----BEGIN") {
            return Some(PemSource::Inline(Secret::new(text.as_bytes().to_vec())));
        }
        self.path().map(PemSource::File)
    }

    /// PEM texts or paths: a list.
    pub(crate) fn pems(&self) -> Option<Vec<PemSource>> {
        if matches!(self.node.value, Value::Scalar { .. }) {
            return Some(vec![self.pem()?]);
        }
        Some(self.items().iter().filter_map(Field::pem).collect())
    }

    /// The inner `None` stands for all negative durations.
    fn signed_duration(&self) -> Option<Option<Duration>> {
        self.parse("a duration such as `30s`", |text| {
            if let Some(seconds) = self.whole_of(text) {
                return Some(u64::try_from(seconds).ok().map(Duration::from_secs));
            }
            let (is_negative, text) = match text.strip_prefix('-') {
                Some(positive) => (true, positive),
                None => (false, text),
            };
            parse_duration(text).map(|duration| Some(duration).filter(|_| !is_negative))
        })
        .and_then(|duration| match duration {
            Some(long) if long > DURATION_MAX => {
                self.reject("expected a duration of at most a year");
                None
            }
            other => Some(other),
        })
    }

    /// Numbers as Go's YAML has them, where they are not quoted.
    pub(crate) fn whole_of(&self, text: &str) -> Option<i64> {
        match &self.node.value {
            Value::Scalar { plain: true, .. } if self.sink.dialect == Dialect::Traefik => go_integer(text),
            _ => text.parse().ok(),
        }
    }

    fn text_hidden(&self) -> Option<&'a str> {
        let text = self.scalar();
        if text.is_none() {
            self.reject_hidden("expected PEM text or a path");
        }
        text
    }
}

/// Reads an address or a network as Go does: `10.0.0.0/8`, `192.0.2.1`, `::1`; bits behind the prefix are ignored, an
/// IPv4 address written in IPv6 form is IPv4.
pub fn network(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    let network = text.parse::<IpNet>().ok()?.trunc();
    Some(match network {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_PREFIX_LEN => match v6.addr().to_ipv4_mapped() {
            Some(v4) => IpNet::new(IpAddr::V4(v4), v6.prefix_len() - MAPPED_PREFIX_LEN).unwrap_or(network),
            None => network,
        },
        other => other,
    })
}

/// Reads an integer as Go's YAML does: `0x1f`, `0o17`, `017` (octal), `0b1`, `1_000`, `1e3`.
fn go_integer(text: &str) -> Option<i64> {
    let text = text.replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(&text)),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    let radix = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => Some((16, &digits[2..])),
        Some("0o") => Some((8, &digits[2..])),
        Some("0b") => Some((2, &digits[2..])),
        Some(octal) if octal.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some((8, &digits[1..]))
        }
        _ => None,
    };
    let (radix, digits) = match radix {
        // A sign behind the prefix is none.
        Some((_, digits)) if digits.starts_with(['+', '-']) => return None,
        Some(found) => found,
        None => (10, digits),
    };
    if let Ok(number) = i64::from_str_radix(&format!("{sign}{digits}"), radix) {
        return Some(number);
    }
    let float: f64 = text.parse().ok()?;
    // Beyond 2^53 a float is no longer one certain integer.
    let is_whole = float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "whole, and within 2^53")]
    is_whole.then_some(float as i64)
}

/// Prefix of IPv4 addresses in IPv6 form, `::ffff:0:0/96`.
const MAPPED_PREFIX_LEN: u8 = 96;
