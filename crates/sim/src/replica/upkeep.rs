//! Retention and upkeep in the background, and getting up again after the store has stopped.

use understudy_engine::retention::{Point, surplus};
use understudy_model::{ErrorKind, Millis};
use understudy_run::pace::unpaced;
use understudy_store::{UpkeepStep, VmStore};

use super::hub::Hub;
use super::{Book, Timer, Wish, wake};
use crate::judge::Depth;
use crate::mutation::Mutation;
use crate::primary::failure;
use crate::stage::{Alive, Stage};

/// Pause when there is nothing to do.
const LOOK_EVERY: Millis = Millis(1_000);
/// Pause after a step that failed.
const AFTER_FAILURE: Millis = Millis(5_000);

impl Hub {
    /// An operator asks for something.
    pub fn wish(&mut self, wish: Wish, book: &mut Book, stage: &mut Stage) -> Alive {
        self.obey(wish, book, stage)
    }

    pub(super) fn on_upkeep(&mut self, book: &mut Book, stage: &mut Stage) -> Alive {
        let pause = self.upkeep(book, stage)?;
        self.survive()?;
        wake(stage, self.life, pause, Timer::Upkeep);
        Ok(())
    }

    fn upkeep(&mut self, book: &mut Book, stage: &mut Stage) -> Alive<Millis> {
        self.reopen_stopped(stage)?;
        if self.is_unsettled() {
            self.take_up(book, stage)?;
        }
        let Some(vm) = self.vm() else { return Ok(AFTER_FAILURE) };
        self.draw_readers(stage);
        self.check_damage(&vm, stage)?;
        if let Err(cause) = self.apply_retention(stage) {
            self.survive()?;
            stage.say("replica", format_args!("points cannot be dropped: {cause}"));
            return Ok(AFTER_FAILURE);
        }
        self.survive()?;
        let step = vm.upkeep(&mut unpaced);
        self.survive()?;
        match step {
            Ok(UpkeepStep::Idle | UpkeepStep::Deferred) => Ok(LOOK_EVERY),
            Ok(step) => {
                stage.say("replica", format_args!("upkeep: {step:?}"));
                stage.judge.upkeep_done();
                if stage.makes(Mutation::MergeSpoilsData) {
                    self.spoil(&vm);
                }
                self.look(Depth::All, stage)?;
                Ok(Millis(stage.chance.below(200)))
            }
            Err(err) => {
                stage.say("replica", format_args!("upkeep is put off: {}", failure::chain(&err)));
                if err.kind() == ErrorKind::Corrupt {
                    stage.judge.damage_reported();
                }
                Ok(AFTER_FAILURE)
            }
        }
    }

    /// Changes a byte of the newest state's lowest file, as a merge gone wrong would.
    fn spoil(&self, vm: &VmStore) {
        let chains = vm.newest().and_then(|cut| vm.chain(cut.point()).ok()).unwrap_or_default();
        let lowest = chains.first().and_then(|chain| chain.files.last());
        if let Some(file) = lowest {
            let path = file.path.to_string_lossy().trim_start_matches("/memory/").to_owned();
            let _ = self.disk.damage(&path, 0, |bytes| bytes[0] ^= 1, 1);
        }
    }

    /// A replica that stopped is opened again and checked: only what is found durable counts from then on.
    fn reopen_stopped(&mut self, stage: &mut Stage) -> Alive {
        let stopped = self.vm().and_then(|vm| vm.stopped());
        let Some(vm) = self.vm_id() else { return Ok(()) };
        if stopped.is_none() && self.vm().is_some() {
            return Ok(());
        }
        stage.say("replica", format_args!("reopens after: {}", stopped.as_deref().unwrap_or("it could not be opened")));
        self.readers.clear();
        self.end_session(stage);
        self.conns.values_mut().for_each(|conn| conn.intake = Default::default());
        let reopened = self.store.reopen(vm);
        self.survive()?;
        stage.judge.store_reopened();
        if reopened.is_some() { self.look(Depth::All, stage) } else { Ok(()) }
    }

    /// What is held to be damaged is looked at again: a disk that failed to read may read again.
    fn check_damage(&self, vm: &VmStore, stage: &mut Stage) -> Alive {
        if vm.stopped().is_none() && !vm.report().damage.is_empty() {
            let checked = vm.check(&mut unpaced);
            self.survive()?;
            stage.say("replica", format_args!("checked: {:?}", checked.map(|report| report.damage.len())));
        }
        Ok(())
    }

    /// Somebody opens a point for a while, or is done with one.
    fn draw_readers(&mut self, stage: &mut Stage) {
        if !self.readers.is_empty() && stage.chance.percent(30) {
            self.readers.remove(0);
        }
        let Some(vm) = self.vm() else { return };
        let points = vm.points();
        if self.readers.len() < 2 && !points.is_empty() && stage.chance.percent(15) {
            let point = stage.chance.pick(&points).cut.point();
            self.readers.extend(vm.open_point(point).ok());
        }
    }

    /// The points that retention lets go, given the settings; the others stay.
    fn apply_retention(&self, stage: &mut Stage) -> Result<(), String> {
        let (Some(durable), Some(vm)) = (&self.durable, self.vm()) else { return Ok(()) };
        let kept = vm.points().into_iter().filter(|p| p.kept);
        let points: Vec<Point> = kept
            .map(|p| Point { id: p.cut.point(), taken_at: p.cut.taken_at, is_pinned: p.locked || p.in_use })
            .collect();
        let dropped = surplus(&durable.record.settings, &points);
        if dropped.is_empty() {
            return Ok(());
        }
        let mut stay: Vec<_> = points.iter().map(|p| p.id).filter(|id| !dropped.contains(id)).collect();
        stage.judge.retention_drops(&dropped);
        if stage.makes(Mutation::NewestPointDropped) {
            stay.pop();
        }
        vm.retain(&stay).map_err(|e| failure::chain(&e))
    }
}
