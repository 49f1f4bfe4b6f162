//! The nouns of the project: identities, units, cuts, relationships, jobs and return codes.
//!
//! Everything else points here, so nothing here does I/O, reads a clock or draws randomness. The types carry no
//! serialisation: each contract (REST, CIM, wire, manifest, catalogue) owns its own serialised form and converts, so
//! that renaming a field can never change bytes on a disk or a wire by accident.

pub mod code;
pub mod cut;
pub mod extent;
pub mod id;
pub mod job;
pub mod machine;
pub mod refusal;
pub mod relationship;
pub mod settings;
pub mod time;

pub use code::ReturnCode;
pub use cut::{Consistency, Cut, CutDigest, CutNumber, CutRef, Generation, SessionNumber};
pub use extent::{Extent, ExtentSet};
pub use id::{DiskId, JobId, PeerId, PointId, RelationshipId, VmId};
pub use machine::DiskSpec;
pub use refusal::{ErrorKind, Refusal};
pub use relationship::{FailoverKind, Health, Mode, State};
pub use settings::Settings;
pub use time::{Millis, Timestamp};
