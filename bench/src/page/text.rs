//! Numbers and names as people read them.

use crate::report::{Unit, short};

/// Text that cannot be taken for markup.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // What HTML does not allow at all.
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

/// `1.25 s`, `824 MB/s`, `1.3 MB`: in the unit that leaves few digits.
pub(super) fn human(value: f64, unit: Unit) -> String {
    let steps: &[(f64, &str)] = match unit {
        Unit::Microseconds => &[(1.0, "\u{b5}s"), (1e3, "ms"), (1e6, "s")],
        Unit::Milliseconds => &[(1e-3, "\u{b5}s"), (1.0, "ms"), (1e3, "s")],
        Unit::Seconds => &[(1e-3, "ms"), (1.0, "s")],
        Unit::Bytes => &[(1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB")],
        Unit::Mebibytes => &[(1.0, "MiB"), (1024.0, "GiB")],
        Unit::MegabytesPerSecond => &[(1.0, "MB/s"), (1e3, "GB/s")],
        Unit::PerSecond => &[(1.0, "/s"), (1e3, "k/s"), (1e6, "M/s")],
        Unit::Count => return trimmed(value),
    };
    let fits = steps.iter().rev().find(|(each, _)| value.abs() >= *each * 0.9995);
    let (each, name) = fits.or(steps.first()).copied().unwrap_or((1.0, ""));
    format!("{} {name}", three(value / each))
}

/// As [`human`], of a round value.
pub(super) fn tick(value: f64, unit: Unit) -> String {
    let text = human(value, unit);
    match text.split_once(' ') {
        Some((number, name)) if number.contains('.') => format!("{} {name}", number.trim_end_matches('0').trim_end_matches('.')),
        _ => text,
    }
}

/// Three digits that matter.
fn three(value: f64) -> String {
    match value.abs() {
        value if value >= 99.95 => format!("{:.0}", value.round()),
        value if value >= 9.995 => format!("{value:.1}"),
        value if value >= 0.0005 || value == 0.0 => format!("{value:.2}"),
        _ => short(value),
    }
}

/// A number without zeros that say nothing.
pub(super) fn trimmed(value: f64) -> String {
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A ratio.
pub(super) fn ratio(value: f64) -> String {
    if value >= 9.995 { format!("{value:.1}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: no text of a run can become markup.
    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped("<b>&\"'\u{1}"), "&lt;b&gt;&amp;&quot;&#39;\u{fffd}");
    }

    /// Claim: values are shown in the unit that leaves few digits.
    #[test]
    fn values_have_fitting_units() {
        assert_eq!(human(1250.0, Unit::Milliseconds), "1.25 s");
        assert_eq!(human(0.25, Unit::Milliseconds), "250 \u{b5}s");
        assert_eq!(human(999.9, Unit::Milliseconds), "1.00 s");
        assert_eq!(human(824.4, Unit::MegabytesPerSecond), "824 MB/s");
        assert_eq!(human(1_277_601.0, Unit::Bytes), "1.28 MB");
        assert_eq!(human(0.05, Unit::Count), "0.05");
        assert_eq!(human(0.0, Unit::Microseconds), "0.00 \u{b5}s");
        assert_eq!(trimmed(18.0), "18");
        assert_eq!(trimmed(1.050), "1.05");
    }
}
