//! A replica's high watermark never goes back while its process lives.

use std::collections::BTreeMap;

use super::Invariant;
use crate::event::{Event, Replica};

/// The last one shown.
#[derive(Default)]
pub(super) struct HighWatermark(BTreeMap<Replica, u64>);

impl Invariant for HighWatermark {
    fn name(&self) -> &'static str {
        "high_watermark"
    }

    fn see(&mut self, event: &Event<'_>) -> Result<(), String> {
        let Event::Watermark { by, high_watermark } = *event else { return Ok(()) };
        let before = self.0.insert(by, high_watermark).unwrap_or(0);
        if before <= high_watermark {
            Ok(())
        } else {
            Err(format!("{by:?}: it went from {before} to {high_watermark}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::replica;

    #[test]
    fn it_may_begin_anew_in_another_life_only() {
        let mut invariant = HighWatermark::default();
        let by = replica(1);
        invariant.see(&Event::Watermark { by, high_watermark: 7 }).unwrap();
        invariant.see(&Event::Watermark { by: Replica { life: 2, ..by }, high_watermark: 3 }).unwrap();
        invariant.see(&Event::Watermark { by, high_watermark: 6 }).unwrap_err();
    }
}
