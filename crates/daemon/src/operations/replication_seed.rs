//! Places an image on the replica host that a seeded initial replication begins with.
//!
//! Nothing is believed of it: the copy compares every block of it with the VM's disk. A restored backup, the disk of an old primary, or
//! an image made from the same template all serve.

use std::path::PathBuf;

use understudy_model::job::JobKind;
use understudy_model::{DiskId, Refusal, ReturnCode};

use super::owner::{Command, Seed};
use super::{Administer, Done, Operations, Permit, invalid, to_the_end};
use crate::audit::Act;

/// An image to place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationSeed {
    /// The VM, by name or identity.
    pub vm: String,
    /// Which leg.
    pub leg: u8,
    /// Which disk it is to become.
    pub disk: DiskId,
    /// Where it is.
    pub path: PathBuf,
    /// Its format, if the caller says so; raw else.
    pub format: Option<String>,
    /// Whether it may be moved from there.
    pub take: bool,
}

impl Operations {
    /// Places an image. The job tells when it is there.
    pub async fn replication_seed(
        &self,
        permit: &Permit<Administer>,
        request: ReplicationSeed,
    ) -> Result<Done, Refusal> {
        if !request.path.is_absolute() {
            return Err(invalid("the image must be given by its full path"));
        }
        let (path, said) = (request.path.clone(), request.format.clone());
        let looked = tokio::task::spawn_blocking(move || look(&path, said.as_deref())).await;
        looked.map_err(|_| Refusal::new(ReturnCode::Failed, "looking at the image panicked"))??;
        let owner = self.find_owner(&request.vm, request.leg).await?;
        let seed = Seed { disk: request.disk, path: request.path, take: request.take };
        let act = Act {
            by: permit.by().to_owned(),
            act: "replication-seed",
            object: owner.id().to_string(),
            detail: format!("{} from {}", seed.disk, seed.path.display()),
        };
        let ticket = self.parts.jobs.ticket(JobKind::Import, Some(owner.id().vm));
        let this = self.clone();
        to_the_end(async move { this.ask_audited(act, owner.as_ref(), Command::Seed(seed), ticket).await }).await
    }
}

/// Beginnings by which other formats are known.
const MAGICS: [(&[u8], &str); 4] =
    [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vhd")];

/// Whether there is a file, and nothing speaks against its being raw. A raw disk may begin like anything; who says that it
/// is raw is believed, since every block is compared.
fn look(path: &std::path::Path, said: Option<&str>) -> Result<(), Refusal> {
    let shown = path.display();
    if said.is_some_and(|format| format != "raw") {
        return Err(Refusal::new(ReturnCode::NotSupported, "only raw images can be placed by this version")
            .hint("convert it first: qemu-img convert -O raw"));
    }
    let found = std::fs::symlink_metadata(path)
        .map_err(|err| Refusal::new(ReturnCode::FileNotFound, format!("there is no image {shown}: {err}")))?;
    if !found.is_file() {
        return Err(invalid(format!("{shown} is not a file")));
    }
    let mut begin = [0; 8];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read(&mut file, &mut begin));
    let len = read.map_err(|err| Refusal::new(ReturnCode::AccessDenied, format!("{shown} cannot be read: {err}")))?;
    match MAGICS.iter().find(|(magic, _)| begin[..len].starts_with(magic)) {
        Some((_, format)) if said.is_none() => {
            Err(invalid(format!("{shown} looks like a {format} image, and a raw one is needed"))
                .hint("convert it with qemu-img convert -O raw; or say that it is raw, if it is one"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_raw_image_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let code = |said| look(&image, said).map_err(|refusal| refusal.code);
        assert_eq!(code(None), Err(ReturnCode::FileNotFound));
        std::fs::write(&image, b"QFI\xfb and so on").unwrap();
        assert_eq!(code(None), Err(ReturnCode::InvalidParameter));
        assert_eq!(code(Some("raw")), Ok(()), "a guest may write anything to its disk");
        assert_eq!(code(Some("qcow2")), Err(ReturnCode::NotSupported));
        std::fs::write(&image, b"").unwrap();
        assert_eq!(code(None), Ok(()));
        assert_eq!(look(dir.path(), None).unwrap_err().code, ReturnCode::InvalidParameter);
    }
}
