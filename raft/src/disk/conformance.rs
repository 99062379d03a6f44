//! What every [`Disk`] owes, run over the real one and the simulated one.

use std::io::ErrorKind;
use std::path::Path;

use super::real::RealDisk;
use super::sim::SimDisk;
use super::*;

/// Runs a test body once on a temporary folder and once in memory.
macro_rules! on_both {
    ($(async fn $name:ident($disk:ident, $dir:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn body($disk: &dyn Disk, $dir: &Path) $body

            #[tokio::test]
            async fn real() {
                let dir = tempfile::tempdir().unwrap();
                body(&RealDisk::new().unwrap(), dir.path()).await;
            }

            #[tokio::test]
            async fn simulated() {
                let disk = SimDisk::new(1);
                disk.create_dir_all(Path::new("/data")).await.unwrap();
                body(&disk, Path::new("/data")).await;
            }
        }
    )*};
}

async fn create(disk: &dyn Disk, path: &Path, contents: &'static str) -> Arc<dyn DiskFile> {
    let file = disk.open(path, OpenMode::CreateNew).await.unwrap();
    file.write_and_sync(0, vec![contents.into()]).await.unwrap();
    file
}

async fn contents(disk: &dyn Disk, path: &Path) -> Bytes {
    read_file(disk, path, 1 << 20).await.unwrap()
}

on_both! {
    async fn what_is_written_is_read(disk, dir) {
        let file = create(disk, &dir.join("a"), "").await;
        file.write_at(3, vec!["def".into(), Bytes::new(), "ghi".into()]).await.unwrap();
        file.write_at(0, vec!["abc".into()]).await.unwrap();
        file.datasync().await.unwrap();
        assert_eq!(file.len().await.unwrap(), 9);
        assert_eq!(file.read_at(0, 100).await.unwrap(), "abcdefghi");
        assert_eq!(file.read_at(2, 3).await.unwrap(), "cde");
        assert_eq!(file.read_at(9, 3).await.unwrap(), "");
        assert_eq!(file.read_at(1 << 40, 3).await.unwrap(), "");
        assert_eq!(file.try_read_at(2, 3).unwrap(), "cde");
        assert_eq!(file.try_read_at(7, 30).unwrap(), "hi");
    }

    async fn a_write_of_more_parts_than_one_system_call_takes_is_whole(disk, dir) {
        let file = create(disk, &dir.join("a"), "").await;
        let parts: Vec<Bytes> = (0..3000u32).map(|n| n.to_le_bytes().to_vec().into()).collect();
        file.write_at(5, parts.clone()).await.unwrap();
        file.datasync().await.unwrap();
        assert_eq!(file.read_at(5, usize::MAX).await.unwrap(), parts.concat());
    }

    async fn a_claimed_length_asks_for_no_memory(disk, dir) {
        let file = create(disk, &dir.join("a"), "short").await;
        assert_eq!(file.read_at(0, usize::MAX).await.unwrap(), "short");
        assert_eq!(file.try_read_at(0, usize::MAX).unwrap(), "short");
        assert_eq!(read_file(disk, &dir.join("a"), 4).await.unwrap_err().kind(), ErrorKind::InvalidData);
    }

    async fn gaps_and_extensions_are_zeros(disk, dir) {
        let file = create(disk, &dir.join("a"), "xyz").await;
        file.write_at(1000, vec!["end".into()]).await.unwrap();
        assert_eq!(file.read_at(2, 3).await.unwrap(), "z\0\0");
        file.set_len(1).await.unwrap();
        file.set_len(3).await.unwrap();
        file.datasync().await.unwrap();
        assert_eq!(file.read_at(0, 10).await.unwrap(), "x\0\0");
    }

    async fn allocation_does_not_change_the_length(disk, dir) {
        let file = create(disk, &dir.join("a"), "xyz").await;
        file.allocate(0, 1 << 16).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 3);
    }

    async fn a_name_is_created_once(disk, dir) {
        create(disk, &dir.join("a"), "1").await;
        let again = disk.open(&dir.join("a"), OpenMode::CreateNew).await;
        assert_eq!(again.err().unwrap().kind(), ErrorKind::AlreadyExists);
        let missing = disk.open(&dir.join("b"), OpenMode::ReadWrite).await;
        assert_eq!(missing.err().unwrap().kind(), ErrorKind::NotFound);
        let missing = disk.open(&dir.join("b/c"), OpenMode::CreateNew).await;
        assert_eq!(missing.err().unwrap().kind(), ErrorKind::NotFound);
        let directory = disk.open(dir, OpenMode::Read).await;
        assert_eq!(directory.err().unwrap().kind(), ErrorKind::IsADirectory);
    }

    async fn a_file_opened_for_reading_takes_no_writes(disk, dir) {
        create(disk, &dir.join("a"), "1").await;
        let file = disk.open(&dir.join("a"), OpenMode::Read).await.unwrap();
        assert!(file.write_at(0, vec!["2".into()]).await.is_err());
        assert!(file.set_len(0).await.is_err());
        assert_eq!(file.read_at(0, 1).await.unwrap(), "1");
    }

    async fn directories_are_listed_in_order(disk, dir) {
        disk.create_dir_all(&dir.join("d/e")).await.unwrap();
        disk.create_dir_all(&dir.join("d/e")).await.unwrap();
        create(disk, &dir.join("d/b"), "12").await;
        create(disk, &dir.join("d/a"), "1").await;
        let entry = |name: &str, is_dir, bytes| DirEntry { name: name.into(), is_dir, bytes };
        let expected = [entry("a", false, 1), entry("b", false, 2), entry("e", true, 0)];
        assert_eq!(disk.read_dir(&dir.join("d")).await.unwrap(), expected);
        disk.sync_dir(&dir.join("d")).await.unwrap();
        assert_eq!(disk.read_dir(&dir.join("x")).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.sync_dir(&dir.join("x")).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(disk.create_dir_all(&dir.join("d/a")).await.is_err());
        assert!(disk.create_dir_all(&dir.join("d/a/b")).await.is_err());
    }

    async fn a_rename_replaces_and_keeps_open_files(disk, dir) {
        let a = create(disk, &dir.join("a"), "new").await;
        let b = create(disk, &dir.join("b"), "old").await;
        disk.rename(&dir.join("a"), &dir.join("b")).await.unwrap();
        assert_eq!(contents(disk, &dir.join("b")).await, "new");
        assert_eq!((a.read_at(0, 9).await.unwrap(), b.read_at(0, 9).await.unwrap()), ("new".into(), "old".into()));
        let gone = disk.rename(&dir.join("a"), &dir.join("c")).await;
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
        disk.create_dir_all(&dir.join("d")).await.unwrap();
        assert!(disk.rename(&dir.join("b"), &dir.join("d")).await.is_err());
    }

    async fn a_directory_moves_with_what_it_holds(disk, dir) {
        disk.create_dir_all(&dir.join("d")).await.unwrap();
        create(disk, &dir.join("d/a"), "1").await;
        disk.rename(&dir.join("d"), &dir.join("e")).await.unwrap();
        assert_eq!(contents(disk, &dir.join("e/a")).await, "1");
        disk.remove_dir_all(&dir.join("e")).await.unwrap();
        assert!(disk.read_dir(dir).await.unwrap().is_empty());
    }

    async fn a_removed_file_is_readable_while_open(disk, dir) {
        let file = create(disk, &dir.join("a"), "1").await;
        disk.remove_file(&dir.join("a")).await.unwrap();
        assert_eq!(disk.remove_file(&dir.join("a")).await.unwrap_err().kind(), ErrorKind::NotFound);
        disk.sync_dir(dir).await.unwrap();
        assert_eq!(file.read_at(0, 9).await.unwrap(), "1");
        assert!(disk.remove_file(dir).await.is_err());
    }

    async fn a_directory_is_locked_once(disk, dir) {
        let guard = disk.lock_dir(dir).await.unwrap();
        assert_eq!(disk.lock_dir(dir).await.err().unwrap().kind(), ErrorKind::WouldBlock);
        drop(guard);
        drop(disk.lock_dir(dir).await.unwrap());
    }

    async fn a_file_is_replaced_whole(disk, dir) {
        let path = dir.join("state");
        replace_file(disk, &path, vec!["one".into()]).await.unwrap();
        // Left over by a crash.
        create(disk, &dir.join("state.tmp"), "rubbish").await;
        replace_file(disk, &path, vec!["tw".into(), "o".into()]).await.unwrap();
        assert_eq!(contents(disk, &path).await, "two");
        assert_eq!(disk.read_dir(dir).await.unwrap().len(), 1);
    }

    async fn there_is_room(disk, dir) {
        assert!(disk.available_bytes(dir).await.unwrap() > 0);
        create_dir_durably(disk, &dir.join("x/y")).await.unwrap();
        assert!(disk.read_dir(&dir.join("x/y")).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn real_directories_and_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new().unwrap();
    disk.create_dir_all(&dir.path().join("d/e")).await.unwrap();
    create(&disk, &dir.path().join("d/f"), "").await;
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("d"), mode("d/e"), mode("d/f")), (0o700, 0o700, 0o600));
}

#[tokio::test]
async fn an_urgent_write_passes_a_full_general_lane() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new().unwrap();
    let file = create(&disk, &dir.path().join("a"), "").await;
    // Every general thread waits for a token that only comes after the urgent write.
    let (give, take) = std::sync::mpsc::channel::<()>();
    let take = Arc::new(parking_lot::Mutex::new(take));
    let blocked: Vec<_> = (0..20).map(|_| disk.block_general_lane(take.clone())).map(tokio::spawn).collect();
    file.write_and_sync(0, vec!["through".into()]).await.unwrap();
    drop(give);
    for task in blocked {
        task.await.unwrap();
    }
    assert_eq!(file.read_at(0, 9).await.unwrap(), "through");
}

/// A file that is unlinked gives its room back when it is closed, which takes a while for a large one: never on a thread of the runtime.
#[tokio::test]
async fn files_are_closed_by_a_thread_of_the_disks_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let is_open = || {
        let mut files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files.any(|entry| std::fs::read_link(entry.path()).is_ok_and(|file| file.starts_with(&path)))
    };
    let disk = RealDisk::new().unwrap();
    let file = create(&disk, &path, "").await;
    let (let_go, blocked) = std::sync::mpsc::channel::<()>();
    disk.block_closing_lane(blocked);
    drop(file);
    assert!(is_open(), "whoever lets go of it does not close it");
    // Nor does anything else wait for that.
    create(&disk, &dir.path().join("b"), "").await.datasync().await.unwrap();
    drop(let_go);
    while is_open() {
        tokio::task::yield_now().await;
    }
}
