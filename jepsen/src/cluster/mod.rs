//! Real brokers on hosts of their own, on one machine: a network namespace with its own address and a small ext4 with the data for each.
//!
//! [`preflight`] says whether this machine can do it and what to install. [`isolation`] starts the harness anew inside namespaces of its
//! own, so that the kernel takes everything away when it ends, however it ends. [`network`], [`disk`] and [`broker`] are the three
//! parts of a host, [`netem`] and [`tracer`] make its links and its fsyncs bad, [`admin`] asks the brokers how they are. Nothing here chooses what to break.

pub mod admin;
pub mod broker;
pub mod command;
pub mod disk;
pub mod host;
pub mod isolation;
pub mod kernel;
pub mod netem;
pub mod network;
pub mod preflight;
pub mod tracer;

use std::fmt;

pub use host::{Cluster, Host, Tuning};

/// Something that the harness itself could not do. Never says anything about the brokers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HarnessError(pub String);

impl HarnessError {
    /// What failed, and how.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

/// What a part of the harness gives back.
pub type Harness<T> = Result<T, HarnessError>;

/// Turns an error into one of the harness, with what was being done.
pub trait Doing<T> {
    /// Names what was being done.
    fn doing(self, what: impl fmt::Display) -> Harness<T>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Harness<T> {
        self.map_err(|error| HarnessError::new(what, error))
    }
}
