//! A file that takes space for a bad day: when the disk is full, giving it back lets what frees space, or must not
//! fail, finish. It is taken again as soon as there is room.

use std::sync::{Arc, Mutex};

use tracing::warn;

use crate::error::{At, FileError};
use crate::files::{Access, Files, again, set_len};
use crate::paths::RESERVE;

pub(crate) struct Reserve {
    files: Arc<dyn Files>,
    bytes: u64,
    /// Whether the file holds its space.
    held: Mutex<bool>,
}

impl Reserve {
    pub(crate) fn new(files: Arc<dyn Files>, bytes: u64) -> Self {
        Self { files, bytes, held: Mutex::new(false) }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, bool> {
        self.held.lock().expect("nothing panics while the reserve is held")
    }

    pub(crate) fn is_held(&self) -> bool {
        *self.held()
    }

    /// Takes the space if it is not taken and twice as much is free: a reserve must not itself fill the disk.
    pub(crate) fn refill(&self) {
        let mut held = self.held();
        if *held || self.bytes == 0 {
            return;
        }
        match self.take() {
            Ok(taken) => *held = taken,
            // No harm yet: it is tried again at the next upkeep.
            Err(err) => warn!(error = %crate::error::chain_of(&err), "cannot take the reserve"),
        }
    }

    fn take(&self) -> Result<bool, FileError> {
        let file = match again(|| self.files.open(RESERVE, Access::Write)) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => again(|| self.files.create(RESERVE)),
            other => other,
        };
        let file = file.at("open", RESERVE)?;
        if file.allocated().at("measure", RESERVE)? >= self.bytes {
            return Ok(true);
        }
        if self.files.free_space().at("measure the space of", "the store")? < self.bytes.saturating_mul(2) {
            return Ok(false);
        }
        again(|| file.allocate(self.bytes)).at("take space for", RESERVE)?;
        again(|| file.sync()).at("sync", RESERVE)?;
        again(|| self.files.sync_dir("")).at("sync the directory of", RESERVE)?;
        Ok(true)
    }

    /// Gives the space back; whether there was any.
    pub(crate) fn release(&self) -> bool {
        let mut held = self.held();
        if !std::mem::take(&mut *held) {
            return false;
        }
        let given = again(|| self.files.open(RESERVE, Access::Write)).and_then(|file| {
            set_len(&*file, 0)?;
            again(|| file.sync())
        });
        if let Err(err) = &given {
            warn!(%err, "cannot give the reserve back");
        }
        given.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::MemFiles;

    #[test]
    fn the_reserve_is_given_back_once_and_taken_again_when_there_is_room() {
        let files = MemFiles::with_capacity(10 * 4096);
        let reserve = Reserve::new(Arc::new(files.clone()), 4 * 4096);
        reserve.refill();
        assert!(reserve.is_held());
        assert_eq!(files.free_space().unwrap(), 6 * 4096);
        assert!(reserve.release());
        assert!(!reserve.release());
        assert_eq!(files.free_space().unwrap(), 10 * 4096);
        files.create("other").unwrap().allocate(4 * 4096).unwrap();
        reserve.refill();
        assert!(!reserve.is_held(), "six left is less than twice four");
        files.unlink("other").unwrap();
        reserve.refill();
        assert!(reserve.is_held());
    }

    #[test]
    fn a_reserve_from_before_is_recognised() {
        let files = MemFiles::with_capacity(10 * 4096);
        Reserve::new(Arc::new(files.clone()), 8192).refill();
        files.set_capacity(8192);
        let reserve = Reserve::new(Arc::new(files.clone()), 8192);
        reserve.refill();
        assert!(reserve.is_held());
    }
}
