//! Breaks Pontoon on purpose and judges what its clients saw.
//!
//! [`history`] is what the clients asked and were told, [`timeline`] what was done to the brokers meanwhile; [`checkers`] says what no
//! correct log could have shown; [`verdict`] sums it up and [`report`] tells it to machines and people. [`run_dir`] is where all
//! that lies on disk. Nothing here talks to a broker, and nothing judges by a clock other than the run's own.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod checkers;
pub mod cli;
pub mod history;
pub mod report;
pub mod run_dir;
#[cfg(test)]
mod testing;
pub mod timeline;
pub mod verdict;
