//! Messages in which every field has a value of its own, so that two that are taken for each other are noticed; and such in which some
//! have none.

use bytes::Bytes;

use super::{PassedOver, RecordData, Uuid};

/// Where the values come from.
#[derive(Debug)]
pub struct Samples {
    count: u32,
    booleans: u32,
    round: u32,
    nulls: bool,
    elements: usize,
}

impl Samples {
    /// In how many rounds each boolean of a message is, taken together, unlike any other.
    pub const ROUNDS: u32 = 5;

    /// Everything but the booleans is the same in every round.
    pub fn new(round: u32) -> Self {
        Self { count: 0, booleans: 0, round, nulls: false, elements: 2 }
    }

    /// Null is whatever may be.
    pub fn of_nulls() -> Self {
        Self { nulls: true, ..Self::new(0) }
    }

    /// No array has elements.
    pub fn without_elements() -> Self {
        Self { elements: 0, ..Self::new(0) }
    }

    /// A tagged field; one that has nothing is not there.
    pub fn tagged<T: Sample>(&mut self) -> Option<T> {
        (!self.nulls && self.elements > 0).then(|| T::sample(self))
    }

    fn next(&mut self) -> u32 {
        self.count += 1;
        self.count
    }
}

/// Something that can stand in a message.
pub trait Sample {
    /// Unlike any before it.
    fn sample(samples: &mut Samples) -> Self;
}

impl Sample for bool {
    fn sample(samples: &mut Samples) -> Self {
        samples.booleans += 1;
        assert!(samples.booleans < 1 << Samples::ROUNDS, "too few rounds");
        samples.booleans >> samples.round & 1 == 1
    }
}

impl Sample for i8 {
    fn sample(samples: &mut Samples) -> Self {
        Self::try_from(samples.next()).expect("a message with too many fields")
    }
}

impl Sample for i16 {
    fn sample(samples: &mut Samples) -> Self {
        1000 + i16::try_from(samples.next()).expect("a message with too many fields")
    }
}

impl Sample for i32 {
    fn sample(samples: &mut Samples) -> Self {
        1_000_000 + samples.next() as i32
    }
}

impl Sample for i64 {
    fn sample(samples: &mut Samples) -> Self {
        1_000_000_000_000 + i64::from(samples.next())
    }
}

impl Sample for Uuid {
    fn sample(samples: &mut Samples) -> Self {
        Self(1_000_000_000_000_000_000 + u128::from(samples.next()))
    }
}

impl Sample for String {
    fn sample(samples: &mut Samples) -> Self {
        format!("text {}", samples.next())
    }
}

impl Sample for Bytes {
    fn sample(samples: &mut Samples) -> Self {
        format!("bytes {}", samples.next()).into()
    }
}

impl Sample for RecordData {
    fn sample(samples: &mut Samples) -> Self {
        Self((!samples.nulls).then(|| vec![Sample::sample(samples)]))
    }
}

impl<T: Sample> Sample for Option<T> {
    fn sample(samples: &mut Samples) -> Self {
        (!samples.nulls).then(|| T::sample(samples))
    }
}

impl<T: Sample> Sample for Vec<T> {
    fn sample(samples: &mut Samples) -> Self {
        (0..samples.elements).map(|_| T::sample(samples)).collect()
    }
}

impl<T> Sample for PassedOver<T> {
    fn sample(_: &mut Samples) -> Self {
        Self::default()
    }
}
