//! Resynchronisation: begin to track afresh, compare, take a cut, send what differs.
//!
//! Invariant: what a comparison noted counts only together with the maps of the same attempt. When those are lost, it
//! begins anew under a new number.

use understudy_model::{CutNumber, CutRef, ErrorKind, JobId, Refusal, ReturnCode, State, Timestamp};

use super::command::wrong_state;
use super::{Action, Actions, Failure, Relationship, TargetReport, Token, Work};

/// A resynchronisation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compare {
    /// Number of the map that tracking began with. Also names the attempt. 0 before the first.
    pub first_map: CutNumber,
    /// Whether tracking is known to have begun.
    pub is_tracked: bool,
    /// The replica's newest cut, which is compared with and the next cycle starts from.
    pub against: Option<CutRef>,
    /// Whether all was compared.
    pub is_done: bool,
}

impl Relationship {
    pub(super) fn resynchronize(&mut self, now: Timestamp, job: JobId, actions: &mut Actions) -> Result<(), Refusal> {
        match self.record.state {
            State::ResyncRequired => {}
            State::Suspended | State::Critical if self.record.acked.is_some() && self.record.compare.is_none() => {}
            State::Replicating => {
                return Err(wrong_state("resynchronise", State::Replicating)
                    .hint("suspend replication first, if the two sides are to be compared all the same"));
            }
            state => return Err(wrong_state("resynchronise", state)),
        }
        self.halt(actions);
        self.record.transfer_job = Some(job);
        self.record.compare = Some(Compare::default());
        (self.record.base, self.record.sent) = (None, None);
        self.enter(State::Resynchronizing, None, actions);
        self.reset_attempts(now);
        Ok(())
    }

    /// Back to "required": the two sides differ as they did before.
    pub(super) fn stop_resync(&mut self, actions: &mut Actions) -> Result<(), Refusal> {
        let is_under_way = self.record.compare.is_some()
            && matches!(self.record.state, State::Resynchronizing | State::ResyncSuspended | State::Critical);
        if !is_under_way {
            return Err(wrong_state("stop a resynchronisation", self.record.state));
        }
        self.require_resync("the resynchronisation was stopped by an operator".to_owned(), actions);
        Ok(())
    }

    /// What a session's opening means while a resynchronisation is under way.
    pub(super) fn on_opened_to_compare(&mut self, now: Timestamp, report: &TargetReport, actions: &mut Actions) {
        let Some(compare) = self.record.compare else { return };
        let Some(theirs) = report.newest else { return self.begin_from_nothing(actions) };
        if self.record.sent.is_some_and(|sent| sent.digest == theirs.digest) {
            return self.adopt_cut(now, theirs, actions);
        }
        self.record.sent = None;
        self.record.cut_last = self.record.cut_last.max(theirs.number);
        let is_same = compare.against.is_some_and(|against| against.digest == theirs.digest);
        if !is_same {
            self.record.compare = Some(Compare { against: Some(theirs), ..Compare::default() });
        }
        self.persist(actions);
    }

    /// The replica has nothing to be compared with: everything must be sent.
    fn begin_from_nothing(&mut self, actions: &mut Actions) {
        (self.record.compare, self.record.acked, self.record.base) = (None, None, None);
        actions.push(Action::ForgetComparison);
        self.enter(State::InitialReplication, None, actions);
    }

    pub(super) fn next_compare_step(&mut self, now: Timestamp, actions: &mut Actions) {
        match self.record.compare {
            Some(Compare { is_tracked: true, is_done: true, .. }) => self.take_cut(now, actions),
            Some(Compare { is_tracked: true, first_map, against: Some(against), .. }) => {
                let token = self.token();
                self.work = Work::Comparing(token);
                actions.push(Action::Compare { token, attempt: first_map, against });
            }
            Some(compare) => self.track_to_compare(compare, actions),
            None => self.require_resync("what was compared is not known any more".to_owned(), actions),
        }
    }

    fn track_to_compare(&mut self, compare: Compare, actions: &mut Actions) {
        let first_map = self.record.cut_last.next();
        self.record.cut_last = first_map;
        self.record.map_generation = self.record.generation;
        self.record.compare = Some(Compare { first_map, is_tracked: false, is_done: false, ..compare });
        self.persist(actions);
        let token = self.token();
        self.work = Work::Tracking(token);
        actions.push(Action::BeginTracking { token, first_map });
    }

    pub(super) fn on_compared(&mut self, token: Token, actions: &mut Actions) {
        if self.work != Work::Comparing(token) {
            return;
        }
        self.work = Work::Idle;
        self.backoff.succeed();
        if let Some(compare) = &mut self.record.compare {
            compare.is_done = true;
        }
        self.persist(actions);
    }

    pub(super) fn on_compare_failed(&mut self, now: Timestamp, token: Token, failure: Failure, actions: &mut Actions) {
        if self.work != Work::Comparing(token) {
            return;
        }
        self.work = Work::Idle;
        self.stats.failed(failure.is_link_lost);
        self.put_off(now, &failure);
        match failure.kind {
            ErrorKind::Resync => self.compare_anew(actions),
            ErrorKind::Refused => return self.require_resync(failure.refusal.reason, actions),
            _ => {}
        }
        self.reopen(now, actions);
    }

    /// The maps do not reach back to the comparison's beginning: what was noted counts for nothing.
    pub(super) fn compare_anew(&mut self, actions: &mut Actions) {
        let against = self.record.compare.and_then(|compare| compare.against);
        self.record.compare = Some(Compare { against, ..Compare::default() });
        self.persist(actions);
    }

    /// Tracking could not be begun for a reason that will not pass.
    pub(super) fn fail_compare(&mut self, failure: Failure, actions: &mut Actions) {
        let refusal = Refusal::new(ReturnCode::Failed, failure.refusal.reason);
        self.require_resync(refusal.reason, actions);
    }
}
