//! The data directory: whose it is, and that only one process has it.
//!
//! [`DataDir::open`] locks the directory, checks or makes its `identity` file, and raises the epoch: everything the directory's next
//! user writes is told apart from everything before it (RULES.md J1, J20). It knows nothing of journals or logs.
//!
//! `identity`, 64 bytes and 16 for each recovery, little endian, replaced whole:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `PONTOONI` |
//! | 8 | 4 | format version: 1, or 2 if there are former clusters |
//! | 12 | 4 | CRC-32C of bytes 0..12 and 16.. |
//! | 16 | 16 | cluster id, 0 if none |
//! | 32 | 16 | directory id |
//! | 48 | 8 | epoch |
//! | 56 | 4 | broker |
//! | 60 | 4 | number of former clusters n, 0 in version 1 |
//! | 64 | 16 n | their ids: what the cluster was called before each time that it was recovered from this directory |
//!
//! The first 24 bytes of broker 3's directory in cluster `c1` are
//! `50 4f 4e 54 4f 4f 4e 49 01 00 00 00 52 4a 12 8f c1 00 00 00 00 00 00 00` (epoch 5, directory `d1`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::disk::{Disk, create_dir_durably, read_file, replace_file};
use crate::error::OpenError;
use crate::journal::JournalIdentity;
use crate::runtime::random_u64;
use crate::types::{BrokerId, ClusterId, DirectoryId};

const MAGIC: [u8; 8] = *b"PONTOONI";
/// Without former clusters, and with them.
const VERSIONS: [u32; 2] = [1, 2];
const IDENTITY_BYTES: usize = 64;
/// Former clusters that are remembered; of more, the oldest are forgotten.
const FORMER_MAX: usize = 64;
const IDENTITY_BYTES_MAX: u64 = 4096;
/// What only an opened directory has: with one of these but no identity, something was lost.
const CONTENTS: [&str; 4] = ["catalog", "checkpoint", "groups", "journal"];

/// What a directory says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; `ClusterId(0)` until it has joined one.
    pub cluster: ClusterId,
    /// Made at the first opening.
    pub directory: DirectoryId,
    /// The broker.
    pub broker: BrokerId,
    /// Rises by one at each opening.
    pub epoch: u64,
    /// What the cluster was called before it was recovered from this directory, the oldest first.
    pub former: Vec<ClusterId>,
}

impl Identity {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(IDENTITY_BYTES);
        out.put_slice(&MAGIC);
        out.put_u32_le(VERSIONS[usize::from(!self.former.is_empty())]);
        out.put_u32_le(0);
        out.put_u128_le(self.cluster.0);
        out.put_u128_le(self.directory.0);
        out.put_u64_le(self.epoch);
        out.put_u32_le(self.broker.0);
        out.put_u32_le(self.former.len() as u32);
        self.former.iter().for_each(|former| out.put_u128_le(former.0));
        let crc = checksum(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<Self, OpenError> {
        let corrupt = |why: String| OpenError::Corrupt { path: path.to_owned(), why };
        if bytes.len() < 16 || bytes[..8] != MAGIC {
            return Err(corrupt(format!("{} bytes that are not an identity", bytes.len())));
        }
        if (&bytes[12..]).get_u32_le() != checksum(bytes) {
            return Err(corrupt("its checksum does not match".to_owned()));
        }
        let found = (&bytes[8..]).get_u32_le();
        if !VERSIONS.contains(&found) {
            return Err(OpenError::Version { path: path.to_owned(), found, known: VERSIONS[1] });
        }
        if bytes.len() < IDENTITY_BYTES {
            return Err(corrupt(format!("it has {} bytes, not {IDENTITY_BYTES}", bytes.len())));
        }
        let mut at = &bytes[16..];
        let cluster = ClusterId(at.get_u128_le());
        let directory = DirectoryId(at.get_u128_le());
        let epoch = at.get_u64_le();
        let broker = BrokerId(at.get_u32_le());
        let count = at.get_u32_le() as usize;
        if count > FORMER_MAX || (count > 0) != (found == VERSIONS[1]) || at.len() != count * 16 {
            return Err(corrupt(format!("it has {} bytes, which {count} former clusters do not take", bytes.len())));
        }
        let former = (0..count).map(|_| ClusterId(at.get_u128_le())).collect();
        Ok(Self { cluster, directory, broker, epoch, former })
    }

    /// Reads the identity of a directory that need not be open, and changes nothing. `Io` of kind `NotFound`: there is none.
    pub async fn read(disk: &dyn Disk, path: &Path) -> Result<Self, OpenError> {
        let file = identity_path(path);
        match read_file(disk, &file, IDENTITY_BYTES_MAX).await {
            Ok(bytes) => Self::decode(&bytes, &file),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(OpenError::Corrupt { path: file, why: error.to_string() })
            }
            Err(error) => Err(OpenError::Io { path: file, error }),
        }
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

/// A data directory that is this process's alone, until dropped.
pub struct DataDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    identity: Mutex<Identity>,
    /// Held while the identity file is rewritten; the mutex above never is.
    rewriting: tokio::sync::Mutex<()>,
    _lock: Box<dyn Send + Sync>,
}

impl DataDir {
    /// Opens, or makes, the directory of `broker`, and raises its epoch. On return all that is durable.
    ///
    /// Errors: `InUse`; `ForeignBroker`; `Version`; `Corrupt` also if there are contents but no identity (it is not made anew: the
    /// epoch and the directory's id are not to be guessed); `Io`.
    pub async fn open(disk: Arc<dyn Disk>, path: &Path, broker: BrokerId) -> Result<DataDir, OpenError> {
        let io = |error| OpenError::Io { path: path.to_owned(), error };
        create_dir_durably(&*disk, path).await.map_err(io)?;
        let lock = match disk.lock_dir(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(OpenError::InUse(path.to_owned())),
            other => other.map_err(io)?,
        };
        let file = identity_path(path);
        let mut identity = match Identity::read(&*disk, path).await {
            Err(OpenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                new_identity(&*disk, path, broker).await?
            }
            read => read?,
        };
        if identity.broker != broker {
            return Err(OpenError::ForeignBroker { path: path.to_owned(), found: identity.broker, expected: broker });
        }
        let last = |epoch: Option<u64>| {
            let why = "its epoch cannot rise any more".to_owned();
            epoch.ok_or(OpenError::Corrupt { path: file.clone(), why })
        };
        identity.epoch = last(identity.epoch.checked_add(1))?;
        write(&*disk, path, &identity).await?;
        let (path, identity) = (path.to_owned(), Mutex::new(identity));
        Ok(Self { disk, path, identity, rewriting: tokio::sync::Mutex::new(()), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says about itself.
    pub fn identity(&self) -> Identity {
        self.identity.lock().clone()
    }

    /// The cluster it belongs to, if it has joined one.
    pub fn cluster(&self) -> Option<ClusterId> {
        Some(self.identity().cluster).filter(|cluster| cluster.0 != 0)
    }

    /// Its journal's name and place.
    pub fn journal(&self) -> JournalIdentity {
        let Identity { cluster, directory, epoch, former, .. } = self.identity();
        let former = former.iter().map(|former| former.0).collect();
        JournalIdentity { dir: self.path.join("journal"), cluster: cluster.0, directory: directory.0, epoch, former }
    }

    /// Joins a cluster, durably, once. Joining the same again is fine; another one is `ForeignCluster`.
    pub async fn join_cluster(&self, cluster: ClusterId) -> Result<(), OpenError> {
        let _one_at_a_time = self.rewriting.lock().await;
        let mut identity = self.identity();
        if identity.cluster == cluster {
            return Ok(());
        }
        if identity.cluster.0 != 0 {
            let (path, found, expected) = (self.path.clone(), identity.cluster.0, cluster.0);
            return Err(OpenError::ForeignCluster { path, found, expected });
        }
        identity.cluster = cluster;
        write(&*self.disk, &self.path, &identity).await?;
        *self.identity.lock() = identity;
        Ok(())
    }

    /// Gives the cluster another id, durably; the one it had becomes a former one. For recovery from this directory alone: brokers
    /// that know the cluster by its former id are not let in any more.
    pub async fn rename_cluster(&self, cluster: ClusterId) -> Result<(), OpenError> {
        let _one_at_a_time = self.rewriting.lock().await;
        let mut identity = self.identity();
        if identity.cluster == cluster {
            return Ok(());
        }
        identity.former.push(std::mem::replace(&mut identity.cluster, cluster));
        let forgotten = identity.former.len().saturating_sub(FORMER_MAX);
        identity.former.drain(..forgotten);
        write(&*self.disk, &self.path, &identity).await?;
        *self.identity.lock() = identity;
        Ok(())
    }
}

fn identity_path(path: &Path) -> PathBuf {
    path.join("identity")
}

async fn write(disk: &dyn Disk, path: &Path, identity: &Identity) -> Result<(), OpenError> {
    let file = identity_path(path);
    replace_file(disk, &file, vec![identity.encode()]).await.map_err(|error| OpenError::Io { path: file, error })
}

async fn new_identity(disk: &dyn Disk, path: &Path, broker: BrokerId) -> Result<Identity, OpenError> {
    let entries = disk.read_dir(path).await.map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
    if let Some(found) = entries.iter().find(|entry| CONTENTS.contains(&entry.name.as_str())) {
        let why = format!("it is missing, but {} is there", found.name);
        return Err(OpenError::Corrupt { path: identity_path(path), why });
    }
    let directory = DirectoryId(u128::from(random_u64()) << 64 | u128::from(random_u64()));
    Ok(Identity { cluster: ClusterId(0), directory, broker, epoch: 0, former: Vec::new() })
}

impl std::fmt::Debug for DataDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataDir").field("path", &self.path).field("identity", &self.identity()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OpenMode;
    use crate::disk::sim::SimDisk;
    use proptest::prelude::*;

    const DIR: &str = "/var/pontoon";

    async fn open(disk: &SimDisk, broker: u32) -> Result<DataDir, OpenError> {
        DataDir::open(Arc::new(disk.clone()), Path::new(DIR), BrokerId(broker)).await
    }

    async fn put(disk: &SimDisk, bytes: Bytes) {
        replace_file(disk, &identity_path(Path::new(DIR)), vec![bytes]).await.unwrap();
    }

    fn example() -> Identity {
        let (cluster, directory) = (ClusterId(0xc1), DirectoryId(0xd1));
        Identity { cluster, directory, broker: BrokerId(3), epoch: 5, former: Vec::new() }
    }

    #[tokio::test]
    async fn the_epoch_rises_at_each_opening_and_the_id_stays() {
        let disk = SimDisk::new(1);
        let first = open(&disk, 1).await.unwrap().identity();
        assert_eq!((first.epoch, first.cluster), (1, ClusterId(0)));
        assert_ne!(first.directory, DirectoryId(0));
        let second = open(&disk.crash(), 1).await.unwrap().identity();
        assert_eq!(second, Identity { epoch: 2, ..first });
    }

    #[tokio::test]
    async fn a_directory_in_use_is_refused() {
        let disk = SimDisk::new(1);
        let held = open(&disk, 1).await.unwrap();
        assert!(matches!(open(&disk, 1).await, Err(OpenError::InUse(path)) if path == Path::new(DIR)));
        assert_eq!(held.identity().epoch, 1);
        drop(held);
        assert_eq!(open(&disk, 1).await.unwrap().identity().epoch, 2);
    }

    #[tokio::test]
    async fn another_brokers_directory_is_refused() {
        let disk = SimDisk::new(1);
        drop(open(&disk, 1).await.unwrap());
        let foreign = open(&disk, 2).await;
        assert!(matches!(foreign, Err(OpenError::ForeignBroker { found: BrokerId(1), expected: BrokerId(2), .. })));
        // Nothing was changed.
        assert_eq!(open(&disk, 1).await.unwrap().identity().epoch, 2);
    }

    #[tokio::test]
    async fn a_cluster_is_joined_once_and_for_good() {
        let disk = SimDisk::new(1);
        let dir = open(&disk, 1).await.unwrap();
        assert_eq!(dir.cluster(), None);
        dir.join_cluster(ClusterId(7)).await.unwrap();
        dir.join_cluster(ClusterId(7)).await.unwrap();
        drop(dir);
        let dir = open(&disk.crash(), 1).await.unwrap();
        assert_eq!((dir.cluster(), dir.journal().cluster, dir.journal().epoch), (Some(ClusterId(7)), 7, 2));
        let other = dir.join_cluster(ClusterId(8)).await;
        assert!(matches!(other, Err(OpenError::ForeignCluster { found: 7, expected: 8, .. })));
        assert_eq!(dir.cluster(), Some(ClusterId(7)));
    }

    #[tokio::test]
    async fn a_recovered_cluster_has_another_id_and_remembers_the_former_ones() {
        let disk = SimDisk::new(1);
        let dir = open(&disk, 1).await.unwrap();
        dir.join_cluster(ClusterId(7)).await.unwrap();
        dir.rename_cluster(ClusterId(8)).await.unwrap();
        dir.rename_cluster(ClusterId(8)).await.unwrap();
        assert_eq!(dir.journal().former, [7]);
        drop(dir);
        let dir = open(&disk.crash(), 1).await.unwrap();
        assert_eq!((dir.cluster(), dir.identity().former), (Some(ClusterId(8)), vec![ClusterId(7)]));
        for cluster in 9..200 {
            dir.rename_cluster(ClusterId(cluster)).await.unwrap();
        }
        drop(dir);
        let dir = open(&disk.crash(), 1).await.unwrap();
        assert_eq!((dir.identity().former.len(), dir.identity().former.last()), (FORMER_MAX, Some(&ClusterId(198))));
    }

    #[tokio::test]
    async fn contents_without_an_identity_are_not_adopted() {
        let disk = SimDisk::new(1);
        disk.create_dir_all(&Path::new(DIR).join("lost+found")).await.unwrap();
        drop(open(&disk, 1).await.unwrap());
        disk.create_dir_all(&Path::new(DIR).join("journal")).await.unwrap();
        disk.remove_file(&identity_path(Path::new(DIR))).await.unwrap();
        let found = open(&disk, 1).await;
        assert!(matches!(found, Err(OpenError::Corrupt { why, .. }) if why.contains("journal")));
    }

    #[tokio::test]
    async fn an_identity_of_another_version_or_shape_is_refused() {
        let disk = SimDisk::new(1);
        drop(open(&disk, 3).await.unwrap());
        let mut newer = example().encode().to_vec();
        newer[8] = 3;
        newer.extend_from_slice(b"more");
        let crc = checksum(&newer);
        newer[12..16].copy_from_slice(&crc.to_le_bytes());
        put(&disk, newer.into()).await;
        assert!(matches!(open(&disk, 3).await, Err(OpenError::Version { found: 3, known: 2, .. })));
        for bytes in [vec![], vec![0; 64], vec![1; 5000], example().encode()[..40].to_vec()] {
            put(&disk, bytes.into()).await;
            assert!(matches!(open(&disk, 3).await, Err(OpenError::Corrupt { .. })));
        }
    }

    #[tokio::test]
    async fn every_flipped_bit_is_seen() {
        let former = vec![ClusterId(1), ClusterId(2)];
        for good in [example().encode(), Identity { former, ..example() }.encode()] {
            for at in 0..good.len() * 8 {
                let mut bytes = good.to_vec();
                bytes[at / 8] ^= 1 << (at % 8);
                assert!(Identity::decode(&bytes, Path::new("identity")).is_err(), "bit {at}");
            }
        }
    }

    #[tokio::test]
    async fn a_crash_at_any_step_of_opening_leaves_a_directory_that_opens() {
        let mut steps = 0;
        for op in 0.. {
            let disk = SimDisk::new(op);
            disk.crash_at_op(op);
            let whole = open(&disk, 1).await.is_ok();
            let before = open(&disk.crash(), 1).await.unwrap().identity();
            let disk = SimDisk::new(op);
            drop(open(&disk, 1).await.unwrap());
            disk.crash_at_op(disk.ops() + op);
            let again = open(&disk, 1).await.map(|dir| dir.identity());
            let after = open(&disk.crash(), 1).await.unwrap().identity();
            // An epoch that was given out is never given out again.
            assert!(before.epoch >= 1 && after.epoch > again.map_or(1, |identity| identity.epoch));
            steps = op;
            if whole {
                break;
            }
        }
        assert!(steps >= 6, "{steps}");
    }

    #[tokio::test]
    async fn a_real_directory_is_held_against_another_opening() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let disk: Arc<dyn Disk> = Arc::new(crate::disk::real::RealDisk::new().unwrap());
        let held = DataDir::open(disk.clone(), &path, BrokerId(1)).await.unwrap();
        let again = DataDir::open(disk.clone(), &path, BrokerId(1)).await;
        assert!(matches!(again, Err(OpenError::InUse(_))));
        drop(held);
        assert_eq!(DataDir::open(disk.clone(), &path, BrokerId(1)).await.unwrap().identity().epoch, 2);
        disk.open(&path.join("identity"), OpenMode::Read).await.unwrap();
    }

    #[test]
    fn the_example_in_the_header_holds() {
        let golden = include_str!("../tests/golden/identity-1.hex");
        let shown: String = example().encode().chunks(16).map(hex_line).collect();
        assert_eq!(shown, golden);
        let first: Vec<u8> = golden.split_whitespace().take(24).map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        assert_eq!(first, example().encode()[..24]);
        let header = include_str!("data_dir.rs");
        let line: Vec<String> = first.iter().map(|b| format!("{b:02x}")).collect();
        assert!(header.contains(&line.join(" ")), "{}", line.join(" "));
    }

    fn hex_line(bytes: &[u8]) -> String {
        let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        bytes.join(" ") + "\n"
    }

    proptest! {
        #[test]
        fn an_identity_survives_the_round_trip(
            cluster: u128,
            directory: u128,
            broker: u32,
            epoch: u64,
            former in proptest::collection::vec(any::<u128>(), 0..FORMER_MAX),
        ) {
            let (cluster, directory) = (ClusterId(cluster), DirectoryId(directory));
            let former = former.into_iter().map(ClusterId).collect();
            let identity = Identity { cluster, directory, broker: BrokerId(broker), epoch, former };
            prop_assert_eq!(Identity::decode(&identity.encode(), Path::new("identity")).unwrap(), identity);
        }
    }
}
