//! Where runs are read from and written to: small synchronous traits, with versions for files and memory.
//!
//! `store` puts its own file seam behind these; nothing here opens, names or syncs a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use understudy_model::ErrorKind;

/// Bytes that do not change while they are read: a sealed run, a raw base.
pub trait RunSource {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fills `out` from `offset`. Short reads and interruptions are dealt with inside; bytes beyond the end are
    /// [`io::ErrorKind::UnexpectedEof`]. May be called from several threads at once where the type allows it.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

/// Where a new run is written. Starts empty; bytes that were never written read as zero. Making what was written
/// durable is the owner's business, after [`crate::RunBuilder::finish`] has returned.
pub trait RunSink {
    /// Writes all of `bytes` at `offset`, growing the file as needed. Offsets ascend, but for the header, which comes
    /// last and goes to offset 0.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// A raw disk image that a run is written into.
pub trait BaseWrite {
    /// Makes the image at least `len` bytes long; new bytes read as zero. Never shrinks it.
    fn grow_to(&mut self, len: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`, inside the image.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes `len` bytes from `offset` read as zero, giving their space back where that is possible.
    fn write_zeros(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// What to do after an input or output error: some pass by themselves, the others need somebody.
pub(crate) fn io_kind(err: &io::Error) -> ErrorKind {
    match err.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ErrorKind::Retry,
        io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
        _ => ErrorKind::Operator,
    }
}

impl RunSource for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }
}

impl RunSink for File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

impl BaseWrite for File {
    fn grow_to(&mut self, len: u64) -> io::Result<()> {
        if self.metadata()?.len() < len { self.set_len(len) } else { Ok(()) }
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn write_zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let punch = || fallocate(&*self, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len);
        match rustix::io::retry_on_intr(punch) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_plain_zeros(self, offset, len),
            other => Ok(other?),
        }
    }
}

/// Zeros for file systems without holes.
fn write_plain_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    const PIECE: u64 = 64 << 10;
    let zeros = [0; PIECE as usize];
    let mut done = 0;
    while done < len {
        let piece = PIECE.min(len - done);
        file.write_all_at(&zeros[..piece as usize], offset + done)?;
        done += piece;
    }
    Ok(())
}

impl RunSource for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = usize::try_from(offset).ok().and_then(|from| Some(from..from.checked_add(out.len())?));
        let bytes = range.and_then(|r| self.get(r)).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

impl RunSource for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        RunSource::read_at(self.as_slice(), offset, out)
    }
}

impl RunSink for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let to = from.checked_add(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if self.len() < to {
            self.resize(to, 0);
        }
        self[from..to].copy_from_slice(bytes);
        Ok(())
    }
}

impl BaseWrite for Vec<u8> {
    fn grow_to(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if self.len() < len {
            self.resize(len, 0);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        RunSink::write_at(self, offset, bytes)
    }

    fn write_zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        BaseWrite::grow_to(self, end)?;
        self[offset as usize..end as usize].fill(0);
        Ok(())
    }
}

macro_rules! forward_source {
    ($($holder:ty),*) => {$(
        impl<T: RunSource + ?Sized> RunSource for $holder {
            fn size(&self) -> io::Result<u64> {
                (**self).size()
            }

            fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
                (**self).read_at(offset, out)
            }
        }
    )*};
}

forward_source!(&T, &mut T, Arc<T>, Box<T>);

impl<T: RunSink + ?Sized> RunSink for &mut T {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }
}

impl<T: RunSink + ?Sized> RunSink for Box<T> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_in_a_base_file_read_as_zeros_and_keep_its_length() {
        let mut file = tempfile::tempfile().unwrap();
        BaseWrite::grow_to(&mut file, 200_000).unwrap();
        BaseWrite::write_at(&mut file, 0, &[7; 200_000]).unwrap();
        file.write_zeros(5_000, 100_001).unwrap();
        write_plain_zeros(&file, 110_000, 70_001).unwrap();
        BaseWrite::grow_to(&mut file, 10).unwrap();
        let mut expected = vec![7; 200_000];
        expected[5_000..105_001].fill(0);
        expected[110_000..180_001].fill(0);
        let mut found = vec![1; 200_000];
        RunSource::read_at(&file, 0, &mut found).unwrap();
        assert_eq!(found, expected);
        assert_eq!(RunSource::size(&file).unwrap(), 200_000);
    }

    #[test]
    fn reading_past_the_end_is_an_error_and_not_zeros() {
        let bytes = vec![1u8; 10];
        assert!(RunSource::read_at(&bytes, 5, &mut [0; 6]).is_err());
        assert!(RunSource::read_at(&bytes, u64::MAX, &mut [0; 6]).is_err());
        assert!(RunSource::read_at(&bytes, 4, &mut [0; 6]).is_ok());
    }
}
