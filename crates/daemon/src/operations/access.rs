//! Who calls, and what they may: rights are values, and operations take them as arguments.
//!
//! An operation that changes things asks for a [`Permit`] of the right it needs. A permit can only be had from a
//! [`Caller`] that has the right, so a face that forgets to ask does not compile:
//!
//! ```compile_fail
//! use understudy_daemon::operations::{Operations, Permit, View};
//! async fn forgot(operations: &Operations) {
//!     operations.peer_remove("somebody".to_owned()).await;
//! }
//! ```
//!
//! and neither does one that passes the wrong one:
//!
//! ```compile_fail
//! use understudy_daemon::operations::{Operations, Permit, View};
//! async fn too_little(operations: &Operations, permit: Permit<View>) {
//!     operations.peer_remove(&permit, "somebody".to_owned()).await;
//! }
//! ```
//!
//! The same call with the right permit does:
//!
//! ```
//! use understudy_daemon::operations::{Administer, Operations, Permit};
//! async fn allowed(operations: &Operations, permit: Permit<Administer>) {
//!     let _ = operations.peer_remove(&permit, "somebody".to_owned()).await;
//! }
//! ```

use std::marker::PhantomData;
use std::sync::Arc;

use understudy_model::{Refusal, ReturnCode};

/// A right, as a type.
pub trait Right: Send + Sync + 'static {
    /// Its word.
    const NAME: &'static str;
}

macro_rules! rights {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub enum $name {}

            impl Right for $name {
                const NAME: &'static str = $word;
            }
        )*

        /// The words of all rights.
        pub const RIGHTS: &[&str] = &[$($word,)*];
    };
}

rights! {
    /// To see states, jobs, metrics.
    View = "view";
    /// To add VMs and to make, run and pause their replication.
    Operate = "operate";
    /// To fail over, revert and commit.
    Failover = "failover";
    /// To change whom this host trusts, and to remove what others rely on.
    Administer = "administer";
}

/// Somebody who was recognised.
#[derive(Debug, Clone)]
pub struct Caller {
    name: Arc<str>,
    rights: Vec<&'static str>,
}

/// The right `R`, held by a caller. Made by [`Caller::permit`] only.
#[derive(Debug, Clone)]
pub struct Permit<R: Right> {
    by: Arc<str>,
    right: PhantomData<R>,
}

impl Caller {
    /// The system's administrator, or the user the daemon runs as: may do everything.
    pub fn local(uid: u32) -> Self {
        Self { name: format!("uid {uid}").into(), rights: RIGHTS.to_vec() }
    }

    /// A caller with some rights only. Words nobody defined give nothing.
    pub fn with_rights(name: &str, rights: &[&str]) -> Self {
        let rights = RIGHTS.iter().copied().filter(|right| rights.contains(right)).collect();
        Self { name: name.into(), rights }
    }

    /// The right `R`, if the caller has it.
    pub fn permit<R: Right>(&self) -> Result<Permit<R>, Refusal> {
        if self.rights.contains(&R::NAME) {
            return Ok(Permit { by: self.name.clone(), right: PhantomData });
        }
        Err(Refusal::new(ReturnCode::AccessDenied, format!("{} lacks the right to {}", self.name, R::NAME)))
    }
}

impl<R: Right> Permit<R> {
    /// Who holds it, for the audit log.
    pub fn by(&self) -> &str {
        &self.by
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_the_rights_it_was_given_and_no_others() {
        let watcher = Caller::with_rights("watcher", &["view", "everything"]);
        assert_eq!(watcher.permit::<View>().unwrap().by(), "watcher");
        assert_eq!(watcher.permit::<Administer>().unwrap_err().code, ReturnCode::AccessDenied);
        assert!(watcher.permit::<Operate>().is_err() && watcher.permit::<Failover>().is_err());
        let root = Caller::local(0);
        assert!(root.permit::<Administer>().is_ok() && root.permit::<Failover>().is_ok());
    }
}
