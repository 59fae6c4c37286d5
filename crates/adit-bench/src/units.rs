//! Sizes, rates and times as people write and read them: `128K`, `5G`, `20ms`. Bytes count in 1024s, bits in 1000s, as
//! iperf3 has it.

use std::time::Duration;

/// Bytes: a number with an optional `K`, `M`, `G` or `T` (powers of 1024), also as `KiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    scaled(text.strip_suffix("iB").unwrap_or(text), 1024.0)
        .ok_or_else(|| format!("`{text}` is no size; write such as 128K, 1M or 10G"))
}

/// Bits a second: a number with an optional `K`, `M`, `G` or `T` (powers of 1000).
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let bare = text.strip_suffix("bit/s").or_else(|| text.strip_suffix("bps")).unwrap_or(text);
    scaled(bare, 1000.0).ok_or_else(|| format!("`{text}` is no rate; write bits a second such as 100M or 5G"))
}

/// A time: `10` (seconds), `1.5s`, `20ms`, `300us`, `2m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => -1.0,
    };
    let seconds = number.parse::<f64>().ok().map(|number| number * scale);
    if seconds.is_some_and(|seconds| seconds.is_finite() && seconds > SECONDS_MAX) {
        return Err(format!("`{text}` is longer than a week, the longest that a time may be"));
    }
    seconds
        .filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("`{text}` is no time; write such as 10, 1.5s or 20ms"))
}

/// `1.09 GBytes`.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let (value, unit) = shortened(bytes as f64, 1024.0);
    format!("{} {unit}Bytes", three_digits(value))
}

/// `9.41 Gbits/sec`.
pub(crate) fn rate_text(bits_per_second: f64) -> String {
    let (value, unit) = shortened(bits_per_second, 1000.0);
    format!("{} {unit}bits/sec", three_digits(value))
}

/// `12.3 ms`, or `45 us` below a millisecond.
pub(crate) fn time_text(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 1000.0 { format!("{micros:.0} us") } else { format!("{:.2} ms", micros / 1000.0) }
}

fn scaled(text: &str, thousand: f64) -> Option<u64> {
    let power = match text.chars().next_back()?.to_ascii_uppercase() {
        'K' => 1,
        'M' => 2,
        'G' => 3,
        'T' => 4,
        _ => 0,
    };
    let number = if power == 0 { text } else { &text[..text.len() - 1] };
    let value = number.parse::<f64>().ok()? * thousand.powi(power);
    // Above this, a float no longer counts single bytes.
    (0.0..=9.0e15).contains(&value).then_some(value as u64)
}

fn shortened(value: f64, thousand: f64) -> (f64, &'static str) {
    let mut value = value;
    for unit in ["", "K", "M", "G"] {
        if value < thousand {
            return (value, unit);
        }
        value /= thousand;
    }
    (value, "T")
}

fn three_digits(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// A week: longer than any run should be, short enough for every clock here.
const SECONDS_MAX: f64 = 7.0 * 86_400.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_in_1024s_and_bits_in_1000s() {
        assert_eq!(size("128K"), Ok(131_072));
        assert_eq!(size("1.5MiB"), Ok(1_572_864));
        assert_eq!(rate("5G"), Ok(5_000_000_000));
        assert_eq!(rate("100Mbit/s"), Ok(100_000_000));
        assert_eq!(size("7"), Ok(7));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "K", "-1", "1Q", "nan", "1e99G"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["", "ms", "-1s", "1 day", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_that_is_too_long_is_refused_as_that() {
        for text in ["999999", "169h"] {
            assert!(duration(text).is_err_and(|why| why.contains("longer than a week")), "{text}");
        }
        assert!(duration("168h").is_ok());
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(time_text(Duration::from_micros(45)), "45 us");
        assert_eq!(time_text(Duration::from_micros(12_345)), "12.35 ms");
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(bytes_text(1_170_378_588), "1.09 GBytes");
        assert_eq!(rate_text(9.414e9), "9.41 Gbits/sec");
        assert_eq!(rate_text(941.4e6), "941 Mbits/sec");
    }
}
