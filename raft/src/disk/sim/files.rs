//! The simulated disk's operations: [`Disk`] and [`DiskFile`], each through [`SimDisk::begin`], where it is counted and faults strike.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::model::{FileState, Node, NodeId};
use super::{Hardware, OpKind, SimCrash, SimDisk};
use crate::disk::{DirEntry, Disk, DiskFile, OpenMode};

impl Disk for SimDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> BoxFuture<'a, io::Result<Arc<dyn DiskFile>>> {
        Box::pin(async move {
            let kind = if mode == OpenMode::CreateNew { OpKind::Create } else { OpKind::Open };
            let mut hardware = self.begin(kind, path)?;
            let place = hardware.place(path)?;
            let id = match (hardware.entry(&place), mode) {
                (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
                (Some(id), _) => id,
                (None, OpenMode::CreateNew) => {
                    hardware.tree.create(place.0, &place.1, Node::File(FileState::default()))
                }
                (None, _) => return Err(io::ErrorKind::NotFound.into()),
            };
            if matches!(hardware.tree.node(id), Some(Node::Dir(_))) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            *hardware.open.entry(id).or_default() += 1;
            let writable = mode != OpenMode::Read;
            Ok(Arc::new(SimFile { disk: self.clone(), id, path: path.to_owned(), writable }) as Arc<dyn DiskFile>)
        })
    }

    fn create_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let mut above: Vec<&Path> = path.ancestors().filter(|p| p.file_name().is_some()).collect();
            above.reverse();
            for dir in above {
                let found = self.hardware.lock().lookup(dir);
                match found {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.begin(OpKind::CreateDir, dir)?.create_dir(dir)?;
                    }
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
            }
            let hardware = self.hardware.lock();
            hardware.alive(self.generation)?;
            let id = hardware.lookup(path)?;
            hardware.tree.dir(id).map(|_| ()).ok_or_else(|| io::ErrorKind::AlreadyExists.into())
        })
    }

    fn read_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<DirEntry>>> {
        Box::pin(async move {
            let hardware = self.begin(OpKind::ReadDir, path)?;
            let id = hardware.lookup(path)?;
            let dir = hardware.tree.dir(id).ok_or(io::ErrorKind::NotADirectory)?;
            let describe = |(name, id): (&String, &NodeId)| match hardware.tree.node(*id) {
                Some(Node::File(file)) => DirEntry { name: name.clone(), is_dir: false, bytes: file.len() },
                _ => DirEntry { name: name.clone(), is_dir: true, bytes: 0 },
            };
            Ok(dir.entries.iter().map(describe).collect())
        })
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let mut hardware = self.begin(OpKind::Rename, to)?;
            let (from, to) = (hardware.place(from)?, hardware.place(to)?);
            let node = hardware.entry(&from).ok_or(io::ErrorKind::NotFound)?;
            let is_dir = hardware.tree.dir(node).is_some();
            match hardware.entry(&to) {
                Some(target) if target == node => return Ok(()),
                Some(target) => match (is_dir, hardware.tree.dir(target)) {
                    (false, None) => {}
                    (true, Some(target)) if target.entries.is_empty() => {}
                    (true, Some(_)) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
                    (true, None) => return Err(io::ErrorKind::NotADirectory.into()),
                    (false, Some(_)) => return Err(io::ErrorKind::IsADirectory.into()),
                },
                None => {}
            }
            hardware.tree.rename(from, to, node);
            Ok(())
        })
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.begin(OpKind::Remove, path)?.unlink_file(path) })
    }

    fn remove_dir_all<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            for entry in self.read_dir(path).await? {
                let inner = path.join(&entry.name);
                // Each removal is an operation of its own: a crash may come in between.
                match entry.is_dir {
                    true => self.remove_dir_all(&inner).await?,
                    false => self.remove_file(&inner).await?,
                }
            }
            let mut hardware = self.begin(OpKind::Remove, path)?;
            let (dir, name) = hardware.place(path)?;
            hardware.tree.unlink(dir, &name);
            Ok(())
        })
    }

    fn sync_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let delay = self.hardware.lock().sync_delay(path);
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let mut hardware = self.begin(OpKind::SyncDir, path)?;
            let id = hardware.lookup(path)?;
            if hardware.tree.dir(id).is_none() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            hardware.tree.sync_dir(id);
            hardware.collect();
            Ok(())
        })
    }

    fn available_bytes<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<u64>> {
        Box::pin(async move {
            let hardware = self.hardware.lock();
            hardware.alive(self.generation)?;
            hardware.lookup(path)?;
            // Without a capacity: more than anyone asks for, and safe to add to.
            let capacity = hardware.capacity.filter(|_| !hardware.quota);
            Ok(capacity.map_or(1 << 50, |capacity| capacity.saturating_sub(hardware.tree.room())))
        })
    }

    fn lock_dir<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Send + Sync>>> {
        Box::pin(async move {
            let mut hardware = self.begin(OpKind::Lock, path)?;
            let (dir, name) = hardware.place(&path.join("lock"))?;
            if !hardware.locks.insert(path.to_owned()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if hardware.entry(&(dir, name.clone())).is_none() {
                hardware.tree.create(dir, &name, Node::File(FileState::default()));
            }
            Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned() }) as Box<dyn Send + Sync>)
        })
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut hardware = self.disk.hardware.lock();
        if hardware.generation == self.disk.generation {
            hardware.locks.remove(&self.path);
        }
    }
}

struct SimFile {
    disk: SimDisk,
    id: NodeId,
    path: PathBuf,
    writable: bool,
}

impl SimFile {
    fn change<T>(&self, kind: OpKind, call: impl FnOnce(&mut Hardware) -> io::Result<T>) -> io::Result<T> {
        let mut hardware = self.disk.begin(kind, &self.path)?;
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        call(&mut hardware)
    }

    fn read(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        let mut hardware = self.disk.begin(OpKind::Read, &self.path)?;
        Ok(file(&mut hardware, self.id)?.read(position, bytes).into())
    }

    fn write(&self, position: u64, parts: &[Bytes]) -> io::Result<()> {
        self.change(OpKind::Write, |hardware| {
            let end = position + parts.iter().map(|p| p.len() as u64).sum::<u64>();
            let more = end.saturating_sub(file(hardware, self.id)?.room());
            if more > 0 {
                hardware.make_room(more)?;
            }
            file(hardware, self.id)?.write(position, parts);
            Ok(())
        })
    }
}

/// The file behind an open handle: open files are never collected.
fn file(hardware: &mut Hardware, id: NodeId) -> io::Result<&mut FileState> {
    hardware.tree.file(id).ok_or_else(SimCrash::error)
}

/// How long a read takes that no cache answers.
const COLD_READ: Duration = Duration::from_millis(1);

impl DiskFile for SimFile {
    fn read_at(&self, position: u64, bytes: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let cold = self.disk.hardware.lock().cold;
            if cold {
                tokio::time::sleep(COLD_READ).await;
            }
            self.read(position, bytes)
        })
    }

    fn try_read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        if self.disk.hardware.lock().cold {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.read(position, bytes)
    }

    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.write(position, &parts) })
    }

    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.write(position, &parts)?;
            self.disk.sync_file(self.id, &self.path).await
        })
    }

    fn datasync(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.disk.sync_file(self.id, &self.path))
    }

    fn allocate(&self, position: u64, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.change(OpKind::Allocate, |hardware| {
                let end = position.saturating_add(bytes);
                let more = end.saturating_sub(file(hardware, self.id)?.room());
                hardware.make_room(more)?;
                file(hardware, self.id)?.reserve(end);
                Ok(())
            })
        })
    }

    fn set_len(&self, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.change(OpKind::SetLen, |hardware| {
                file(hardware, self.id)?.set_len(bytes);
                Ok(())
            })
        })
    }

    fn len(&self) -> BoxFuture<'_, io::Result<u64>> {
        Box::pin(async move {
            let mut hardware = self.disk.begin(OpKind::Read, &self.path)?;
            Ok(file(&mut hardware, self.id)?.len())
        })
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut hardware = self.disk.hardware.lock();
        if hardware.alive(self.disk.generation).is_err() {
            return;
        }
        let Some(count) = hardware.open.get_mut(&self.id) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        hardware.open.remove(&self.id);
        let linked = hardware.lookup(&self.path).is_ok_and(|id| id == self.id);
        let dirty = hardware.tree.file(self.id).is_some_and(|file| file.is_dirty());
        if linked && dirty {
            hardware.dirty_drops.push(self.path.clone());
        }
    }
}
