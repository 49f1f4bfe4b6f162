//! The handshake: opening sessions, and what the target's answer means.

use understudy_model::{CutRef, ErrorKind, Refusal, ReturnCode, SessionNumber, State, Timestamp};

use super::{Action, Actions, Failure, LESSONS_MAX, Link, Relationship, TargetReport, Token, Work};
use crate::backoff;

/// What the target's newest cut is to us.
enum Standing {
    /// What we think it is.
    Same,
    /// The cycle whose outcome we did not learn: it arrived after all.
    Ahead(CutRef),
    /// Nothing we can go on from.
    Foreign(String),
}

impl Relationship {
    pub(super) fn open(&mut self, actions: &mut Actions) {
        let token = self.token();
        let session = self.record.session_last.next();
        self.record.session_last = session;
        self.link = Link::Opening(token);
        self.persist(actions);
        actions.push(Action::Open { token, generation: self.record.generation, session });
    }

    pub(super) fn close_link(&mut self, actions: &mut Actions) {
        if !matches!(self.link, Link::Down { .. }) {
            actions.push(Action::CloseLink);
        }
        self.link = Link::Down { retry_at: Timestamp(u64::MAX) };
    }

    /// Closes the link and opens a new session soon: the handshake settles what is unclear.
    pub(super) fn reopen(&mut self, now: Timestamp, actions: &mut Actions) {
        if self.work != Work::Idle {
            self.give_up_work(actions);
        }
        self.close_link(actions);
        self.link = Link::Down { retry_at: self.not_before.max(now) };
    }

    pub(super) fn on_opened(
        &mut self,
        now: Timestamp,
        token: Token,
        session: SessionNumber,
        report: TargetReport,
        actions: &mut Actions,
    ) {
        if self.link != Link::Opening(token) {
            return;
        }
        self.link = Link::Up { session };
        self.lessons = 0;
        self.peer_suspended = report.is_suspended;
        self.base_positions.clear();
        self.is_base_copied = false;
        if self.record.compare.is_some() {
            self.on_opened_to_compare(now, &report, actions);
        } else if let Some(cause) = self.settle_standing(now, &report, actions) {
            return self.require_resync(cause, actions);
        }
        if let (Some(base), Some((attempt, positions))) = (self.record.base, report.base)
            && base.first_map == attempt
        {
            self.base_positions = positions;
        }
        if self.record.state == State::Critical {
            self.enter(self.record.active_state(), None, actions);
        }
    }

    /// Takes the target's newest cut for what it is, or says why nothing can be sent on top of it.
    fn settle_standing(&mut self, now: Timestamp, report: &TargetReport, actions: &mut Actions) -> Option<String> {
        match self.standing(report) {
            // What was sent last did not arrive, and cannot any more: its session is over.
            Standing::Same => self.record.sent = None,
            Standing::Ahead(cut) => self.adopt_cut(now, cut, actions),
            Standing::Foreign(cause) => return Some(cause),
        }
        None
    }

    /// Compares the target's newest cut with what we know.
    fn standing(&self, report: &TargetReport) -> Standing {
        match (report.newest, self.record.acked) {
            (None, None) => Standing::Same,
            (Some(theirs), Some(ours)) if theirs.digest == ours.digest => Standing::Same,
            (Some(theirs), _) if self.record.sent.is_some_and(|s| s.digest == theirs.digest) => Standing::Ahead(theirs),
            (None, Some(ours)) => {
                Standing::Foreign(format!("the replica no longer has cut {} or any other", ours.number))
            }
            (Some(theirs), None) => {
                Standing::Foreign(format!("the replica already holds cut {} of another history", theirs.number))
            }
            (Some(theirs), Some(ours)) if theirs.number < ours.number => Standing::Foreign(format!(
                "the replica was put back to cut {} although it had acknowledged cut {}",
                theirs.number, ours.number
            )),
            (Some(theirs), Some(ours)) => Standing::Foreign(format!(
                "the replica's cut {} does not follow from our cut {}",
                theirs.number, ours.number
            )),
        }
    }

    pub(super) fn on_open_failed(&mut self, now: Timestamp, token: Token, failure: Failure, actions: &mut Actions) {
        if self.link != Link::Opening(token) {
            return;
        }
        self.link = Link::Down { retry_at: now };
        self.put_off(now, &failure);
        let has_learnt = self.learn(&failure);
        if has_learnt && self.lessons < LESSONS_MAX {
            self.lessons += 1;
            self.not_before = self.not_before.min(now + backoff::FIRST);
        }
        self.link = Link::Down { retry_at: self.not_before };
        if has_learnt {
            return self.persist(actions);
        }
        self.stats.failed(failure.kind == ErrorKind::Retry);
        match failure.kind {
            ErrorKind::Refused | ErrorKind::Bug => self.be_critical(failure, actions),
            ErrorKind::Resync => self.require_resync(failure.refusal.reason, actions),
            ErrorKind::Retry | ErrorKind::Operator | ErrorKind::Corrupt => {}
        }
    }

    /// Takes over a number the other side knows better. Leaps are left alone: no honest pair of hosts makes them.
    fn learn(&mut self, failure: &Failure) -> bool {
        const LEAP_MAX: u64 = 1 << 32;
        let believable = |new: u64, old: u64| new >= old && new - old < LEAP_MAX;
        if let Some(session) = failure.session.filter(|s| believable(s.0, self.record.session_last.0)) {
            self.record.session_last = session;
            return true;
        }
        if let Some(generation) = failure.generation.filter(|g| failure.is_handed_back && *g > self.record.generation)
            && believable(generation.0, self.record.generation.0)
        {
            self.record.generation = generation;
            return true;
        }
        false
    }

    pub(super) fn on_link_lost(&mut self, now: Timestamp, session: SessionNumber, actions: &mut Actions) {
        if self.link != (Link::Up { session }) {
            return;
        }
        if self.work != Work::Idle {
            self.give_up_work(actions);
            self.stats.failed(true);
        }
        let random = self.random();
        self.last_failure = Some("the connection to the replica was lost".to_owned());
        self.link = Link::Down { retry_at: self.backoff.fail(now, random) };
    }

    pub(super) fn on_peer_removed(&mut self, now: Timestamp, actions: &mut Actions) {
        // The next handshake is refused and names the cause.
        self.reopen(now, actions);
    }

    /// Stops the work; whatever maps it froze stay and are united, so the next cycle carries them.
    pub(super) fn give_up_work(&mut self, actions: &mut Actions) {
        let froze = matches!(self.work, Work::Cutting(..) | Work::Sending { .. });
        self.work = Work::Idle;
        actions.push(Action::Abandon);
        if froze {
            actions.push(Action::FoldMaps);
        }
    }

    /// The peer says no. Replication stands until it says yes again.
    pub(super) fn be_critical(&mut self, failure: Failure, actions: &mut Actions) {
        let cause = failure.refusal.reason;
        if self.record.state != State::Critical || self.record.cause.as_ref() != Some(&cause) {
            self.enter(State::Critical, Some(cause), actions);
        }
    }

    /// What is known of changes no longer covers them all. Nothing is sent until both sides were compared.
    pub(super) fn require_resync(&mut self, cause: String, actions: &mut Actions) {
        self.halt(actions);
        self.record.sent = None;
        self.record.base = None;
        if self.record.compare.take().is_some() {
            actions.push(Action::ForgetComparison);
        }
        self.last_failure = Some(cause.clone());
        self.enter(State::ResyncRequired, Some(cause.clone()), actions);
        self.end_job(Err(Refusal::new(ReturnCode::Failed, cause)), actions);
    }
}
