//! Reading a live disk: the initial copy. What is read is some state the disk had; the first cut makes it consistent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use understudy_model::{DiskSpec, Extent};

use super::Shared;
use super::answer::execute;
use super::capture::check_iothread;
use super::connect::check_version;
use super::disks::survey;
use super::frozen::nbd_error;
use super::names::Part;
use super::scratch::prepare_directory;
use super::server::{add_export, own_socket, socket, start, stop_if_idle};
use super::tidy::remove_export;
use crate::driver::{Content, DiskReader, Error, READ_LEN_MAX, Result};
use crate::nbd::{ALLOCATION_CONTEXT, Client, NbdError, Options, errno};

/// How many live disks this process has opened.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// An open live disk. Its export is removed when it is dropped.
struct LiveDisk {
    shared: Arc<Shared>,
    spec: DiskSpec,
    export: String,
    client: Option<Client>,
}

/// Exports the disk read-only and connects to it.
pub async fn open(shared: Arc<Shared>, spec: &DiskSpec) -> Result<Box<dyn DiskReader>> {
    let mut monitor = shared.monitor_to("copy its disks").await?;
    let survey = survey(&mut monitor).await?;
    check_version(survey.version)?;
    let disk = survey.find(spec)?;
    check_iothread(disk, &survey, shared.config.allow_iothreads)?;
    prepare_directory(&shared.config.runtime_dir, survey.peer)?;
    let own = own_socket(&shared.config.runtime_dir)?;
    let is_ours = start(&mut monitor, &own).await?;
    // A number of its own: the reader before this one may still be on its way out.
    let export = format!("{}-{}", Part::Live.name(spec.id), OPENED.fetch_add(1, Ordering::Relaxed));
    // Only a life of ours that ended can have left this name.
    remove_export(&mut monitor, &export).await?;
    let add = add_export(&export, &disk.node, false, None);
    execute(&mut monitor, "show a disk", add).await?;
    // From here on, dropping removes the export again.
    let mut live = LiveDisk { shared: shared.clone(), spec: spec.clone(), export, client: None };
    let socket = socket(&mut monitor, &own, is_ours, &live.export).await?;
    let options = Options::new(&live.export).context(ALLOCATION_CONTEXT);
    let client = Client::connect(&socket, &options).await;
    live.client = Some(client.map_err(|err| nbd_error(&spec.key, "open a live disk", err))?);
    Ok(Box::new(live))
}

impl LiveDisk {
    fn client(&self) -> Result<&Client> {
        self.client.as_ref().ok_or_else(|| Error::Misuse("a live disk that was not opened".into()))
    }

    fn failed(&self, extent: Extent, err: NbdError) -> Error {
        match &err {
            NbdError::Request { error, .. } if error.errno != errno::EINVAL => {
                Error::Read { disk: self.spec.key.clone(), extent, source: Box::new(err) }
            }
            _ => nbd_error(&self.spec.key, "read a live disk", err),
        }
    }
}

#[async_trait]
impl DiskReader for LiveDisk {
    fn size(&self) -> u64 {
        self.spec.size
    }

    async fn status(&self, extent: Extent) -> Result<Vec<(Extent, Content)>> {
        self.client()?.allocation(extent).await.map_err(|err| self.failed(extent, err))
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        if extent.len > READ_LEN_MAX {
            return Err(Error::Misuse(format!("a read of {} bytes", extent.len)));
        }
        self.client()?.read(extent).await.map_err(|err| self.failed(extent, err))
    }
}

impl Drop for LiveDisk {
    fn drop(&mut self) {
        self.client = None;
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (shared, export) = (self.shared.clone(), self.export.clone());
        runtime.spawn(async move {
            if let Err(err) = close(&shared, &export).await {
                tracing::warn!(%export, %err, "an export stays until the next tidying");
            }
        });
    }
}

async fn close(shared: &Shared, export: &str) -> Result<()> {
    let Some(mut monitor) = shared.try_monitor().await? else { return Ok(()) };
    remove_export(&mut monitor, export).await?;
    stop_if_idle(&mut monitor, &own_socket(&shared.config.runtime_dir)?).await
}
