//! Pontoon: a Raft-replicated log broker in which every partition is its own Raft group.

pub mod api;
pub mod broker;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod controller;
pub mod coordinator;
pub mod error;
pub mod http;
pub mod kafka;
mod nearest;
pub mod partition;
pub mod record_batch;
pub mod telemetry;
