//! What a seed owns, and what it cannot: the conditions under which one seed gives one run.
//!
//! - tokio draws random numbers of its own: for a `select!` that is not `biased`, and for the order in which the receivers of a
//!   `watch` channel wake (`sync/watch.rs`, `big_notify`). turmoil seeds them, with `--cfg tokio_unstable` only. Without it two
//!   runs part within milliseconds. `.cargo/config.toml` sets it; `RUSTFLAGS` in the environment hide that file.
//! - openraft draws from `runtime::ThreadRng`, selects in order and keeps its maps sorted: it replays as it is.
//! - The standard library's hash maps are ordered at random, and the system's clocks and threads go their own ways: none of them
//!   are in this crate, but in the real disk's (`tests/tidy.rs` of the workspace sees to it).
//! - When a host ends, tokio drops its tasks in an order that follows from a counter of the whole process. `net` closes the
//!   connections before, in the order of their making; nothing else of a dying process can be seen from outside.

/// Panics if tokio's own random numbers are not the seed's: then a replay shows nothing, and a test of it that passes even less.
pub(crate) fn assert_tokio_is_seeded() {
    #[allow(unexpected_cfgs)] // It is a flag, not a feature of ours.
    let seeded = cfg!(tokio_unstable);
    assert!(
        seeded,
        "not built with --cfg tokio_unstable, so that seeds do not replay: RUSTFLAGS in the environment hide .cargo/config.toml \
         (add the flag to them)"
    );
}
