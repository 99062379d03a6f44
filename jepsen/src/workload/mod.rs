//! What the clients of a run do: send, poll, read linearizably, crash, and at the end read everything.
//!
//! [`worker`] is one client after another in one place, [`steps`] one operation from invocation to completion as it goes into the history,
//! [`final_reads`] the end; [`churn`] makes
//! topics come and go beside it. They know the [`crate::client`] trait and nothing of the brokers or of what is done to them.

pub mod churn;
pub mod final_reads;
pub mod steps;
pub mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::history::{Key, Value};

/// Makes values that no key was ever sent before.
#[derive(Clone)]
pub struct Values(Arc<Vec<AtomicI64>>);

impl Values {
    /// For keys `0..keys`.
    pub fn new(keys: usize) -> Self {
        Self(Arc::new((0..keys).map(|_| AtomicI64::new(0)).collect()))
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.0.len()
    }

    /// The next value of a key.
    pub fn next(&self, key: Key) -> Value {
        Value(self.0[key.0 as usize].fetch_add(1, Ordering::Relaxed))
    }
}

/// How large the record of a value is made, in bytes: most are small, some as large as makes the brokers do other things (a large
/// append does not go through the journal).
pub fn record_bytes(value: Value) -> usize {
    match value.0 % 97 {
        13 => 20_000,
        41 => 3_000,
        other => (other % 7) as usize * 20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_gets_a_value_twice() {
        let values = Values::new(2);
        let other = values.clone();
        assert_eq!([values.next(Key(0)), other.next(Key(0)), values.next(Key(1))], [Value(0), Value(1), Value(0)]);
    }
}
