//! Enumerations that clients fetch piece by piece.
//!
//! What was found waits here until it is fetched, given up, or nobody came for it in time. A piece of it belongs to whoever asked; to
//! everybody else it does not exist.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::provider::Caller;
use crate::status::{Status, StatusCode};

/// Enumerations that may be open at once.
pub const CONTEXTS_MAX: usize = 512;
/// Enumerations that one caller may have open at once.
pub const CONTEXTS_OF_ONE_MAX: usize = 64;
/// Things that may wait in all open enumerations together.
const WAITING_MAX: usize = 4 * super::OBJECTS_MAX;

/// Open enumerations; `S` is what is left of one.
#[derive(Debug)]
pub struct Contexts<C, S> {
    table: Mutex<Table<C, S>>,
}

#[derive(Debug)]
struct Table<C, S> {
    next: u64,
    open: BTreeMap<u64, Open<C, S>>,
}

#[derive(Debug)]
struct Open<C, S> {
    owner: C,
    state: S,
    /// How many things wait in it.
    waiting: usize,
    /// How long it waits between two calls.
    patience: Duration,
    expires: Duration,
}

impl<C, S> Default for Contexts<C, S> {
    fn default() -> Self {
        Contexts { table: Mutex::new(Table { next: 1, open: BTreeMap::new() }) }
    }
}

impl<C: Caller, S> Contexts<C, S> {
    /// Keeps what is left of an enumeration, and gives the number under which it is asked for.
    pub fn open(&self, owner: &C, state: S, waiting: usize, patience: Duration, now: Duration) -> Result<u64, Status> {
        let mut table = self.lock();
        table.open.retain(|_, open| open.expires > now);
        let of_owner = table.open.values().filter(|open| open.owner == *owner).count();
        let all_waiting = waiting + table.open.values().map(|open| open.waiting).sum::<usize>();
        if table.open.len() >= CONTEXTS_MAX || of_owner >= CONTEXTS_OF_ONE_MAX || all_waiting > WAITING_MAX {
            return Err(Status::new(StatusCode::ServerLimitsExceeded, "too many open enumerations"));
        }
        let number = table.next;
        table.next += 1;
        let expires = now.saturating_add(patience);
        table.open.insert(number, Open { owner: owner.clone(), state, waiting, patience, expires });
        Ok(number)
    }

    /// Works on what is left of an enumeration. The work says how many things wait in it now; with none left it is closed.
    pub fn with<T>(
        &self,
        owner: &C,
        number: u64,
        now: Duration,
        work: impl FnOnce(&mut S) -> Result<(T, usize), Status>,
    ) -> Result<T, Status> {
        let mut table = self.lock();
        let found = table.open.get_mut(&number).filter(|open| open.owner == *owner && open.expires > now);
        let open = found.ok_or_else(unknown)?;
        let (answer, waiting) = work(&mut open.state)?;
        open.waiting = waiting;
        open.expires = now.saturating_add(open.patience);
        if waiting == 0 {
            table.open.remove(&number);
        }
        Ok(answer)
    }

    /// Gives an enumeration up.
    pub fn close(&self, owner: &C, number: u64, now: Duration) -> Result<(), Status> {
        let mut table = self.lock();
        let is_theirs = table.open.get(&number).is_some_and(|open| open.owner == *owner && open.expires > now);
        if !is_theirs {
            return Err(unknown());
        }
        table.open.remove(&number);
        Ok(())
    }

    /// Gives another time to come back.
    pub fn renew(&self, owner: &C, number: u64, patience: Duration, now: Duration) -> Result<(), Status> {
        let mut table = self.lock();
        let found = table.open.get_mut(&number).filter(|open| open.owner == *owner && open.expires > now);
        let open = found.ok_or_else(unknown)?;
        (open.patience, open.expires) = (patience, now.saturating_add(patience));
        Ok(())
    }

    /// How many are open, those that nobody came for in time included until the next one is opened.
    pub fn count(&self) -> usize {
        self.lock().open.len()
    }

    /// Whoever panicked while holding the lock left whole entries behind.
    fn lock(&self) -> MutexGuard<'_, Table<C, S>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown() -> Status {
    Status::new(StatusCode::InvalidEnumerationContext, "there is no such enumeration, or nobody came for it in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn code<T: std::fmt::Debug>(outcome: Result<T, Status>) -> StatusCode {
        outcome.unwrap_err().code
    }

    #[test]
    fn what_waits_belongs_to_whoever_asked_and_not_for_ever() {
        let contexts: Contexts<&str, Vec<u8>> = Contexts::default();
        let number = contexts.open(&"ann", vec![1, 2, 3], 3, MINUTE, MINUTE).unwrap();
        let take = |who, now| contexts.with(&who, number, now, |left| Ok((left.pop(), left.len())));
        assert_eq!(code(take("bob", MINUTE)), StatusCode::InvalidEnumerationContext);
        assert_eq!(code(contexts.close(&"bob", number, MINUTE)), StatusCode::InvalidEnumerationContext);
        assert_eq!(take("ann", MINUTE), Ok(Some(3)));
        // Each call gives another minute.
        assert_eq!(take("ann", 2 * MINUTE - Duration::from_secs(1)), Ok(Some(2)));
        assert_eq!(code(take("ann", 3 * MINUTE)), StatusCode::InvalidEnumerationContext);
        let number = contexts.open(&"ann", vec![1], 1, MINUTE, 5 * MINUTE).unwrap();
        assert_eq!(contexts.count(), 1);
        contexts.with(&"ann", number, 5 * MINUTE, |left| Ok((left.pop(), left.len()))).unwrap();
        assert_eq!(contexts.count(), 0);
    }

    #[test]
    fn a_caller_cannot_take_all_the_room() {
        let contexts: Contexts<u32, ()> = Contexts::default();
        let open = |who, waiting| contexts.open(&who, (), waiting, MINUTE, Duration::ZERO);
        assert!((0..CONTEXTS_OF_ONE_MAX).all(|_| open(1, 1).is_ok()));
        assert_eq!(code(open(1, 1)), StatusCode::ServerLimitsExceeded);
        assert_eq!(code(open(2, WAITING_MAX)), StatusCode::ServerLimitsExceeded);
        for who in 2..9 {
            assert!((0..CONTEXTS_OF_ONE_MAX).all(|_| open(who, 1).is_ok()));
        }
        assert_eq!(code(open(99, 1)), StatusCode::ServerLimitsExceeded);
        // Those that nobody came for make room.
        assert!(contexts.open(&1, (), 1, MINUTE, MINUTE).is_ok());
        assert_eq!(contexts.count(), 1);
    }
}
