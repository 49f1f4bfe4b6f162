//! Every bound of the protocol, with where its number comes from.

/// Largest control payload. A definition (at most [`DEFINITION_MAX`]) and a list of disks fit with room to spare.
pub const CONTROL_MAX: usize = 1 << 20;

/// Largest bulk payload: a batch of records is cut at 1 MiB by its writer; one incompressible record of 256 KiB may
/// come on top, with headers.
pub const BULK_MAX: usize = (1 << 20) + (512 << 10);

/// Largest extension area: room for a dozen extensions of a later version.
pub const EXTENSION_MAX: usize = 4096;

/// Longest VM name, in bytes. Hyper-V allows 100 characters; four bytes each.
pub const NAME_MAX: usize = 400;

/// Longest free text (reasons, hints, software names).
pub const TEXT_MAX: usize = 4096;

/// Longest definition of a VM: libvirt documents of large machines reach 100 KiB.
pub const DEFINITION_MAX: usize = 512 << 10;

/// Largest blob a definition may name (a boot image): distribution initial RAM disks reach 100 MiB.
pub const BLOB_MAX: u64 = 256 << 20;

/// Most blobs of one definition: kernel, initial RAM disk, firmware variables, and one to spare.
pub const BLOBS_MAX: usize = 4;

/// Most raw bytes of one record of an initial replication.
pub const BASE_RECORD_MAX: usize = 256 << 10;

/// Most blocks of one offer: 256 MiB of a disk, and 700 KiB of a message if none of them is zero.
pub const OFFER_BLOCKS_MAX: usize = 4096;

/// Most blocks of one offer of parts: 350 KiB of a message.
pub const OFFER_PARTS_MAX: usize = 1024;

/// Most connections that carry one session: beyond eight nothing more was gained on a lossy link (8 CUBIC
/// connections reached 91 of 200 Mbit/s, one BBR connection 191).
pub const CONNECTIONS_MAX: usize = 9;

/// Most bulk frames that may be ahead of the next expected one: two for each connection beside the session's own.
pub const REORDER_FRAMES_MAX: usize = 16;
