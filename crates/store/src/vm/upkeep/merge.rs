//! Merges neighbouring links into one.
//!
//! Each disk's runs become one, built in staging; it takes the name of the uppermost of them, because that is the
//! name the file above refers to, and what it makes of what lies below is what they made of it together. So before
//! and after the swap the chain reads the same, whoever opens it by name.

use std::ops::Range;

use understudy_model::DiskId;
use understudy_run::pace::Pace;
use understudy_run::{Below as ReadBelow, ChainReader, Encoder, Nothing, ReadError, Run, RunBuilder, RunParams, merge};

use super::super::receive::backing;
use super::super::sums::CheckedBase;
use super::super::{Marks, Space, VmStore};
use super::{Halt, UpkeepError, UpkeepStep};
use crate::adapt::{FileSink, FileSource};
use crate::checkpoints::CrashPoint;
use crate::files::Access;
use crate::manifest::{Link, Manifest, Object, PendingRename, RunFile, RunRecord};
use crate::paths;

/// Compression level for clusters that are cut anew: the fast one, as on the primary.
const LEVEL: i32 = 1;

/// What becomes of one disk.
struct MergedDisk {
    record: RunRecord,
    rename: Option<PendingRename>,
}

impl VmStore {
    pub(super) fn merge(&self, links: Range<usize>, pace: &mut Pace<'_>) -> Result<UpkeepStep, Halt> {
        let manifest = self.manifest();
        self.reached(CrashPoint::MergeChosen)?;
        let mut made = Vec::new();
        let done = self.merge_links(&manifest, links, &mut made, pace);
        if done.is_err() {
            self.discard(&made);
        }
        done
    }

    fn merge_links(
        &self,
        manifest: &Manifest,
        links: Range<usize>,
        made: &mut Vec<String>,
        pace: &mut Pace<'_>,
    ) -> Result<UpkeepStep, Halt> {
        self.reached(CrashPoint::MergeBeforeWrite)?;
        let newest = &manifest.links[links.end - 1];
        let mut disks = Vec::new();
        for (disk, _) in &newest.record.sizes {
            disks.push(self.merge_disk(manifest, &links, *disk, made, pace)?);
        }
        self.place.sync_dir(paths::STAGING).map_err(|err| self.judge(err))?;
        self.reached(CrashPoint::MergeBeforeSwap)?;
        let inputs = &manifest.links[links.clone()];
        self.swap_merged(inputs, links.start, disks)?;
        self.reached(CrashPoint::MergeDeleted)?;
        Ok(UpkeepStep::Merged { links: links.len(), cut: newest.record.digest() })
    }

    fn merge_disk(
        &self,
        manifest: &Manifest,
        links: &Range<usize>,
        disk: DiskId,
        made: &mut Vec<String>,
        pace: &mut Pace<'_>,
    ) -> Result<MergedDisk, Halt> {
        let inputs: Vec<(&RunRecord, RunFile)> = manifest.links[links.clone()]
            .iter()
            .rev()
            .filter_map(|l| l.run(disk))
            .filter_map(|r| r.file.map(|file| (r, file)))
            .collect();
        match inputs[..] {
            [] => {
                let newest = manifest.links[links.end - 1].run(disk);
                let record = newest.expect("a link has a run for each of its disks").clone();
                Ok(MergedDisk { record, rename: None })
            }
            [(record, _)] => Ok(MergedDisk { record: record.clone(), rename: None }),
            _ => self.merge_runs(manifest, links.start, disk, &inputs, made, pace),
        }
    }

    fn merge_runs(
        &self,
        manifest: &Manifest,
        height: usize,
        disk: DiskId,
        inputs: &[(&RunRecord, RunFile)],
        made: &mut Vec<String>,
        pace: &mut Pace<'_>,
    ) -> Result<MergedDisk, Halt> {
        let objects: Vec<Object> = inputs.iter().map(|(_, file)| Object::Run { disk, number: file.number }).collect();
        let mut runs = Vec::new();
        for ((record, file), object) in inputs.iter().zip(&objects) {
            let run = self.open_run(disk, record, file.number, file.len);
            runs.push(run.map_err(|err| self.open_failed(*object, err))?);
        }
        let cluster_bits = merge::cluster_bits(&runs).map_err(|err| self.read_failed(objects[0], err))?;
        let (name, below) = (inputs[0].1.number, inputs[inputs.len() - 1].1.below);
        let staged = self.next_number();
        let path = paths::staged_run(disk, staged);
        made.push(path.clone());
        let file = self.place.create_anew(&path)?;
        let virtual_size = runs[0].geometry().virtual_size();
        let params = RunParams { virtual_size, cluster_bits, backing: Some(backing(below)) };
        let failed = |err| self.build_failed(&path, err);
        let mut builder = RunBuilder::new(FileSink(file), params).map_err(failed)?;
        // Without memory for compression the few clusters that are cut anew stay plain.
        let mut encoder = Encoder::new(LEVEL).unwrap_or_else(|_| Encoder::plain());
        let mut under = Under { vm: self, manifest, disk, height, reader: None };
        merge::merge(&runs, &mut under, &mut builder, &mut encoder, pace)
            .map_err(|err| self.merge_failed(&objects, Object::Base { disk }, &path, err))?;
        self.reached(CrashPoint::MergeMid)?;
        let (summary, sink) = builder.finish().map_err(failed)?;
        self.reached(CrashPoint::MergeBeforeSync)?;
        self.place.sync(&sink.0, &path).map_err(|err| self.judge(err))?;
        let file = Some(RunFile { number: name, len: summary.file_len, below });
        Ok(MergedDisk {
            record: RunRecord { disk, cluster_bits, digest: summary.digest, file },
            rename: Some(PendingRename::Run { disk, staged, name }),
        })
    }

    /// One change of the manifest: the uppermost link takes the place of all, and the renames come with it.
    fn swap_merged(&self, inputs: &[Link], start: usize, disks: Vec<MergedDisk>) -> Result<(), Halt> {
        let marks = Marks {
            swapped: Some(CrashPoint::MergeSwapped),
            before_unlink: Some(CrashPoint::MergeBeforeDelete),
            ..Marks::default()
        };
        let mut writer = self.lock();
        let now = self.manifest();
        let end = start + inputs.len();
        // A failover committed meanwhile may have dropped links, and a failover or read may use them.
        let same =
            now.links.get(start..end).is_some_and(|links| links.iter().zip(inputs).all(|(a, b)| a.runs == b.runs));
        let needed = same && now.links[start..end - 1].iter().enumerate().any(|(i, _)| now.is_open(start + i + 1));
        if !same || needed || self.is_in_use_from(&writer, &now, start + 1) {
            return Err(Halt::Deferred);
        }
        self.change_marked(&mut writer, Space::Reserved, &marks, |m| {
            let lower: Vec<Link> = m.links.drain(start..end - 1).collect();
            let link = &mut m.links[start];
            link.level = lower.iter().map(|l| l.level).chain([link.level]).max().unwrap_or(0).saturating_add(1);
            link.record.follows = lower[0].record.follows;
            link.runs = disks.iter().map(|d| d.record.clone()).collect();
            m.pending.extend(disks.iter().filter_map(|d| d.rename));
            m.drop_unused_definitions();
            Ok::<_, UpkeepError>(())
        })?;
        Ok(())
    }
}

/// The disk below the runs being merged, opened only when a cluster has to be put together from it.
struct Under<'a> {
    vm: &'a VmStore,
    manifest: &'a Manifest,
    disk: DiskId,
    /// Links below the runs.
    height: usize,
    reader: Option<ChainReader<FileSource, CheckedBase<&'a VmStore>>>,
}

impl ReadBelow for Under<'_> {
    fn read_below(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        if self.reader.is_none() {
            self.reader = Some(self.open()?);
        }
        match &mut self.reader {
            Some(reader) => reader.read_at(offset, out),
            None => Nothing.read_below(offset, out),
        }
    }
}

impl<'a> Under<'a> {
    fn open(&self) -> Result<ChainReader<FileSource, CheckedBase<&'a VmStore>>, ReadError> {
        let io = |err: crate::error::FileError| ReadError::Io(std::io::Error::new(err.err.kind(), err));
        let runs = self.vm.open_runs(self.manifest, self.disk, self.height);
        let runs = runs.map_err(|(object, err)| match err {
            super::RunOpenError::Read(err) => err,
            super::RunOpenError::File(err) => io(err),
            super::RunOpenError::Other { what } => {
                ReadError::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{object}: {what}")))
            }
        })?;
        let base = self.vm.open_base(self.disk, Access::Read).map_err(io)?;
        let runs: Vec<Run<FileSource>> = runs.into_iter().map(|(_, run)| run).collect();
        ChainReader::new(&runs, CheckedBase { vm: self.vm, base })
    }
}
