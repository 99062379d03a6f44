//! Elections after a death: the survivors choose at once, instead of waiting for timers (RULES.md R3).

pub mod choice;
