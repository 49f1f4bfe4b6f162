//! Operators' wishes on the replica, failovers above all: carried out step by step, each step durable before the next.

use std::sync::Arc;

use understudy_engine::primary::Failure;
use understudy_engine::replica::Choice;
use understudy_model::{Cut, ErrorKind, Refusal, ReturnCode, State};
use understudy_store::{CrashPoint, FailoverId, FailoverPurpose, FailoverStage, Removal, VmStore};
use understudy_wire::message::Notice;

use super::hub::{Fault, Hub, outcome};
use super::{Book, Durable, Wish};
use crate::coverage::Kind;
use crate::judge::Depth;
use crate::operator::name_of_wish;
use crate::primary::failure;
use crate::stage::{Alive, Stage};

/// A step of a failover, as the record tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Reverted,
    Committed,
}

impl Hub {
    /// An operator asks for something.
    pub(super) fn obey(&mut self, wish: Wish, book: &mut Book, stage: &mut Stage) -> Alive {
        let before = (self.durable.clone(), self.vm().map(|vm| vm.report()));
        let done = outcome(self.grant(wish, book, stage))?;
        match done {
            Ok(()) => {
                stage.say("operator", format_args!("replica: {wish:?}: done"));
                stage.coverage.met(Kind::Deed, name_of_wish(wish));
                stage.judge.wish_granted(wish, self.durable.as_ref().map(|d| &d.record));
            }
            Err(failure) => {
                stage.say("operator", format_args!("replica: {wish:?}: {}", failure.refusal));
                let after = (self.durable.clone(), self.vm().map(|vm| vm.report()));
                if failure.refusal.code == ReturnCode::InvalidState
                    || failure.refusal.code == ReturnCode::InvalidParameter
                {
                    stage.judge.refused_wish(wish, before == after);
                }
            }
        }
        self.look(Depth::All, stage)
    }

    fn grant(&mut self, wish: Wish, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let durable = self.durable.clone();
        let durable = durable.ok_or_else(|| refused(Refusal::new(ReturnCode::InvalidState, "there is no replica")))?;
        match wish {
            Wish::Suspend => {
                let record = durable.record.suspend().map_err(refused)?;
                self.change(Durable { record, ..durable }, book, stage)?;
                self.notify(Notice::Suspended, stage);
                Ok(())
            }
            Wish::Resume => {
                let record = durable.record.resume().map_err(refused)?;
                self.change(Durable { record, ..durable }, book, stage)?;
                self.notify(Notice::Resumed, stage);
                Ok(())
            }
            Wish::FailOver => self.fail_over(Choice::Newest, book, stage),
            Wish::FailOverTo(index) => {
                let cuts = choices(&*self.served()?);
                let choice = cuts.get(index % cuts.len().max(1)).map_or(Choice::Newest, |c| Choice::Point(c.point()));
                self.fail_over(choice, book, stage)
            }
            Wish::Revert => self.revert(book, stage),
            Wish::Commit => self.commit(book, stage),
            Wish::Test(index) => self.begin_test(index, stage),
            Wish::EndTest => self.end_test(stage),
            Wish::Remove => self.remove(book, stage),
        }
    }

    fn fail_over(&mut self, choice: Choice, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        let vm = self.served()?;
        let plan = durable.record.plan_failover(choice, &choices(&vm)).map_err(refused)?;
        stage.judge.failover_planned(choice, &plan.cut);
        let next = Durable { record: plan.record.clone(), failover: None };
        self.change(next, book, stage)?;
        self.notify(Notice::FailedOver { generation: plan.record.generation.0 }, stage);
        self.end_session(stage);
        self.carry_out_failover(book, stage)
    }

    /// Makes the overlays of the failover on record and says that it is done. A failure takes it back, unless it is
    /// not known what the disk holds: then it is settled when the store has been opened again.
    pub(super) fn carry_out_failover(&mut self, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let vm = self.served()?;
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        let Some(failover) = durable.record.failover else {
            return Err(failure::bug("there is no failover on record").into());
        };
        let active = vm.failovers().into_iter().find(|f| f.stage == FailoverStage::Active);
        let made = match active {
            Some(found) if found.cut == failover.cut.digest => Ok(found.id),
            _ => {
                let generation = durable.record.generation;
                let purpose = FailoverPurpose::TakeOver { generation };
                let begun = vm.begin_failover(failover.cut.digest.point(), purpose);
                self.survive()?;
                begun
            }
        };
        match made {
            Ok(id) => {
                let next = Durable { record: durable.record.failed_over(), failover: Some(id.0) };
                self.change(next, book, stage)?;
                stage.judge.failed_over(&failover);
                // The VM is defined, and runs.
                let _ = vm.passed(CrashPoint::FailoverBeforeDefine);
                self.survive()?;
                self.look_at_overlays(&vm, id, stage);
                let _ = vm.passed(CrashPoint::FailoverDefined);
                self.survive()?;
                Ok(())
            }
            Err(err) if vm.stopped().is_some() => Err(failure::failure(err.kind(), &err).into()),
            Err(err) => {
                let next = Durable { record: durable.record.failover_failed(), failover: None };
                self.change(next, book, stage)?;
                Err(failure::failure(err.kind(), &err).into())
            }
        }
    }

    /// The overlays must read as their cut; then the VM that runs on them writes, which nothing else may feel.
    fn look_at_overlays(&self, vm: &Arc<VmStore>, id: FailoverId, stage: &mut Stage) {
        stage.judge.check_overlays(vm, &self.disk, id);
        for (_, path) in vm.overlay_paths(id).unwrap_or_default() {
            let path = path.to_string_lossy().trim_start_matches("/memory/").to_owned();
            let len = self.disk.content(&path).map_or(0, |bytes| bytes.len() as u64);
            // A file that is not there is the judge's business above.
            let _ = self.disk.damage(&path, len, |bytes| bytes.fill(0x5a), 4096);
        }
    }

    fn revert(&mut self, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        durable.record.revert().map_err(refused)?;
        let vm = self.served()?;
        let id = durable.failover.map(FailoverId);
        if let Some(id) = id.filter(|id| vm.failovers().iter().any(|f| f.id == *id)) {
            self.throw_away(id)?;
        }
        self.record_step(Step::Reverted, book, stage)
    }

    pub(super) fn throw_away(&mut self, id: FailoverId) -> Result<(), Fault> {
        let reverted = self.served()?.revert_failover(id);
        self.survive()?;
        Ok(reverted.map_err(|e| failure::failure(e.kind(), &e))?)
    }

    pub(super) fn record_step(&mut self, step: Step, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        let next = match step {
            Step::Reverted => Durable { record: durable.record.revert().map_err(refused)?, failover: None },
            Step::Committed => Durable { record: durable.record.commit().map_err(refused)?, ..durable },
        };
        self.change(next, book, stage)
    }

    fn commit(&mut self, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        durable.record.commit().map_err(refused)?;
        let vm = self.served()?;
        let Some(id) = durable.failover.map(FailoverId) else {
            return Err(failure::bug("the failover has no overlays").into());
        };
        if !vm.failovers().iter().any(|f| f.id == id && f.stage == FailoverStage::Committed) {
            let committed = vm.commit_failover(id);
            self.survive()?;
            committed.map_err(|e| failure::failure(e.kind(), &e))?;
        }
        self.record_step(Step::Committed, book, stage)
    }

    fn begin_test(&mut self, index: usize, stage: &mut Stage) -> Result<(), Fault> {
        let vm = self.served()?;
        let cuts = choices(&vm);
        if self.test.is_some() || cuts.is_empty() {
            return Err(failure::retry("there is nothing to test, or a test is under way").into());
        }
        let begun = vm.begin_failover(cuts[index % cuts.len()].point(), FailoverPurpose::Test);
        self.survive()?;
        let id = begun.map_err(|e| failure::failure(e.kind(), &e))?;
        self.test = Some(id);
        self.look_at_overlays(&vm, id, stage);
        Ok(())
    }

    fn end_test(&mut self, _stage: &mut Stage) -> Result<(), Fault> {
        let Some(id) = self.test else { return Err(failure::retry("no test is under way").into()) };
        self.throw_away(id)?;
        self.test = None;
        Ok(())
    }

    fn remove(&mut self, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        durable.record.check_removal().map_err(refused)?;
        if self.test.is_some() {
            self.end_test(stage)?;
        }
        self.readers.clear();
        self.notify(Notice::Removed, stage);
        self.end_session(stage);
        self.conns.values_mut().for_each(|conn| conn.intake = Default::default());
        if let Some(vm) = self.vm_id() {
            let is_final = durable.record.state == State::Committed;
            let removal = if is_final { Removal::DestroyDisks } else { Removal::DestroyPoints };
            let removed = self.store.remove(vm, removal);
            stage.say("replica", format_args!("removes its files: {removed:?}"));
            self.survive()?;
            removed.map_err(|e| failure::failure(e.kind(), &e))?;
        }
        book.durable = None;
        self.durable = None;
        stage.judge.replica_forgot();
        Ok(())
    }
}

/// The cuts a failover may choose from, oldest first, the newest state last. Damaged ones are left out.
pub(super) fn choices(vm: &VmStore) -> Vec<Cut> {
    let points = vm.points().into_iter();
    points.filter(|p| (p.kept || p.newest) && p.damaged.is_none()).map(|p| p.cut).collect()
}

fn refused(refusal: Refusal) -> Failure {
    let mut failure = Failure::new(ErrorKind::Refused, refusal.code, "");
    failure.refusal = refusal;
    failure
}
