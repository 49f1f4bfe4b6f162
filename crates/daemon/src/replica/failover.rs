//! Carries out failovers, reverts and commits, step by step, each step durable before the next.
//!
//! ```text
//! failover  record says failing-over, generation raised ▸ overlays ▸ record says failed-over ▸ VM started if asked
//! revert    VM stopped ▸ overlays thrown away ▸ record says what it said before, generation handed back
//! commit    overlays are the disks for good ▸ record says committed
//! ```
//!
//! A crash between any two steps is gone on from at the next start ([`is_unfinished`] tells).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use understudy_engine::primary::Failure;
use understudy_engine::replica::{Choice, FailoverPlan};
use understudy_hypervisor::driver::ImageFormat;
use understudy_hypervisor::machine::{
    BlobName, Console, Definition, DiskImage, Emulator, Launch, Networks, Running, RuntimeFiles, launch,
};
use understudy_model::{Cut, ErrorKind, PointId, Refusal, ReturnCode, State};
use understudy_store::{FailoverId, FailoverPurpose, FailoverStage, VmStore};
use understudy_wire::message::Notice;

use super::place::Place;
use super::record::Durable;
use crate::chain;
use crate::primary::failure::{bug, failure};

/// Time QEMU has to get ready.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Time QEMU has to end when it is told to; then it is killed. A reverted VM's writes are thrown away in any case.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What this host gives to VMs it starts.
#[derive(Debug, Clone)]
pub struct Premises {
    /// The QEMU.
    pub emulator: Emulator,
    /// What VMs' networks are here.
    pub networks: Networks,
    /// Each VM gets a directory of its own below this one.
    pub runtime: PathBuf,
}

/// The cuts a failover may choose from, oldest first, the newest state last. Damaged ones are left out.
pub fn choices(store: &VmStore) -> Vec<Cut> {
    let points = store.points().into_iter();
    points.filter(|p| (p.kept || p.newest) && p.damaged.is_none()).map(|p| p.cut).collect()
}

/// Decides on a failover and makes that durable: from now on the old primary is shut out.
pub async fn plan(place: &Place, choice: Choice) -> Result<FailoverPlan, Refusal> {
    let cuts = choices(&place.store());
    let plan = place
        .change(|durable| {
            let plan = durable.record.plan_failover(choice, &cuts).map_err(Refused)?;
            let next = Durable { record: plan.record.clone(), failover_number: None };
            Ok::<_, Refused>((next, plan))
        })
        .await
        .map_err(|Refused(refusal)| refusal)?;
    place.notify(Notice::FailedOver { generation: plan.record.generation.0 }).await;
    place.end_session();
    Ok(plan)
}

/// A refusal that a failed write of the record can turn into.
struct Refused(Refusal);

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Refused(failure.refusal)
    }
}

/// Carries a planned failover out. On failure the replica is as it was, the generation handed back.
pub async fn carry_out(place: &Arc<Place>) -> Result<(), Refusal> {
    match make_overlays(place).await {
        Ok(id) => place
            .change(|durable| {
                let record = durable.record.failed_over();
                Ok::<_, Failure>((Durable { record, failover_number: Some(id.0) }, ()))
            })
            .await
            .map_err(|f| f.refusal),
        // The overlays may be on the disk or not; undoing the record could leave them without one.
        Err(cause) if place.store().stopped().is_some() => {
            Err(cause.refusal.hint("put the storage right: the failover is gone on with by itself then"))
        }
        Err(cause) => {
            let undone = place
                .change(|durable| {
                    let record = durable.record.failover_failed();
                    Ok::<_, Failure>((Durable { record, failover_number: None }, ()))
                })
                .await;
            if let Err(err) = undone {
                tracing::error!(relationship = %place.id(), cause = %err.refusal, "a failed failover is not undone yet");
            }
            Err(cause.refusal)
        }
    }
}

/// The overlays of the failover on record; those made before a crash are found again.
async fn make_overlays(place: &Arc<Place>) -> Result<FailoverId, Failure> {
    let record = place.record();
    let failover = record.failover.ok_or_else(|| bug("there is no failover on record"))?;
    let (store, generation) = (place.store(), record.generation);
    let made = tokio::task::spawn_blocking(move || {
        let active = store.failovers().into_iter().find(|f| f.stage == FailoverStage::Active);
        match active {
            Some(found) if found.cut == failover.cut.digest => Ok(found.id),
            _ => store.begin_failover(failover.cut.digest.point(), FailoverPurpose::TakeOver { generation }),
        }
    });
    let made = made.await.map_err(|_| bug("making overlays panicked"))?;
    made.map_err(|e| failure(e.kind(), &e))
}

/// Where the VM of a replica runs, once it was failed over.
pub fn runtime_of(place: &Place, premises: &Premises) -> PathBuf {
    premises.runtime.join(place.id().vm.to_string())
}

/// Starts the promoted VM.
pub async fn power_on(place: &Arc<Place>, premises: &Premises) -> Result<Running, Refusal> {
    let launching = prepare_launch(place, premises).await?;
    launch(&launching, &premises.emulator, START_PATIENCE).await.map_err(|err| {
        let code = if err.kind() == ErrorKind::Bug { ReturnCode::Failed } else { ReturnCode::NotAvailable };
        Refusal::new(code, chain(&err))
            .hint("the failover stands; put the cause right and start the VM again, or revert")
    })
}

async fn prepare_launch(place: &Arc<Place>, premises: &Premises) -> Result<Launch, Refusal> {
    let durable = place.vitals().durable;
    let wrong = || Refusal::new(ReturnCode::InvalidState, "the VM was not failed over here");
    let failover = durable.record.failover.ok_or_else(wrong)?;
    let id = FailoverId(durable.failover_number.ok_or_else(wrong)?);
    let store = place.store();
    let point = failover.cut.digest.point();
    let gathered = tokio::task::spawn_blocking(move || gather(&store, id, point)).await;
    let (definition, images, blobs) =
        gathered.map_err(|_| Refusal::new(ReturnCode::Failed, "preparing the VM panicked"))??;
    Ok(Launch {
        definition,
        identity: None,
        images,
        blobs,
        networks: premises.networks.clone(),
        console: Console::Socket,
        runtime: runtime_of(place, premises),
        paused: false,
    })
}

type Gathered = (Definition, BTreeMap<understudy_model::DiskId, DiskImage>, BTreeMap<BlobName, PathBuf>);

fn gather(store: &Arc<VmStore>, id: FailoverId, point: PointId) -> Result<Gathered, Refusal> {
    let failed = |e: &dyn std::error::Error| Refusal::new(ReturnCode::Failed, chain(e));
    let reader = store.open_point(point).map_err(|e| failed(&e))?;
    let stored = reader.definition().map_err(|e| failed(&e))?.ok_or_else(|| {
        Refusal::new(ReturnCode::FileNotFound, "the replica has no definition of the VM")
            .hint("the disks are ready: start the VM by hand from the overlays that `failover status` names")
    })?;
    let definition = Definition::from_json(&stored.bytes).map_err(|e| failed(&e))?;
    let overlays = store.overlay_paths(id).map_err(|e| failed(&e))?;
    let image = |path| DiskImage { path, format: ImageFormat::Qcow2 };
    let images = overlays.into_iter().map(|(disk, path)| (disk, image(path))).collect();
    let blob = |name: &BlobName| {
        let hash = understudy_model::id::parse_hex32(name.as_str());
        hash.map(|hash| (name.clone(), store.blob_path(&hash)))
    };
    let blobs = definition.blobs().into_iter().filter_map(blob).collect();
    Ok((definition, images, blobs))
}

/// Stops the promoted VM if it runs. Its disks are not written any more when this returns.
pub async fn power_off(place: &Place, premises: &Premises) -> Result<(), Refusal> {
    let runtime = runtime_of(place, premises);
    let failed =
        |e: &dyn std::error::Error| Refusal::new(ReturnCode::Failed, format!("the VM cannot be stopped: {}", chain(e)));
    match Running::find(&runtime, place.id().vm.0).await {
        Ok(Some(running)) => running.stop(STOP_PATIENCE).await.map_err(|e| failed(&e)),
        Ok(None) => Ok(()),
        Err(err) => Err(failed(&err)),
    }
}

/// Throws a failover away: the VM is stopped, its writes are gone, everything is as it was.
pub async fn revert(place: &Arc<Place>, premises: &Premises) -> Result<(), Refusal> {
    place.record().revert()?;
    power_off(place, premises).await?;
    let number = place.vitals().durable.failover_number;
    let (store, id) = (place.store(), number.map(FailoverId));
    let reverted = tokio::task::spawn_blocking(move || match id.filter(|id| has(&store, *id)) {
        Some(id) => store.revert_failover(id),
        None => Ok(()),
    });
    let reverted = reverted.await.map_err(|_| Refusal::new(ReturnCode::Failed, "throwing overlays away panicked"))?;
    reverted.map_err(|e| Refusal::new(ReturnCode::Failed, chain(&e)))?;
    let next = place.change(|durable| {
        let record = durable.record.revert().map_err(Refused)?;
        Ok::<_, Refused>((Durable { record, failover_number: None }, ()))
    });
    next.await.map_err(|Refused(refusal)| refusal)
}

fn has(store: &VmStore, id: FailoverId) -> bool {
    store.failovers().iter().any(|f| f.id == id)
}

/// Makes a failover final.
pub async fn commit(place: &Arc<Place>) -> Result<(), Refusal> {
    place.record().commit()?;
    let number = place.vitals().durable.failover_number;
    let id = FailoverId(number.ok_or_else(|| Refusal::new(ReturnCode::Failed, "the failover has no overlays"))?);
    let store = place.store();
    let committed = tokio::task::spawn_blocking(move || {
        let done = store.failovers().iter().any(|f| f.id == id && f.stage == FailoverStage::Committed);
        if done { Ok(()) } else { store.commit_failover(id) }
    });
    let committed = committed.await.map_err(|_| Refusal::new(ReturnCode::Failed, "committing panicked"))?;
    committed.map_err(|e| Refusal::new(ReturnCode::Failed, chain(&e)))?;
    let next = place.change(|durable| {
        let record = durable.record.commit().map_err(Refused)?;
        Ok::<_, Refused>((Durable { record, ..durable.clone() }, ()))
    });
    next.await.map_err(|Refused(refusal)| refusal)
}

/// What a crash left half-way, if anything: a failover that was decided on and not carried out.
pub fn is_unfinished(place: &Place) -> bool {
    place.record().state == State::FailingOver
}

/// Where the promoted VM's monitor is, for people.
pub fn monitor_of(place: &Place, premises: &Premises) -> PathBuf {
    RuntimeFiles::of(&runtime_of(place, premises)).monitor()
}
