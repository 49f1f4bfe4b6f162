//! The end of a run: no faults any more, and everything must come to order.

use understudy_model::{Millis, State, Timestamp};

use super::World;
use crate::judge::{Excuse, Rule};

/// What replication may take to go on by itself, beside two intervals.
const SLACK: Millis = Millis::from_secs(60);
/// Operators may have to put several things right, one after the other.
const REPAIRS_MAX: u32 = 40;

impl World {
    /// Ends all faults.
    pub(super) fn calm_down(&mut self) {
        let now = self.stage.now();
        self.stage.say("world", format_args!("no more faults"));
        self.quiet_since = Some(now);
        self.stage.net.weather().clear(now);
        // A connection that lost or exchanged a frame is itself the fault: no stream of TCP does that and lives.
        self.stage.net.break_mangled(&mut self.stage.agenda);
        self.stage.scratch_limit = u64::MAX;
        self.stage.trap.disarm();
        self.replica.hook.disarm();
        self.replica.book.dies_at = None;
        self.replica.disk.power_off_after(1 << 62);
        (self.primary_paused, self.replica_paused) = (now, now);
        self.put_off.iter_mut().for_each(|(until, _)| *until = now);
        self.wake_up();
        for healing in [
            super::Healing::PrimaryFull,
            super::Healing::ReplicaFull,
            super::Healing::Disk,
            super::Healing::Capacity,
            super::Healing::Slowness,
            super::Healing::QemuStarts,
            super::Healing::PrimaryStarts,
            super::Healing::ReplicaStarts,
        ] {
            self.heal(healing);
        }
    }

    /// Runs until a new cut was acknowledged, or until the time for that is over.
    pub(super) fn run_quiet(&mut self) {
        loop {
            let since = self.quiet_since.unwrap_or_default();
            let deadline = since + Millis(2 * self.interval().0) + SLACK;
            if self.has_converged(since) {
                self.stage.judge.came_to_order();
                break;
            }
            if !self.stage.judge.violations().is_empty() {
                return;
            }
            if !self.step(deadline) {
                self.judge_rest();
                break;
            }
        }
        self.last_look();
    }

    fn has_converged(&self, since: Timestamp) -> bool {
        let is_acked = self.stage.judge.acks().last().is_some_and(|at| *at > since + self.interval());
        let is_replicating = self.primary.book.record().is_some_and(|r| r.state == State::Replicating);
        is_acked && is_replicating
    }

    /// An operator who wants things in order goes on until they are.
    pub(super) fn put_right_quietly(&mut self) {
        if self.temper.is_tidy && self.waits_for_operator() && self.repairs < REPAIRS_MAX {
            self.repairs += 1;
            self.quiet_since = Some(self.stage.now());
            self.put_right();
        }
    }

    /// Nothing was acknowledged in time: something must be waiting for a decision, and say so.
    fn judge_rest(&mut self) {
        match self.is_in_named_state() {
            Ok(()) => self.stage.judge.came_to_order(),
            Err(what) => self.broken(Rule::I51, what),
        }
    }

    fn is_in_named_state(&self) -> Result<(), String> {
        let judge = &self.stage.judge;
        let theirs = self.replica.book.durable.as_ref().filter(|_| !self.replica.has_lost_its_files());
        let Some(ours) = self.primary.book.record() else { return Ok(()) };
        let said = |what: &str| format!("the primary is {} ({:?}) and {what}", ours.state, ours.cause);
        match (ours.state, theirs.map(|d| d.record.state)) {
            (State::Ready | State::Suspended | State::ResyncRequired, _) => Ok(()),
            (State::Critical, None | Some(State::FailedOver | State::Committed)) => {
                if ours.cause.is_some() {
                    Ok(())
                } else {
                    Err(said("does not say why"))
                }
            }
            (State::Critical, _) if judge.is_excused(Excuse::MessageAltered) => Ok(()),
            (State::Replicating | State::InitialReplication, Some(State::Suspended)) => Ok(()),
            (_, theirs) => {
                let report = self.primary.report(&self.stage).map(|r| (r.activity, r.failure));
                let store = self.replica.store().map(|vm| vm.report().stopped);
                Err(said(&format!("the replica {theirs:?}; {report:?}; store stopped: {store:?}")))
            }
        }
    }

    /// Everything is looked at once more.
    fn last_look(&mut self) {
        if let Some(vm) = self.replica.store() {
            self.stage.judge.check_points(&vm, &self.replica.disk, crate::judge::Depth::Twice);
            match vm.check(&mut understudy_run::pace::unpaced) {
                Ok(report) if report.damage.is_empty() => {}
                Ok(report) => self.broken(Rule::I12, format!("the last check found damage: {:?}", report.damage)),
                Err(err) => {
                    let is_stopped = vm.stopped().is_some();
                    if !is_stopped {
                        self.broken(Rule::I12, format!("the last check failed: {err}"));
                    }
                }
            }
        }
        self.stage.judge.check_maps(self.primary.book.record(), &self.primary.vm);
        self.stage.judge.check_jobs(self.primary.book.record(), self.primary.book.jobs());
    }
}
