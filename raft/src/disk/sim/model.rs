//! What a disk keeps: each file's contents as the page cache sees them and as the platter has them, the writes in between,
//! and the same for directory entries. Pure state, no I/O, no faults; [`super`] drives it.
//!
//! A file is a sparse map of 512-byte sectors. A write leaves a new *version* of each sector it touches pending; a sync makes
//! the newest version durable. A power cut picks, per sector, any version between the durable one and the newest, or a
//! sector torn between two of them. Lengths are versions too. Directory entries are a list of pending changes; a power cut
//! drops any of them, and with each those that build on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

/// What a power cut tears: nothing smaller is atomic, and not even this is.
pub(super) const SECTOR_BYTES: usize = 512;

type Sector = Arc<[u8; SECTOR_BYTES]>;

/// Names a file or a directory for as long as it lives.
pub(super) type NodeId = u64;

/// How a power cut treats what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// All of it is gone.
    Everything,
    /// All of it happened to be written.
    Nothing,
    /// Each piece by itself: kept, lost or torn.
    Pieces,
}

impl Loss {
    pub(super) fn draw(rng: &mut SmallRng) -> Self {
        match rng.random_range(0..6) {
            0 => Self::Everything,
            1 => Self::Nothing,
            _ => Self::Pieces,
        }
    }

    fn pick(self, versions: usize, rng: &mut SmallRng) -> usize {
        match self {
            Self::Everything => 0,
            Self::Nothing => versions - 1,
            Self::Pieces => rng.random_range(0..versions),
        }
    }
}

/// A file's contents. Absent sectors are zeros.
#[derive(Clone, Default)]
pub(super) struct FileState {
    cache: BTreeMap<u64, Sector>,
    durable: BTreeMap<u64, Sector>,
    /// Versions since the last sync, oldest first, with the number of the write.
    pending: BTreeMap<u64, Vec<(u64, Sector)>>,
    len: u64,
    durable_len: u64,
    pending_lens: Vec<(u64, u64)>,
    reserved: u64,
    writes: u64,
}

impl FileState {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that it takes of the disk.
    pub(super) fn room(&self) -> u64 {
        self.len.max(self.reserved)
    }

    pub(super) fn reserve(&mut self, end: u64) {
        self.reserved = self.reserved.max(end);
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.pending.is_empty() || !self.pending_lens.is_empty()
    }

    pub(super) fn read(&self, position: u64, bytes: usize) -> Vec<u8> {
        let end = self.len.min(position.saturating_add(bytes as u64));
        let mut out = Vec::with_capacity(end.saturating_sub(position) as usize);
        let mut at = position;
        while at < end {
            let (sector, within) = split(at);
            let take = (SECTOR_BYTES - within).min((end - at) as usize);
            match self.cache.get(&sector) {
                Some(content) => out.extend_from_slice(&content[within..within + take]),
                None => out.resize(out.len() + take, 0),
            }
            at += take as u64;
        }
        out
    }

    pub(super) fn write(&mut self, position: u64, parts: &[Bytes]) {
        self.writes += 1;
        let mut at = position;
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let (sector, within) = split(at);
                let take = (SECTOR_BYTES - within).min(rest.len());
                self.write_sector(sector, within, &rest[..take]);
                at += take as u64;
                rest = &rest[take..];
            }
        }
        // The length that the platter would come to have: after a write-back that failed, less than the cache shows, until
        // somebody writes there again (ext4's i_disksize, XFS's i_disk_size).
        let to_be_durable = self.pending_lens.last().map_or(self.durable_len, |(_, len)| *len);
        if at > to_be_durable {
            self.pending_lens.push((self.writes, at));
        }
        self.len = self.len.max(at);
    }

    fn write_sector(&mut self, sector: u64, within: usize, bytes: &[u8]) {
        let untouched = !self.cache.contains_key(&sector)
            && !self.durable.contains_key(&sector)
            && !self.pending.contains_key(&sector);
        // Zeros over what was always zeros: nothing that a crash could show. Keeps pre-written files cheap.
        if untouched && bytes.iter().all(|b| *b == 0) {
            return;
        }
        let mut content = self.cache.get(&sector).map_or([0; SECTOR_BYTES], |old| **old);
        content[within..within + bytes.len()].copy_from_slice(bytes);
        let content = Arc::new(content);
        self.cache.insert(sector, content.clone());
        self.pending.entry(sector).or_default().push((self.writes, content));
    }

    fn change_len(&mut self, len: u64) {
        self.len = len;
        self.pending_lens.push((self.writes, len));
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.writes += 1;
        if len < self.len {
            let (first, within) = split(len);
            let beyond: Vec<u64> = self.cache.range(first..).map(|(sector, _)| *sector).collect();
            for sector in beyond {
                let from = if sector == first { within } else { 0 };
                self.write_sector(sector, from, &[0; SECTOR_BYTES][from..]);
            }
            self.reserved = self.reserved.min(len);
        }
        self.change_len(len);
    }

    /// What a sync that begins now will cover.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// Makes everything up to write number `until` durable; or, if `lost`, forgets that it needed to be (a failed write-back
    /// marks its pages clean, and the next sync succeeds: fsyncgate).
    pub(super) fn sync(&mut self, until: u64, lost: bool) {
        for (sector, versions) in &mut self.pending {
            let covered = versions.iter().take_while(|(write, _)| *write <= until).count();
            if let Some((_, newest)) = versions.drain(..covered).next_back()
                && !lost
            {
                self.durable.insert(*sector, newest);
            }
        }
        self.pending.retain(|_, versions| !versions.is_empty());
        let covered = self.pending_lens.iter().take_while(|(write, _)| *write <= until).count();
        if let Some((_, len)) = self.pending_lens.drain(..covered).next_back()
            && !lost
        {
            self.durable_len = len;
        }
    }

    /// The power goes.
    pub(super) fn crash(&mut self, loss: Loss, rng: &mut SmallRng) {
        let lens: Vec<u64> = std::iter::once(self.durable_len).chain(self.pending_lens.iter().map(|l| l.1)).collect();
        self.len = lens[loss.pick(lens.len(), rng)];
        self.durable_len = self.len;
        self.pending_lens.clear();
        self.reserved = self.len;
        for (sector, pending) in std::mem::take(&mut self.pending) {
            let old = self.durable.get(&sector).cloned().unwrap_or_else(|| Arc::new([0; SECTOR_BYTES]));
            let versions: Vec<Sector> = std::iter::once(old).chain(pending.into_iter().map(|p| p.1)).collect();
            let mut survivor = *versions[loss.pick(versions.len(), rng)];
            if loss == Loss::Pieces && rng.random_bool(0.3) {
                let cut = rng.random_range(0..SECTOR_BYTES);
                survivor[cut..].copy_from_slice(&versions[loss.pick(versions.len(), rng)][cut..]);
            }
            self.durable.insert(sector, Arc::new(survivor));
        }
        let (last, within) = split(self.len);
        self.durable.split_off(&(last + 1));
        if let Some(tail) = self.durable.get_mut(&last) {
            Arc::make_mut(tail)[within..].fill(0);
        }
        self.cache = self.durable.clone();
    }

    /// Rot: changes what is on the platter and in the cache alike.
    pub(super) fn flip_bit(&mut self, position: u64, bit: u8) {
        let (sector, within) = split(position);
        for contents in [&mut self.cache, &mut self.durable] {
            let content = contents.entry(sector).or_insert_with(|| Arc::new([0; SECTOR_BYTES]));
            Arc::make_mut(content)[within] ^= 1 << bit;
        }
    }
}

fn split(position: u64) -> (u64, usize) {
    (position / SECTOR_BYTES as u64, (position % SECTOR_BYTES as u64) as usize)
}

/// A directory's entries, as they are and as the platter has them.
#[derive(Clone, Default)]
pub(super) struct DirState {
    pub(super) entries: BTreeMap<String, NodeId>,
    durable: BTreeMap<String, NodeId>,
}

/// A file or a directory.
#[derive(Clone)]
pub(super) enum Node {
    File(FileState),
    Dir(DirState),
}

/// One entry of one directory.
type Place = (NodeId, String);

/// One change of the name space: atomic, whatever it touches.
#[derive(Clone)]
struct NameChange {
    sets: Vec<(Place, Option<NodeId>)>,
}

/// All files and directories.
#[derive(Clone)]
pub(super) struct Tree {
    nodes: BTreeMap<NodeId, Node>,
    pending: Vec<NameChange>,
    next: NodeId,
}

/// The root directory.
pub(super) const ROOT: NodeId = 0;

impl Tree {
    pub(super) fn new() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Dir(DirState::default()))]), pending: Vec::new(), next: ROOT + 1 }
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn file(&mut self, id: NodeId) -> Option<&mut FileState> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    pub(super) fn dir(&self, id: NodeId) -> Option<&DirState> {
        match self.nodes.get(&id) {
            Some(Node::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn room(&self) -> u64 {
        self.nodes.values().map(|node| if let Node::File(file) = node { file.room() } else { 0 }).sum()
    }

    pub(super) fn create(&mut self, dir: NodeId, name: &str, node: Node) -> NodeId {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.change(vec![((dir, name.to_owned()), Some(id))]);
        id
    }

    pub(super) fn unlink(&mut self, dir: NodeId, name: &str) {
        self.change(vec![((dir, name.to_owned()), None)]);
    }

    pub(super) fn rename(&mut self, from: Place, to: Place, node: NodeId) {
        self.change(vec![(from, None), (to, Some(node))]);
    }

    /// An entry is gone from the platter and from what would come there.
    pub(super) fn lose(&mut self, dir: NodeId, name: &str) {
        for change in &mut self.pending {
            change.sets.retain(|((of, called), _)| (*of, called.as_str()) != (dir, name));
        }
        self.pending.retain(|change| !change.sets.is_empty());
        if let Some(Node::Dir(dir)) = self.nodes.get_mut(&dir) {
            dir.entries.remove(name);
            dir.durable.remove(name);
        }
    }

    fn change(&mut self, sets: Vec<(Place, Option<NodeId>)>) {
        let change = NameChange { sets };
        self.apply(&change, |dir| &mut dir.entries);
        self.pending.push(change);
    }

    fn apply(&mut self, change: &NameChange, entries: fn(&mut DirState) -> &mut BTreeMap<String, NodeId>) {
        for ((dir, name), node) in &change.sets {
            let Some(Node::Dir(dir)) = self.nodes.get_mut(dir) else { continue };
            match node {
                Some(node) => entries(dir).insert(name.clone(), *node),
                None => entries(dir).remove(name),
            };
        }
    }

    /// Makes the entries of one directory durable, with all that they build on.
    pub(super) fn sync_dir(&mut self, dir: NodeId) {
        let pending = std::mem::take(&mut self.pending);
        let mut wanted = vec![false; pending.len()];
        let mut places: BTreeSet<&Place> = BTreeSet::new();
        for (number, change) in pending.iter().enumerate().rev() {
            if change.sets.iter().any(|(place, _)| place.0 == dir || places.contains(place)) {
                wanted[number] = true;
                places.extend(change.sets.iter().map(|(place, _)| place));
            }
        }
        for (change, wanted) in pending.into_iter().zip(wanted) {
            match wanted {
                true => self.apply(&change, |dir| &mut dir.durable),
                false => self.pending.push(change),
            }
        }
    }

    /// The power goes. Files that no durable entry reaches are gone with their contents.
    pub(super) fn crash(&mut self, loss: Loss, rng: &mut SmallRng) {
        let mut lost: BTreeSet<Place> = BTreeSet::new();
        for change in std::mem::take(&mut self.pending) {
            let builds_on_lost = change.sets.iter().any(|(place, _)| lost.contains(place));
            if builds_on_lost || loss.pick(2, rng) == 0 {
                lost.extend(change.sets.into_iter().map(|(place, _)| place));
            } else {
                self.apply(&change, |dir| &mut dir.durable);
            }
        }
        for node in self.nodes.values_mut() {
            match node {
                Node::File(file) => file.crash(loss, rng),
                Node::Dir(dir) => dir.entries = dir.durable.clone(),
            }
        }
        self.collect(&BTreeSet::new());
    }

    /// Forgets the nodes that no entry, pending change or open file (`open`) reaches.
    pub(super) fn collect(&mut self, open: &BTreeSet<NodeId>) {
        let mut reached = BTreeSet::new();
        let mut front: Vec<NodeId> = open.iter().copied().chain([ROOT]).collect();
        front.extend(
            self.pending.iter().flat_map(|c| c.sets.iter()).flat_map(|((dir, _), node)| node.iter().chain([dir])),
        );
        while let Some(id) = front.pop() {
            if !reached.insert(id) {
                continue;
            }
            if let Some(Node::Dir(dir)) = self.nodes.get(&id) {
                front.extend(dir.entries.values().chain(dir.durable.values()));
            }
        }
        self.nodes.retain(|id, _| reached.contains(id));
    }
}

/// Draws a seed from a generator.
pub(super) fn draw_seed(rng: &mut SmallRng) -> u64 {
    rng.next_u64()
}
