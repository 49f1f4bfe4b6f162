//! A cycle: take a cut, send what changed, have it sealed, drop the maps.

use understudy_model::{Consistency, CutDigest, CutNumber, CutRef, ErrorKind, ReturnCode, State, Timestamp};

use super::{Action, Actions, CORRUPT_MAX, Failure, Relationship, Token, Work};

impl Relationship {
    pub(super) fn take_cut(&mut self, now: Timestamp, actions: &mut Actions) {
        let Some(must_cover) = self.record.must_cover() else {
            return self.require_resync("nothing is known of what the replica holds".to_owned(), actions);
        };
        let number = self.record.cut_last.next();
        self.record.cut_last = number;
        self.persist(actions);
        let token = self.token();
        self.work = Work::Cutting(token, number);
        // A fixed beat: the next cut is due one interval after this one was, or now if that has passed already.
        let due = self.next_cut + self.interval();
        self.next_cut = if due <= now { now + self.interval() } else { due };
        let differing = self.record.compare.map(|compare| compare.first_map);
        let consistency = Consistency::Standard;
        actions.push(Action::TakeCut { token, number, must_cover, consistency, differing });
    }

    pub(super) fn on_cut_taken(&mut self, now: Timestamp, token: Token, actions: &mut Actions) {
        let Work::Cutting(current, number) = self.work else { return };
        if current != token {
            return;
        }
        self.work = Work::Sending { token, number, cut_at: now };
        actions.push(Action::SendCycle { token, number, parent: self.record.parent() });
    }

    pub(super) fn on_cut_failed(&mut self, now: Timestamp, token: Token, failure: Failure, actions: &mut Actions) {
        if !matches!(self.work, Work::Cutting(current, _) if current == token) {
            return;
        }
        self.work = Work::Idle;
        self.stats.failed(false);
        self.put_off(now, &failure);
        self.next_cut = self.not_before;
        if failure.kind != ErrorKind::Resync {
            return actions.push(Action::FoldMaps);
        }
        if self.record.compare.is_some() {
            return self.compare_anew(actions);
        }
        if self.record.acked.is_none() {
            // The first cut does not cover the copy: copy again under new tracking.
            self.record.base = None;
            self.is_base_copied = false;
            return self.persist(actions);
        }
        self.require_resync(failure.refusal.reason, actions);
    }

    pub(super) fn on_cycle_computed(&mut self, token: Token, digest: CutDigest, actions: &mut Actions) {
        let Work::Sending { token: current, number, .. } = self.work else { return };
        if current != token {
            return;
        }
        self.record.sent = Some(CutRef { generation: self.record.generation, number, digest });
        self.persist(actions);
        actions.push(Action::ConcludeCycle { token });
    }

    pub(super) fn on_cycle_acked(
        &mut self,
        now: Timestamp,
        token: Token,
        digest: CutDigest,
        bytes: u64,
        actions: &mut Actions,
    ) {
        let Work::Sending { token: current, cut_at, .. } = self.work else { return };
        if current != token {
            return;
        }
        let Some(sent) = self.record.sent.filter(|s| s.digest == digest) else {
            // Nothing more will come for this cycle. What the replica holds is settled by the handshake.
            let reason = format!("the replica acknowledged other content than was sent: {digest}");
            return self.on_cycle_failed(
                now,
                token,
                Failure::new(ErrorKind::Corrupt, ReturnCode::Failed, reason),
                actions,
            );
        };
        self.work = Work::Idle;
        self.corrupt_in_a_row = 0;
        self.stats.acked(cut_at, now, bytes, self.interval());
        self.acked_cut_at = Some(cut_at);
        self.adopt_cut(now, sent, actions);
        actions.push(Action::CycleDone { cut: sent, cut_at, bytes });
    }

    /// The replica holds this cut: everything older is done with.
    pub(super) fn adopt_cut(&mut self, now: Timestamp, cut: CutRef, actions: &mut Actions) {
        let was_initial = matches!(self.record.state, State::InitialReplication | State::Resynchronizing);
        self.record.acked = Some(cut);
        self.record.sent = None;
        self.record.base = None;
        let was_compared = self.record.compare.take().is_some();
        self.last_failure = None;
        self.backoff.succeed();
        if was_initial {
            self.enter(State::Replicating, None, actions);
            self.next_cut = now + self.interval();
        } else {
            self.persist(actions);
        }
        actions.push(Action::DropMaps { below: cut.number });
        if was_compared {
            actions.push(Action::ForgetComparison);
        }
        self.end_job(Ok(()), actions);
    }

    pub(super) fn on_cycle_failed(&mut self, now: Timestamp, token: Token, failure: Failure, actions: &mut Actions) {
        let Work::Sending { token: current, number, .. } = self.work else { return };
        if current != token {
            return;
        }
        self.work = Work::Idle;
        self.stats.failed(failure.is_link_lost);
        self.put_off(now, &failure);
        self.next_cut = self.not_before;
        actions.push(Action::FoldMaps);
        match failure.kind {
            ErrorKind::Refused | ErrorKind::Bug => {
                self.halt(actions);
                self.link = super::Link::Down { retry_at: self.not_before };
                self.be_critical(failure, actions);
            }
            ErrorKind::Corrupt => self.on_corrupt(now, number, failure, actions),
            // Whether it was sealed, and what the replica holds, is settled by the handshake.
            ErrorKind::Retry | ErrorKind::Resync | ErrorKind::Operator => self.reopen(now, actions),
        }
    }

    fn on_corrupt(&mut self, now: Timestamp, number: CutNumber, mut failure: Failure, actions: &mut Actions) {
        self.corrupt_in_a_row += 1;
        if self.corrupt_in_a_row < CORRUPT_MAX {
            return self.reopen(now, actions);
        }
        failure.refusal.reason = format!(
            "{CORRUPT_MAX} cycles in a row, the last for cut {number}, could not be taken for damage: {}",
            failure.refusal.reason
        );
        self.halt(actions);
        self.link = super::Link::Down { retry_at: self.not_before };
        self.be_critical(failure, actions);
    }
}
