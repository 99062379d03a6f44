//! What a measurement found, as a table or as JSON.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

/// Named figures in order.
#[derive(Debug, Default)]
pub(super) struct Report {
    figures: Vec<(String, Value)>,
}

impl Report {
    pub(super) fn new(bench: &str) -> Self {
        let mut report = Self::default();
        report.set("bench", bench);
        report
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.push((name.to_owned(), value.into()));
    }

    /// Rate and bandwidth of `count` operations of `bytes` bytes in `elapsed`.
    pub(super) fn rate(&mut self, count: u64, bytes: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        self.set("seconds", round(seconds));
        self.set("count", count);
        self.set("per_second", round(count as f64 / seconds));
        self.set("mb_per_second", round(bytes as f64 / seconds / 1e6));
    }

    /// Quantiles of latencies in microseconds.
    pub(super) fn latencies(&mut self, histogram: &Histogram<u64>) {
        for (name, quantile) in [("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99), ("p999_us", 0.999)] {
            self.set(name, histogram.value_at_quantile(quantile));
        }
        self.set("max_us", histogram.max());
    }

    pub(super) fn to_json(&self) -> String {
        let map: Map<String, Value> = self.figures.iter().cloned().collect();
        json!(map).to_string()
    }

    pub(super) fn to_table(&self) -> String {
        let width = self.figures.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut out = String::new();
        for (name, value) in &self.figures {
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let _ = writeln!(out, "{name:width$}  {text}");
        }
        out
    }
}

/// Two decimals are more than these machines can tell apart.
pub(super) fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A histogram of microseconds up to ten minutes, three significant digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).unwrap_or_else(|_| unreachable!("the bounds are constants"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_its_figures_in_order_and_as_json() {
        let mut report = Report::new("latency");
        report.rate(200, 2_000_000, Duration::from_secs(2));
        let mut latencies = histogram();
        (1..=100).for_each(|us| latencies.record(us).unwrap());
        report.latencies(&latencies);
        let json: Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["per_second"], 100.0);
        assert_eq!(json["mb_per_second"], 1.0);
        assert_eq!(json["p50_us"], 50);
        assert_eq!(json["max_us"], 100);
        assert!(report.to_table().starts_with("bench          latency\nseconds        2.0\n"));
    }
}
