//! Brokers as a whole, several in one process on loopback, on real disks: what only they show together.

mod changes;
mod cluster;
mod expiry;
mod forming;
mod lost;
mod serving;
