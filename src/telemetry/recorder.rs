//! The process's metrics: atomics, and their text for Prometheus.
//!
//! A [`Recorder`] is what the `metrics` facade writes to. Handles are made when their owner is; from then on counting is
//! one atomic addition, and a histogram is a row of counters with fixed bounds: nothing is kept per sample, nothing must be
//! cleaned up, and nobody need ever ask. Labels come from the code, never from a request, so their number is bounded.
//!
//! It knows no metric's meaning.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};
use parking_lot::Mutex;
use pontoon_raft::instruments::Instrument;
use pontoon_raft::types::BrokerId;

/// Upper bounds of latencies, in seconds: from a fast fsync to a timeout.
const SECONDS: &[f64] =
    &[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Upper bounds of sizes, in bytes.
const BYTES: &[f64] = &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];
/// What a histogram's sum is counted in, so that it is an addition: nanoseconds of a second, or bytes.
const NANOS: f64 = 1e9;

/// The process's recorder, installed at the first call.
pub fn recorder() -> &'static Recorder {
    static RECORDER: OnceLock<Recorder> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let recorder = Recorder::default();
        // Somebody else's recorder (a test's) may be there already: ours then shows nothing, and nothing breaks.
        let _ = metrics::set_global_recorder(recorder.clone());
        recorder
    })
}

/// See the module. Shared.
#[derive(Clone, Default)]
pub struct Recorder {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// By name, then by labels.
    series: BTreeMap<Key, Series>,
    help: BTreeMap<KeyName, SharedString>,
}

#[derive(Clone)]
enum Series {
    Counter(Arc<AtomicU64>),
    /// A float's bits.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

impl Series {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A histogram: how many values lie in each stretch, and their sum.
struct Buckets {
    bounds: &'static [f64],
    /// One more than bounds: what lies above all.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
    /// What `sum` is counted in.
    scale: f64,
}

impl Buckets {
    fn of(name: &str) -> Self {
        let (bounds, scale) = if name.ends_with("_bytes") { (BYTES, 1.0) } else { (SECONDS, NANOS) };
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0), scale }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        // A float below 0 or no number becomes 0.
        self.sum.fetch_add((value * self.scale) as u64, Ordering::Relaxed);
    }
}

impl Recorder {
    fn series(&self, key: &Key, make: impl FnOnce() -> Series) -> Series {
        self.inner.lock().series.entry(key.clone()).or_insert_with(make).clone()
    }

    fn describe(&self, key: KeyName, help: SharedString) {
        self.inner.lock().help.entry(key).or_insert(help);
    }

    /// What is known, in Prometheus' text format; of several brokers in one process only `broker`'s, and what is nobody's.
    pub fn render(&self, broker: Option<BrokerId>) -> String {
        let own = broker.map(|broker| broker.to_string());
        let inner = self.inner.lock();
        let mut text = String::new();
        let mut last = "";
        for (key, series) in &inner.series {
            let of = key.labels().find(|label| label.key() == "broker").map(|label| label.value());
            if of.is_some_and(|of| own.as_deref().is_some_and(|own| own != of)) {
                continue;
            }
            if key.name() != last {
                last = key.name();
                if let Some(help) = inner.help.get(last) {
                    let _ = writeln!(text, "# HELP {last} {}", help.replace('\\', "\\\\").replace('\n', "\\n"));
                }
                let _ = writeln!(text, "# TYPE {last} {}", series.kind());
            }
            write_series(&mut text, key, series);
        }
        text
    }
}

/// Writes values that no handle holds, each with its labels.
pub fn write_family(text: &mut String, of: &Instrument, samples: impl Iterator<Item = (String, u64)>) {
    let Instrument { kind, name, help } = of;
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{{{labels}}} {value}");
    }
}

fn write_series(text: &mut String, key: &Key, series: &Series) {
    let labels: Vec<String> =
        key.labels().map(|label| format!("{}=\"{}\"", label.key(), escaped(label.value()))).collect();
    let labels = labels.join(",");
    let name = key.name();
    let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    // Writing to a String does not fail.
    let _ = match series {
        Series::Counter(value) => writeln!(text, "{name}{braced} {}", value.load(Ordering::Relaxed)),
        Series::Gauge(bits) => writeln!(text, "{name}{braced} {}", f64::from_bits(bits.load(Ordering::Relaxed))),
        Series::Histogram(buckets) => {
            let comma = if labels.is_empty() { "" } else { "," };
            let mut total = 0;
            for (at, count) in buckets.counts.iter().enumerate() {
                total += count.load(Ordering::Relaxed);
                let bound = buckets.bounds.get(at).map_or("+Inf".to_owned(), f64::to_string);
                let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
            }
            let sum = buckets.sum.load(Ordering::Relaxed) as f64 / buckets.scale;
            writeln!(text, "{name}_sum{braced} {sum}\n{name}_count{braced} {total}")
        }
    };
}

/// A label's value as it must be written.
pub fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key, help);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key, help);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, || Series::Counter(Arc::default())) {
            Series::Counter(value) => Counter::from_arc(value),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, || Series::Gauge(Arc::default())) {
            Series::Gauge(value) => Gauge::from_arc(value),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.series(key, || Series::Histogram(Arc::new(Buckets::of(key.name())))) {
            Series::Histogram(buckets) => Histogram::from_arc(buckets),
            _ => Histogram::noop(),
        }
    }
}

/// Counts one up in a gauge while it is held.
pub struct Open(Gauge);

impl Open {
    /// Counts up.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1);
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use metrics::{counter, describe_counter, gauge, histogram, with_local_recorder};

    use super::*;

    fn filled() -> Recorder {
        let recorder = Recorder::default();
        with_local_recorder(&recorder, || {
            describe_counter!("b_total", "Counts\nb.");
            counter!("b_total", "broker" => "1", "code" => "a\"b\\c").increment(3);
            counter!("b_total", "broker" => "2").increment(5);
            gauge!("a", "broker" => "1").set(1.5);
            gauge!("c").set(7.0);
        });
        recorder
    }

    #[test]
    fn the_text_is_prometheus_own() {
        let wanted = "# TYPE a gauge\na{broker=\"1\"} 1.5\n\
            # HELP b_total Counts\\nb.\n# TYPE b_total counter\n\
            b_total{broker=\"2\"} 5\nb_total{broker=\"1\",code=\"a\\\"b\\\\c\"} 3\n\
            # TYPE c gauge\nc 7\n";
        assert_eq!(filled().render(None), wanted);
    }

    #[test]
    fn brokers_of_one_process_do_not_mix() {
        let text = filled().render(Some(BrokerId(2)));
        assert!(text.contains("b_total{broker=\"2\"} 5\n") && !text.contains("broker=\"1\""), "{text}");
        assert!(text.contains("c 7\n"), "what is nobody's is everybody's: {text}");
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let recorder = Recorder::default();
        with_local_recorder(&recorder, || {
            let seconds = histogram!("d_seconds");
            [0.0, 0.0001, 0.3, 31.0, -1.0, f64::NAN].into_iter().for_each(|value| seconds.record(value));
            histogram!("d_bytes").record(1024.0);
        });
        let text = recorder.render(None);
        for line in [
            "d_seconds_bucket{le=\"0.0001\"} 4",
            "d_seconds_bucket{le=\"0.2\"} 4",
            "d_seconds_bucket{le=\"0.5\"} 5",
            "d_seconds_count 6",
            "d_seconds_sum 31.3001",
            "d_bytes_bucket{le=\"256\"} 0",
            "d_bytes_bucket{le=\"1024\"} 1",
            "d_bytes_sum 1024",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is missing: {text}");
        }
    }

    #[test]
    fn a_name_has_one_kind_and_a_second_handle_is_the_first() {
        let recorder = Recorder::default();
        with_local_recorder(&recorder, || {
            counter!("x").increment(1);
            gauge!("x").set(9.0);
            counter!("x").increment(1);
        });
        assert_eq!(recorder.render(None), "# TYPE x counter\nx 2\n");
    }
}
