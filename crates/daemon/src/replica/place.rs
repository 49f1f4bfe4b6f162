//! One replica of this host: the engine's record, the store, the session in force.
//!
//! Everything that changes the record goes through one lock, is made durable, and only then acted upon. Data is
//! received outside the lock: the store itself refuses what comes from a session that was overtaken.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use understudy_engine::primary::Failure;
use understudy_engine::replica::Record;
use understudy_engine::retention::{Point, is_point_due, surplus};
use understudy_model::{
    Cut, CutDigest, CutNumber, CutRef, DiskId, DiskSpec, ErrorKind, Generation, RelationshipId, ReturnCode,
    SessionNumber, Settings, Timestamp,
};
use understudy_store::{
    BaseMode, BaseReceiver, BlobReceiver, Comparison, CycleHeader, CycleReceiver, Definition, Store, VmStore,
};
use understudy_wire::Message;
use understudy_wire::message::{self, BasePositions, Notice, Opened, Position};

use super::mux::Mux;
use super::record::{Durable, write};
use crate::catalogue::Catalogue;
use crate::chain;
use crate::channel::Sender;
use crate::clock::Clock;
use crate::events::{self, Events};
use crate::primary::failure::failure;

/// One replica. See the module's description.
pub struct Place {
    id: RelationshipId,
    shelves: Arc<Store>,
    /// Exchanged when the store of this replica was opened anew.
    store: RwLock<Arc<VmStore>>,
    pub(super) catalogue: Catalogue,
    pub(super) clock: Arc<dyn Clock>,
    events: Events,
    /// Serialises changes of the record, which wait for the catalogue.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Told when there may be work for upkeep.
    pub(super) upkeep: tokio::sync::Notify,
}

struct State {
    durable: Durable,
    active: Option<Active>,
    sealed_at: Option<Timestamp>,
    failure: Option<String>,
    began_at: Timestamp,
}

struct Active {
    number: SessionNumber,
    store: understudy_store::Session,
    replaced: CancellationToken,
    sender: Arc<Sender>,
    mux: Arc<Mux>,
}

/// What an operator sees besides the record.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// What is durable.
    pub durable: Durable,
    /// Steady time at which the newest cut was sealed, if one was since the process began.
    pub sealed_at: Option<Timestamp>,
    /// Steady time at which the process began to watch.
    pub began_at: Timestamp,
    /// Why the last transfer failed, while none has succeeded since.
    pub failure: Option<String>,
    /// Whether a session is open.
    pub is_connected: bool,
}

impl Place {
    /// Takes a replica up.
    pub fn new(
        id: RelationshipId,
        durable: Durable,
        shelves: Arc<Store>,
        store: Arc<VmStore>,
        catalogue: Catalogue,
        clock: Arc<dyn Clock>,
        events: Events,
    ) -> Arc<Self> {
        let began_at = clock.steady();
        let state = State { durable, active: None, sealed_at: None, failure: None, began_at };
        Arc::new(Self {
            id,
            shelves,
            store: RwLock::new(store),
            catalogue,
            clock,
            events,
            changing: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
            upkeep: tokio::sync::Notify::new(),
        })
    }

    /// The replica's files.
    pub(super) fn store(&self) -> Arc<VmStore> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the store anew if it has stopped, with all that recovery does. `false` if it stays stopped. Blocks.
    pub(super) fn recover(&self) -> bool {
        let Some(cause) = self.store().stopped() else { return true };
        self.end_session();
        let Some(fresh) = self.shelves.reopen(self.id.vm) else {
            tracing::error!(relationship = %self.id, cause, "the replica's store has stopped and cannot be opened anew");
            return false;
        };
        tracing::warn!(relationship = %self.id, cause, "the replica's store had stopped and was opened anew");
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        true
    }

    /// Puts the record right by what the store holds, after it was opened anew.
    pub(super) async fn settle(&self) -> bool {
        let store = self.store();
        let settled = self.change(|durable| {
            let mut next = durable.clone();
            reconcile(&mut next, &store);
            Ok::<_, Failure>((next, ()))
        });
        match settled.await {
            Ok(()) => true,
            Err(failure) => {
                tracing::warn!(relationship = %self.id, cause = %failure.refusal, "the replica's record is not right yet");
                false
            }
        }
    }

    /// Which relationship.
    pub fn id(&self) -> RelationshipId {
        self.id
    }

    /// The replica's disks.
    pub fn disks(&self) -> Vec<DiskSpec> {
        self.store().report().disks
    }

    /// The generation in force.
    pub fn generation(&self) -> Generation {
        self.state().durable.record.generation
    }

    /// The engine's record.
    pub fn record(&self) -> Record {
        self.state().durable.record.clone()
    }

    /// What an operator sees.
    pub fn vitals(&self) -> Vitals {
        let state = self.state();
        Vitals {
            durable: state.durable.clone(),
            sealed_at: state.sealed_at,
            began_at: state.began_at,
            failure: state.failure.clone(),
            is_connected: state.active.is_some(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the durable record: `change` computes the next one, it is written, then it counts.
    pub(super) async fn change<T, E: From<Failure>>(
        &self,
        change: impl FnOnce(&Durable) -> Result<(Durable, T), E>,
    ) -> Result<T, E> {
        let _changing = self.changing.lock().await;
        let before = self.state().durable.clone();
        let (next, value) = change(&before)?;
        if next != before {
            let (text, settings) = (write(&next), next.record.settings.clone());
            let saved = self.catalogue.save_record(self.id, text, settings).await;
            saved.map_err(|e| E::from(failure(ErrorKind::Retry, &e)))?;
            self.state().durable = next;
            self.events.tell(events::Notice::Relationship(self.id));
        }
        Ok(value)
    }

    /// Admits a session: durable in the catalogue and in the store before the source learns of it. An older session
    /// ends.
    pub async fn open(
        &self,
        generation: Generation,
        number: SessionNumber,
        settings: Settings,
        sender: Arc<Sender>,
        mux: Arc<Mux>,
    ) -> Result<(Opened, CancellationToken), Failure> {
        self.change(|durable| {
            let admitted = durable.record.admit(generation, number).map_err(|f| *f)?;
            let record = admitted.with_settings(settings);
            Ok::<_, Failure>((Durable { record, ..durable.clone() }, ()))
        })
        .await?;
        let store = self.store();
        let admitted = tokio::task::spawn_blocking(move || store.admit_session(generation, number)).await;
        let session = admitted.map_err(|_| crate::primary::failure::bug("admitting a session panicked"))?;
        let session = session.map_err(|e| failure(e.kind(), &e))?;
        let replaced = CancellationToken::new();
        let active = Active { number, store: session, replaced: replaced.clone(), sender, mux };
        if let Some(old) = self.state().active.replace(active) {
            old.replaced.cancel();
        }
        Ok((self.opened(), replaced))
    }

    fn opened(&self) -> Opened {
        let durable = self.state().durable.clone();
        let newest = self.store().newest().map(|cut| message::CutRef::from(&cut.id));
        let base = match (self.store().base_attempt(), self.store().base_positions()) {
            (Some(attempt), Some(positions)) => {
                let positions = positions.into_iter().map(Position::from).collect();
                Some(BasePositions { attempt: attempt.0, positions })
            }
            _ => None,
        };
        Opened { newest, base, suspended: durable.record.state == understudy_model::State::Suspended }
    }

    /// The connection of a session ended.
    pub async fn closed(&self, number: SessionNumber) {
        let mut state = self.state();
        if state.active.as_ref().is_some_and(|a| a.number == number) {
            state.active = None;
        }
    }

    /// Ends the session in force, whichever it is.
    pub(super) fn end_session(&self) {
        if let Some(active) = self.state().active.take() {
            active.replaced.cancel();
        }
    }

    /// Tells the source something unasked, if one is connected.
    pub(super) async fn notify(&self, notice: Notice) {
        let sender = self.state().active.as_ref().map(|a| a.sender.clone());
        if let Some(sender) = sender {
            // If it is lost, the next handshake tells.
            let _ = sender.message(&Message::Notice(notice)).await;
        }
    }

    /// Settings as the source tells them.
    pub async fn set_settings(&self, settings: Settings) -> Result<(), Failure> {
        self.change(|durable| {
            let record = durable.record.with_settings(settings);
            Ok::<_, Failure>((Durable { record, ..durable.clone() }, ()))
        })
        .await
    }

    /// Where further connections of the session in force bring their frames.
    pub(super) fn mux(&self, number: SessionNumber) -> Result<Arc<Mux>, Failure> {
        let state = self.state();
        let active = state.active.as_ref().filter(|a| a.number == number);
        active.map(|a| a.mux.clone()).ok_or_else(overtaken)
    }

    fn session(&self, number: SessionNumber) -> Result<understudy_store::Session, Failure> {
        let state = self.state();
        let active = state.active.as_ref().filter(|a| a.number == number);
        active.map(|a| a.store).ok_or_else(overtaken)
    }

    /// Begins or resumes the initial copy. Called on the intake's thread.
    pub(super) fn begin_base(
        &self,
        number: SessionNumber,
        attempt: CutNumber,
        disks: &[DiskSpec],
        mode: &BaseMode,
    ) -> Result<BaseReceiver, Failure> {
        let session = self.session(number)?;
        let same = |a: &DiskSpec, b: &DiskSpec| a.id == b.id && a.size == b.size;
        let ours = self.disks();
        if ours.len() != disks.len() || !disks.iter().all(|d| ours.iter().any(|o| same(o, d))) {
            let reason = "the disks of the copy are not those this replica was made for";
            return Err(Failure::new(ErrorKind::Refused, ReturnCode::InvalidParameter, reason));
        }
        let store = self.store();
        let has_something = !store.seeds().is_empty() || store.base_attempt().is_some();
        if *mode != BaseMode::Fresh && !has_something {
            let reason = "nothing was placed on the replica host that the copy could begin with";
            let mut nothing = Failure::new(ErrorKind::Refused, ReturnCode::FileNotFound, reason);
            nothing.refusal.hint = "place it there: understudy replication seed; or copy over the network".to_owned();
            return Err(nothing);
        }
        store.begin_base_in(session, attempt, mode).map_err(|e| failure(e.kind(), &e))
    }

    /// Begins a comparison with the newest cut.
    pub(super) fn begin_comparison(&self, number: SessionNumber, cut: CutDigest) -> Result<Comparison, Failure> {
        self.session(number)?;
        self.store().comparison(cut).map_err(|e| failure(e.kind(), &e))
    }

    /// Begins a cycle, if the record allows it. Called on the intake's thread.
    pub(super) fn begin_cycle(&self, number: SessionNumber, header: CycleHeader) -> Result<CycleReceiver, Failure> {
        let newest = self.store().newest().map(|cut| cut.id.digest);
        self.record().admit_cycle(number, header.parent, newest).map_err(|f| *f)?;
        let session = self.session(number)?;
        self.store().begin_cycle(session, header).map_err(|e| self.note_failure(failure(e.kind(), &e)))
    }

    /// Seals a cycle: when this returns the cut is durable. Called on the intake's thread.
    pub(super) fn seal(
        &self,
        number: SessionNumber,
        receiver: CycleReceiver,
        expected: CutDigest,
        definition: Option<message::Definition>,
        runtime: &Handle,
    ) -> Result<Cut, Failure> {
        let record = self.record();
        let parent = receiver.header().parent;
        let newest = self.store().newest().map(|cut| cut.id.digest);
        record.admit_cycle(number, parent, newest).map_err(|f| *f)?;
        let keep = self.is_due(&record, receiver.header(), expected);
        let definition = match definition {
            Some(news) => Some(from_wire(&news)?),
            None => self.last_definition(),
        };
        let sealed = receiver.seal(expected, keep, definition.as_ref());
        let cut = sealed.map_err(|e| self.note_failure(failure(e.kind(), &e)))?;
        {
            let mut state = self.state();
            state.sealed_at = Some(self.clock.steady());
            state.failure = None;
        }
        if let Some(next) = record.sealed() {
            // The cut is durable whatever happens here; a state that lags behind is put right at the next start.
            let changed = runtime.block_on(self.change(|d| {
                let record = Record { state: next.state, ..d.record.clone() };
                Ok::<_, Failure>((Durable { record, ..d.clone() }, ()))
            }));
            if let Err(failure) = changed {
                tracing::warn!(relationship = %self.id, cause = %failure.refusal, "the new state is not recorded yet");
            }
        }
        self.upkeep.notify_one();
        Ok(cut)
    }

    /// The definition of the newest cut: it holds until the source says otherwise.
    fn last_definition(&self) -> Option<Definition> {
        let newest = self.store().newest()?.point();
        match self.store().open_point(newest).and_then(|point| point.definition()) {
            Ok(definition) => definition,
            Err(err) => {
                tracing::warn!(relationship = %self.id, cause = chain(&err), "the last definition cannot be read");
                None
            }
        }
    }

    fn note_failure(&self, failure: Failure) -> Failure {
        self.state().failure = Some(failure.refusal.reason.clone());
        if self.store().stopped().is_some() {
            self.upkeep.notify_one();
        }
        failure
    }

    fn is_due(&self, record: &Record, header: &CycleHeader, digest: CutDigest) -> bool {
        let last = self.store().points().iter().filter(|p| p.kept).map(|p| p.cut.taken_at).next_back();
        let id = CutRef { generation: header.generation, number: header.number, digest };
        let cut = Cut { id, parent: header.parent, taken_at: header.taken_at, consistency: header.consistency };
        is_point_due(&record.settings, last, &cut)
    }

    /// The points that retention lets go, given the settings; the others stay.
    pub(super) fn apply_retention(&self) -> Result<(), Failure> {
        let settings = self.record().settings;
        let points: Vec<Point> = self
            .store()
            .points()
            .into_iter()
            .filter(|p| p.kept)
            .map(|p| Point { id: p.cut.point(), taken_at: p.cut.taken_at, is_pinned: p.locked || p.in_use })
            .collect();
        let dropped = surplus(&settings, &points);
        if dropped.is_empty() {
            return Ok(());
        }
        let kept: Vec<_> = points.iter().map(|p| p.id).filter(|id| !dropped.contains(id)).collect();
        self.store().retain(&kept).map_err(|e| failure(e.kind(), &e))
    }

    /// Begins to take a blob; nothing if it is here already. Called on the intake's thread.
    pub(super) fn begin_blob(&self, hash: [u8; 32], len: u64) -> Result<Option<BlobReceiver>, Failure> {
        if len > understudy_wire::limits::BLOB_MAX {
            let reason = format!("a boot image of {len} bytes is beyond the limit");
            return Err(Failure::new(ErrorKind::Refused, ReturnCode::InvalidParameter, reason));
        }
        if self.store().has_blob(&hash).map_err(|e| failure(e.kind(), &e))? {
            return Ok(None);
        }
        self.store().begin_blob(hash, len).map(Some).map_err(|e| failure(e.kind(), &e))
    }
}

fn overtaken() -> Failure {
    Failure::new(ErrorKind::Retry, ReturnCode::SystemInUse, "a newer session was opened")
}

/// A definition from the wire as the store keeps it.
fn from_wire(definition: &message::Definition) -> Result<Definition, Failure> {
    let unusable = |what: &str| Failure::new(ErrorKind::Refused, ReturnCode::InvalidParameter, what);
    if definition.format != crate::primary::lane::DEFINITION_FORMAT {
        return Err(unusable("the VM's definition is in a language this host does not know"));
    }
    let hash = |b: &message::Blob| understudy_model::id::parse_hex32(&b.hash);
    let blobs = definition.blobs.iter().map(hash).collect::<Option<Vec<_>>>();
    let blobs = blobs.ok_or_else(|| unusable("a blob's name is no hash"))?;
    Ok(Definition { extension: "json".to_owned(), bytes: definition.text.clone().into_bytes(), blobs })
}

/// Which disk's copy is where: for reports.
pub fn copied(positions: &[(DiskId, u64)]) -> u64 {
    positions.iter().map(|(_, at)| at).sum()
}

/// Puts the record right where a crash left it behind the store: what the store made durable happened.
pub fn reconcile(durable: &mut Durable, store: &VmStore) {
    let record = &mut durable.record;
    if record.state == understudy_model::State::InitialReplication && store.newest().is_some() {
        record.state = understudy_model::State::Replicating;
    }
    let report = store.report();
    let (generation, session) = (report.generation, report.session);
    if generation > record.generation {
        record.generation = generation;
    }
    if session > record.session_last && generation >= record.generation {
        record.session_last = session;
    }
}

#[cfg(test)]
mod tests {
    use understudy_model::VmId;
    use understudy_store::StoreOptions;
    use understudy_store::files::{Call, Fault, FaultPlan, FaultyFiles, MemFiles};

    use super::*;
    use crate::clock::ManualClock;
    use crate::replica::upkeep::get_up;

    #[tokio::test]
    async fn a_store_that_stopped_over_a_failed_sync_is_opened_anew() {
        let files = FaultyFiles::over_memory(&MemFiles::new());
        let shelves = Arc::new(Store::open(Arc::new(files.clone()), StoreOptions::default()).unwrap());
        let vm: VmId = "7f2c0b6e-0000-4000-8000-0123456789ab".parse().unwrap();
        let disk = DiskSpec { id: DiskId(0), key: "root".into(), size: 1 << 20 };
        let store = shelves.create_vm(vm, Generation(1), &[disk]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(&dir.path().join("catalogue")).unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp(1)));
        let id = RelationshipId::first(vm);
        let record = Record::new(id, Generation(1), Settings::default());
        let durable = Durable { record, failover_number: None };
        let place = Place::new(id, durable, shelves, store, catalogue, clock, Events::new());

        files.plan(Some(FaultPlan { call: Call::Sync, fault: Fault::Io, nth: 1, for_ever: true }));
        assert!(place.store().admit_session(Generation(1), SessionNumber(1)).is_err());
        assert!(place.store().stopped().is_some(), "a failed sync stops the store");
        assert!(!get_up(&place).await, "the disk is still bad");
        files.plan(None);
        assert!(get_up(&place).await);
        assert_eq!(place.store().stopped(), None);
        place.store().admit_session(Generation(1), SessionNumber(2)).unwrap();
    }
}
