//! The names of a disk in memory: as they are now, as they would be after a power cut, and the journal in between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

pub(super) type Ino = u64;
/// The root directory.
pub(super) const ROOT: Ino = 1;

/// A name in a directory.
type Slot = (Ino, String);
type Slots = BTreeMap<Slot, Ino>;

/// One change of names, kept or lost whole.
#[derive(Clone)]
struct Step {
    /// What the slots hold afterwards.
    sets: Vec<(Slot, Option<Ino>)>,
    /// A slot it read: changes of that slot come before it.
    reads: Option<Slot>,
}

impl Step {
    fn touches(&self, slot: &Slot) -> bool {
        self.sets.iter().any(|(s, _)| s == slot) || self.reads.as_ref() == Some(slot)
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.sets.iter().map(|(s, _)| s).chain(&self.reads)
    }

    fn touches_dir(&self, dir: Ino) -> bool {
        self.sets.iter().any(|((d, _), _)| *d == dir)
    }

    /// Whether it builds on `earlier`.
    fn follows(&self, earlier: &Step) -> bool {
        self.slots().any(|slot| earlier.touches(slot))
    }

    fn apply(&self, slots: &mut Slots) {
        for (slot, ino) in &self.sets {
            match ino {
                Some(ino) => drop(slots.insert(slot.clone(), *ino)),
                None => drop(slots.remove(slot)),
            }
        }
    }
}

#[derive(Clone)]
pub(super) struct Names {
    current: Slots,
    durable: Slots,
    journal: Vec<Step>,
    dirs: BTreeSet<Ino>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { current: Slots::new(), durable: Slots::new(), journal: Vec::new(), dirs: BTreeSet::from([ROOT]) }
    }

    pub(super) fn add_dir(&mut self, ino: Ino) {
        self.dirs.insert(ino);
    }

    pub(super) fn resolve(&self, path: &str) -> io::Result<Ino> {
        if path.is_empty() {
            return Ok(ROOT);
        }
        path.split('/').try_fold(ROOT, |dir, name| {
            if !self.dirs.contains(&dir) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            self.current.get(&(dir, name.to_owned())).copied().ok_or(io::ErrorKind::NotFound.into())
        })
    }

    fn resolve_dir(&self, path: &str) -> io::Result<Ino> {
        let ino = self.resolve(path)?;
        if self.dirs.contains(&ino) { Ok(ino) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }

    fn slot(&self, path: &str) -> io::Result<Slot> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.resolve_dir(dir)?, name.to_owned()))
    }

    pub(super) fn must_be_free(&self, path: &str) -> io::Result<()> {
        let slot = self.slot(path)?;
        if self.current.contains_key(&slot) { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) }
    }

    pub(super) fn must_be_empty(&self, path: &str) -> io::Result<()> {
        let ino = self.resolve_dir(path)?;
        let empty = !self.current.keys().any(|(dir, _)| *dir == ino);
        if empty { Ok(()) } else { Err(io::ErrorKind::DirectoryNotEmpty.into()) }
    }

    fn step(&mut self, step: Step) {
        step.apply(&mut self.current);
        self.journal.push(step);
    }

    pub(super) fn set(&mut self, path: &str, ino: Option<Ino>) -> io::Result<()> {
        let slot = self.slot(path)?;
        self.step(Step { sets: vec![(slot, ino)], reads: None });
        Ok(())
    }

    pub(super) fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        let (ino, from, to) = (self.resolve(from)?, self.slot(from)?, self.slot(to)?);
        self.step(Step { sets: vec![(to, Some(ino))], reads: Some(from) });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let (ino, from, to) = (self.resolve(from)?, self.slot(from)?, self.slot(to)?);
        if let Some(old) = self.current.get(&to)
            && (self.dirs.contains(old) || self.dirs.contains(&ino))
        {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.step(Step { sets: vec![(from, None), (to, Some(ino))], reads: None });
        Ok(())
    }

    pub(super) fn list(&self, dir: &str) -> io::Result<Vec<(String, Ino)>> {
        let dir = self.resolve_dir(dir)?;
        let of_dir = self.current.range((dir, String::new())..(dir + 1, String::new()));
        Ok(of_dir.map(|((_, name), ino)| (name.clone(), *ino)).collect())
    }

    /// Makes every change that touched the directory durable, and those they build on, as one journal commit does.
    pub(super) fn sync(&mut self, dir: &str) -> io::Result<()> {
        let dir = self.resolve_dir(dir)?;
        let mut commit = vec![false; self.journal.len()];
        for i in (0..self.journal.len()).rev() {
            let needed = (i + 1..self.journal.len()).any(|j| commit[j] && self.journal[j].follows(&self.journal[i]));
            commit[i] = needed || self.journal[i].touches_dir(dir);
        }
        let mut kept = commit.iter();
        let durable = &mut self.durable;
        self.journal.retain(|step| {
            let now = *kept.next().expect("one flag a step");
            if now {
                step.apply(durable);
            }
            !now
        });
        Ok(())
    }

    /// Keeps or loses each journalled change; one that builds on a lost one is lost too.
    pub(super) fn crash(&mut self, mut keep: impl FnMut() -> bool) {
        let mut lost: Vec<Step> = Vec::new();
        for step in std::mem::take(&mut self.journal) {
            if lost.iter().any(|l| step.follows(l)) || !keep() {
                lost.push(step);
            } else {
                step.apply(&mut self.durable);
            }
        }
        self.current = self.durable.clone();
        self.drop_unreachable();
    }

    /// Names in directories that no longer have a name themselves are gone with them.
    fn drop_unreachable(&mut self) {
        let mut reached = BTreeSet::from([ROOT]);
        loop {
            let more: Vec<Ino> = self
                .current
                .iter()
                .filter(|((dir, _), ino)| reached.contains(dir) && self.dirs.contains(ino) && !reached.contains(ino))
                .map(|(_, ino)| *ino)
                .collect();
            if more.is_empty() {
                break;
            }
            reached.extend(more);
        }
        self.current.retain(|(dir, _), _| reached.contains(dir));
        self.durable = self.current.clone();
        self.dirs = reached;
    }

    pub(super) fn current_inodes(&self) -> BTreeSet<Ino> {
        self.current.values().copied().collect()
    }

    /// Inodes that a name leads to now or may lead to after a crash.
    pub(super) fn all_inodes(&self) -> BTreeSet<Ino> {
        let journalled = self.journal.iter().flat_map(|s| s.sets.iter().filter_map(|(_, ino)| *ino));
        self.current.values().chain(self.durable.values()).copied().chain(journalled).collect()
    }

    pub(super) fn tree(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.walk(ROOT, "", &mut out);
        out
    }

    fn walk(&self, dir: Ino, prefix: &str, out: &mut Vec<String>) {
        for ((_, name), ino) in self.current.range((dir, String::new())..(dir + 1, String::new())) {
            let path = format!("{prefix}{name}");
            if self.dirs.contains(ino) {
                self.walk(*ino, &format!("{path}/"), out);
            }
            out.push(path);
        }
    }
}
