//! What keeps a processor busy for long is done aside: large batches are checked and read, decompressed above all, without keeping those
//! waiting who share the request's worker thread.
//!
//! 64 MiB, which a batch of a few kilobytes may come to, take tens of milliseconds and more: heartbeats, elections and everybody's
//! requests would stand still for so long, as often as somebody likes. So the thread's other tasks are handed to another thread meanwhile.
//! Only so many are aside at a time, in the order in which they came: each may hold what its batch decompresses to, and half of the
//! processors stay with everybody else. Small batches, nearly all of them, are worked on where they are: aside costs more than they do.

use std::sync::LazyLock;

use bytes::Bytes;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::task::block_in_place;

use crate::record_batch::{Allowance, BatchError, BatchLimits, RecordBatch, Records};

/// Bytes, compressed or not, that are worked on at once; what comes to more goes aside.
pub const AT_ONCE_BYTES: usize = 1 << 20;

/// Of the whole process: so are processors, one to a worker thread, and memory.
static PLACES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new((Handle::current().metrics().num_workers() / 2).max(1)));

/// Does what takes long. A runtime of one thread (a simulation) has nobody to hand its tasks to, and must not depend on others.
pub async fn aside<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    // It is never closed.
    let _place = PLACES.acquire().await;
    block_in_place(work)
}

/// Does it aside if so many bytes are many.
pub async fn aside_if_many<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes > AT_ONCE_BYTES { aside(work).await } else { work() }
}

/// [`RecordBatch::check_within`]. What a compressed batch comes to shows only by trying: the first so many bytes of a large one are
/// decompressed twice.
pub async fn check_batch(
    bytes: Bytes,
    limits: &BatchLimits,
    allowance: &mut Allowance,
) -> Result<RecordBatch, BatchError> {
    let few = limits.decompressed_bytes_max.min(AT_ONCE_BYTES);
    if bytes.len() <= AT_ONCE_BYTES {
        let mut trial = allowance.clone();
        let limits = BatchLimits { decompressed_bytes_max: few, ..*limits };
        match RecordBatch::check_within(bytes.clone(), &limits, &mut trial) {
            Err(BatchError::DecompressedTooLarge { .. }) => {}
            checked => {
                *allowance = trial;
                return checked;
            }
        }
    }
    aside(|| RecordBatch::check_within(bytes, limits, allowance)).await
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::yield_now;

    /// Does some work on the only worker thread, and counts how often another task of it has its turn meanwhile.
    pub(crate) async fn turns_beside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> (usize, T) {
        assert_eq!(tokio::runtime::Handle::current().metrics().num_workers(), 1);
        let turns = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                counting.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        });
        let working = tokio::spawn(async move {
            let before = turns.load(Ordering::Relaxed);
            let done = work.await;
            (turns.load(Ordering::Relaxed) - before, done)
        });
        let counted = working.await.unwrap();
        other.abort();
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::testing::turns_beside;
    use super::*;
    use crate::record_batch::{NewRecord, RecordBatchBuilder};

    /// A batch of so many records of a million zeros, compressed.
    fn squeezed(records: usize) -> Bytes {
        let limits = BatchLimits { batch_bytes_max: 80 << 20, ..BatchLimits::default() };
        let mut builder = RecordBatchBuilder::new(limits);
        let record = NewRecord { value: Some(vec![0; 1_000_000].into()), ..NewRecord::default() };
        (0..records).for_each(|_| builder.push(&record).unwrap());
        let plain = builder.build(None).unwrap().into_bytes();
        let mut batch = plain[..61].to_vec();
        batch.extend(zstd::stream::encode_all(&plain[61..], 3).unwrap());
        batch[22] = 4;
        let length = (batch.len() - 12) as i32;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        batch.into()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_have_their_turn_while_a_small_batch_becomes_large() {
        let batch = squeezed(60);
        let checked = batch.clone();
        let (turns, checked) =
            turns_beside(
                async move { check_batch(checked, &BatchLimits::default(), &mut Allowance::new(64 << 20)).await },
            )
            .await;
        assert!(turns > 100, "{turns} turns beside a check");
        assert_eq!(checked.unwrap().header().record_count, 60);
        let (turns, count) = turns_beside(read_batch(batch, 64 << 20, |records| records.unwrap().count())).await;
        assert!(turns > 100, "{turns} turns beside a read");
        assert_eq!(count, 60);
    }

    /// Whether it is tried first or not: as much is allowed, and as much is spent.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_checked_aside_is_checked_as_elsewhere() {
        let limits = BatchLimits { decompressed_bytes_max: 3 << 20, ..BatchLimits::default() };
        for (records, left) in [(1, 9 << 20), (2, 9 << 20), (2, 1 << 20), (1, 1000), (4, 9 << 20), (4, 2 << 20)] {
            let batch = squeezed(records);
            let (mut one, mut other) = (Allowance::new(left), Allowance::new(left));
            let checked = check_batch(batch.clone(), &limits, &mut one).await;
            let wanted = RecordBatch::check_within(batch, &limits, &mut other);
            assert_eq!((checked, one.spent()), (wanted, other.spent()), "{records} records, {left} bytes left");
        }
    }

    #[tokio::test]
    async fn one_thread_does_it_where_it_is() {
        assert_eq!(aside_if_many(AT_ONCE_BYTES + 1, || 7).await, 7);
    }
}
