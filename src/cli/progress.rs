//! How far something is that takes long: a line on stderr, where that is a terminal, and nothing anywhere else.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressFinish, ProgressState, ProgressStyle};

/// What has a person see that it goes on.
const TICK: Duration = Duration::from_millis(100);

/// A line by `indicatif`'s template, in which `{rate}` is the number of steps a second. With a number of steps if it is known. It is
/// gone when it is dropped.
pub(super) fn line(steps: Option<u64>, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // The crate's own `{per_sec}` has four decimal places.
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{}/s", HumanCount(state.per_sec() as u64));
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    let line = steps.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    line.with_style(style.with_key("rate", rate)).with_finish(ProgressFinish::AndClear)
}

/// A line that says for how long something has been under way.
pub(super) fn working(what: String) -> ProgressBar {
    let line = line(None, "{spinner} {msg}, {elapsed} so far").with_message(what);
    if !line.is_hidden() {
        line.enable_steady_tick(TICK);
    }
    line
}
