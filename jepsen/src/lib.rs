//! Breaks Pontoon on purpose and judges what its clients saw.
//!
//! A [`plan`] is drawn from a seed; the [`runner`] plays it on a [`cluster`] of real brokers, with the clients of a [`workload`] and a
//! [`nemesis`]; the [`recorder`] writes down what happened. [`history`] is what the clients asked and were told, [`timeline`] what was
//! done to the brokers meanwhile; [`checkers`] says what no correct log could have shown; [`verdict`] sums it up and [`report`] tells it
//! to machines and people. A [`campaign`] is many runs. [`run_dir`] is where all that lies on disk. What judges never talks to a broker, and what runs never judges.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod campaign;
pub mod checkers;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod history;
pub mod nemesis;
pub mod plan;
pub mod random;
pub mod recorder;
pub mod registers;
pub mod replicas;
pub mod report;
pub mod run_dir;
pub mod runner;
pub mod start;
#[cfg(test)]
mod testing;
pub mod timeline;
pub mod verdict;
pub mod workload;
