//! The drawing: panels over one time axis, one above the other, as SVG. Faults are shaded through all of them.
//!
//! Colours are classes of `style.css`; every mark that a person may wonder about has a `<title>`. It decides nothing and computes nothing
//! but places.

use super::series::{Class, Series, Span};
use super::text::{escape, milliseconds, put, seconds, thousands};
use crate::history::Kind;
use crate::timeline::{Fault, Timeline};

const WIDTH: f64 = 1080.0;
const LEFT: f64 = 112.0;
const RIGHT: f64 = 14.0;
const PANEL_GAP: f64 = 46.0;
/// How wide a small letter is, about.
const CHARACTER: f64 = 6.4;
const LANE: f64 = 22.0;

/// An anomaly on the time axis.
#[derive(Clone, Debug)]
pub struct Mark {
    /// When it showed.
    pub time_ns: u64,
    /// What to say about it.
    pub title: String,
    /// The workload may show it.
    pub allowed: bool,
}

struct Drawing<'r> {
    out: String,
    end_ns: f64,
    /// The upper edge of the next panel.
    top: f64,
    timeline: &'r Timeline,
    series: &'r Series,
}

/// All panels as one `<svg>`.
pub fn draw(series: &Series, timeline: &Timeline, marks: &[Mark], end_ns: u64) -> String {
    let mut drawing = Drawing { out: String::new(), end_ns: end_ns.max(1) as f64, top: 8.0, timeline, series };
    drawing.faults(marks);
    let first = drawing.top;
    drawing.throughput();
    drawing.latency();
    drawing.unseen();
    drawing.lag();
    drawing.time_axis();
    let height = drawing.top - PANEL_GAP + 30.0;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="The run over time" class="timeline">"#
    );
    drawing.shading(&mut svg, first, drawing.top - PANEL_GAP);
    svg.push_str(&drawing.out);
    svg.push_str("</svg>");
    svg
}

impl Drawing<'_> {
    fn x(&self, time_ns: u64) -> f64 {
        LEFT + (time_ns as f64 / self.end_ns).min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn span_x(&self, at: usize) -> (f64, f64) {
        let start = at as u64 * self.series.span_ns;
        (self.x(start), self.x(start + self.series.span_ns))
    }

    /// The faults' shades behind the panels from `top` to `bottom`.
    fn shading(&self, svg: &mut String, top: f64, bottom: f64) {
        for fault in &self.timeline.faults {
            let (start, stop) = (self.x(fault.start_ns), self.x(fault.stop_ns.unwrap_or(self.end_ns as u64)));
            let (class, height) = (fault_class(&fault.kind), bottom - top);
            put!(
                svg,
                r#"<rect x="{start:.1}" y="{top:.1}" width="{:.1}" height="{height:.1}" class="shade {class}"/>"#,
                (stop - start).max(1.0)
            );
            if let Some((recovered_ns, _)) = &fault.recovered {
                let width = self.x(*recovered_ns) - stop;
                put!(
                    svg,
                    r#"<rect x="{stop:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}" class="shade recovering {class}"/>"#
                );
            }
        }
        let marks: Vec<(f64, &str)> =
            self.timeline.phases.iter().map(|(time_ns, name)| (self.x(*time_ns), name.as_str())).collect();
        for (at, (x, name)) in marks.iter().enumerate() {
            let x = *x;
            put!(svg, r#"<line x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{bottom:.1}" class="phase"/>"#);
            let (anchor, dx) = if x > WIDTH * 0.8 { ("end", -5.0) } else { ("start", 5.0) };
            // Where another's name would stand in the way, the line alone must do.
            let neighbour = if dx < 0.0 { at.checked_sub(1) } else { Some(at + 1) };
            let room = neighbour.and_then(|at| marks.get(at)).map_or(f64::MAX, |(other, _)| (other - x).abs());
            if room < CHARACTER * name.chars().count() as f64 + 10.0 {
                continue;
            }
            put!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" class="phase" text-anchor="{anchor}">{}</text>"#,
                x + dx,
                top + 11.0,
                escape(name)
            );
        }
    }

    /// One lane for each kind of fault, and one for anomalies.
    fn faults(&mut self, marks: &[Mark]) {
        let mut kinds: Vec<&str> = self.timeline.faults.iter().map(|fault| fault.kind.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            let y = self.top;
            self.lane_label(kind);
            for fault in self.timeline.faults.iter().filter(|fault| fault.kind == kind) {
                self.fault(fault, y);
            }
            self.top += LANE;
        }
        if !marks.is_empty() {
            self.lane_label("anomalies");
            let y = self.top + 15.0;
            for mark in marks {
                let (x, class) = (self.x(mark.time_ns), if mark.allowed { "mark allowed" } else { "mark" });
                put!(
                    self.out,
                    r#"<path d="M{:.1} {y:.1}l5 -10 5 10z" class="{class}"><title>{}</title></path>"#,
                    x - 5.0,
                    escape(&mark.title)
                );
            }
            self.top += LANE;
        }
        self.top += 36.0;
    }

    fn lane_label(&mut self, name: &str) {
        let y = self.top;
        put!(
            self.out,
            r#"<rect x="{LEFT}" y="{:.1}" width="{:.1}" height="{:.1}" class="lane"/>"#,
            y + 2.0,
            WIDTH - LEFT - RIGHT,
            LANE - 4.0
        );
        let short: String =
            if name.chars().count() > 17 { name.chars().take(16).chain(['…']).collect() } else { name.to_owned() };
        put!(
            self.out,
            r#"<text x="{:.1}" y="{:.1}" class="label" text-anchor="end">{}<title>{}</title></text>"#,
            LEFT - 8.0,
            y + 15.0,
            escape(&short),
            escape(name)
        );
    }

    fn fault(&mut self, fault: &Fault, y: f64) {
        let (start, stop) = (self.x(fault.start_ns), self.x(fault.stop_ns.unwrap_or(self.end_ns as u64)));
        let confirmed = if fault.confirmed.is_some() { "" } else { " unconfirmed" };
        let width = (stop - start).max(2.0);
        let (class, targets) = (fault_class(&fault.kind), fault.targets.join(", "));
        put!(
            self.out,
            r#"<rect x="{start:.1}" y="{:.1}" width="{width:.1}" height="{:.1}" rx="2" class="fault {class}{confirmed}"><title>{}</title></rect>"#,
            y + 4.0,
            LANE - 8.0,
            escape(&fault_title(fault))
        );
        if let Some((recovered_ns, _)) = &fault.recovered {
            let (end, middle) = (self.x(*recovered_ns), y + LANE / 2.0);
            put!(self.out, r#"<path d="M{stop:.1} {middle:.1}H{end:.1}m0 -4v8" class="recovery {class}"/>"#);
        }
        if width > 7.0 * targets.len() as f64 + 8.0 {
            put!(
                self.out,
                r#"<text x="{:.1}" y="{:.1}" class="target">{}</text>"#,
                start + 5.0,
                y + 15.0,
                escape(&targets)
            );
        }
    }

    /// The frame of a panel: title, legend, grid and the labels of the vertical axis.
    fn panel(&mut self, title: &str, height: f64, ticks: &[(f64, String)], legend: &[(String, String)]) {
        let (top, bottom) = (self.top, self.top + height);
        put!(self.out, r#"<text x="{LEFT}" y="{:.1}" class="title">{title}</text>"#, top - 9.0);
        let mut right = WIDTH - RIGHT;
        for (class, label) in legend.iter().rev() {
            right -= CHARACTER * label.chars().count() as f64;
            put!(self.out, r#"<text x="{right:.1}" y="{:.1}" class="label">{}</text>"#, top - 9.0, escape(label));
            right -= 6.0;
            put!(
                self.out,
                r#"<rect x="{:.1}" y="{:.1}" width="10" height="10" rx="2" class="{class}"/>"#,
                right - 9.0,
                top - 18.0
            );
            right -= 24.0;
        }
        for (y, label) in ticks {
            put!(self.out, r#"<line x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}" class="grid"/>"#, WIDTH - RIGHT);
            put!(
                self.out,
                r#"<text x="{:.1}" y="{:.1}" class="label" text-anchor="end">{label}</text>"#,
                LEFT - 8.0,
                y + 4.0
            );
        }
        put!(
            self.out,
            r#"<line x1="{LEFT}" x2="{:.1}" y1="{bottom:.1}" y2="{bottom:.1}" class="axis"/>"#,
            WIDTH - RIGHT
        );
        self.top = bottom + PANEL_GAP;
    }

    /// Areas on top of each other, in steps; the legend names only those that are not empty.
    fn stack(&mut self, title: &str, height: f64, layers: &[Layer], number: impl Fn(f64) -> String) {
        let totals = (0..self.series.spans.len()).map(|at| layers.iter().map(|layer| layer.values[at]).sum::<f64>());
        let most = totals.fold(0.0, f64::max);
        let (bottom, ticks) = (self.top + height, nice_ticks(most));
        let top_value = ticks.last().copied().unwrap_or(1.0).max(most).max(f64::MIN_POSITIVE);
        let y = |value: f64| bottom - value / top_value * height;
        let ticks: Vec<(f64, String)> = ticks.iter().map(|tick| (y(*tick), number(*tick))).collect();
        let shown = layers.iter().filter(|layer| layer.values.iter().any(|value| *value > 0.0));
        let legend: Vec<_> = shown.map(|layer| (layer.class.clone(), layer.label.clone())).collect();
        self.panel(title, height, &ticks, &legend);
        let mut floor = vec![0.0; self.series.spans.len()];
        for layer in layers {
            let ceiling: Vec<f64> = floor.iter().zip(&layer.values).map(|(floor, value)| floor + value).collect();
            if ceiling != floor {
                let mut path = String::new();
                for (at, value) in ceiling.iter().enumerate() {
                    let (from, to) = self.span_x(at);
                    put!(path, "{}{from:.1} {:.1}H{to:.1}", if at == 0 { "M" } else { "L" }, y(*value));
                }
                for (at, value) in floor.iter().enumerate().rev() {
                    let (from, to) = self.span_x(at);
                    put!(path, "L{to:.1} {:.1}H{from:.1}", y(*value));
                }
                put!(self.out, r#"<path d="{path}z" class="area {}"/>"#, layer.class);
            }
            floor = ceiling;
        }
    }

    fn throughput(&mut self) {
        let per_second = 1e9 / self.series.span_ns as f64;
        let layer = |class: &str, label: &str, count: &dyn Fn(&Span) -> u32| Layer {
            class: class.to_owned(),
            label: label.to_owned(),
            values: self.series.spans.iter().map(|span| f64::from(count(span)) * per_second).collect(),
        };
        let ended = |span: &Span, outcome: usize| span.ended.iter().map(|by| by[outcome]).sum();
        let layers = [
            layer("fail", "failed", &|span| ended(span, 2)),
            layer("info", "unknown", &|span| ended(span, 1)),
            layer("send", "sends", &|span| span.ended[Class::Send as usize][0]),
            layer("poll", "polls", &|span| span.ended[Class::Poll as usize][0]),
            layer("txn", "transactions", &|span| span.ended[Class::Txn as usize][0]),
        ];
        self.stack("Operations per second", 120.0, &layers, thousands);
    }

    fn unseen(&mut self) {
        let many = self.series.keys.len() > 8;
        let rows: Vec<Layer> = if many {
            let total = |span: &Span| span.unseen.iter().map(|count| f64::from(*count)).sum();
            vec![Layer {
                class: "key0".into(),
                label: "all keys".into(),
                values: self.series.spans.iter().map(total).collect(),
            }]
        } else {
            let layer = |(at, key): (usize, &crate::history::Key)| Layer {
                class: format!("key{at}"),
                label: format!("key {}", key.0),
                values: self.series.spans.iter().map(|span| f64::from(span.unseen[at])).collect(),
            };
            self.series.keys.iter().enumerate().map(layer).collect()
        };
        self.stack("Acknowledged and not yet read by anyone", 80.0, &rows, thousands);
    }

    fn lag(&mut self) {
        let values = self.series.spans.iter().map(|span| span.lag_ns.unwrap_or(0) as f64 / 1e9).collect();
        let layers = [Layer { class: "lag".into(), label: "worst poll".into(), values }];
        self.stack("Lag of readers that had caught up once, behind what was known to exist", 60.0, &layers, |value| {
            seconds((value * 1e9) as u64)
        });
    }

    fn latency(&mut self) {
        let height = 150.0;
        let (least, most) = self.series.points.iter().fold((f64::MAX, 0.0_f64), |(least, most), point| {
            (least.min(point.latency_ns as f64), most.max(point.latency_ns as f64))
        });
        let low = 10_f64.powf(least.clamp(1e3, 1e9).log10().floor());
        let high = 10_f64.powf(most.max(low * 10.0).log10().ceil());
        let bottom = self.top + height;
        let y = |latency_ns: f64| bottom - (latency_ns.max(low) / low).log10() / (high / low).log10() * height;
        let decades = (high / low).log10().round() as i32;
        let ticks: Vec<(f64, String)> = (0..=decades)
            .map(|power| low * 10_f64.powi(power))
            .map(|tick| (y(tick), milliseconds(tick as u64)))
            .collect();
        let classes = Class::ALL.into_iter().filter(|class| self.series.latency[*class as usize].is_some());
        let classes: Vec<Class> = classes.collect();
        let mut legend: Vec<(String, String)> =
            classes.iter().map(|class| (class.name().to_owned(), format!("{} p50, p99", class.name()))).collect();
        legend.push(("info".into(), "unknown".into()));
        legend.push(("fail".into(), "failed".into()));
        self.panel("Latency", height, &ticks, &legend);
        for point in &self.series.points {
            let class = match point.kind {
                Kind::Info => "info",
                Kind::Fail => "fail",
                Kind::Ok | Kind::Invoke => "ok",
            };
            let (x, y) = (self.x(point.time_ns), y(point.latency_ns as f64));
            put!(self.out, r#"<circle cx="{x:.1}" cy="{y:.1}" r="1.6" class="dot {class}"/>"#);
        }
        for class in classes {
            for (which, width) in [("p99", 1.0), ("p50", 2.0)] {
                let of_span = |span: &Span| {
                    span.latency_ns[class as usize].map(|(p50, p99)| if which == "p50" { p50 } else { p99 })
                };
                let mut path = String::new();
                let mut gap = true;
                for (at, span) in self.series.spans.iter().enumerate() {
                    let Some(latency_ns) = of_span(span) else {
                        gap = true;
                        continue;
                    };
                    let (from, to) = self.span_x(at);
                    put!(path, "{}{:.1} {:.1}", if gap { "M" } else { "L" }, (from + to) / 2.0, y(latency_ns as f64));
                    gap = false;
                }
                put!(self.out, r#"<path d="{path}" class="line {}" stroke-width="{width}"/>"#, class.name());
            }
        }
    }

    /// The labels of the time axis, below the last panel.
    fn time_axis(&mut self) {
        let y = self.top - PANEL_GAP + 16.0;
        for tick in nice_ticks_upto(self.end_ns / 1e9, 12.0) {
            let x = self.x((tick * 1e9) as u64);
            put!(self.out, r#"<line x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{:.1}" class="axis"/>"#, y - 16.0, y - 11.0);
            put!(
                self.out,
                r#"<text x="{x:.1}" y="{:.1}" class="label" text-anchor="middle">{}</text>"#,
                y + 2.0,
                seconds((tick * 1e9) as u64)
            );
        }
    }
}

/// One area of a stack.
struct Layer {
    class: String,
    label: String,
    values: Vec<f64>,
}

/// Three or so round numbers from 0 to at least `most`.
fn nice_ticks(most: f64) -> Vec<f64> {
    if most <= 0.0 {
        return vec![0.0];
    }
    let mut ticks = nice_ticks_upto(most, 3.0);
    let step = ticks.get(1).copied().unwrap_or(most);
    if ticks.last().is_some_and(|last| *last < most) {
        ticks.push(step * ticks.len() as f64);
    }
    ticks
}

/// About `count` steps of 1, 2 or 5 times a power of ten, from 0 to at most `most`.
fn nice_ticks_upto(most: f64, count: f64) -> Vec<f64> {
    if most <= 0.0 {
        return vec![0.0];
    }
    let rough = most / count;
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough);
    (0..=(most / step + 1e-9).floor() as u32).map(|at| f64::from(at) * step).collect()
}

/// A colour for a kind of fault; kinds of one family share it.
pub fn fault_class(kind: &str) -> &'static str {
    const FAMILIES: [(&str, &str); 9] = [
        ("kill", "f-kill"),
        ("pause", "f-pause"),
        ("partition", "f-net"),
        ("loss", "f-net"),
        ("delay", "f-net"),
        ("unruly", "f-net"),
        ("clock", "f-clock"),
        ("power", "f-power"),
        ("crash", "f-kill"),
    ];
    FAMILIES.iter().find(|(family, _)| kind.starts_with(family)).map_or("f-disk", |(_, class)| class)
}

fn fault_title(fault: &Fault) -> String {
    let end = fault.stop_ns.map_or("the end, never taken back".to_owned(), seconds);
    let mut title = format!("{} of {}: {} to {end}", fault.kind, fault.targets.join(", "), seconds(fault.start_ns));
    match &fault.confirmed {
        Some((_, evidence)) => put!(title, "\nconfirmed: {evidence}"),
        None => title.push_str("\nnever seen to have happened"),
    };
    match fault.time_to_recover_ns() {
        Some(time_ns) => put!(title, "\nrecovered after {}", milliseconds(time_ns)),
        None => title.push_str("\nno recovery seen"),
    };
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_data() {
        assert_eq!(nice_ticks(0.0), [0.0]);
        assert_eq!(nice_ticks(7.0), [0.0, 5.0, 10.0]);
        assert_eq!(nice_ticks(300.0), [0.0, 100.0, 200.0, 300.0]);
        assert_eq!(nice_ticks_upto(60.0, 10.0).last(), Some(&60.0));
        assert!(nice_ticks(1234.0).last().is_some_and(|last| *last >= 1234.0));
    }
}
