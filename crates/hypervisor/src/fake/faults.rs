//! Where a [`super::FakeMachine`] fails, and how.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::driver::{Error, Result};

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is the call of that name")]
pub enum Call {
    Describe,
    Maps,
    BeginTracking,
    Cut,
    DropMaps,
    FoldMaps,
    EndTracking,
    ReadLive,
    Tidy,
    Status,
    Read,
    EnsureIntact,
    Release,
}

/// How a call fails. The VM is left as it was, except after [`Fault::Lost`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The hypervisor cannot be reached.
    Unreachable,
    /// Something is in the way.
    Busy,
    /// The cut ended early, for this reason.
    CutEnded(String),
    /// A part of the disk cannot be read.
    ReadError,
    /// The call never ends. It can be dropped.
    Hang,
    /// The call is carried out and its answer lost.
    Lost,
}

/// The failures to come; shared between a machine and its test.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How often each call was made.
    made: HashMap<Call, u64>,
    planned: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    call: Call,
    /// At which visit, counted from now on, it begins to fail; 1 is the next.
    nth: u64,
    is_for_ever: bool,
    fault: Fault,
}

impl Faults {
    /// Makes the `nth` such call from now on fail once; 1 is the next.
    pub fn once(&self, call: Call, nth: u64, fault: Fault) {
        self.plan(Planned { call, nth, is_for_ever: false, fault });
    }

    /// Makes such calls fail from the `nth` on, until [`Faults::clear`].
    pub fn from(&self, call: Call, nth: u64, fault: Fault) {
        self.plan(Planned { call, nth, is_for_ever: true, fault });
    }

    /// No more failures.
    pub fn clear(&self) {
        self.lock().planned.clear();
    }

    /// How often a call was made.
    pub fn made(&self, call: Call) -> u64 {
        self.lock().made.get(&call).copied().unwrap_or(0)
    }

    fn plan(&self, planned: Planned) {
        assert!(planned.nth > 0, "calls are counted from 1");
        self.lock().planned.push(planned);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts a visit and answers what is to go wrong.
    fn visit(&self, call: Call) -> Option<Fault> {
        let mut state = self.lock();
        *state.made.entry(call).or_default() += 1;
        let mut fault = None;
        state.planned.retain_mut(|planned| {
            if planned.call != call || fault.is_some() {
                return true;
            }
            planned.nth = planned.nth.saturating_sub(1);
            if planned.nth == 0 {
                fault = Some(planned.fault.clone());
            }
            planned.nth > 0 || planned.is_for_ever
        });
        fault
    }

    /// Carries out a call, or fails it.
    pub(super) async fn around<T>(&self, call: Call, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.visit(call) {
            None => work(),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Lost) => work().and_then(|_| Err(unreachable(call))),
            Some(fault) => Err(error(call, fault)),
        }
    }
}

fn error(call: Call, fault: Fault) -> Error {
    match fault {
        Fault::Busy => Error::Busy("something is in the way".into()),
        Fault::CutEnded(why) => Error::CutEnded(why),
        Fault::ReadError => {
            let extent = understudy_model::Extent::new(0, 0);
            Error::Read { disk: "some disk".into(), extent, source: "input/output error".into() }
        }
        Fault::Unreachable | Fault::Hang | Fault::Lost => unreachable(call),
    }
}

fn unreachable(call: Call) -> Error {
    Error::Unreachable { what: format!("{call:?}"), source: "the fault that was asked for".into() }
}
