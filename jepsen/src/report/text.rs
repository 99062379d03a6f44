//! Words and numbers for people, and their escaping: what brokers say is foreign text, in a page as anywhere.

/// Appends formatted text to a string, which cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{
        use std::fmt::Write as _;
        let _ = write!($out, $($arg)*);
    }};
}
pub(super) use put;

/// Text for HTML and SVG, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// `12,345`; small numbers with a decimal if they have one.
pub fn thousands(number: f64) -> String {
    if number < 10.0 && (number - number.round()).abs() > 1e-9 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A point in time or a long time: `0.25 s`, `12 s`, `3:05 min`, `1:02:30 h`.
pub fn seconds(ns: u64) -> String {
    let seconds = ns as f64 / 1e9;
    let whole = seconds.round() as u64;
    match seconds {
        _ if whole >= 3600 => format!("{}:{:02}:{:02} h", whole / 3600, whole / 60 % 60, whole % 60),
        _ if whole >= 180 => format!("{}:{:02} min", whole / 60, whole % 60),
        _ if seconds >= 10.0 || (seconds - seconds.round()).abs() < 1e-9 => format!("{whole} s"),
        _ if seconds >= 1.0 => format!("{seconds:.1} s"),
        _ => format!("{} s", significant(seconds)),
    }
}

/// A latency: `0.4 ms`, `12 ms`, `3.1 s`.
pub fn milliseconds(ns: u64) -> String {
    match ns as f64 / 1e6 {
        ms if ms >= 10_000.0 => format!("{:.0} s", ms / 1000.0),
        ms if ms >= 1000.0 => format!("{} s", significant(ms / 1000.0)),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms => format!("{} ms", significant(ms)),
    }
}

/// Two digits that matter.
fn significant(number: f64) -> String {
    if number <= 0.0 {
        return "0".to_owned();
    }
    let decimals = (1.0 - number.log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `1 fault`, `3 faults`.
pub fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{} {}", thousands(count as f64), if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_leave_its_place() {
        assert_eq!(escape("<script>\"a\" & 'b'"), "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0.0, 2.5, 999.0, 1000.0, 1234567.0].map(thousands), ["0", "2.5", "999", "1,000", "1,234,567"]);
        let times = [0, 250_000_000, 1_500_000_000, 12_000_000_000, 185_000_000_000, 3_750_000_000_000];
        assert_eq!(times.map(seconds), ["0 s", "0.25 s", "1.5 s", "12 s", "3:05 min", "1:02:30 h"]);
        let latencies = [400_000, 1_000_000, 12_300_000, 3_140_000_000, 45_000_000_000];
        assert_eq!(latencies.map(milliseconds), ["0.4 ms", "1 ms", "12 ms", "3.1 s", "45 s"]);
        assert_eq!([plural(1, "fault", "faults"), plural(2000, "fault", "faults")], ["1 fault", "2,000 faults"]);
    }
}
