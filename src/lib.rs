//! Pontoon: a Raft-replicated log broker in which every partition is its own Raft group.

pub mod broker;
pub mod config;
pub mod error;
pub mod partition;
pub mod record_batch;
