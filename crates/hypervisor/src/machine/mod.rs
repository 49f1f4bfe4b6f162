//! VMs by definition: what a VM is, as a document; deriving that from a running QEMU; starting a QEMU from it.
//!
//! | part | does |
//! |---|---|
//! | [`Definition`] | everything a replica must know of a VM besides its disks' contents, and nothing of any host |
//! | [`derive`](derive()) | makes one by asking a running QEMU |
//! | [`LocalQemu`] | says what this host lacks to start one |
//! | [`launch`](launch()) | starts a QEMU from one and from this host's disks and networks, to outlive us |
//! | [`Running`] | a QEMU so started: found again, asked, stopped |
//!
//! A definition comes from the primary, which the replica need not trust. It holds words, bounded numbers and bounded
//! texts, never a path, a program or an argument.

mod arguments;
mod ask;
mod blob;
mod definition;
mod derive;
mod devices;
mod document;
mod launch;
mod local;
mod running;
mod start;
mod text;

pub use ask::{Ask, AskError};
pub use blob::{BLOB_MAX, Blob, BlobError};
pub use definition::{
    Accelerator, Bus, CPUS_MAX, Clock, Cpu, Definition, Disk, Firmware, Kernel, MEMORY_MIB_MAX, MachineOption,
    NICS_MAX, Nic, NicModel, PciPlace, RootPort, Switch, Video,
};
pub use derive::{DeriveError, Derived, Source, derive};
pub use document::{DOCUMENT_MAX, DocumentError};
pub use launch::{
    Attachment, Console, DiskImage, Emulator, Identity, InterfaceName, Launch, LaunchError, Networks, RuntimeFiles,
    UefiFiles,
};
pub use local::{LocalQemu, ProbeError};
pub use running::{FindError, Running};
pub use start::launch;
pub use text::{
    BlobName, CommandLine, CpuModel, FeatureName, FeatureValue, Mac, MachineType, NetworkName, Serial, TextError,
    VmName,
};
