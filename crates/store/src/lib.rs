//! The replica store: receives cycles, keeps recovery points, opens them, and gives space back.
//!
//! A replica is a directory of ordinary files: a raw base and a chain of qcow2 runs per disk, which QEMU's tools open
//! with this program gone. [`Store`] is a directory of replicas, [`VmStore`] one of them. Which cuts are worth keeping,
//! when to fail over and how fast to work is decided elsewhere (`engine`, `daemon`); how a run looks inside is the run
//! crate's. Nothing here is asynchronous. `docs/formats/store.md` describes what lies on disk.
//!
//! Invariant: what was acknowledged is durable and whole, and what was not is not visible. One manifest per VM says
//! what exists; it is replaced in one instant, after all that it names is durable and before anything it no longer
//! names is unlinked.

pub mod checkpoints;
pub mod files;

mod adapt;
mod error;
mod manifest;
mod paths;
mod place;
mod reserve;
mod store;
mod vm;

pub use adapt::FileSource;
pub use checkpoints::{Checkpoints, CrashPoint, NoCheckpoints};
pub use error::{ChangeError, FileError};
pub use manifest::{FailoverStage, Object};
pub use paths::FileNumber;
pub use store::aside::SetAside;
pub use store::{CreateError, Removal, RemoveError, Store, StoreError, StoreOptions};
pub use vm::VmStore;
pub use vm::adopt::{AdoptError, Import, ImportRun};
pub use vm::awaiting::AwaitError;
pub use vm::base::seed::{Planting, SeedError, SeedFile};
pub use vm::base::{BaseBytes, BaseError, BaseMode, BaseReceiver};
pub use vm::check::{CheckError, CheckReport, Damage};
pub use vm::compare::{BLOCK_PARTS, BlockClaim, CLAIMS_MAX, Comparison, ComparisonError};
pub use vm::definition::{BLOB_MAX, BlobReceiver, DEFINITION_MAX, Definition, DefinitionError};
pub use vm::failover::{FailoverError, FailoverId, FailoverPurpose, FailoverReport};
pub use vm::open::OpenError;
pub use vm::points::{ChainFile, DiskChain, PointError, PointReport};
pub use vm::reader::{DeltaRun, DiskReader, PointReadError, PointReader};
pub use vm::receive::{CycleDisk, CycleError, CycleHeader, CycleReceiver};
pub use vm::report::VmReport;
pub use vm::session::{Session, SessionError};
pub use vm::sums::{BASE_BLOCK, BlockSum};
pub use vm::upkeep::{UpkeepError, UpkeepStep};
