//! The `pontoon` binary.

fn main() {}
