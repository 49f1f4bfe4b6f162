//! Taking the replica up at the start: the record and the store are made durable one after the other, so a crash can
//! leave one of them a step behind. Here the step is taken, or taken back.

use understudy_model::State;
use understudy_store::{FailoverId, FailoverStage};

use super::failover::Step;
use super::hub::{Fault, Hub, outcome};
use super::intake::awaits_first;
use super::{Book, Durable};
use crate::stage::{Alive, Stage};

impl Hub {
    /// Brings record and store to the same step. What cannot be done now is tried again by upkeep.
    pub(super) fn take_up(&mut self, book: &mut Book, stage: &mut Stage) -> Alive {
        if let Err(failure) = outcome(self.reconcile(book, stage))? {
            stage.say("replica", format_args!("cannot settle what a crash left: {}", failure.refusal));
        }
        Ok(())
    }

    fn reconcile(&mut self, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        let (Some(durable), Some(vm)) = (self.durable.clone(), self.vm()) else { return Ok(()) };
        let report = vm.report();
        let mut record = durable.record.clone();
        // The higher numbers count, whichever side has them.
        record.generation = record.generation.max(report.generation);
        if report.generation >= durable.record.generation {
            record.session_last = record.session_last.max(report.session);
        }
        if awaits_first(record.state) && report.newest.is_some() {
            record = record.sealed().unwrap_or(record);
        }
        self.change(Durable { record, ..durable }, book, stage)?;
        let in_force = report.failovers.iter().find(|f| f.stage != FailoverStage::Test);
        let mut tests = report.failovers.iter().filter(|f| f.stage == FailoverStage::Test).map(|f| f.id);
        self.test = tests.next_back();
        self.settle_failover(in_force.map(|f| (f.id, f.stage)), book, stage)
    }

    fn settle_failover(
        &mut self,
        in_force: Option<(FailoverId, FailoverStage)>,
        book: &mut Book,
        stage: &mut Stage,
    ) -> Result<(), Fault> {
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        match (durable.record.state, in_force) {
            (State::FailingOver, _) => self.carry_out_failover(book, stage),
            (State::FailedOver, Some((_, FailoverStage::Committed))) => self.record_step(Step::Committed, book, stage),
            (State::FailedOver, None) => self.record_step(Step::Reverted, book, stage),
            (State::FailedOver | State::Committed, _) => Ok(()),
            // The failover was given up, but its overlays turned out to be durable.
            (_, Some((id, FailoverStage::Active))) => self.throw_away(id),
            _ => Ok(()),
        }
    }

    /// Whether something a crash or a failure left is still to be settled.
    pub(super) fn is_unsettled(&self) -> bool {
        let Some(record) = self.durable.as_ref().map(|d| &d.record) else { return false };
        let Some(vm) = self.vm() else { return true };
        let in_force = vm.failovers().into_iter().find(|f| f.stage != FailoverStage::Test);
        match record.state {
            State::FailingOver => true,
            State::FailedOver => in_force.is_none_or(|f| f.stage == FailoverStage::Committed),
            State::Committed => false,
            state => in_force.is_some() || (awaits_first(state) && vm.newest().is_some()),
        }
    }
}
