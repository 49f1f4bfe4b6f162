//! The listener of the store's crash points: counts visits, and at one of them ends the daemon.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use understudy_store::files::MemFiles;
use understudy_store::{Checkpoints, CrashPoint};

/// See the module's description.
pub struct Hook {
    disk: MemFiles,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    armed: Option<(CrashPoint, u32)>,
    sprung: Option<CrashPoint>,
    visits: BTreeMap<CrashPoint, u64>,
}

impl Hook {
    /// A hook over this disk: when it springs, the disk takes nothing more.
    pub fn new(disk: MemFiles) -> Self {
        Self { disk, state: Mutex::default() }
    }

    /// The same over another disk, going on counting.
    pub fn with_visits(disk: MemFiles, visits: BTreeMap<CrashPoint, u64>) -> Self {
        Self { disk, state: Mutex::new(State { visits, ..State::default() }) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while the hook is held")
    }

    /// The daemon dies at the `nth` visit of this point, counted from 1.
    pub fn arm(&self, point: CrashPoint, nth: u32) {
        self.state().armed = Some((point, nth.max(1)));
    }

    /// Forgets what was armed and what has sprung.
    pub fn disarm(&self) {
        let mut state = self.state();
        (state.armed, state.sprung) = (None, None);
    }

    /// Whether the daemon has died here.
    pub fn has_sprung(&self) -> bool {
        self.state().sprung.is_some()
    }

    /// Where the daemon has died, if it has died here.
    pub fn sprung(&self) -> Option<CrashPoint> {
        self.state().sprung
    }

    /// How often each point was passed.
    pub fn visits(&self) -> BTreeMap<CrashPoint, u64> {
        self.state().visits.clone()
    }
}

impl Checkpoints for Hook {
    fn reached(&self, point: CrashPoint) -> io::Result<()> {
        let mut state = self.state();
        *state.visits.entry(point).or_insert(0) += 1;
        let springs = match &mut state.armed {
            Some((armed, nth)) if *armed == point => {
                *nth -= 1;
                *nth == 0
            }
            _ => false,
        };
        if springs {
            (state.armed, state.sprung) = (None, Some(point));
            self.disk.power_off();
            return Err(io::Error::other("the daemon dies here"));
        }
        Ok(())
    }
}
