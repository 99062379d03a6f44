//! Pontoon's replicated log: many Raft groups on one data directory, over one journal.
//!
//! This crate knows no topic, no HTTP and no Kafka. What it must know of its payload is in [`payload`].

pub mod checkpoint;
mod checkpointer;
pub mod codec;
pub mod config;
pub mod data_dir;
pub mod disk;
pub mod elections;
pub mod error;
pub mod healed;
mod heartbeats;
pub mod inspect;
pub mod instruments;
pub mod journal;
pub mod log;
pub mod log_store;
pub mod payload;
pub mod raft_group;
pub mod raft_groups;
mod recovery;
mod repair;
pub mod runtime;
#[cfg(any(test, feature = "simulation"))]
pub mod sabotage;
mod scrub;
mod segment_writer;
pub mod stages;
pub mod state_machine;
mod stop;
pub mod store;
mod supervision;
pub mod survivor;
#[cfg(any(test, feature = "simulation"))]
pub mod testing;
pub mod transport;
pub mod types;
pub mod vital;
