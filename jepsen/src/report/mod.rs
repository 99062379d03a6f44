//! The report of a run: `results.json` for machines and `report.html` for people, one page that needs no network.
//!
//! [`series`] makes numbers over time, [`evidence`] cuts operations down to what matters, [`chart`] draws, [`html`] lays the page out. It
//! decides nothing: the verdict is [`crate::verdict`]'s.

pub mod chart;
pub mod evidence;
pub mod html;
pub mod results;
pub mod series;
pub mod text;

use series::Series;

use crate::verdict::{Judgement, Run};

/// Both documents.
#[derive(Clone, Debug)]
pub struct Report {
    /// `results.json`
    pub results_json: String,
    /// `report.html`
    pub html: String,
}

impl Report {
    /// Tells a judged run. The error is that of writing JSON.
    pub fn new(run: &Run, judgement: &Judgement) -> Result<Self, serde_json::Error> {
        let series = run.history.as_ref().ok().map(Series::new);
        Ok(Self {
            results_json: results::document(run, judgement, series.as_ref())?,
            html: html::page(run, judgement, series.as_ref()),
        })
    }
}
