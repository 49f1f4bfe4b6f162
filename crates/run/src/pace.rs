//! How long work is slowed down and stopped: whoever reads much calls back with the bytes it has just handled.

use std::ops::ControlFlow;

/// Called every so often, at least once for each mebibyte, with the number of bytes handled since the last call. May
/// sleep to throttle; `Break` ends the work, which then returns its `Cancelled` error and leaves its input untouched.
pub type Pace<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// The pace of somebody in a hurry: never waits, never stops.
pub fn unpaced(_bytes: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Bytes that gather before the pace is asked, so that asking costs nothing.
const STEP: u64 = 1 << 20;

/// Counts bytes and asks a [`Pace`] now and then.
pub(crate) struct Pacer<'a> {
    pace: &'a mut Pace<'a>,
    gathered: u64,
}

impl<'a> Pacer<'a> {
    pub(crate) fn new(pace: &'a mut Pace<'a>) -> Self {
        Self { pace, gathered: 0 }
    }

    /// Counts `bytes`; `Break` when the work should end.
    pub(crate) fn add(&mut self, bytes: u64) -> ControlFlow<()> {
        self.gathered += bytes;
        if self.gathered < STEP {
            return ControlFlow::Continue(());
        }
        (self.pace)(std::mem::take(&mut self.gathered))
    }
}
