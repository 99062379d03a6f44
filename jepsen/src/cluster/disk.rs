//! A host's disk: a small ext4 in a file, mounted over a loop device.
//!
//! The image has no name once it is mounted: it goes away with the harness. Cutting the power drops what was not synced, as a plugged-out
//! machine would; mounting again replays the file system's own journal. It knows nothing of what lies on it.
//!
//! Nothing is synced on the way to a cut: any fsync commits ext4's running transaction, and with it every rename, creation and new length
//! that the broker has not made durable itself. What proves the cut is therefore synced when the file system is made.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::{run, run_with_input};
use super::isolation::PRIVATE;
use super::{Doing as _, Harness, HarnessError, kernel};

/// How often a busy mount is tried again, 100 ms apart.
const UNMOUNT_ATTEMPTS: usize = 100;
/// Errors of the file system show as errors of calls, never as a stopped machine. And it makes nothing durable that nobody asked for: no
/// commit every five seconds, no help for those who put a file in another's place without having synced it.
const OPTIONS: &str = "loop,errors=continue,commit=900,noauto_da_alloc";
/// Synced since the file system was made: there after a cut.
const SYNCED: &str = "canary-synced";
/// Written right before a cut, and never synced: gone after it.
const UNSYNCED: &str = "canary-unsynced";
/// Bytes that the file that fills a disk up grows by at once, then ever less.
const BALLAST_STEP: u64 = 16 << 20;

/// Every file below a folder, however deep, in order. Folders that go meanwhile are passed over.
pub fn files_below(top: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![top.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder != top => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let of_its_kind = if entry.file_type()?.is_dir() { &mut folders } else { &mut files };
            of_its_kind.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// One disk.
pub struct Disk {
    image: File,
    mount_point: PathBuf,
}

impl Disk {
    /// Makes a disk of so many bytes, empty and mounted. `work` is where its image's bytes are kept.
    pub async fn create(work: &Path, name: &str, bytes: u64) -> Harness<Self> {
        let path = work.join(format!(".{name}.ext4"));
        let image = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let image = image.doing(path.display())?;
        let mount_point = Path::new(PRIVATE).join("jepsen").join(name);
        let mut disk = Self { image, mount_point };
        let made = disk.format_at(&path, bytes).await;
        fs::remove_file(&path).doing(path.display())?;
        made?;
        disk.mount().await?;
        disk.sync_canary()?;
        Ok(disk)
    }

    async fn format_at(&mut self, path: &Path, bytes: u64) -> Harness<()> {
        self.image.set_len(0).doing("emptying a disk image")?;
        self.image.set_len(bytes).doing("making a disk image")?;
        let path = path.display().to_string();
        let lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        run_with_input(&["mkfs.ext4", "-q", "-F", "-m", "0", "-E", lazy, &path], "").await?;
        fs::create_dir_all(&self.mount_point).doing(self.mount_point.display())
    }

    /// The image's name for other processes: it has none of its own any more.
    fn image_path(&self) -> String {
        use std::os::fd::AsRawFd as _;
        format!("/proc/{}/fd/{}", std::process::id(), self.image.as_raw_fd())
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The folder for the broker's data.
    pub fn data(&self) -> PathBuf {
        self.mount_point.join("data")
    }

    /// Mounts it.
    pub async fn mount(&mut self) -> Harness<()> {
        let (image, at) = (self.image_path(), self.mount_point.display().to_string());
        run_with_input(&["mount", "-t", "ext4", "-o", OPTIONS, &image, &at], "").await?;
        Ok(())
    }

    /// Unmounts it. Whoever used it must be gone or going.
    pub async fn unmount(&mut self) -> Harness<()> {
        let at = self.mount_point.display().to_string();
        let mut last = HarnessError("never tried".to_owned());
        for _ in 0..UNMOUNT_ATTEMPTS {
            match run_with_input(&["umount", &at], "").await {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(last)
    }

    /// Puts an empty file system in its place, as one who replaces a broken disk does. It must not be in use.
    pub async fn replace(&mut self) -> Harness<()> {
        self.unmount().await?;
        let bytes = self.image.metadata().doing("the size of a disk image")?.len();
        let path = self.image_path();
        self.format_at(Path::new(&path), bytes).await?;
        self.mount().await?;
        self.sync_canary()
    }

    fn write_canary(&self, name: &str) -> std::io::Result<File> {
        let mut file = File::create(self.mount_point.join(name))?;
        file.write_all(b"here")?;
        Ok(file)
    }

    /// Right after the file system was made, while nobody has anything on it that could become durable with this.
    fn sync_canary(&self) -> Harness<()> {
        let synced = self.write_canary(SYNCED).and_then(|file| file.sync_all());
        synced.and_then(|()| File::open(&self.mount_point)?.sync_all()).doing("the synced canary")
    }

    /// Cuts the power. A file is written before, to see afterwards that it was a real cut.
    pub fn cut_power(&self) -> Harness<()> {
        self.write_canary(UNSYNCED).doing("the unsynced canary")?;
        kernel::shut_down(&self.mount_point).doing("EXT4_IOC_SHUTDOWN")
    }

    /// After the power came back: what proves that it was gone.
    pub fn power_was_cut(&self) -> Result<String, String> {
        let has = |name: &str| fs::read(self.mount_point.join(name)).is_ok_and(|bytes| bytes == b"here");
        let (synced, unsynced) = (has(SYNCED), has(UNSYNCED));
        let _ = fs::remove_file(self.mount_point.join(UNSYNCED));
        match (synced, unsynced) {
            (true, false) => Ok("a synced file is there, an unsynced one is gone".to_owned()),
            _ => Err(format!("synced file there: {synced}, unsynced file there: {unsynced}")),
        }
    }

    /// Fills it up to the last block. Returns what is left, in bytes.
    pub fn fill(&self) -> Harness<u64> {
        let file = File::create(self.ballast()).doing("the ballast")?;
        let (mut length, mut step) = (0, BALLAST_STEP);
        while step >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), length, step) {
                Ok(()) => length += step,
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => return Err(HarnessError::new("the ballast", error)),
            }
        }
        self.free_bytes()
    }

    /// Gives the room back.
    pub fn drain(&self) -> Harness<()> {
        fs::remove_file(self.ballast()).doing("the ballast")
    }

    fn ballast(&self) -> PathBuf {
        self.mount_point.join("ballast")
    }

    /// What is left, in bytes.
    pub fn free_bytes(&self) -> Harness<u64> {
        let found = rustix::fs::statvfs(&self.mount_point).doing("statvfs")?;
        Ok(found.f_bavail * found.f_frsize)
    }

    /// Copies the image out, holes and all, to be looked at later.
    pub async fn keep(&self, to: &Path) -> Harness<()> {
        run(&format!("cp --sparse=always {} {}", self.image_path(), to.display())).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::cluster::preflight::{self, Needs};

    async fn cut_and_mount(disk: &mut Disk) {
        disk.cut_power().unwrap();
        disk.unmount().await.unwrap();
        disk.mount().await.unwrap();
        assert!(disk.power_was_cut().is_ok(), "{:?}", disk.power_was_cut());
    }

    #[tokio::test]
    #[ignore = "mounts: run by the test below, in a namespace of its own"]
    async fn inside() {
        let work = tempfile::tempdir().unwrap();
        let mut disk = Disk::create(work.path(), "n9", 64 << 20).await.unwrap();
        let (old, new) = (disk.mount_point().join("old"), disk.mount_point().join("new"));
        fs::write(&old, "x").unwrap();
        for synced in [old.as_path(), disk.mount_point()] {
            File::open(synced).unwrap().sync_all().unwrap();
        }
        fs::rename(&old, &new).unwrap();
        cut_and_mount(&mut disk).await;
        assert!(old.exists() && !new.exists(), "a rename that nobody synced outlived the cut");
        cut_and_mount(&mut disk).await;
        // The new name becomes durable with the other file, its bytes do not.
        fs::write(&new, "y").unwrap();
        fs::rename(&new, &old).unwrap();
        File::create(disk.mount_point().join("other")).unwrap().sync_all().unwrap();
        cut_and_mount(&mut disk).await;
        assert_eq!(
            (fs::read(&old).unwrap(), new.exists()),
            (Vec::new(), false),
            "bytes that nobody synced outlived the cut"
        );
        disk.replace().await.unwrap();
        cut_and_mount(&mut disk).await;
        assert!(!old.exists());
        disk.unmount().await.unwrap();
    }

    #[test]
    fn a_cut_makes_nothing_durable_that_was_not() {
        if let missing @ [_, ..] = &preflight::missing(Needs::default())[..] {
            return eprintln!("skipped: {}", missing.join("; "));
        }
        let script =
            format!("mount -t tmpfs none {PRIVATE} && exec \"$0\" --exact cluster::disk::tests::inside --ignored");
        let mut inside = Command::new("unshare");
        inside.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let output = inside.arg(std::env::current_exe().unwrap()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
    }
}
