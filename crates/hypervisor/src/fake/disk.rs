//! One disk in memory: its bytes, its maps, its frozen image while a cut is open.

use std::collections::{BTreeMap, BTreeSet};

use understudy_model::{CutNumber, Extent, ExtentSet};

use crate::driver::{
    Content, DiskInfo, DiskMaps, Error, ImageFormat, ImageStamp, MapInfo, MapOwner, NEIGHBOURHOOD, Result, granularity,
};

/// Bytes are kept in pieces of this size, those of zeros not at all.
const PIECE: u64 = 4096;

/// Bytes that are mostly zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sparse(BTreeMap<u64, Box<[u8]>>);

impl Sparse {
    fn read(&self, extent: Extent) -> Vec<u8> {
        let mut out = vec![0; extent.len as usize];
        for (index, piece) in self.pieces(extent) {
            let start = index * PIECE;
            let from = start.max(extent.offset);
            let to = (start + PIECE).min(extent.end());
            out[(from - extent.offset) as usize..(to - extent.offset) as usize]
                .copy_from_slice(&piece[(from - start) as usize..(to - start) as usize]);
        }
        out
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % PIECE) as usize;
            let (now, later) = rest.split_at(rest.len().min(PIECE as usize - within));
            let piece = self.0.entry(at / PIECE).or_insert_with(|| vec![0; PIECE as usize].into());
            piece[within..within + now.len()].copy_from_slice(now);
            if piece.iter().fold(0, |all, b| all | b) == 0 {
                self.0.remove(&(at / PIECE));
            }
            at += now.len() as u64;
            rest = later;
        }
    }

    fn pieces(&self, extent: Extent) -> impl Iterator<Item = (u64, &[u8])> {
        let range = extent.offset / PIECE..extent.end().div_ceil(PIECE);
        self.0.range(range).map(|(index, piece)| (*index, &**piece))
    }

    /// Which parts of `extent` hold anything.
    fn content(&self, extent: Extent) -> Vec<(Extent, Content)> {
        let data: ExtentSet = self.pieces(extent).map(|(index, _)| Extent::new(index * PIECE, PIECE)).collect();
        let mut parts = Vec::new();
        let mut at = extent.offset;
        for piece in data.iter() {
            let (start, end) = (piece.offset.max(extent.offset), piece.end().min(extent.end()));
            if at < start {
                parts.push((Extent::new(at, start - at), Content::Zero));
            }
            parts.push((Extent::new(start, end - start), Content::Data));
            at = end;
        }
        if at < extent.end() {
            parts.push((Extent::new(at, extent.end() - at), Content::Zero));
        }
        parts
    }
}

/// One map.
#[derive(Debug, Clone)]
struct Map {
    is_recording: bool,
    is_inconsistent: bool,
    is_persistent: bool,
    granularity: u64,
    marked: BTreeSet<u64>,
}

/// A frozen image.
#[derive(Debug, Clone)]
pub(super) struct Frozen {
    pub due: ExtentSet,
    /// Neighbourhoods that are still served; before anything is known to be due, none is refused.
    served: ExtentSet,
    /// What was overwritten since, as it was.
    saved: BTreeMap<u64, Sparse>,
}

/// One disk of a [`super::FakeVm`].
#[derive(Debug, Clone)]
pub struct FakeDisk {
    key: String,
    size: u64,
    format: ImageFormat,
    bytes: Sparse,
    maps: BTreeMap<String, Map>,
    /// Rises with each change of the image's file.
    changes: u64,
    pub(super) frozen: Option<Frozen>,
}

impl FakeDisk {
    /// An empty disk. Only a qcow2 one can keep maps over an end of the hypervisor.
    pub fn new(key: impl Into<String>, size: u64, format: ImageFormat) -> Self {
        assert!(size > 0 && size.is_multiple_of(512), "a disk has whole sectors");
        Self {
            key: key.into(),
            size,
            format,
            bytes: Sparse::default(),
            maps: BTreeMap::new(),
            changes: 0,
            frozen: None,
        }
    }

    /// Its durable key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its bytes as they are now.
    pub fn read(&self, extent: Extent) -> Vec<u8> {
        self.bytes.read(extent)
    }

    pub(super) fn content(&self, extent: Extent) -> Vec<(Extent, Content)> {
        self.bytes.content(extent)
    }

    /// A change made by the guest. Answers how much scratch space the copy of the old content takes.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        let extent = Extent::new(offset, bytes.len() as u64);
        assert!(extent.end() <= self.size, "a guest cannot write beyond its disk");
        let saved = self.save(extent);
        for map in self.maps.values_mut().filter(|m| m.is_recording) {
            map.marked.extend(extent.offset / map.granularity..extent.end().div_ceil(map.granularity));
        }
        self.bytes.write(offset, bytes);
        self.changes += 1;
        saved
    }

    /// A change made behind everybody's back.
    pub(super) fn alter(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes.write(offset, bytes);
        self.changes += 1;
    }

    pub(super) fn resize(&mut self, size: u64) {
        assert!(size > 0 && size.is_multiple_of(512), "a disk has whole sectors");
        if size < self.size {
            let gone = vec![0; (self.size - size) as usize];
            self.bytes.write(size, &gone);
        }
        self.size = size;
        self.changes += 1;
    }

    /// Copies what is about to be overwritten, as far as it is served and not yet copied.
    fn save(&mut self, extent: Extent) -> u64 {
        let Some(frozen) = &mut self.frozen else { return 0 };
        let mut taken = 0;
        for index in extent.offset / NEIGHBOURHOOD..extent.end().div_ceil(NEIGHBOURHOOD) {
            let place = neighbourhood(index, self.size);
            if frozen.served.contains(place) && !frozen.saved.contains_key(&index) {
                let mut copy = Sparse::default();
                copy.write(place.offset, &self.bytes.read(place));
                frozen.saved.insert(index, copy);
                taken += place.len;
            }
        }
        taken
    }

    /// Freezes it as it is.
    pub(super) fn freeze(&mut self, due: ExtentSet) {
        let served = due.aligned(NEIGHBOURHOOD, self.size);
        self.frozen = Some(Frozen { due, served, saved: BTreeMap::new() });
    }

    /// Reads the frozen image; `None` for what it does not serve.
    pub(super) fn read_frozen(&self, extent: Extent) -> Option<Vec<u8>> {
        let frozen = self.frozen.as_ref().filter(|f| f.served.contains(extent))?;
        let mut out = Vec::with_capacity(extent.len as usize);
        for (place, source) in self.sources(frozen, extent) {
            out.extend(source.read(place));
        }
        Some(out)
    }

    pub(super) fn frozen_content(&self, extent: Extent) -> Option<Vec<(Extent, Content)>> {
        let frozen = self.frozen.as_ref().filter(|f| f.served.contains(extent))?;
        Some(self.sources(frozen, extent).flat_map(|(place, source)| source.content(place)).collect())
    }

    /// Where each part of the frozen image is to be found.
    fn sources<'a>(&'a self, frozen: &'a Frozen, extent: Extent) -> impl Iterator<Item = (Extent, &'a Sparse)> {
        (extent.offset / NEIGHBOURHOOD..extent.end().div_ceil(NEIGHBOURHOOD)).map(move |index| {
            let place = neighbourhood(index, self.size);
            let start = place.offset.max(extent.offset);
            let part = Extent::new(start, place.end().min(extent.end()) - start);
            (part, frozen.saved.get(&index).unwrap_or(&self.bytes))
        })
    }

    pub(super) fn info(&self) -> DiskInfo {
        DiskInfo {
            key: self.key.clone(),
            size: self.size,
            format: self.format,
            path: Some(self.path()),
            persistent_maps: self.format == ImageFormat::Qcow2,
            iothread: None,
        }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        std::path::Path::new("/fake").join(self.key.replace('/', "_"))
    }

    pub(super) fn format(&self) -> ImageFormat {
        self.format
    }

    pub(super) fn stamp(&self) -> ImageStamp {
        let at = i128::from(self.changes);
        ImageStamp { device: 0, inode: 0, len: self.size, modified_ns: at, changed_ns: at }
    }

    // --- maps ---

    pub(super) fn maps_of(&self, owner: &MapOwner) -> DiskMaps {
        let mut found = DiskMaps { key: self.key.clone(), size: self.size, ..DiskMaps::default() };
        for (name, map) in &self.maps {
            match MapOwner::parse(name) {
                Some((other, number)) if other == *owner => found.maps.push(map.info(number)),
                Some((other, _)) if other.relationship == owner.relationship => found.stale.push(name.clone()),
                _ => {}
            }
        }
        found.maps.sort_by_key(|m| m.number);
        found
    }

    pub(super) fn begin_map(&mut self, name: String) {
        let map = Map {
            is_recording: true,
            is_inconsistent: false,
            is_persistent: self.format == ImageFormat::Qcow2,
            granularity: granularity(self.size),
            marked: BTreeSet::new(),
        };
        self.maps.insert(name, map);
    }

    /// Ends the recording of all of one owner's maps below this number.
    pub(super) fn end_maps(&mut self, owner: &MapOwner, below: CutNumber) {
        self.change_maps(owner, |number, map| map.is_recording &= number >= below);
    }

    fn change_maps(&mut self, owner: &MapOwner, mut change: impl FnMut(CutNumber, &mut Map)) {
        for (name, map) in &mut self.maps {
            if let Some((other, number)) = MapOwner::parse(name)
                && other == *owner
            {
                change(number, map);
            }
        }
    }

    pub(super) fn remove_maps(&mut self, mut is_unwanted: impl FnMut(MapOwner, MapInfo) -> bool) {
        self.maps.retain(|name, map| {
            MapOwner::parse(name).is_none_or(|(owner, number)| !is_unwanted(owner, map.info(number)))
        });
    }

    /// Everything that any of one owner's maps has marked.
    pub fn union(&self, owner: &MapOwner) -> ExtentSet {
        let of_owner = |name: &String| MapOwner::parse(name).is_some_and(|(other, _)| other == *owner);
        let maps = self.maps.iter().filter(|(name, _)| of_owner(name));
        let marked: BTreeSet<_> =
            maps.flat_map(|(_, m)| m.marked.iter().map(|g| (g * m.granularity, m.granularity))).collect();
        let extents = marked.into_iter().map(|(at, len)| Extent::new(at, len.min(self.size.saturating_sub(at))));
        extents.collect()
    }

    /// Unites the maps that no longer record into the oldest of them.
    pub(super) fn fold_maps(&mut self, owner: &MapOwner) -> Result<()> {
        let frozen: Vec<_> = self.maps_of(owner).maps.into_iter().filter(|m| !m.recording).collect();
        if let Some(bad) = frozen.iter().find(|m| m.inconsistent) {
            let lost = crate::driver::LostTracking::Inconsistent { number: bad.number };
            return Err(Error::tracking(&self.key, lost));
        }
        let Some((oldest, rest)) = frozen.split_first() else { return Ok(()) };
        for map in rest {
            let gone = self.maps.remove(&owner.map_name(map.number)).expect("it was just listed");
            let into = self.maps.get_mut(&owner.map_name(oldest.number)).expect("it was just listed");
            into.marked.extend(gone.marked);
        }
        Ok(())
    }

    /// The hypervisor ended: what it could not store is gone, and what it did not close is not to be trusted.
    pub(super) fn lose_hypervisor(&mut self, in_good_order: bool) {
        self.frozen = None;
        self.maps.retain(|_, map| map.is_persistent);
        for map in self.maps.values_mut() {
            map.is_inconsistent |= !in_good_order;
        }
    }

    pub(super) fn remove_map(&mut self, owner: &MapOwner, number: CutNumber) -> bool {
        self.maps.remove(&owner.map_name(number)).is_some()
    }
}

impl Map {
    fn info(&self, number: CutNumber) -> MapInfo {
        MapInfo {
            number,
            recording: self.is_recording && !self.is_inconsistent,
            inconsistent: self.is_inconsistent,
            persistent: self.is_persistent,
            busy: false,
            granularity: self.granularity,
            dirty: self.marked.len() as u64 * self.granularity,
        }
    }
}

fn neighbourhood(index: u64, size: u64) -> Extent {
    let start = index * NEIGHBOURHOOD;
    Extent::new(start, NEIGHBOURHOOD.min(size.saturating_sub(start)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_disk_agrees_with_a_plain_array(
            writes in proptest::collection::vec((0u64..60_000, 1usize..9000, 0u8..3), 0..20),
            from in 0u64..60_000, len in 1u64..9000,
        ) {
            let mut sparse = Sparse::default();
            let mut model = vec![0u8; 80_000];
            for (offset, len, byte) in writes {
                sparse.write(offset, &vec![byte; len]);
                model[offset as usize..offset as usize + len].fill(byte);
            }
            let extent = Extent::new(from, len);
            prop_assert_eq!(&sparse.read(extent), &model[from as usize..(from + len) as usize]);
            let content = sparse.content(extent);
            prop_assert_eq!(content.iter().map(|(e, _)| e.len).sum::<u64>(), len);
            for (part, content) in content {
                let bytes = &model[part.offset as usize..part.end() as usize];
                prop_assert!(content == Content::Data || bytes.iter().all(|b| *b == 0));
            }
        }
    }
}
