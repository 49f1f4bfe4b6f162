//! What operators may ask, and when.

use understudy_model::{JobId, Refusal, ReturnCode, Settings, State, Timestamp};

use crate::stats::Stats;

use super::{Action, Actions, Command, InitialKind, Relationship, Work};

pub(super) fn wrong_state(what: &str, state: State) -> Refusal {
    Refusal::new(ReturnCode::InvalidState, format!("cannot {what} while replication is {state}"))
}

impl Relationship {
    pub(super) fn obey(&mut self, now: Timestamp, command: Command, actions: &mut Actions) -> Result<(), Refusal> {
        match command {
            Command::Start { transfer_job, kind } => self.start(now, transfer_job, kind, actions),
            Command::Resynchronize { transfer_job } => self.resynchronize(now, transfer_job, actions),
            Command::StopResync => self.stop_resync(actions),
            Command::StopInitial => self.stop_initial(actions),
            Command::Suspend => self.suspend(actions),
            Command::Resume => self.resume(now, actions),
            Command::Modify(settings) => self.modify(now, settings, actions),
            Command::ResetStats => {
                self.stats = Stats::default();
                Ok(())
            }
            Command::Remove => self.remove(actions),
        }
    }

    fn start(&mut self, now: Timestamp, job: JobId, kind: InitialKind, actions: &mut Actions) -> Result<(), Refusal> {
        if self.record.state != State::Ready {
            return Err(wrong_state("start initial replication", self.record.state)
                .hint("initial replication is started once, while the relationship is ready"));
        }
        self.record.transfer_job = Some(job);
        self.record.base = None;
        self.record.initial = kind;
        self.enter(State::InitialReplication, None, actions);
        self.reset_attempts(now);
        Ok(())
    }

    fn stop_initial(&mut self, actions: &mut Actions) -> Result<(), Refusal> {
        let is_copying = self.record.state == State::InitialReplication
            || (self.record.state == State::Critical && self.record.acked.is_none() && self.record.compare.is_none());
        if !is_copying {
            return Err(wrong_state("stop initial replication", self.record.state));
        }
        self.halt(actions);
        self.forget_initial();
        self.enter(State::Ready, None, actions);
        actions.push(Action::EndTracking);
        self.end_job(Err(Refusal::new(ReturnCode::Failed, "initial replication was stopped by an operator")), actions);
        Ok(())
    }

    fn suspend(&mut self, actions: &mut Actions) -> Result<(), Refusal> {
        match self.record.state {
            State::Resynchronizing | State::Critical if self.record.compare.is_some() => {
                self.halt(actions);
                self.enter(State::ResyncSuspended, None, actions);
                Ok(())
            }
            State::Replicating | State::Critical if self.record.acked.is_some() => {
                self.halt(actions);
                self.enter(State::Suspended, None, actions);
                Ok(())
            }
            state => Err(wrong_state("suspend", state)),
        }
    }

    fn resume(&mut self, now: Timestamp, actions: &mut Actions) -> Result<(), Refusal> {
        match self.record.state {
            State::Suspended | State::ResyncSuspended | State::Critical => {
                self.enter(self.record.active_state(), None, actions);
                self.reset_attempts(now);
                Ok(())
            }
            State::ResyncRequired => Err(wrong_state("resume", State::ResyncRequired)
                .hint("the two sides must be compared first: resynchronise the relationship")),
            state => Err(wrong_state("resume", state)),
        }
    }

    fn modify(&mut self, now: Timestamp, settings: Settings, actions: &mut Actions) -> Result<(), Refusal> {
        settings.check().map_err(|e| Refusal::new(ReturnCode::InvalidParameter, e.to_string()))?;
        if settings.excluded_disks != self.record.settings.excluded_disks && self.record.state != State::Ready {
            return Err(Refusal::new(
                ReturnCode::NotSupported,
                "the set of replicated disks cannot be changed after initial replication has begun",
            ));
        }
        self.record.settings = settings;
        self.persist(actions);
        actions.push(Action::SendSettings);
        self.next_cut = self.next_cut.min(now + self.interval());
        Ok(())
    }

    fn remove(&mut self, actions: &mut Actions) -> Result<(), Refusal> {
        self.halt(actions);
        self.is_removed = true;
        actions.push(Action::EndTracking);
        actions.push(Action::Forget);
        // Told only when the relationship is gone: a crash before leaves both it and its job as they were.
        if let Some(job) = self.record.transfer_job.take() {
            let refusal = Refusal::new(ReturnCode::Failed, "the relationship was removed");
            actions.push(Action::FinishJob { job, result: Err(refusal) });
        }
        Ok(())
    }

    /// Stops what is under way and closes the link.
    pub(super) fn halt(&mut self, actions: &mut Actions) {
        if self.work != Work::Idle {
            self.give_up_work(actions);
        }
        self.close_link(actions);
    }

    /// Makes everything due at once, as after an operator's word.
    pub(super) fn reset_attempts(&mut self, now: Timestamp) {
        self.backoff.succeed();
        self.last_failure = None;
        self.corrupt_in_a_row = 0;
        self.not_before = now;
        self.next_cut = now;
        if let super::Link::Down { retry_at } = &mut self.link {
            *retry_at = now;
        }
    }
}
