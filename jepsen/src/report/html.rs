//! `report.html`: the page for people. The verdict first, then what is wrong with its evidence, then the run over time, then every
//! fault and every checker.

use super::chart::{self, Mark};
use super::evidence::{Neighbourhood, brief, neighbourhood, words};
use super::series::{Class, Series};
use super::text::{escape, milliseconds, plural, put, seconds, thousands};
use crate::checkers::analysis::Analysis;
use crate::checkers::{CHECKERS, Case, Outcome};
use crate::history::History;
use crate::timeline::{Fault, Timeline};
use crate::verdict::{Judgement, Run, Verdict};

/// How many cases of one anomaly are told at length; the others are a line each.
const CASES_AT_LENGTH: usize = 4;

/// The whole page.
pub fn page(run: &Run, judgement: &Judgement, series: Option<&Series>) -> String {
    let none = Timeline::default();
    let timeline = run.timeline.as_ref().unwrap_or(&none);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{}: {}</title><style>{}</style>\n<main>",
        judgement.verdict.name(),
        escape(&run.info.name),
        include_str!("style.css")
    );
    header(&mut out, run, judgement, series, timeline);
    reasons(&mut out, "What brokers may never do", &judgement.accusations);
    let besides = if judgement.verdict == Verdict::Anomalies { "Besides, unknown" } else { "Unknown, because" };
    reasons(&mut out, besides, &judgement.unknowns);
    let besides = if judgement.verdict == Verdict::Rejected { "Rejected, because" } else { "Besides, rejected" };
    reasons(&mut out, besides, &judgement.rejections);
    if let (Ok(history), Some(series)) = (&run.history, series) {
        tiles(&mut out, history, series, timeline);
        let analysis = Analysis::new(history);
        anomalies(&mut out, &analysis, &judgement.outcomes);
        out.push_str("<section><h2>The run over time</h2>");
        out.push_str(&chart::draw(series, timeline, &marks(history, &judgement.outcomes), history.end_ns()));
        out.push_str("</section>");
    }
    faults(&mut out, timeline);
    checkers(&mut out, &judgement.outcomes);
    notes(&mut out, timeline, run);
    out.push_str(
        "<footer>Judged from <code>run.json</code>, <code>history.edn</code> (Jepsen's EDN, one event a line) and \
         <code>timeline.jsonl</code> beside this page. To judge again: <code>pontoon-jepsen --replay DIR</code>. \
         The figures are in <code>results.json</code>.</footer></main></html>\n",
    );
    out
}

fn header(out: &mut String, run: &Run, judgement: &Judgement, series: Option<&Series>, timeline: &Timeline) {
    let (class, word) = match judgement.verdict {
        Verdict::Valid => ("valid", "Valid"),
        Verdict::Anomalies => ("anomalies", "Anomalies"),
        Verdict::Rejected => ("rejected", "Rejected"),
        Verdict::Unknown => ("unknown", "Unknown"),
    };
    let info = &run.info;
    put!(out, r#"<header class="{class}"><div class="badge">{word}</div><div><h1>{}</h1>"#, escape(&info.name));
    put!(out, "<p class=\"lead\">{}</p>", escape(&lead(judgement, series, timeline)));
    let row = info.workload.row();
    put!(
        out,
        "<p class=\"meta\"><span>{}</span><span>workload <b>{}</b>: {}</span><span>seed <b>{}</b></span></p></div></header>",
        plural(info.nodes as usize, "broker", "brokers"),
        row.name,
        row.summary,
        info.seed
    );
}

/// The verdict in a sentence.
fn lead(judgement: &Judgement, series: Option<&Series>, timeline: &Timeline) -> String {
    let operations = series.map_or(0, |series| series.ended.iter().flatten().sum::<u64>());
    let wrong: Vec<&Outcome> = judgement.outcomes.iter().filter(|o| !o.allowed && o.findings.count > 0).collect();
    let operations = plural(operations as usize, "operation", "operations");
    match judgement.verdict {
        Verdict::Anomalies => {
            let accused = judgement.accusations.len();
            let cases = accused + wrong.iter().map(|outcome| outcome.findings.count).sum::<usize>();
            let names = wrong.iter().map(|outcome| outcome.anomaly.name());
            let names = names.chain((accused > 0).then_some("brokers accused")).collect::<Vec<_>>().join(", ");
            format!("{} in {operations}: {names}.", plural(cases, "thing that must not be", "things that must not be"))
        }
        Verdict::Valid if timeline.faults.is_empty() => {
            format!("Nothing wrong in {operations}; no fault was injected.")
        }
        Verdict::Valid => format!(
            "Nothing wrong in {operations}; {} really happened, and the cluster recovered from each.",
            plural(timeline.faults.len(), "fault", "faults")
        ),
        Verdict::Rejected => format!("Nothing wrong in {operations}, but the run did not do what it was meant to."),
        Verdict::Unknown => "The harness failed; this run says nothing about the brokers.".to_owned(),
    }
}

fn reasons(out: &mut String, title: &str, reasons: &[String]) {
    if reasons.is_empty() {
        return;
    }
    put!(out, "<section class=\"reasons\"><h2>{title}</h2><ul>");
    for reason in reasons {
        put!(out, "<li>{}</li>", escape(reason));
    }
    out.push_str("</ul></section>");
}

fn tiles(out: &mut String, history: &History, series: &Series, timeline: &Timeline) {
    let [ok, info, fail] = [0, 1, 2].map(|outcome| series.ended.iter().map(|by| by[outcome]).sum::<u64>());
    let all = (ok + info + fail).max(1);
    let confirmed = timeline.faults.iter().filter(|fault| fault.confirmed.is_some()).count();
    let worst = timeline.faults.iter().filter_map(Fault::time_to_recover_ns).max();
    let p99 = |class: Class| series.latency[class as usize].map(|latency| latency.p99_ns);
    let lag_ns = series.spans.iter().filter_map(|span| span.lag_ns).max().unwrap_or(0);
    let (unseen, unseen_worst) = series.unseen();
    out.push_str("<section class=\"tiles\">");
    let mut tile = |number: String, name: &str, more: String| {
        let class = if name.starts_with("unread") && number != "0" { " class=\"bad\"" } else { "" };
        put!(out, "<div{class}><b>{number}</b><span>{name}</span><small>{more}</small></div>");
    };
    let split = format!(
        "{:.1} % ok, {} unknown, {} failed",
        100.0 * ok as f64 / all as f64,
        thousands(info as f64),
        thousands(fail as f64)
    );
    tile(thousands((ok + info + fail) as f64), "operations", split);
    let pace = ok as f64 / (history.end_ns() as f64 / 1e9).max(1e-9);
    let processes = plural(series.processes, "process", "processes");
    tile(seconds(history.end_ns()), "long", format!("{} ok per second, {processes}", thousands(pace)));
    let read = format!(
        "read {} times; {}",
        thousands(series.records.1 as f64),
        plural(series.linearizable_reads as usize, "linearizable read", "linearizable reads")
    );
    tile(thousands(series.records.0 as f64), "values acknowledged", read);
    tile(format!("{confirmed} / {}", timeline.faults.len()), "faults confirmed", kinds(timeline));
    tile(
        worst.map_or("–".to_owned(), milliseconds),
        "worst recovery",
        "from a fault's end to a working cluster".to_owned(),
    );
    let slowest = Class::ALL.into_iter().filter_map(|class| Some((class, p99(class)?)));
    let latencies: Vec<_> = slowest.map(|(class, ns)| format!("{} {}", class.name(), milliseconds(ns))).collect();
    let worst_p99 = Class::ALL.into_iter().filter_map(p99).max();
    tile(worst_p99.map_or("–".to_owned(), milliseconds), "p99 latency", latencies.join(", "));
    tile(
        thousands(unseen as f64),
        "unread at the end",
        format!("at most {} at any time", thousands(unseen_worst as f64)),
    );
    tile(milliseconds(lag_ns), "worst lag", "of a reader that had caught up once".to_owned());
    out.push_str("</section>");
}

fn kinds(timeline: &Timeline) -> String {
    let mut kinds: Vec<&str> = timeline.faults.iter().map(|fault| fault.kind.as_str()).collect();
    kinds.sort_unstable();
    // By family: the table below has every single one.
    let family = |kind: &str| kind.split('-').next().unwrap_or_default().to_owned();
    let families = kinds.chunk_by(|a, b| family(a) == family(b));
    let of_family = families.map(|kinds| format!("{} {}", kinds.len(), escape(&family(kinds[0]))));
    of_family.collect::<Vec<_>>().join(", ")
}

fn marks(history: &History, outcomes: &[Outcome]) -> Vec<Mark> {
    let mut marks = Vec::new();
    for outcome in outcomes {
        for case in &outcome.findings.cases {
            let Some(event) = case.events.iter().max() else { continue };
            let title = format!("{}: {}", outcome.anomaly.name(), case.message);
            marks.push(Mark { time_ns: history.events()[*event].time_ns, title, allowed: outcome.allowed });
        }
    }
    // What is not allowed is drawn last, on top.
    marks.sort_by_key(|mark| std::cmp::Reverse(mark.allowed));
    marks
}

fn anomalies(out: &mut String, analysis: &Analysis<'_>, outcomes: &[Outcome]) {
    let mut found: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.findings.count > 0).collect();
    found.sort_by_key(|outcome| outcome.allowed);
    if found.is_empty() {
        return;
    }
    out.push_str("<section><h2>What was found</h2>");
    for (at, outcome) in found.into_iter().enumerate() {
        let (class, word) = if outcome.allowed { ("allowed", "allowed here") } else { ("bad", "must not be") };
        let open = if at == 0 && !outcome.allowed { " open" } else { "" };
        put!(
            out,
            "<details class=\"anomaly {class}\"{open}><summary><b>{}</b><span>{}</span><i>{word}</i><small>{}</small></summary>",
            outcome.anomaly.name(),
            plural(outcome.findings.count, "case", "cases"),
            escape(summary_of(outcome))
        );
        for case in outcome.findings.cases.iter().take(CASES_AT_LENGTH) {
            case_at_length(out, analysis, outcome, case);
        }
        let rest = outcome.findings.cases.get(CASES_AT_LENGTH..).unwrap_or_default();
        if !rest.is_empty() {
            out.push_str("<ul class=\"more\">");
            for case in rest {
                put!(out, "<li>{} <small>{}</small></li>", escape(&case.message), event_numbers(case));
            }
            let untold = outcome.findings.count - outcome.findings.cases.len();
            if untold > 0 {
                put!(out, "<li>and {} more</li>", thousands(untold as f64));
            }
            out.push_str("</ul>");
        }
        out.push_str("</details>");
    }
    out.push_str("</section>");
}

fn summary_of(outcome: &Outcome) -> &'static str {
    CHECKERS.iter().find(|checker| checker.anomaly == outcome.anomaly).map_or("", |checker| checker.summary)
}

fn event_numbers(case: &Case) -> String {
    let numbers: Vec<String> = case.events.iter().map(|event| format!("#{event}")).collect();
    numbers.join(" ")
}

fn case_at_length(out: &mut String, analysis: &Analysis<'_>, outcome: &Outcome, case: &Case) {
    out.push_str("<article>");
    let steps: Vec<&str> = case.message.split("; ").collect();
    if steps.len() > 1 {
        out.push_str("<ol class=\"cycle\">");
        steps.iter().for_each(|step| {
            put!(out, "<li>{}</li>", escape(step.trim_end_matches(": a circle")));
        });
        out.push_str("</ol><p>… and so on, in a circle.</p>");
    } else {
        put!(out, "<p class=\"what\">{}.</p>", escape(&case.message));
    }
    if let Some(window) = neighbourhood(analysis, outcome.anomaly, case) {
        table(out, analysis.history, &window);
    }
    out.push_str("<div class=\"events\">");
    for event in &case.events {
        let event = &analysis.history.events()[*event];
        put!(
            out,
            "<div><span>{}</span><code>{}</code></div>",
            seconds_exact(event.time_ns),
            escape(&brief(event, case))
        );
    }
    out.push_str("</div></article>");
}

fn seconds_tenths(ns: u64) -> String {
    format!("{:.1} s", ns as f64 / 1e9)
}

fn seconds_exact(ns: u64) -> String {
    format!("{:.4} s", ns as f64 / 1e9)
}

/// The window of the log: a row for each operation, a column for each offset.
fn table(out: &mut String, history: &History, window: &Neighbourhood) {
    put!(out, "<div class=\"scroll\"><table class=\"window\"><tr><th>key {}</th><th>offset</th>", window.key.0);
    for (offset, about) in &window.columns {
        put!(out, "<th{}>{}</th>", if *about { " class=\"about\"" } else { "" }, offset.0);
    }
    out.push_str("</tr>");
    for row in &window.rows {
        let event = &history.events()[row.event];
        let named = if row.named { " class=\"named\"" } else { "" };
        put!(
            out,
            "<tr{named}><td>#{} · {}</td><td>process {} · {}</td>",
            row.event,
            words(event),
            event.process.0,
            seconds_exact(event.time_ns)
        );
        let seen: Vec<usize> = (0..row.cells.len()).filter(|at| !row.cells[*at].is_empty()).collect();
        let (first, last) = (seen.first().copied().unwrap_or(usize::MAX), seen.last().copied().unwrap_or(0));
        for (at, cell) in row.cells.iter().enumerate() {
            let hole = cell.is_empty() && at > first && at < last;
            let class = match cell.as_slice() {
                [] if hole => "hole",
                [] => "",
                [_, _, ..] => "both",
                [(_, true)] => "wrote",
                [(_, false)] => "read",
            };
            let values: Vec<String> =
                cell.iter().map(|(value, wrote)| format!("{}{}", if *wrote { "w" } else { "r" }, value.0)).collect();
            put!(out, "<td class=\"{class}\">{}</td>", if hole { "missing".to_owned() } else { values.join(" ") });
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
}

fn faults(out: &mut String, timeline: &Timeline) {
    if timeline.faults.is_empty() {
        return;
    }
    let worst_ns = timeline.faults.iter().filter_map(Fault::time_to_recover_ns).max().unwrap_or(0).max(1);
    out.push_str(
        "<section><h2>Faults</h2><div class=\"scroll\"><table class=\"faults\"><tr><th>fault<th>of<th>began<th>lasted\
         <th>seen to have happened<th>time to recover<th></tr>",
    );
    for fault in &timeline.faults {
        let lasted = fault
            .stop_ns
            .map_or("<em>never taken back</em>".to_owned(), |stop_ns| milliseconds(stop_ns - fault.start_ns));
        let confirmed = fault.confirmed.as_ref().map_or("<em>no</em>".to_owned(), |(_, evidence)| escape(evidence));
        put!(
            out,
            "<tr><td class=\"kind\"><i class=\"swatch {}\"></i>{}</td><td title=\"{}\">{}</td><td>{}</td><td>{lasted}</td><td>{confirmed}</td>",
            chart::fault_class(&fault.kind),
            escape(&fault.kind),
            escape(&fault.targets.join(", ")),
            escape(&few(&fault.targets)),
            seconds_tenths(fault.start_ns)
        );
        match fault.time_to_recover_ns() {
            Some(time_ns) => {
                let width = 100.0 * time_ns as f64 / worst_ns as f64;
                let evidence = fault.recovered.as_ref().map_or("", |(_, evidence)| evidence);
                put!(
                    out,
                    "<td class=\"number\">{}</td><td class=\"bar\" title=\"{}\"><i class=\"{}\" style=\"width:{width:.1}%\"></i></td></tr>",
                    milliseconds(time_ns),
                    escape(evidence),
                    chart::fault_class(&fault.kind)
                );
            }
            None => out.push_str("<td><em>no recovery seen</em></td><td></td></tr>"),
        }
    }
    out.push_str("</table></div></section>");
}

/// Targets, shortened if they are many.
fn few(targets: &[String]) -> String {
    match targets {
        [first, second, .., last] if targets.len() > 8 => {
            format!("{first}, {second}, … {last}: {} in all", targets.len())
        }
        _ => targets.join(", "),
    }
}

/// What was tested besides the history, in the run's own words.
fn notes(out: &mut String, timeline: &Timeline, run: &Run) {
    let mut lines: Vec<String> = timeline.notes.iter().map(|(_, text)| escape(text)).collect();
    if let Ok(Some(registers)) = &run.registers {
        let [ok, fail, info] = registers.ended;
        let ops = thousands((ok + fail + info) as f64);
        lines.push(format!("{ops} operations on consumer groups' offsets: {ok} ok, {info} unknown, {fail} failed"));
    }
    if lines.is_empty() {
        return;
    }
    out.push_str("<section><h2>Besides the history</h2><ul class=\"notes\">");
    lines.iter().for_each(|line| put!(out, "<li>{line}</li>"));
    out.push_str("</ul></section>");
}

fn checkers(out: &mut String, outcomes: &[Outcome]) {
    if outcomes.is_empty() {
        return;
    }
    out.push_str("<section><h2>What was checked</h2><div class=\"checkers\">");
    for outcome in outcomes {
        let (class, word) = match (outcome.findings.count, outcome.allowed) {
            (0, _) => ("none", "none".to_owned()),
            (count, true) => ("allowed", format!("{} allowed", thousands(count as f64))),
            (count, false) => ("bad", thousands(count as f64)),
        };
        put!(
            out,
            "<div class=\"{class}\"><b>{}</b><i>{word}</i><small>{}</small></div>",
            outcome.anomaly.name(),
            escape(summary_of(outcome))
        );
    }
    out.push_str("</div></section>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::workloads::Workload;
    use crate::report::Report;
    use crate::testing::{a_fault, plant, simple_log};
    use crate::verdict::{RunInfo, judge};

    fn run(history: Result<History, String>) -> Run {
        let evil = "<script src=\"http://x\">".to_owned();
        let fault = Fault { confirmed: Some((0, evil.clone())), targets: vec![evil.clone()], ..a_fault("kill<b>") };
        let end_ns = history.as_ref().map_or(0, History::end_ns);
        let timeline = Timeline {
            faults: vec![fault],
            phases: vec![(end_ns / 2, evil.clone())],
            notes: vec![(end_ns / 2, evil.clone())],
            harness_errors: vec![(1, evil.clone())],
            untested: vec![(1, evil.clone())],
            accusations: vec![(1, evil.clone())],
            end_ns: Some(end_ns),
        };
        let info = RunInfo { name: evil, workload: Workload::Single, seed: 1, nodes: 3, faults_planned: vec![] };
        Run { info, history, timeline: Ok(timeline), registers: Ok(None) }
    }

    fn html(run: &Run) -> String {
        Report::new(run, &judge(run)).unwrap().html
    }

    #[test]
    fn the_page_needs_no_network_and_runs_no_script() {
        let mut events = plant::loss(&simple_log(1)).0.events().to_vec();
        events.iter_mut().filter(|event| event.kind != crate::history::Kind::Invoke).for_each(|event| {
            event.error = Some("<img src=x onerror=alert(1)>".to_owned());
        });
        let page = html(&run(Ok(History::new(events).unwrap())));
        for forbidden in ["<script", "<img", "<link", "http://x\"", "url(", "@import", "kill<b>"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn a_lost_write_is_told_with_its_operations() {
        let (history, planted) = plant::loss(&simple_log(1));
        let page = html(&run(Ok(history)));
        assert!(page.contains("<b>lost-write</b><span>1 case</span>"));
        assert!(page.contains(&format!("{} at offset {} of key", planted.values[0].0, planted.offsets[0].0)));
        assert!(page.contains(&format!("{{:index {}, ", planted.events[0])));
        assert!(page.contains(">missing</td>"));
    }

    #[test]
    fn a_run_without_history_still_has_a_page() {
        let page = html(&run(Err("history line 7: no".to_owned())));
        assert!(page.contains("<li>history line 7: no</li>") && page.contains("Besides, unknown"));
    }

    #[test]
    fn an_empty_history_still_has_a_page() {
        assert!(html(&run(Ok(History::new(Vec::new()).unwrap()))).contains("nothing was tested"));
    }
}
