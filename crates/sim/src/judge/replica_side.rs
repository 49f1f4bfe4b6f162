//! What the replica promises.

use std::sync::Arc;

use understudy_engine::replica::{Choice, Failover, Record};
use understudy_model::{Cut, CutDigest, Generation, PointId, SessionNumber, State};
use understudy_store::VmStore;
use understudy_store::files::MemFiles;
use understudy_wire::message::CycleAcked;

use super::{Depth, Judge, Rule, replica_may_go};
use crate::replica::Wish;

impl Judge {
    /// A record became durable.
    pub fn replica_persisted(&mut self, before: Option<&Record>, next: &Record) {
        if let Some(before) = before {
            let (from, to) = (before.state, next.state);
            self.expect(Rule::I47, replica_may_go(from, to), || format!("the replica went from {from} to {to}"));
            self.expect(Rule::I29, next.generation >= before.generation, || {
                format!("the replica's generation fell from {} to {}", before.generation, next.generation)
            });
            self.expect(Rule::I09, next.session_last >= before.session_last, || {
                format!("the replica's session fell from {} to {}", before.session_last, next.session_last)
            });
            let is_undone = from == State::Committed && to != State::Committed;
            self.expect(Rule::I33, !is_undone, || "a commit was undone".to_owned());
        }
        self.check_revert(before, next);
        self.replica.generation_max = self.replica.generation_max.max(next.generation);
        self.replica.durable = Some(next.clone());
    }

    /// A failover that was undone, or given up, leaves everything as it was.
    fn check_revert(&mut self, before: Option<&Record>, next: &Record) {
        let was_over = before.is_some_and(|b| matches!(b.state, State::FailingOver | State::FailedOver));
        let is_open = matches!(next.state, State::Replicating | State::Suspended);
        if !was_over || !is_open {
            return;
        }
        if let Some(newest) = self.replica.before_failover.take() {
            let now = self.replica.newest;
            self.expect(Rule::I33, now == newest, || {
                format!("after the revert the newest cut is {now:?}, before the failover it was {newest:?}")
            });
        }
    }

    /// A source was let in.
    pub fn session_granted(&mut self, before: &Record, generation: Generation, number: SessionNumber) {
        let is_over = matches!(before.state, State::FailingOver | State::FailedOver | State::Committed);
        self.expect(Rule::I29, !is_over, || format!("a session was granted while the replica is {}", before.state));
        let highest = self.replica.generation_max;
        self.expect(Rule::I29, generation >= highest, || {
            format!("generation {generation} was let in after {highest} had been seen")
        });
        let last = self.replica.session_max;
        self.expect(Rule::I09, number > last, || format!("session {number} was granted after {last}"));
        self.replica.session_max = number;
    }

    /// A cycle is about to be sealed: from here on its cut may show.
    pub fn seal_begins(&mut self, digest: CutDigest) {
        self.replica.seals_begun.insert(digest);
    }

    /// A cycle was sealed.
    pub fn sealed(&mut self, record: &Record, cut: &Cut) {
        let is_over = matches!(record.state, State::FailingOver | State::FailedOver | State::Committed);
        self.expect(Rule::I28, !is_over, || {
            format!("cut {} was sealed while the replica is {}", cut.id.number, record.state)
        });
        self.expect(Rule::I29, cut.id.generation == record.generation, || {
            format!("a cut of generation {} was sealed in {}", cut.id.generation, record.generation)
        });
        let newest = self.replica.newest.unwrap_or(CutDigest::ZERO);
        self.expect(Rule::I08, cut.parent == newest, || {
            format!("cut {} follows {:?} and was put on {newest:?}", cut.id.number, cut.parent)
        });
        let key = (self.epoch, cut.id.generation, cut.id.number);
        let known = self.replica.sealed.insert(key, cut.id.digest);
        self.expect(Rule::I09, known.is_none_or(|k| k == cut.id.digest), || {
            format!("cut {} was sealed with two contents", cut.id.number)
        });
        let is_true = self.truth.cut(cut.id.digest).is_some_and(|t| t.number == cut.id.number);
        self.expect(Rule::I12, is_true, || format!("cut {} was sealed, and nobody made that content", cut.id.number));
        self.replica.newest = Some(cut.id.digest);
    }

    /// An acknowledgement was sent.
    pub fn acked(&mut self, acked: &CycleAcked) {
        let Ok(digest) = acked.digest.parse::<CutDigest>() else { return };
        let newest = self.replica.newest;
        self.expect(Rule::I01, newest == Some(digest), || {
            format!("cut {} was acknowledged while {newest:?} is the newest sealed one", acked.number)
        });
        self.replica.acked = Some(digest);
        self.acks.push(self.now);
    }

    /// A failover was decided on.
    pub fn failover_planned(&mut self, choice: Choice, cut: &Cut) {
        let known = self.truth.cut(cut.id.digest).cloned();
        self.expect(Rule::I31, known.is_some_and(|t| t.taken_at == cut.taken_at), || {
            format!("a failover is to start from cut {}, which was not taken then", cut.id.number)
        });
        self.replica.before_failover = Some(self.replica.newest);
        let acked = self.replica.acked.and_then(|d| self.truth.cut(d)).map(|t| t.number);
        if choice == Choice::Newest {
            self.expect(Rule::I31, acked.is_none_or(|n| cut.id.number >= n), || {
                format!(
                    "a failover to the newest state starts from cut {} and {acked:?} was acknowledged",
                    cut.id.number
                )
            });
        }
    }

    /// A failover was carried out.
    pub fn failed_over(&mut self, failover: &Failover) {
        let truth = self.truth.cut(failover.cut.digest);
        let is_true = truth.is_some_and(|t| t.taken_at == failover.taken_at && t.number == failover.cut.number);
        self.expect(Rule::I31, is_true, || format!("the failover on record is not that of a cut: {failover:?}"));
    }

    /// An operator got what was asked for.
    pub fn wish_granted(&mut self, wish: Wish, record: Option<&Record>) {
        let durable = self.replica.durable.as_ref().map(|r| r.state);
        let told = record.map(|r| r.state);
        if wish != Wish::Remove {
            self.expect(Rule::I45, durable == told, || format!("{wish:?} was granted, {told:?} is not durable"));
        }
        if wish == Wish::Commit {
            // What lay above the cut is gone by decision.
            let cut = record.and_then(|r| r.failover).map(|f| f.cut.digest);
            (self.replica.newest, self.replica.acked) = (cut, cut);
            self.replica.kept.clear();
        }
    }

    /// A wish was refused by the state graph.
    pub fn refused_wish(&mut self, wish: Wish, is_same: bool) {
        self.expect(Rule::I44, is_same, || format!("{wish:?} was refused and changed something"));
    }

    /// A step of upkeep was done; the points are looked at next.
    pub fn upkeep_done(&mut self) {
        self.kept(Rule::I23);
    }

    /// The store was opened again after it had stopped.
    pub fn store_reopened(&mut self) {
        self.kept(Rule::I11);
        self.fault_struck();
    }

    /// Upkeep found something damaged.
    pub fn damage_reported(&mut self) {
        self.expect(Rule::I12, self.reads_may_fail, || "the store says it is damaged, and it is not".to_owned());
    }

    /// Retention lets these points go.
    pub fn retention_drops(&mut self, points: &[PointId]) {
        self.replica.dropped.extend(points.iter().copied());
    }

    /// The replica was removed.
    pub fn replica_forgot(&mut self) {
        self.excuse(super::Excuse::ReplicaRemoved);
        self.forget_replica();
    }

    /// The store was put back to an older copy, whose newest cut is this.
    pub fn put_back(&mut self, newest: Option<CutDigest>, record: Option<&Record>) {
        self.excuse(super::Excuse::PutBack);
        (self.replica.newest, self.replica.acked) = (newest, newest);
        self.replica.kept.clear();
        self.replica.before_failover = None;
        if let Some(record) = record {
            self.replica.generation_max = record.generation;
            self.replica.session_max = record.session_last;
            self.replica.durable = Some(record.clone());
        }
    }
}

impl Judge {
    /// The store as a power cut at the instant of an acknowledgement leaves it. `is_whole`: nothing was damaged before.
    pub fn check_durable(&mut self, vm: Option<&Arc<VmStore>>, copy: &MemFiles, is_whole: bool) {
        let newest = vm.and_then(|vm| vm.newest()).map(|cut| cut.id.digest);
        let acked = self.replica.acked;
        let holds = self.expect(Rule::I01, newest.is_some() && newest == acked, || {
            format!("cut {acked:?} was acknowledged; after a power cut at that instant {newest:?} is the newest")
        });
        if let Some(vm) = vm.filter(|_| holds) {
            let damage = vm.report().damage;
            self.expect(Rule::I01, !is_whole || damage.is_empty(), || {
                format!("after a power cut at the instant of an acknowledgement: {damage:?}")
            });
            self.check_points(vm, copy, Depth::Newest);
        }
    }

    /// The same store cannot even be opened.
    pub fn not_durable(&mut self, cause: &str) {
        self.fail(Rule::I01, format!("after a power cut at the instant of an acknowledgement: {cause}"));
    }
}
