//! Durations, sizes and listening addresses as operators write them.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// Reads a duration as Go and Traefik write it: `30s`, `1m30s`, `1.5h`, `500ms`, `0`; `None` if it is not one, is
/// negative, or exceeds [`DURATION_MAX`].
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_len = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.bytes().take_while(|byte| !byte.is_ascii_digit() && *byte != b'.').count();
        let (unit, next) = tail.split_at(unit_len);
        total = total.checked_add(scaled(number, unit)?)?;
        rest = next;
    }
    (!text.is_empty() && total <= DURATION_MAX).then_some(total)
}

/// Writes a duration so that [`parse_duration`] reads the same value back: `1h30m`, `500ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [
        (u128::from(seconds / 3600), "h"),
        (u128::from(seconds / 60 % 60), "m"),
        (u128::from(seconds % 60), "s"),
        (u128::from(duration.subsec_millis()), "ms"),
        (u128::from(duration.subsec_micros() % 1000), "us"),
        (u128::from(duration.subsec_nanos() % 1000), "ns"),
    ];
    let text: String =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Reads a size in bytes: a number alone, or with `KiB`, `MiB`, `GiB` (1024) or `kB`, `MB`, `GB` (1000).
pub fn parse_size(text: &str) -> Option<u64> {
    let number_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(number_len);
    let scale = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, scale)| *scale)?;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// Writes a size in the largest binary unit that divides it, so that [`parse_size`] reads the same value back.
pub fn format_size(bytes: u64) -> String {
    let fitting = SIZE_UNITS
        .iter()
        .rev()
        .find(|(name, scale)| name.ends_with("iB") && bytes >= *scale && bytes.is_multiple_of(*scale));
    match fitting {
        Some((name, scale)) => format!("{}{name}", bytes / scale),
        None => bytes.to_string(),
    }
}

/// Reads a listening address: `127.0.0.1:8000`, `[::1]:80`, or `:8443` for every address of both families.
pub fn parse_listen_address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port.parse().ok()?))
        }
        _ => text.parse().ok(),
    }
}

/// Whether a text is `host:port` with a host name, IPv4 or bracketed IPv6 literal and a port from 1 to 65535.
pub fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_good = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(literal) => literal.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<crate::Hostname>().is_ok(),
    };
    host_is_good && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Longest duration that is read; longer ones are a mistake and could overflow a clock.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Exact decimal arithmetic in nanoseconds: `number` is digits with at most one dot.
fn scaled(number: &str, unit: &str) -> Option<Duration> {
    let scale_ns = DURATION_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > DIGITS_MAX || fraction.len() > DIGITS_MAX {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0_u128) } else { text.parse().ok() };
    let power = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let nanos = digits(whole)? * scale_ns + digits(fraction)? * scale_ns / power;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// Twelve digits times the largest unit stays far inside 128 bits.
const DIGITS_MAX: usize = 12;

const DURATION_UNITS: [(&str, u128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

const SIZE_UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        assert_eq!(parse_duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration(".5s"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2µs"), Some(Duration::from_micros(2)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "30", "-1s", "s", "1.2.3s", ".s", "1 s", "1d", "9999999h", "1s1", "s1"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(parse_size("64KiB"), Some(65536));
        assert_eq!(parse_size("1 MB"), Some(1_000_000));
        assert_eq!(parse_size("12"), Some(12));
        for text in ["", "KiB", "-1", "1kib", "99999999999999999999", "18446744073709551615GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(format_size(65536), "64KiB");
        assert_eq!(format_size(1000), "1000");
    }

    #[test]
    fn an_address_without_host_listens_on_both_families() {
        assert_eq!(parse_listen_address(":8443").unwrap().to_string(), "[::]:8443");
        assert_eq!(parse_listen_address("[::1]:80").unwrap().to_string(), "[::1]:80");
        for text in ["8443", ":", "localhost:80", ":+80", "1.2.3.4", ":99999"] {
            assert_eq!(parse_listen_address(text), None, "{text}");
        }
    }

    #[test]
    fn host_and_port_takes_names_and_both_literals() {
        for text in ["edge.example:7844", "127.0.0.1:1", "[::1]:7844"] {
            assert!(is_host_and_port(text), "{text}");
        }
        for text in ["edge.example", "edge:0", "edge:", ":1", "::1:80", "a b:1", "[a]:1"] {
            assert!(!is_host_and_port(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_survives_its_text(nanos in 0..DURATION_MAX.as_nanos() as u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn a_size_survives_its_text(bytes in any::<u64>()) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = (parse_duration(&text), parse_size(&text), parse_listen_address(&text), is_host_and_port(&text));
        }
    }
}
