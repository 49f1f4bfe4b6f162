//! One file's bytes: as they read now, as they were last synced, and what lay in between.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::rng::Rng;

/// What a file system writes at once.
const PAGE: u64 = 4096;
/// What a disk writes at once: a page may be torn between its sectors, a sector may not.
const SECTOR: usize = 512;
/// Versions of one page or length remembered between two syncs. A disk may have any of them; a few are enough.
const VERSIONS_MAX: usize = 4;

type Page = Arc<[u8; PAGE as usize]>;

/// A file or a directory (whose names live elsewhere).
#[derive(Clone, Default)]
pub(super) struct Inode {
    dir: bool,
    pages: BTreeMap<u64, Page>,
    len: u64,
    synced: BTreeMap<u64, Page>,
    synced_len: u64,
    /// Pages changed since the last sync, each with older unsynced versions; `None` is a hole.
    dirty: BTreeMap<u64, Vec<Option<Page>>>,
    /// Lengths the file had since the last sync.
    lens: Vec<u64>,
}

impl Inode {
    pub(super) fn file() -> Self {
        Self::default()
    }

    pub(super) fn dir() -> Self {
        Self { dir: true, ..Self::default() }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.dir
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Space that writing a range would newly take.
    pub(super) fn growth(&self, offset: u64, len: u64) -> u64 {
        if len == 0 {
            return 0;
        }
        let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
        (last - first + 1 - self.pages.range(first..=last).count() as u64) * PAGE
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let n = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < n {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let piece = (n - done).min(PAGE as usize - within);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => buf[done..done + piece].copy_from_slice(&page[within..within + piece]),
                None => buf[done..done + piece].fill(0),
            }
            done += piece;
        }
        n
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let piece = (bytes.len() - done).min(PAGE as usize - within);
            self.edit(at / PAGE, |page| page[within..within + piece].copy_from_slice(&bytes[done..done + piece]));
            done += piece;
        }
        if offset + bytes.len() as u64 > self.len && !bytes.is_empty() {
            self.change_len(offset + bytes.len() as u64);
        }
    }

    fn edit(&mut self, index: u64, f: impl FnOnce(&mut [u8; PAGE as usize])) {
        self.remember(index);
        let page = self.pages.entry(index).or_insert_with(|| Arc::new([0; PAGE as usize]));
        f(Arc::make_mut(page));
    }

    fn remember(&mut self, index: u64) {
        let current = self.pages.get(&index).cloned();
        match self.dirty.get_mut(&index) {
            // The version before the first change is the synced one and remembered as such.
            None => drop(self.dirty.insert(index, Vec::new())),
            Some(versions) if versions.len() < VERSIONS_MAX => versions.push(current),
            Some(versions) => versions[VERSIONS_MAX - 1] = current,
        }
    }

    fn change_len(&mut self, len: u64) {
        if self.lens.len() < VERSIONS_MAX {
            self.lens.push(self.len);
        }
        self.len = len;
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.change_len(len);
    }

    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = (offset.saturating_add(len)).min(self.len);
        if offset < end {
            self.zero(offset, end - offset);
        }
    }

    /// Whole pages become holes; what is left at the ends is overwritten.
    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let touched: Vec<u64> = self.pages.range(offset / PAGE..=(end - 1) / PAGE).map(|(i, _)| *i).collect();
        for index in touched {
            let from = offset.saturating_sub(index * PAGE) as usize;
            let to = (end - index * PAGE).min(PAGE) as usize;
            // The tail of the last page past the end of the file counts as whole.
            if from == 0 && (to == PAGE as usize || end >= self.len) {
                self.remember(index);
                self.pages.remove(&index);
            } else {
                self.edit(index, |page| page[from..to].fill(0));
            }
        }
    }

    pub(super) fn allocate(&mut self, len: u64) {
        for index in 0..len.div_ceil(PAGE) {
            if !self.pages.contains_key(&index) {
                self.edit(index, |_| ());
            }
        }
        if len > self.len {
            self.change_len(len);
        }
    }

    pub(super) fn sync(&mut self) {
        for index in std::mem::take(&mut self.dirty).into_keys() {
            match self.pages.get(&index) {
                Some(page) => drop(self.synced.insert(index, page.clone())),
                None => drop(self.synced.remove(&index)),
            }
        }
        self.synced_len = self.len;
        self.lens.clear();
    }

    /// What Linux does when writing back fails: the pages count as clean, and the disk does not have them. Later
    /// reads still see them until the power goes.
    pub(super) fn forget(&mut self) {
        self.dirty.clear();
        self.lens.clear();
    }

    /// What a file with the same bytes is before anybody synced it.
    pub(super) fn unsynced_copy(&self) -> Self {
        let dirty = self.pages.keys().map(|index| (*index, Vec::new())).collect();
        Self { pages: self.pages.clone(), len: self.len, dirty, lens: vec![0], ..Self::default() }
    }

    /// The first pages in a row at or after an offset that are no holes.
    pub(super) fn data_from(&self, offset: u64) -> Option<Range<u64>> {
        let mut pages = self.pages.range(offset / PAGE..).map(|(index, _)| *index);
        let first = pages.next()?;
        let last = pages.enumerate().take_while(|(i, index)| *index == first + 1 + *i as u64).last();
        let end = (last.map_or(first, |(_, index)| index) + 1) * PAGE;
        let range = (first * PAGE).max(offset)..end.min(self.len);
        (!range.is_empty()).then_some(range)
    }

    /// Clean pages are read from the disk again. After a sync that failed these are older ones.
    pub(super) fn forget_cached(&mut self) {
        let all: BTreeSet<u64> = self.pages.keys().chain(self.synced.keys()).copied().collect();
        for index in all.into_iter().filter(|index| !self.dirty.contains_key(index)) {
            match self.synced.get(&index) {
                Some(page) => drop(self.pages.insert(index, page.clone())),
                None => drop(self.pages.remove(&index)),
            }
        }
    }

    /// Decides what survived: nothing unsynced without a generator, else by its throws.
    pub(super) fn crash(&mut self, throws: Option<(&mut Rng, u64)>) {
        let dirty = std::mem::take(&mut self.dirty);
        let lens = std::mem::take(&mut self.lens);
        if let Some((rng, odds)) = throws {
            for (index, versions) in dirty {
                self.settle_page(index, &versions, rng, odds);
            }
            if rng.below(100) < odds {
                let all: Vec<u64> = lens.into_iter().chain([self.len]).collect();
                self.synced_len = all[rng.below(all.len() as u64) as usize];
            }
        }
        let len = self.synced_len;
        self.synced.retain(|index, _| index * PAGE < len);
        if let Some(page) = self.synced.get_mut(&(len / PAGE)) {
            Arc::make_mut(page)[(len % PAGE) as usize..].fill(0);
        }
        self.pages = self.synced.clone();
        self.len = len;
    }

    fn settle_page(&mut self, index: u64, versions: &[Option<Page>], rng: &mut Rng, odds: u64) {
        if rng.below(100) >= odds {
            return;
        }
        let old = self.synced.get(&index).cloned();
        let now = self.pages.get(&index).cloned();
        let all: Vec<_> = [old.clone()].into_iter().chain(versions.iter().cloned()).chain([now]).collect();
        let newer = all[1 + rng.below(all.len() as u64 - 1) as usize].clone();
        let settled = if rng.below(4) == 0 { torn(old, newer, rng) } else { newer };
        match settled {
            Some(page) => drop(self.synced.insert(index, page)),
            None => drop(self.synced.remove(&index)),
        }
    }
}

/// A page of which some sectors were written and others not.
fn torn(old: Option<Page>, new: Option<Page>, rng: &mut Rng) -> Option<Page> {
    let hole = || Arc::new([0; PAGE as usize]);
    let (mut page, new) = (old.unwrap_or_else(hole), new.unwrap_or_else(hole));
    let mask = rng.next();
    for (i, sector) in Arc::make_mut(&mut page).chunks_exact_mut(SECTOR).enumerate() {
        if mask >> i & 1 == 1 {
            sector.copy_from_slice(&new[i * SECTOR..(i + 1) * SECTOR]);
        }
    }
    Some(page)
}
