//! Named places in the store's code at which a test can stop time: kill the process, cut the power, fail, or wait.
//!
//! Outside of tests nobody listens and a visit costs one call. Each name is unique and says where in which operation
//! it lies; [`CrashPoint::ALL`] and [`CrashPoint::DETOURS`] list them, so a suite can visit every one and notice a new one.

use std::fmt;
use std::io;

macro_rules! points {
    (
        ALL { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }
        DETOURS { $($(#[$detour_doc:meta])* $detour:ident = $detour_name:literal,)* }
    ) => {
        /// A place in the store's code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CrashPoint { $($(#[$doc])* $variant,)* $($(#[$detour_doc])* $detour,)* }

        impl CrashPoint {
            /// Every place in the life of a replica that comes and stays over the network, in the order of the
            /// operations they lie in.
            pub const ALL: &[CrashPoint] = &[$(CrashPoint::$variant,)*];

            /// Every other place: what only some replicas go through.
            pub const DETOURS: &[CrashPoint] = &[$(CrashPoint::$detour,)*];

            /// The name: `operation/place`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(CrashPoint::$variant => $name,)*
                    $(CrashPoint::$detour => $detour_name,)*
                }
            }

            /// The place of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().chain(Self::DETOURS).copied().find(|p| p.name() == name)
            }
        }
    };
}

points! {
    ALL {
    /// Initial replication: before the first piece of a base is written.
    InitialFirstExtent = "initial/first_extent",
    /// Between two pieces.
    InitialMidExtent = "initial/mid_extent",
    /// Pieces were written, none is synced.
    InitialBeforeExtentSync = "initial/before_extent_sync",
    /// The new positions are durable.
    InitialAfterPositionSaved = "initial/after_position_saved",
    /// The first cycle is whole; base and run are not published.
    InitialBeforeCommit = "initial/before_commit",
    /// Base and first run are published; nobody has been told.
    InitialCommittedBeforeAck = "initial/committed_before_ack",
    /// A cycle's header was taken.
    ReceiveHeader = "receive/header",
    /// Between two batches.
    ReceiveMidData = "receive/mid_data",
    /// All runs are written, none is synced.
    ReceiveBeforeSegmentSync = "receive/before_segment_sync",
    /// The runs are synced, under names of staging.
    ReceiveSegmentSynced = "receive/segment_synced",
    /// The runs bear their names; the manifest does not know them.
    ReceiveBeforeCatalogue = "receive/before_catalogue",
    /// The manifest is written beside the old one.
    ReceiveCatalogueWritten = "receive/catalogue_written",
    /// The manifest is durable.
    ReceiveCatalogueSynced = "receive/catalogue_synced",
    /// Everything is durable; nobody has been told.
    ReceiveBeforeAck = "receive/before_ack",
    /// The acknowledgement went out. Visited by whoever sends it.
    ReceiveAfterAck = "receive/after_ack",
    /// Committing the oldest run into the base: nothing is written yet.
    ApplyBeforeFirst = "apply/before_first",
    /// Between two pieces.
    ApplyMid = "apply/mid",
    /// The base has everything, unsynced.
    ApplyBeforeBaseSync = "apply/before_base_sync",
    /// The base is durable; the run still lies on top.
    ApplyBaseSynced = "apply/base_synced",
    /// Before the manifest says that the base has it.
    ApplyBeforeWatermark = "apply/before_watermark",
    /// The manifest says so, durably.
    ApplyWatermarkSynced = "apply/watermark_synced",
    /// Before files that nothing needs any more are unlinked.
    ApplyBeforeUnlink = "apply/before_unlink",
    /// Unlinked, not durably.
    ApplyUnlinkedBeforeDirsync = "apply/unlinked_before_dirsync",
    /// Merging: the runs are chosen.
    MergeChosen = "prune/chosen",
    /// The new run is created.
    MergeBeforeWrite = "prune/before_write",
    /// Within the new run.
    MergeMid = "prune/mid",
    /// The new run is written, unsynced.
    MergeBeforeSync = "prune/before_sync",
    /// The new run is synced; the manifest does not know it.
    MergeBeforeSwap = "prune/before_swap",
    /// The new run has taken its place.
    MergeSwapped = "prune/swapped",
    /// Before the runs it replaces are unlinked.
    MergeBeforeDelete = "prune/before_delete",
    /// They are unlinked.
    MergeDeleted = "prune/deleted",
    /// A failover: before its overlays are made.
    FailoverBeforeOverlay = "failover/before_overlay",
    /// The overlays are durable; nothing refers to them.
    FailoverOverlay = "failover/overlay",
    /// Before the raised generation is recorded together with the failover.
    FailoverBeforeGeneration = "failover/before_generation",
    /// Generation and failover are durable.
    FailoverGenerationSynced = "failover/generation_synced",
    /// Before the VM is defined. Visited by whoever defines it.
    FailoverBeforeDefine = "failover/before_define",
    /// The VM is defined. Visited by whoever defines it.
    FailoverDefined = "failover/defined",
    /// A failover is about to be made final.
    FailoverCommitBegin = "failover/commit_begin",
    /// It is final; what lay above it is still there.
    FailoverCommitMid = "failover/commit_mid",
    /// What lay above it is gone.
    FailoverCommitDone = "failover/commit_done",
    /// A failover is undone in the manifest; its overlays are still there.
    FailoverRevertMid = "failover/revert_mid",
    }
    DETOURS {
    /// A seed is about to be put where a copy will look for it.
    SeedBeforePlace = "seed/before_place",
    /// It is there.
    SeedPlaced = "seed/placed",
    /// Between two pieces of a seed that is copied.
    SeedMidCopy = "seed/mid_copy",
    /// Blocks are offered to an initial copy.
    SeedMidCompare = "seed/mid_compare",
    /// Within a file of an export. Visited by whoever writes it.
    ExportMidFile = "export/mid_file",
    /// An export lacks nothing but its manifest. Visited by whoever writes it.
    ExportBeforeManifest = "export/before_manifest",
    /// An export is whole. Visited by whoever writes it.
    ExportManifestSynced = "export/manifest_synced",
    /// An import was verified; nothing is written yet.
    ImportVerified = "import/verified",
    /// Within the base that an import becomes.
    ImportMidCopy = "import/mid_copy",
    /// The import is whole in staging; the manifest does not know it.
    ImportCommit = "import/import_commit",
    }
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who is told of visits.
pub trait Checkpoints: Send + Sync {
    /// The code has got to a place. An error fails the operation there as a failing disk would; not returning at all
    /// is a crash.
    fn reached(&self, point: CrashPoint) -> io::Result<()>;
}

/// Nobody listens.
pub struct NoCheckpoints;

impl Checkpoints for NoCheckpoints {
    fn reached(&self, _point: CrashPoint) -> io::Result<()> {
        Ok(())
    }
}

impl<F: Fn(CrashPoint) -> io::Result<()> + Send + Sync> Checkpoints for F {
    fn reached(&self, point: CrashPoint) -> io::Result<()> {
        self(point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_place_has_a_name_of_its_own() {
        let all = || CrashPoint::ALL.iter().chain(CrashPoint::DETOURS);
        let names: BTreeSet<_> = all().map(|p| p.name()).collect();
        assert_eq!(names.len(), all().count());
        assert!(all().all(|p| CrashPoint::from_name(p.name()) == Some(*p)));
    }
}
