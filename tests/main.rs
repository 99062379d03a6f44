//! What only the whole can show, linked as one binary: each module here is one theme.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod alter;
mod cli;
mod exactly_once;
mod hostile;
mod http;
mod kafka_cluster;
mod kafka_hostile;
mod kafka_semantics;
mod lifecycle;
mod observability;
mod operator;
mod peers;
mod recover;
mod repair;
mod retention;
mod support;
mod tidy;
