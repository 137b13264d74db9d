//! Sizes and times as people type and read them.

use std::time::Duration;

/// `65536`, `256KiB`, `1.5MiB`, `2GiB`; `K`, `M` and `G` mean the same.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let number_len = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(number_len);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        other => return Err(format!("expected bytes, KiB, MiB or GiB, found unit {other:?}")),
    };
    let bad = || format!("expected a size such as 1MiB, found {text:?}");
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(whole, fraction)| (whole, Some(fraction)));
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let parts = match fraction {
        None => 0,
        // Of a byte there are no parts.
        Some(digits) if shift > 0 && (1..=9).contains(&digits.len()) => {
            let (numerator, denominator) = (digits.parse::<u64>().map_err(|_| bad())?, 10_u64.pow(digits.len() as u32));
            (numerator << shift) / denominator
        }
        Some(_) => return Err(bad()),
    };
    whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(parts)).ok_or_else(|| format!("{text} is over 16 EiB"))
}

/// `--memory-max`: what [`parse_size`] reads, enough to work with.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let (bytes, least) = (parse_size(text)?, clip_engine::EngineConfig::MEMORY_BYTES_MIN);
    if bytes < least { Err(format!("expected at least {}, found {}", size(least), size(bytes))) } else { Ok(bytes) }
}

/// Bytes a second: as [`parse_size`], over zero, `/s` behind it or not.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text.strip_suffix("/s").unwrap_or(text))?;
    if bytes == 0 { Err("expected a rate over zero, such as 50M".to_owned()) } else { Ok(bytes) }
}

/// `--min-rate`: as [`parse_rate`], or zero.
pub fn parse_rate_min(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text))
}

/// `--retries`: 0 to 1000.
pub fn parse_retries(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|count| *count <= 1000).ok_or_else(|| format!("expected a number from 0 to 1000, found {text:?}"))
}

/// `30`, `30s`, `500ms`, `2m`, `1h`. A bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits_len);
    let number: u64 = digits.parse().map_err(|_| format!("expected a time such as 30s, found {text:?}"))?;
    let seconds_each = match unit.trim() {
        "ms" => return Ok(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        other => return Err(format!("expected ms, s, m or h, found unit {other:?}")),
    };
    number
        .checked_mul(seconds_each)
        .filter(|seconds| *seconds < 1 << 32)
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text} is too long"))
}

/// As `parse_duration`, over zero.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|time| if time.is_zero() { Err("expected a time over zero".to_owned()) } else { Ok(time) })
}

/// `--span-size`: what [`parse_size`] reads, within the format's limits.
pub fn parse_span_size(text: &str) -> Result<u64, String> {
    use clip_format::limits::{SPAN_BYTES_MAX, SPAN_BYTES_MIN};
    let bytes = parse_size(text)?;
    if (SPAN_BYTES_MIN..=SPAN_BYTES_MAX).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("expected {} to {}, found {}", size(SPAN_BYTES_MIN), size(SPAN_BYTES_MAX), size(bytes)))
    }
}

/// A count of threads or jobs: 1 to 1024.
pub fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| (1..=1024).contains(count)).ok_or_else(|| format!("expected a number from 1 to 1024, found {text:?}"))
}

/// Bytes for people: `17 B`, `1.5 KiB`, `12.0 MiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A time for people: `412 µs`, `3.1 ms`, `2.50 s`.
pub fn time(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..=999 => format!("{micros} µs"),
        1000..=999_999 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

/// An option's time as it can be typed: `500ms`, `30s`, `1h`.
pub fn typed_time(time: Duration) -> String {
    match (time.subsec_millis(), time.as_secs()) {
        (0, hours @ 1..) if hours.is_multiple_of(3600) => format!("{}h", hours / 3600),
        (0, seconds) => format!("{seconds}s"),
        _ => format!("{}ms", time.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Sizes are binary; decimal units and overflow are refused, not guessed.
    #[test]
    fn sizes() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("65536"), Ok(65536));
        assert_eq!(parse_size("256KiB"), Ok(256 << 10));
        assert_eq!(parse_size("1 MiB"), Ok(1 << 20));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!((parse_size("1.5MiB"), parse_size("0.25K")), (Ok(3 << 19), Ok(256)));
        for bad in ["", "MiB", "1MB", "-1", "1.5", ".5MiB", "1.MiB", "1.2.3M", "99999999999GiB", "99999999999999999999"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    /// A rate is a size, with or without its second, and never zero.
    #[test]
    fn rates() {
        assert_eq!(parse_rate("50M"), Ok(50 << 20));
        assert_eq!(parse_rate("64KiB/s"), Ok(64 << 10));
        assert!(parse_rate("0").is_err() && parse_rate("M").is_err());
    }

    /// A limit on memory that one decoder would pass is refused.
    #[test]
    fn memory() {
        assert_eq!(parse_memory("16MiB"), Ok(16 << 20));
        assert_eq!(parse_memory("1MiB"), Err("expected at least 16.0 MiB, found 1.0 MiB".to_owned()));
    }

    /// A span size outside the format's limits is an error of the command line.
    #[test]
    fn span_sizes() {
        assert_eq!(parse_span_size("64KiB"), Ok(64 << 10));
        assert!(parse_span_size("63KiB").is_err());
        assert!(parse_span_size("65MiB").is_err());
    }

    /// A bare number is seconds; a timeout of zero is refused.
    #[test]
    fn durations() {
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "s", "3d", "1.5s", "-3", "99999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_timeout("0").is_err());
        assert_eq!((typed_time(Duration::from_secs(7200)), typed_time(Duration::ZERO)), ("2h".to_owned(), "0s".to_owned()));
        assert_eq!(parse_duration(&typed_time(Duration::from_millis(1500))), Ok(Duration::from_millis(1500)));
    }

    /// Sizes for people are rounded to a tenth.
    #[test]
    fn size_texts() {
        assert_eq!(size(17), "17 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
        assert_eq!(time(Duration::from_micros(3100)), "3.1 ms");
    }
}
