//! What the primary promises.

use std::collections::BTreeMap;

use understudy_engine::primary::{Record, Report};
use understudy_hypervisor::driver::MapOwner;
use understudy_hypervisor::fake::FakeVm;
use understudy_model::{CutNumber, CutRef, ExtentSet, Health, JobId, Millis, Refusal, State};

use super::{Excuse, Judge, Rule, primary_may_go};
use crate::primary::{Answer, Ticket};

impl Judge {
    /// A record became durable.
    pub fn persisted(&mut self, record: &Record) {
        if let Some(before) = self.primary.durable.take() {
            let (from, to) = (before.state, record.state);
            self.expect(Rule::I47, primary_may_go(from, to), || format!("the primary went from {from} to {to}"));
            let rises = record.cut_last >= before.cut_last
                && record.session_last >= before.session_last
                && record.generation >= before.generation;
            if before.sent.is_some() && before.acked.is_none() && to == State::Ready {
                self.excuse(Excuse::InitialStopped);
            }
            self.expect(Rule::I09, rises, || format!("a number fell: {before:?} was followed by {record:?}"));
        }
        if record.state == State::ResyncRequired {
            let excused = [
                Excuse::TrackingLost,
                Excuse::PutBack,
                Excuse::MessageAltered,
                Excuse::ReplicaRemoved,
                Excuse::InitialStopped,
                Excuse::StartedAndStopped,
            ];
            let is_excused = excused.iter().any(|e| self.is_excused(*e));
            self.expect(Rule::I51, is_excused && record.cause.is_some(), || {
                format!("a comparison is required, and nothing has happened that calls for one: {:?}", record.cause)
            });
        }
        if let Some(job) = record.transfer_job.and_then(|job| self.primary.jobs.get_mut(&job)) {
            job.is_followed = true;
        }
        self.primary.durable = Some(record.clone());
    }

    /// Tracking begins afresh.
    pub fn tracking_begun(&mut self, _first: CutNumber) {
        self.primary.is_tracking_lost = false;
    }

    /// The maps that were there are gone or cannot be trusted any more.
    pub fn tracking_lost(&mut self) {
        self.primary.is_tracking_lost = true;
        self.excuse(Excuse::TrackingLost);
    }

    /// A command was refused.
    pub fn refused_command(&mut self, before: &Record, after: &Record, actions: usize) {
        self.expect(Rule::I44, before == after && actions == 0, || {
            format!("a refused command changed something: {before:?} became {after:?}, {actions} actions")
        });
    }

    /// A command was answered; success must be durable by now.
    pub fn answered(&mut self, _ticket: Ticket, answer: &Answer, record: &Record, durable: Option<&Record>) {
        if answer.is_err() {
            return;
        }
        let same = |d: &Record| {
            d.state == record.state && d.settings == record.settings && d.transfer_job == record.transfer_job
        };
        self.expect(Rule::I45, durable.is_none_or(same), || {
            format!("success was told of {record:?} while {durable:?} is durable")
        });
    }

    /// The primary believes that a cut was acknowledged.
    pub fn primary_learnt_ack(&mut self, cut: CutRef) {
        let sealed = self.replica.sealed.get(&(self.epoch, cut.generation, cut.number)).copied();
        self.expect(Rule::I48, sealed == Some(cut.digest), || {
            format!("the primary believes in cut {} of digest {}, which was never sealed", cut.number, cut.digest)
        });
    }

    /// A job ended.
    pub fn job_finished(&mut self, job: JobId, result: &Result<(), Refusal>) {
        let Some(known) = self.primary.jobs.get_mut(&job) else {
            return self.fail(Rule::I46, format!("job {job} ended, which nobody began"));
        };
        // A repeat of the same end, after a crash, changes nothing; the first one counts.
        known.is_done.get_or_insert(result.is_ok());
    }

    /// After a restart nobody went on with a job, so it was ended as failed.
    pub fn job_orphaned(&mut self, job: JobId) {
        let epoch = self.epoch;
        let acked = self.primary.durable.as_ref().is_some_and(|r| r.acked.is_some());
        let Some(known) = self.primary.jobs.get_mut(&job) else { return };
        known.is_done.get_or_insert(false);
        let is_wrong = known.epoch == epoch && known.is_followed && acked;
        self.expect(Rule::I46, !is_wrong, || {
            format!("job {job} was ended as failed by a restart, and initial replication had succeeded")
        });
    }

    /// Every job that was begun has ended, but for one that the record still follows.
    pub fn check_jobs(&mut self, record: Option<&Record>, ends: &BTreeMap<JobId, Option<Answer>>) {
        let followed = record.and_then(|r| r.transfer_job);
        let open: Vec<_> = ends.iter().filter(|(job, end)| end.is_none() && Some(**job) != followed).collect();
        self.expect(Rule::I46, open.is_empty(), || format!("jobs that nobody follows have not ended: {open:?}"));
    }

    /// The relationship was removed.
    pub fn primary_forgot(&mut self) {
        self.primary.durable = None;
    }

    /// Every change since the last cut whose acknowledgement is durable is in some map.
    pub fn check_maps(&mut self, record: Option<&Record>, vm: &FakeVm) {
        let Some(record) = record else { return };
        let active = matches!(record.state, State::Replicating | State::Suspended | State::Critical);
        let Some(acked) = record.acked.filter(|_| active && !self.primary.is_tracking_lost) else { return };
        let Some(base) = self.truth.cut(acked.digest).map(|c| c.images.clone()) else { return };
        let owner = MapOwner { relationship: record.id, generation: record.map_generation };
        let mut missing = ExtentSet::new();
        let mut which = None;
        for (disk, image) in &self.truth.disks {
            let Some(before) = base.get(disk) else { continue };
            let marked = vm.disks()[usize::from(disk.0)].union(&owner);
            for extent in image.difference(before).iter().filter(|e| !marked.contains(*e)) {
                missing.insert(extent);
                which = Some(*disk);
            }
        }
        self.expect(Rule::I13, missing.is_empty(), || {
            format!("changes of {which:?} since cut {} are in no map: {missing:?}", acked.number)
        });
        self.kept(Rule::I14);
    }

    /// The faults were over, and replication went on by itself, or stands in a state that waits for a decision.
    pub fn came_to_order(&mut self) {
        self.kept(Rule::I51);
        if self.have_clocks_jumped {
            self.kept(Rule::I54);
        }
    }

    /// What an operator is shown.
    pub fn check_health(&mut self, report: &Report, interval: Millis) {
        if report.health == Health::Ok && report.state == State::Replicating {
            let age = report.rpo_actual;
            self.expect(Rule::I49, age.is_some_and(|age| age.0 <= 2 * interval.0), || {
                format!("health is ok and the newest acknowledged cut is {age:?} old")
            });
        }
    }
}
