//! The receiving side of a relationship: who is let in, what a failover may do.
//!
//! ```text
//!                first cycle sealed          failover start            commit
//!  initial-repl. ─────────────────▶ replicating ───────▶ failing-over ─▶ failed-over ──────▶ committed
//!                                   ▲   │ ▲   ▲                               │
//!                              resume   ▼ │   ╰────────── revert ─────────────╯
//!                                    suspended
//! ```
//!
//! The receiving side acts on single requests, so its decisions are plain functions of the record: each says no, or
//! gives the next record as a value. The caller makes that record durable before anything that rests on it happens.
//!
//! The generation decides who may write. A failover raises it before the promoted VM may start; from then on the old
//! primary is refused. A revert raises it once more and hands it to the old primary: nobody else holds the right then,
//! since the promoted VM is stopped and its writes are thrown away before.

use understudy_model::{
    Consistency, Cut, CutDigest, CutRef, ErrorKind, FailoverKind, Generation, Health, Millis, PointId, Refusal,
    RelationshipId, ReturnCode, SessionNumber, Settings, State, Timestamp,
};

use crate::health::{self, Issue, Vitals};
use crate::primary::Failure;

/// What must survive a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which relationship.
    pub id: RelationshipId,
    /// Where it stands.
    pub state: State,
    /// Settings, as the primary told them last.
    pub settings: Settings,
    /// Lower ones are refused for ever.
    pub generation: Generation,
    /// Highest session admitted.
    pub session_last: SessionNumber,
    /// Whether the primary may take the present generation over: after a revert.
    pub is_handed_back: bool,
    /// The failover under way or done.
    pub failover: Option<Failover>,
    /// Where to return to when a failover is reverted.
    pub before_failover: Option<State>,
}

/// A failover under way or done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failover {
    /// The cut it starts from.
    pub cut: CutRef,
    /// What kind of cut that is.
    pub kind: FailoverKind,
    /// When the cut was taken, by the primary's clock.
    pub taken_at: Timestamp,
}

/// Which cut a failover is to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The newest state received, whether kept as a point or not.
    Newest,
    /// A recovery point.
    Point(PointId),
}

impl Record {
    /// A place that was just prepared.
    pub fn new(id: RelationshipId, generation: Generation, settings: Settings) -> Self {
        Self {
            id,
            state: State::InitialReplication,
            settings,
            generation,
            session_last: SessionNumber(0),
            is_handed_back: false,
            failover: None,
            before_failover: None,
        }
    }

    /// Whether a source may open this session. Gives the record to make durable first.
    pub fn admit(&self, generation: Generation, session: SessionNumber) -> Result<Record, Box<Failure>> {
        if self.is_fenced() {
            return Err(Box::new(self.fence()));
        }
        if generation < self.generation {
            return Err(Box::new(self.outdated()));
        }
        if session <= self.session_last {
            let mut failure =
                Failure::new(ErrorKind::Retry, ReturnCode::SystemInUse, "the session number was used before");
            failure.session = Some(self.session_last);
            return Err(Box::new(failure));
        }
        Ok(Record { generation, session_last: session, is_handed_back: false, ..self.clone() })
    }

    /// Whether the old primary is shut out.
    fn is_fenced(&self) -> bool {
        matches!(self.state, State::FailingOver | State::FailedOver | State::Committed)
    }

    fn fence(&self) -> Failure {
        let reason =
            format!("the replica was failed over under generation {} and takes no more changes", self.generation);
        let mut failure = Failure::new(ErrorKind::Refused, ReturnCode::InvalidState, reason);
        failure.refusal.hint = "revert the failover on the replica to go on, or remove this relationship".to_owned();
        failure.generation = Some(self.generation);
        failure
    }

    fn outdated(&self) -> Failure {
        let reason = format!("the replica is at generation {}", self.generation);
        let kind = if self.is_handed_back { ErrorKind::Retry } else { ErrorKind::Refused };
        let mut failure = Failure::new(kind, ReturnCode::InvalidState, reason);
        failure.generation = Some(self.generation);
        failure.is_handed_back = self.is_handed_back;
        failure
    }

    /// Whether a cycle that starts from `parent` may be received in `session`, when `newest` is what we hold.
    pub fn admit_cycle(
        &self,
        session: SessionNumber,
        parent: CutDigest,
        newest: Option<CutDigest>,
    ) -> Result<(), Box<Failure>> {
        if self.is_fenced() {
            return Err(Box::new(self.fence()));
        }
        if session != self.session_last {
            let reason = "a newer session was opened";
            return Err(Box::new(Failure::new(ErrorKind::Retry, ReturnCode::SystemInUse, reason)));
        }
        if self.state == State::Suspended {
            let reason = "replication is paused on the replica";
            return Err(Box::new(Failure::new(ErrorKind::Retry, ReturnCode::InvalidState, reason)));
        }
        if parent != newest.unwrap_or(CutDigest::ZERO) {
            let reason = "the cycle does not start from the newest cut of the replica";
            return Err(Box::new(Failure::new(ErrorKind::Resync, ReturnCode::InvalidState, reason)));
        }
        Ok(())
    }

    /// The record after a cycle was sealed, if that changes it.
    pub fn sealed(&self) -> Option<Record> {
        (self.state == State::InitialReplication).then(|| Record { state: State::Replicating, ..self.clone() })
    }

    /// The record after the settings changed.
    pub fn with_settings(&self, settings: Settings) -> Record {
        Record { settings, ..self.clone() }
    }

    /// Plans a failover to one of `cuts`: those the store can open, oldest first, the last being the newest state.
    pub fn plan_failover(&self, choice: Choice, cuts: &[Cut]) -> Result<FailoverPlan, Refusal> {
        match self.state {
            State::Replicating | State::Suspended | State::Critical | State::ResyncRequired => {}
            State::InitialReplication => {
                return Err(Refusal::new(ReturnCode::InvalidState, "initial replication has not been completed")
                    .hint("there is no state to fail over to before the first cycle was received"));
            }
            state => return Err(wrong_state("fail over", state)),
        }
        let cut = match choice {
            Choice::Newest => cuts.last(),
            Choice::Point(id) => cuts.iter().find(|c| c.point() == id),
        };
        let cut = cut.ok_or_else(|| match choice {
            Choice::Newest => Refusal::new(ReturnCode::InvalidState, "the replica holds no state to fail over to"),
            Choice::Point(id) => Refusal::new(ReturnCode::InvalidParameter, format!("there is no recovery point {id}"))
                .hint("list the recovery points of the VM and choose one of them"),
        })?;
        Ok(FailoverPlan::new(self, cut))
    }

    /// The record after a failover was carried out.
    pub fn failed_over(&self) -> Record {
        Record { state: State::FailedOver, ..self.clone() }
    }

    /// The record to return to when a failover could not be carried out: the generation stays raised and is handed
    /// back, since nothing was started under it.
    pub fn failover_failed(&self) -> Record {
        self.unfenced(Generation(self.generation.0))
    }

    /// The record after a revert; the promoted VM must be stopped and its writes thrown away before it is durable.
    pub fn revert(&self) -> Result<Record, Refusal> {
        if self.state != State::FailedOver {
            return Err(wrong_state("revert a failover", self.state));
        }
        Ok(self.unfenced(self.generation.next()))
    }

    fn unfenced(&self, generation: Generation) -> Record {
        Record {
            state: self.before_failover.unwrap_or(State::Replicating),
            generation,
            is_handed_back: true,
            failover: None,
            before_failover: None,
            ..self.clone()
        }
    }

    /// The record after a commit.
    pub fn commit(&self) -> Result<Record, Refusal> {
        if self.state != State::FailedOver {
            return Err(wrong_state("commit a failover", self.state));
        }
        Ok(Record { state: State::Committed, before_failover: None, ..self.clone() })
    }

    /// The record after an operator's pause.
    pub fn suspend(&self) -> Result<Record, Refusal> {
        match self.state {
            State::Replicating | State::Critical => Ok(Record { state: State::Suspended, ..self.clone() }),
            state => Err(wrong_state("suspend", state)),
        }
    }

    /// The record after an operator's word to go on.
    pub fn resume(&self) -> Result<Record, Refusal> {
        match self.state {
            State::Suspended | State::Critical => Ok(Record { state: State::Replicating, ..self.clone() }),
            state => Err(wrong_state("resume", state)),
        }
    }

    /// Whether the relationship may be removed on this side.
    pub fn check_removal(&self) -> Result<(), Refusal> {
        match self.state {
            State::FailingOver => Err(Refusal::new(ReturnCode::SystemInUse, "a failover is being carried out")),
            State::FailedOver => {
                Err(wrong_state("remove the relationship", self.state).hint("commit or revert the failover first"))
            }
            _ => Ok(()),
        }
    }

    /// What an operator sees. `age` is that of the newest sealed cut, if one was sealed since the process began.
    pub fn health(&self, age: Option<Millis>, watched: Millis, failure: Option<String>) -> (Health, Vec<Issue>) {
        health::judge(&Vitals {
            state: self.state,
            interval: self.settings.interval,
            age,
            watched,
            missed_percent: 0,
            failure,
            peer_suspended: false,
            is_replica: true,
        })
    }
}

/// A failover as a value: computed, shown, then carried out by somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverPlan {
    /// The cut to start from.
    pub cut: Cut,
    /// To be durable before anything is made or started: the generation is raised in it.
    pub record: Record,
}

impl FailoverPlan {
    fn new(from: &Record, cut: &Cut) -> Self {
        let kind = match cut.consistency {
            Consistency::Standard => FailoverKind::Regular,
            Consistency::Application => FailoverKind::Application,
            Consistency::Planned => FailoverKind::Planned,
        };
        let record = Record {
            state: State::FailingOver,
            generation: from.generation.next(),
            is_handed_back: false,
            failover: Some(Failover { cut: cut.id, kind, taken_at: cut.taken_at }),
            before_failover: Some(from.state),
            ..from.clone()
        };
        Self { cut: cut.clone(), record }
    }
}

fn wrong_state(what: &str, state: State) -> Refusal {
    Refusal::new(ReturnCode::InvalidState, format!("cannot {what} while the replica is {state}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_model::{CutNumber, VmId};

    fn record() -> Record {
        let vm = VmId("7f2c0b6e-0000-4000-8000-0123456789ab".parse::<VmId>().expect("a uuid").0);
        let mut record = Record::new(RelationshipId::first(vm), Generation(3), Settings::default());
        record.state = State::Replicating;
        record.session_last = SessionNumber(5);
        record
    }

    fn cut(number: u64) -> Cut {
        let id = CutRef { generation: Generation(3), number: CutNumber(number), digest: CutDigest([number as u8; 32]) };
        Cut { id, parent: CutDigest::ZERO, taken_at: Timestamp(number), consistency: Consistency::Standard }
    }

    #[test]
    fn old_sessions_and_old_generations_are_refused() {
        assert_eq!(record().admit(Generation(3), SessionNumber(5)).unwrap_err().session, Some(SessionNumber(5)));
        assert_eq!(record().admit(Generation(2), SessionNumber(6)).unwrap_err().kind, ErrorKind::Refused);
        let admitted = record().admit(Generation(3), SessionNumber(6)).unwrap();
        assert_eq!(admitted.session_last, SessionNumber(6));
        assert!(admitted.admit_cycle(SessionNumber(5), CutDigest::ZERO, None).is_err());
    }

    #[test]
    fn a_cycle_goes_only_onto_the_newest_cut() {
        let r = record();
        let newest = Some(CutDigest([7; 32]));
        assert!(r.admit_cycle(SessionNumber(5), CutDigest([7; 32]), newest).is_ok());
        let err = r.admit_cycle(SessionNumber(5), CutDigest([8; 32]), newest).unwrap_err();
        assert_eq!(err.kind, ErrorKind::Resync);
        assert!(r.admit_cycle(SessionNumber(5), CutDigest::ZERO, newest).is_err());
    }

    #[test]
    fn a_failover_raises_the_generation_and_shuts_the_primary_out() {
        let plan = record().plan_failover(Choice::Newest, &[cut(1), cut(2)]).unwrap();
        assert_eq!((plan.cut.id.number, plan.record.generation), (CutNumber(2), Generation(4)));
        for r in [plan.record.clone(), plan.record.failed_over(), plan.record.failed_over().commit().unwrap()] {
            let failure = r.admit(Generation(3), SessionNumber(9)).unwrap_err();
            assert_eq!((failure.kind, failure.is_handed_back), (ErrorKind::Refused, false));
            assert!(r.admit(Generation(4), SessionNumber(9)).is_err(), "not even with the new generation");
        }
    }

    #[test]
    fn a_revert_hands_a_new_generation_back() {
        let plan = record().plan_failover(Choice::Point(cut(1).point()), &[cut(1), cut(2)]).unwrap();
        let reverted = plan.record.failed_over().revert().unwrap();
        assert_eq!((reverted.state, reverted.generation), (State::Replicating, Generation(5)));
        let failure = reverted.admit(Generation(3), SessionNumber(6)).unwrap_err();
        assert!(failure.is_handed_back && failure.generation == Some(Generation(5)));
        let admitted = reverted.admit(Generation(5), SessionNumber(6)).unwrap();
        assert!(!admitted.is_handed_back);
        assert!(admitted.admit(Generation(3), SessionNumber(7)).is_err(), "the old generation stays refused");
    }

    #[test]
    fn failover_is_refused_where_the_graph_says_no() {
        let refuse = |state, choice| {
            let r = Record { state, ..record() };
            r.plan_failover(choice, &[cut(1)]).unwrap_err().code
        };
        assert_eq!(refuse(State::InitialReplication, Choice::Newest), ReturnCode::InvalidState);
        assert_eq!(refuse(State::FailedOver, Choice::Newest), ReturnCode::InvalidState);
        assert_eq!(refuse(State::Committed, Choice::Newest), ReturnCode::InvalidState);
        assert_eq!(refuse(State::Replicating, Choice::Point(cut(9).point())), ReturnCode::InvalidParameter);
        assert!(record().revert().is_err() && record().commit().is_err());
        let committed = Record { state: State::Committed, ..record() };
        assert!(committed.revert().is_err() && committed.commit().is_err());
    }

    #[test]
    fn a_failed_over_replica_is_not_removed_and_a_paused_one_takes_nothing() {
        assert!(Record { state: State::FailedOver, ..record() }.check_removal().is_err());
        let paused = record().suspend().unwrap();
        let failure = paused.admit_cycle(SessionNumber(5), CutDigest::ZERO, None).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::Retry);
        assert_eq!(paused.resume().unwrap().state, State::Replicating);
    }
}
