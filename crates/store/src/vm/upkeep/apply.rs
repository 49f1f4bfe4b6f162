//! Commits the lowest link into the base.
//!
//! The base is written in place. That is safe at any crash, because the link still lies on top and hides what was
//! written, until the manifest says that the base has it. What the base stood for before is gone from the first write
//! on; the plan chooses this step only when that cut can no longer be opened.
//!
//! The files above refer to the committed run by its name, which must go on reading the same: an empty run over the
//! base, a stub, takes the name.

use understudy_model::{DiskId, ExtentSet};
use understudy_run::pace::Pace;
use understudy_run::{Run, RunBuilder, RunParams, choose_cluster_bits, commit};

use super::super::receive::backing;
use super::super::sums::{OpenBase, SummedBase};
use super::super::{Marks, Space, VmStore};
use super::{Halt, UpkeepError, UpkeepStep};
use crate::adapt::{FileSink, FileSource};
use crate::checkpoints::CrashPoint;
use crate::error::FileError;
use crate::files::Access;
use crate::manifest::{Below, Link, Manifest, Object, PendingRename, RunFile, RunRecord, Stub};
use crate::paths;

/// What becomes of one disk of the link.
struct Applied {
    disk: DiskId,
    /// Length of the base, at least.
    size: u64,
    rename: PendingRename,
    stub: Stub,
}

impl VmStore {
    pub(super) fn apply(&self, pace: &mut Pace<'_>) -> Result<UpkeepStep, Halt> {
        let manifest = self.manifest();
        let mut made = Vec::new();
        let done = self.apply_link(&manifest, &mut made, pace);
        if done.is_err() {
            self.discard(&made);
        }
        done
    }

    fn apply_link(&self, manifest: &Manifest, made: &mut Vec<String>, pace: &mut Pace<'_>) -> Result<UpkeepStep, Halt> {
        let link = &manifest.links[0];
        let mut applied = Vec::new();
        for record in &link.runs {
            let Some(file) = record.file else { continue };
            let size = self.apply_run(record, file, pace)?;
            applied.push(self.make_stub(size, record.disk, file, made)?);
        }
        self.place.sync_dir(paths::STAGING).map_err(|err| self.judge(err))?;
        self.swap_applied(link, applied)?;
        Ok(UpkeepStep::Committed { cut: link.record.digest() })
    }

    fn apply_run(&self, record: &RunRecord, file: RunFile, pace: &mut Pace<'_>) -> Result<u64, Halt> {
        let (disk, object) = (record.disk, Object::Run { disk: record.disk, number: file.number });
        let run = self.open_run(disk, record, file.number, file.len).map_err(|err| self.open_failed(object, err))?;
        let mut base = self.open_base(disk, Access::Write)?;
        let changed = run.extents().map_err(|err| self.read_failed(object, err))?;
        self.reached(CrashPoint::ApplyBeforeFirst)?;
        self.expose(&mut base, disk, &run, &changed)?;
        self.write_base(&base, disk, object, &run, pace)?;
        self.reached(CrashPoint::ApplyBeforeBaseSync)?;
        self.place.sync(&base.data, &paths::base(disk)).map_err(|err| self.judge(err))?;
        self.reached(CrashPoint::ApplyBaseSynced)?;
        self.settle_sums(&mut base, disk, &changed)?;
        Ok(run.geometry().virtual_size())
    }

    /// Looks at the blocks that are about to be changed while their checksums are still known, then makes those
    /// unknown.
    fn expose(
        &self,
        base: &mut SummedBase,
        disk: DiskId,
        run: &Run<FileSource>,
        changed: &ExtentSet,
    ) -> Result<(), Halt> {
        let path = paths::base_sums(disk);
        let exposed = {
            let _alone = self.base_io.write().expect("nothing panics while a base is changed");
            let sized = SummedBase::size_table(&base.sums, run.geometry().virtual_size());
            sized.and_then(|()| base.expose(changed))
        };
        match exposed {
            Err(err) => return Err(self.judge(FileError::new("write", self.place.path(&path), err)).into()),
            Ok(Err(damaged)) => return Err(self.damaged(Object::Base { disk }, damaged.to_string()).into()),
            Ok(Ok(())) => {}
        }
        Ok(self.place.sync(&base.sums, &path).map_err(|err| self.judge(err))?)
    }

    fn write_base(
        &self,
        base: &SummedBase,
        disk: DiskId,
        object: Object,
        run: &Run<FileSource>,
        pace: &mut Pace<'_>,
    ) -> Result<(), Halt> {
        let mut open = OpenBase { vm: self, data: base.data.clone() };
        commit::commit(run, &mut open, pace).map_err(|err| self.commit_failed(object, &paths::base(disk), err))?;
        Ok(self.reached(CrashPoint::ApplyMid)?)
    }

    fn settle_sums(&self, base: &mut SummedBase, disk: DiskId, changed: &ExtentSet) -> Result<(), Halt> {
        let path = paths::base_sums(disk);
        let settled = {
            let _alone = self.base_io.write().expect("nothing panics while a base is changed");
            base.settle(changed)
        };
        settled.map_err(|err| self.judge(FileError::new("write", self.place.path(&path), err)))?;
        Ok(self.place.sync(&base.sums, &path).map_err(|err| self.judge(err))?)
    }

    /// An empty run over the base, for the name of the run that was committed.
    fn make_stub(
        &self,
        virtual_size: u64,
        disk: DiskId,
        file: RunFile,
        made: &mut Vec<String>,
    ) -> Result<Applied, Halt> {
        let cluster_bits = choose_cluster_bits(&ExtentSet::new(), virtual_size);
        let staged = self.next_number();
        let path = paths::staged_run(disk, staged);
        made.push(path.clone());
        let sink = FileSink(self.place.create_anew(&path)?);
        let params = RunParams { virtual_size, cluster_bits, backing: Some(backing(Below::Base)) };
        let built = RunBuilder::new(sink, params).and_then(RunBuilder::finish);
        let (summary, sink) = built.map_err(|err| self.build_failed(&path, err))?;
        self.place.sync(&sink.0, &path).map_err(|err| self.judge(err))?;
        Ok(Applied {
            disk,
            size: virtual_size,
            rename: PendingRename::Run { disk, staged, name: file.number },
            stub: Stub { number: file.number, len: summary.file_len, digest: summary.digest },
        })
    }

    /// One change of the manifest: the base now stands for the link's cut.
    fn swap_applied(&self, link: &Link, applied: Vec<Applied>) -> Result<(), Halt> {
        let marks = Marks {
            before: Some(CrashPoint::ApplyBeforeWatermark),
            swapped: Some(CrashPoint::ApplyWatermarkSynced),
            before_unlink: Some(CrashPoint::ApplyBeforeUnlink),
            unlinked: Some(CrashPoint::ApplyUnlinkedBeforeDirsync),
            ..Marks::default()
        };
        let mut writer = self.lock();
        let now = self.manifest();
        if now.links.first() != Some(link) && now.links.first().map(|l| &l.runs) != Some(&link.runs) {
            return Err(Halt::Deferred);
        }
        // With the link alone left the base would be the newest state; a failover committed meanwhile did that.
        if now.links.len() < 2 || self.in_use(&writer, &now).is_some() {
            return Err(Halt::Deferred);
        }
        self.change_marked(&mut writer, Space::Reserved, &marks, |m| {
            let link = m.links.remove(0);
            let base = m.base.as_mut().expect("a chain has a base");
            base.files.retain(|f| link.record.size(f.disk).is_some() || in_links(&m.links, f.disk));
            for file in &mut base.files {
                if let Some(applied) = applied.iter().find(|a| a.disk == file.disk) {
                    file.size = file.size.max(applied.size);
                    file.stub = Some(applied.stub);
                }
            }
            base.record = Some(link.record);
            m.pending.extend(applied.iter().map(|a| a.rename));
            m.drop_unused_definitions();
            Ok::<_, UpkeepError>(())
        })?;
        Ok(())
    }
}

/// Whether any link above still has the disk: one that joined the VM later has its base already.
fn in_links(links: &[Link], disk: DiskId) -> bool {
    links.iter().any(|l| l.record.size(disk).is_some())
}
