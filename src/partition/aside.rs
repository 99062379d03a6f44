//! What keeps a processor busy for long is done aside: large batches are checked, compressed and read, decompressed above all, without
//! keeping those waiting who share the request's worker thread.
//!
//! 64 MiB, which a batch of a few kilobytes may come to, take tens of milliseconds and more: heartbeats, elections and everybody's
//! requests would stand still for so long, as often as somebody likes. So the thread's other tasks are handed to another thread meanwhile.
//! Only so many are aside at a time, in the order in which they came: each may hold what its batch decompresses to, and half of the
//! processors stay with everybody else. Whoever writes waits for a place as long as the request has time, and nothing is written then.
//! Small batches, nearly all of them, are worked on where they are: aside costs more than they do.

use std::sync::LazyLock;

use bytes::Bytes;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::block_in_place;
use tokio::time::{Instant, timeout_at};

use crate::error::{Code, Error};
use crate::record_batch::{Allowance, BatchError, BatchHeader, BatchLimits, Compression, RecordBatch, Records};

/// Bytes, compressed or not, that are worked on at once; what comes to more goes aside.
pub const AT_ONCE_BYTES: usize = 1 << 20;

/// How many bytes that are only looked at take as long as one that is compressed, too. (gzip is the slowest: some tens of megabytes a
/// second.)
pub const RECOMPRESSING: usize = 8;

/// Of the whole process: so are processors, one to a worker thread, and memory.
static PLACES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new((Handle::current().metrics().num_workers() / 2).max(1)));

/// No place was free in time: nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time of the request was over before there was a processor to look at its records; nothing was written")]
pub struct NoPlace;

impl From<NoPlace> for Error {
    fn from(error: NoPlace) -> Self {
        Self::new(Code::TooManyRequests, error.to_string())
    }
}

async fn place(places: &Semaphore, deadline: Instant) -> Result<SemaphorePermit<'_>, NoPlace> {
    // They are never closed.
    timeout_at(deadline, places.acquire()).await.ok().and_then(Result::ok).ok_or(NoPlace)
}

/// A runtime of one thread (a simulation) has nobody to hand its tasks to, and must not depend on others.
fn alone() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}

/// Does what takes long, once there is a place.
pub async fn aside<T>(work: impl FnOnce() -> T) -> T {
    if alone() {
        return work();
    }
    let _place = PLACES.acquire().await;
    block_in_place(work)
}

/// The same, waiting for a place until then.
async fn aside_by<T>(deadline: Instant, work: impl FnOnce() -> T) -> Result<T, NoPlace> {
    if alone() {
        return Ok(work());
    }
    let _place = place(&PLACES, deadline).await?;
    Ok(block_in_place(work))
}

/// Does it aside if so many bytes are many.
pub async fn aside_if_many<T>(bytes: usize, deadline: Instant, work: impl FnOnce() -> T) -> Result<T, NoPlace> {
    if bytes > AT_ONCE_BYTES { aside_by(deadline, work).await } else { Ok(work()) }
}

/// [`RecordBatch::check_within`], begun before the deadline. What a compressed batch comes to shows only by trying: the first so many bytes of a large one are
/// decompressed twice.
pub async fn check_batch(
    bytes: Bytes,
    limits: &BatchLimits,
    stored_as: Option<Compression>,
    allowance: &mut Allowance,
    deadline: Instant,
) -> Result<Result<RecordBatch, BatchError>, NoPlace> {
    let at_once = AT_ONCE_BYTES / cost(&bytes, stored_as);
    let few = limits.decompressed_bytes_max.min(at_once);
    if bytes.len() <= at_once {
        let mut trial = allowance.clone();
        let limits = BatchLimits { decompressed_bytes_max: few, ..*limits };
        match RecordBatch::check_within(bytes.clone(), &limits, stored_as, &mut trial) {
            Err(BatchError::DecompressedTooLarge { .. }) => {}
            checked => {
                *allowance = trial;
                return Ok(checked);
            }
        }
    }
    aside_by(deadline, || RecordBatch::check_within(bytes, limits, stored_as, allowance)).await
}

/// [`RecordBatch::recompressed`], begun before the deadline if it takes anything. `among`: how many bytes, itself included, are compressed
/// for one request without others having their turn; so many small batches are many bytes, too.
pub async fn recompress_batch(
    batch: RecordBatch,
    among: usize,
    limits: &BatchLimits,
    stored_as: Compression,
    deadline: Instant,
) -> Result<Result<RecordBatch, BatchError>, NoPlace> {
    if batch.header().compression() == Ok(stored_as) {
        return Ok(Ok(batch));
    }
    let bytes = among.max(batch.bytes().len()).saturating_mul(cost(batch.bytes(), Some(stored_as)));
    aside_if_many(bytes, deadline, || batch.recompressed(stored_as, limits)).await
}

/// What a byte of a batch costs that is to be stored with this compression.
pub fn cost(batch: &[u8], stored_as: Option<Compression>) -> usize {
    let came_as = BatchHeader::read(batch).and_then(|header| header.compression());
    // As long as its bytes are all there is to write nothing is compressed.
    let compressed = |codec: Compression| codec != Compression::None && came_as != Ok(codec);
    if stored_as.is_some_and(compressed) { RECOMPRESSING } else { 1 }
}

/// Has `work` look at the records of a batch off the log, decompressed to at most `bytes_max`.
pub async fn read_batch<T>(batch: Bytes, bytes_max: usize, work: impl FnOnce(Result<Records, BatchError>) -> T) -> T {
    let bytes = batch.len();
    let batch = match RecordBatch::stored(batch) {
        Ok(batch) => batch,
        Err(error) => return work(Err(error)),
    };
    if bytes <= AT_ONCE_BYTES {
        match batch.records(bytes_max.min(AT_ONCE_BYTES)) {
            Err(BatchError::DecompressedTooLarge { .. }) => {}
            few => return work(few),
        }
    }
    aside(|| work(batch.records(bytes_max))).await
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::sync::SemaphorePermit;

    use super::PLACES;

    /// Takes every place, and holds them: whoever goes aside waits meanwhile, other tests too. (There is one to a runtime of a test's
    /// size.)
    pub(crate) async fn hold_places() -> SemaphorePermit<'static> {
        let mut held = PLACES.acquire().await.unwrap();
        while let Ok(more) = PLACES.try_acquire() {
            held.merge(more);
        }
        held
    }

    /// Takes long: until another task has had its turn on the only worker thread, which is never unless this is done aside.
    pub(crate) fn take_until_others_had_their_turn() {
        assert_eq!(tokio::runtime::Handle::current().metrics().num_workers(), 1);
        let (had, turn) = mpsc::channel();
        tokio::spawn(async move { had.send(()) });
        turn.recv_timeout(Duration::from_secs(30)).expect("nobody else has had their turn");
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use futures_util::poll;

    use super::testing::{hold_places, take_until_others_had_their_turn};
    use super::*;
    use crate::record_batch::testing::{squeezed, zeros};
    use crate::record_batch::{NewRecord, RecordBatchBuilder};

    /// The task itself runs on the worker thread.
    async fn on_the_worker<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
        tokio::spawn(work).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_have_their_turn_while_something_is_done_aside() {
        on_the_worker(aside(take_until_others_had_their_turn)).await;
        let batch = squeezed(&zeros(2));
        let read = read_batch(batch, 64 << 20, |records| {
            take_until_others_had_their_turn();
            records.unwrap().count()
        });
        assert_eq!(on_the_worker(read).await, 2, "it is small, and becomes large");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn small_batches_that_become_large_wait_for_a_place_and_others_do_not() {
        let held = hold_places().await;
        let (small, large) = (squeezed(&zeros(1)), squeezed(&zeros(60)));
        let far = Instant::now() + Duration::from_secs(3600);
        let (limits, mut allowance) = (BatchLimits::default(), Allowance::new(64 << 20));
        check_batch(small.clone(), &limits, None, &mut allowance, far).await.unwrap().unwrap();
        assert_eq!(read_batch(small, 64 << 20, |records| records.unwrap().count()).await, 1);
        {
            let mut checked = pin!(check_batch(large.clone(), &limits, None, &mut allowance, far));
            assert!(poll!(&mut checked).is_pending());
            let mut read = pin!(read_batch(large.clone(), 64 << 20, |records| records.unwrap().count()));
            assert!(poll!(&mut read).is_pending());
            drop(held);
            assert_eq!(checked.await.unwrap().unwrap().header().record_count, 60);
            assert_eq!(read.await, 60);
        }
        let _held = hold_places().await;
        let spent = allowance.spent();
        let late = check_batch(large, &limits, None, &mut allowance, Instant::now()).await;
        assert_eq!((late, allowance.spent()), (Err(NoPlace), spent), "nobody waits for longer than they have");
    }

    /// Whether it is tried first or not: as much is allowed, and as much is spent.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_checked_aside_is_checked_as_elsewhere() {
        let limits = BatchLimits { decompressed_bytes_max: 3 << 20, ..BatchLimits::default() };
        let far = Instant::now() + Duration::from_secs(3600);
        for (records, left) in [(1, 9 << 20), (2, 9 << 20), (2, 1 << 20), (1, 1000), (4, 9 << 20), (4, 2 << 20)] {
            for stored_as in [None, Some(Compression::None), Some(Compression::Snappy), Some(Compression::Zstd)] {
                let batch = squeezed(&zeros(records));
                let (mut one, mut other) = (Allowance::new(left), Allowance::new(left));
                let checked = check_batch(batch.clone(), &limits, stored_as, &mut one, far).await.unwrap();
                let wanted = RecordBatch::check_within(batch, &limits, stored_as, &mut other);
                let case = format!("{records} records, {left} bytes left, stored as {stored_as:?}");
                assert_eq!((checked, one.spent()), (wanted, other.spent()), "{case}");
            }
        }
    }

    /// A million bytes are few to look at and many to compress.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn less_is_compressed_than_looked_at_before_others_have_their_turn() {
        let held = hold_places().await;
        let far = Instant::now() + Duration::from_secs(3600);
        let (limits, mut allowance) = (BatchLimits::default(), Allowance::new(64 << 20));
        let (plain, packed) = (zeros(1), squeezed(&zeros(1)));
        for (batch, free, compressed) in
            [(&plain, Compression::None, Compression::Lz4), (&packed, Compression::Zstd, Compression::Lz4)]
        {
            for stored_as in [None, Some(free)] {
                let as_it_came = check_batch(batch.clone(), &limits, stored_as, &mut allowance, far).await.unwrap();
                assert_eq!(as_it_came.unwrap().bytes(), batch);
            }
            let now = Instant::now();
            let late = check_batch(batch.clone(), &limits, Some(compressed), &mut allowance, now).await;
            assert_eq!(late, Err(NoPlace));
        }
        let made = RecordBatch::check(plain, &limits).unwrap();
        let mut waits = pin!(recompress_batch(made.clone(), 0, &limits, Compression::Lz4, far));
        assert!(poll!(&mut waits).is_pending());
        assert_eq!(recompress_batch(made.clone(), 0, &limits, Compression::None, far).await, Ok(Ok(made)));
        let mut builder = RecordBatchBuilder::new(limits);
        builder.push(&NewRecord::default()).unwrap();
        let small = builder.build(None).unwrap();
        let among_few = recompress_batch(small.clone(), 1000, &limits, Compression::Lz4, far).await;
        assert_eq!(among_few.unwrap().unwrap().header().compression(), Ok(Compression::Lz4));
        assert_eq!(recompress_batch(small, 1 << 20, &limits, Compression::Lz4, Instant::now()).await, Err(NoPlace));
        drop(held);
        assert_eq!(waits.await.unwrap().unwrap().header().compression(), Ok(Compression::Lz4));
    }

    #[tokio::test]
    async fn one_thread_does_it_where_it_is() {
        assert_eq!(aside_if_many(AT_ONCE_BYTES + 1, Instant::now(), || 7).await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_waited_for_until_the_deadline_and_no_longer() {
        let places = Semaphore::new(1);
        let began = Instant::now();
        let deadline = began + Duration::from_secs(7);
        let first = place(&places, deadline).await.unwrap();
        assert!(place(&places, deadline).await.is_err());
        assert_eq!(Instant::now(), deadline);
        drop(first);
        assert!(place(&places, began).await.is_ok(), "what is free is taken, however late it is");
    }
}
