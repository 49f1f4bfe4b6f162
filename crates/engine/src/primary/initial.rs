//! Initial replication: begin to track, copy the live disks, take the first cut.

use understudy_model::{CutNumber, ErrorKind, Timestamp};

use super::{Action, Actions, Base, Failure, InitialKind, Progress, Relationship, Token, Work};

impl Relationship {
    pub(super) fn next_initial_step(&mut self, now: Timestamp, actions: &mut Actions) {
        match self.record.base {
            Some(Base { is_tracked: true, .. }) if self.is_base_copied => self.take_cut(now, actions),
            Some(Base { is_tracked: true, first_map }) => self.copy_base(first_map, actions),
            _ => self.begin_tracking(actions),
        }
    }

    /// Begins afresh under a number that was never used: what an earlier attempt left cannot be mistaken for it.
    fn begin_tracking(&mut self, actions: &mut Actions) {
        let first_map = self.record.cut_last.next();
        self.record.cut_last = first_map;
        self.record.map_generation = self.record.generation;
        self.record.base = Some(Base { first_map, is_tracked: false });
        self.base_positions.clear();
        self.persist(actions);
        let token = self.token();
        self.work = Work::Tracking(token);
        actions.push(Action::BeginTracking { token, first_map });
    }

    pub(super) fn on_tracking_begun(&mut self, token: Token, actions: &mut Actions) {
        if self.work != Work::Tracking(token) {
            return;
        }
        self.work = Work::Idle;
        if let Some(base) = &mut self.record.base {
            base.is_tracked = true;
        }
        if let Some(compare) = &mut self.record.compare {
            compare.is_tracked = true;
        }
        self.persist(actions);
    }

    pub(super) fn on_tracking_failed(&mut self, now: Timestamp, token: Token, failure: Failure, actions: &mut Actions) {
        if self.work != Work::Tracking(token) {
            return;
        }
        self.work = Work::Idle;
        self.put_off(now, &failure);
        match failure.kind {
            ErrorKind::Refused if self.record.compare.is_some() => self.fail_compare(failure, actions),
            ErrorKind::Refused => self.fail_initial(failure, actions),
            _ => {}
        }
    }

    fn copy_base(&mut self, attempt: CutNumber, actions: &mut Actions) {
        let token = self.token();
        self.work = Work::Copying(token);
        let positions = self.base_positions.clone();
        let is_seeded = self.record.initial == InitialKind::Seeded;
        actions.push(Action::CopyBase { token, attempt, positions, is_seeded });
    }

    pub(super) fn on_base_progress(&mut self, token: Token, progress: Progress, actions: &mut Actions) {
        if self.work != Work::Copying(token) && self.work != Work::Comparing(token) {
            return;
        }
        self.progress = progress;
        if let Some(job) = self.record.transfer_job {
            actions.push(Action::Progress { job, progress });
        }
    }

    pub(super) fn on_base_copied(&mut self, token: Token) {
        if self.work == Work::Copying(token) {
            self.work = Work::Idle;
            self.is_base_copied = true;
            self.backoff.succeed();
        }
    }

    pub(super) fn on_base_failed(&mut self, now: Timestamp, token: Token, failure: Failure, actions: &mut Actions) {
        if self.work != Work::Copying(token) {
            return;
        }
        self.work = Work::Idle;
        self.stats.failed(failure.is_link_lost);
        self.put_off(now, &failure);
        match failure.kind {
            // The copy no longer rests on unbroken tracking: begin again under a new number.
            ErrorKind::Resync => self.record.base = None,
            ErrorKind::Refused => return self.fail_initial(failure, actions),
            _ => {}
        }
        // The handshake tells from where to go on.
        self.reopen(now, actions);
    }

    /// Tracking is about to end. A first cycle that may still turn out to have arrived is nothing to go on from then:
    /// what was written after it is in no map.
    pub(super) fn forget_initial(&mut self) {
        (self.record.base, self.record.sent) = (None, None);
    }

    /// Initial replication cannot work as things are: back to "ready", with the cause on the job.
    pub(super) fn fail_initial(&mut self, failure: Failure, actions: &mut Actions) {
        self.halt(actions);
        self.forget_initial();
        self.enter(understudy_model::State::Ready, Some(failure.refusal.reason.clone()), actions);
        actions.push(Action::EndTracking);
        self.end_job(Err(failure.refusal), actions);
    }
}
