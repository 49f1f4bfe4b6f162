//! Upkeep: gives back what dropped points held, step by step, in the background.
//!
//! Two moves, chosen by [`mod@plan`]: merging neighbouring links between cuts that must stay, and committing the oldest
//! link into the base. Both build what is new beside what is there, make it durable, and put it in place with one
//! change of the manifest; a step cut short is wholly done or not done after the next opening.

mod apply;
mod merge;
mod plan;

use tracing::warn;
use understudy_model::{CutDigest, ErrorKind};
use understudy_run::commit::CommitError;
use understudy_run::merge::MergeError;
use understudy_run::pace::Pace;
use understudy_run::{BuildError, ReadError};

use super::reader::{RunOpenError, damage_of};
use super::{VmStore, Writer};
use crate::error::{ChangeError, FileError};
use crate::manifest::{Manifest, Object};

pub(crate) use plan::{Plan, plan};

/// What a step of upkeep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpkeepStep {
    /// There is nothing to do.
    Idle,
    /// The cut is now part of the base.
    Committed {
        /// The cut.
        cut: CutDigest,
    },
    /// This many links became one.
    Merged {
        /// How many.
        links: usize,
        /// The cut they lead to.
        cut: CutDigest,
    },
    /// Something was opened meanwhile that needs what was about to be replaced. Try again later.
    Deferred,
}

/// Why a step of upkeep was not done. Everything is as before, unless the replica stopped.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// Something is damaged. It is recorded and left alone from now on.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// What is damaged.
        object: Object,
        /// How.
        what: String,
    },
    /// Something could not be read.
    #[error("cannot read {object}")]
    Read {
        /// What.
        object: Object,
        /// Why.
        #[source]
        err: ReadError,
    },
    /// A run could not be built.
    #[error("cannot build a run")]
    Build(#[source] BuildError),
    /// Space ran out, and the reserve did not suffice.
    #[error("no space left; about {needed} bytes are needed")]
    NoSpace {
        /// Bytes that the step would take at most.
        needed: u64,
    },
    /// The pace said to stop.
    #[error("upkeep was cancelled")]
    Cancelled,
    /// A file could not be used.
    #[error("cannot carry out upkeep")]
    File(#[from] FileError),
    /// The step could not be recorded.
    #[error("cannot record a step of upkeep")]
    Change(#[from] ChangeError),
}

impl UpkeepError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            UpkeepError::Damaged { .. } => ErrorKind::Corrupt,
            UpkeepError::Read { err, .. } => err.kind(),
            UpkeepError::Build(err) => err.kind(),
            UpkeepError::NoSpace { .. } => ErrorKind::Operator,
            UpkeepError::Cancelled => ErrorKind::Retry,
            UpkeepError::File(err) => err.kind(),
            UpkeepError::Change(err) => err.kind(),
        }
    }

    fn is_no_space(&self) -> bool {
        match self {
            UpkeepError::Build(BuildError::Write(err)) => crate::files::is_no_space(err),
            UpkeepError::File(err) | UpkeepError::Change(ChangeError::File(err)) => err.is_no_space(),
            _ => false,
        }
    }
}

/// Why a step came to nothing: deferred, or failed.
enum Halt {
    Deferred,
    Failed(UpkeepError),
}

impl<E: Into<UpkeepError>> From<E> for Halt {
    fn from(err: E) -> Self {
        Halt::Failed(err.into())
    }
}

impl VmStore {
    /// Does the next step of upkeep. `pace` is called at least once for each mebibyte handled; it may sleep, and its
    /// `Break` ends the step without harm. One step at a time; a second caller waits.
    pub fn upkeep(&self, pace: &mut Pace<'_>) -> Result<UpkeepStep, UpkeepError> {
        let _one = self.busy.lock().expect("no step of upkeep panics half-way");
        self.check_going()?;
        let first = self.step(pace);
        let Err(err) = first else {
            self.shared.reserve.refill();
            return first;
        };
        if !err.is_no_space() {
            return Err(err);
        }
        let needed = self.next_plan().map_or(0, |plan| plan.bytes(&self.manifest()));
        if !self.shared.reserve.release() {
            return Err(UpkeepError::NoSpace { needed });
        }
        warn!(vm = %self.vm, needed, "no space left: using the reserve");
        self.step(pace).map_err(|err| if err.is_no_space() { UpkeepError::NoSpace { needed } } else { err })
    }

    /// Whether a step of upkeep would find something to do, as far as failovers let it.
    pub fn needs_upkeep(&self) -> bool {
        let manifest = self.manifest();
        let in_use = manifest.failovers.iter().filter_map(|f| manifest.height_of(f.cut)).max();
        plan(&manifest, in_use, u64::MAX).is_some()
    }

    fn next_plan(&self) -> Option<Plan> {
        let writer = self.lock();
        let manifest = self.manifest();
        let room = self.place.files().free_space().unwrap_or(u64::MAX);
        plan(&manifest, self.in_use(&writer, &manifest), room)
    }

    fn step(&self, pace: &mut Pace<'_>) -> Result<UpkeepStep, UpkeepError> {
        let done = match self.next_plan() {
            None => Ok(UpkeepStep::Idle),
            Some(Plan::Commit) => self.apply(pace),
            Some(Plan::Merge { links }) => self.merge(links, pace),
        };
        match done {
            Ok(step) => Ok(step),
            Err(Halt::Deferred) => Ok(UpkeepStep::Deferred),
            Err(Halt::Failed(err)) => Err(err),
        }
    }

    fn damaged(&self, object: Object, what: String) -> UpkeepError {
        self.note_damage(object, &what);
        UpkeepError::Damaged { object, what }
    }

    fn read_failed(&self, object: Object, err: ReadError) -> UpkeepError {
        match damage_of(&err) {
            // What failed once and then verifies was the disk's mood.
            Some(what) if self.is_damaged(object) => self.damaged(object, what),
            _ => UpkeepError::Read { object, err },
        }
    }

    fn open_failed(&self, object: Object, err: RunOpenError) -> UpkeepError {
        match (err.damage(), err) {
            (Some(what), _) if self.is_damaged(object) => self.damaged(object, what),
            (_, RunOpenError::File(err)) => err.into(),
            (_, err) => UpkeepError::Read { object, err: err.into_read() },
        }
    }

    /// A failed write of replica data is judged; others just fail the step.
    fn build_failed(&self, path: &str, err: BuildError) -> UpkeepError {
        match err {
            BuildError::Write(err) => self.judge(FileError::new("write", self.place.path(path), err)).into(),
            err => UpkeepError::Build(err),
        }
    }

    fn merge_failed(&self, inputs: &[Object], below: Object, path: &str, err: MergeError) -> UpkeepError {
        match err {
            MergeError::Read { index, err } => self.read_failed(inputs[index], err),
            MergeError::ReadThrough { err, .. } => self.read_through_failed(inputs, below, err),
            MergeError::Build(err) => self.build_failed(path, err),
            MergeError::Cancelled => UpkeepError::Cancelled,
            MergeError::Shrunk { older, newer } => unreachable!("disks never shrink in a chain: {older}, {newer}"),
        }
    }

    fn read_through_failed(&self, inputs: &[Object], below: Object, err: ReadError) -> UpkeepError {
        let Object::Run { disk, .. } = inputs[0] else { unreachable!("runs are merged") };
        let base = super::sums::damaged_block(&err).is_some();
        let manifest = self.manifest();
        let of_disk = manifest.run_files().into_iter().filter(|(d, _)| *d == disk);
        let damaged = of_disk.map(|(disk, number)| Object::Run { disk, number }).find(|o| self.is_damaged(*o));
        match (base, damaged) {
            (true, _) => self.read_failed(Object::Base { disk }, err),
            (false, Some(object)) => self.read_failed(object, err),
            (false, None) => UpkeepError::Read { object: below, err },
        }
    }

    fn commit_failed(&self, object: Object, path: &str, err: CommitError) -> UpkeepError {
        match err {
            CommitError::Read(err) => self.read_failed(object, err),
            CommitError::Write(err) => self.judge(FileError::new("write", self.place.path(path), err)).into(),
            CommitError::Cancelled => UpkeepError::Cancelled,
        }
    }

    /// Whether anything at or above a height is in use, so that the links below it must stay as they are.
    fn is_in_use_from(&self, writer: &Writer, manifest: &Manifest, height: usize) -> bool {
        self.in_use(writer, manifest).is_some_and(|used| used >= height)
    }
}
