//! Two hosts that trust each other.

use anyhow::{Context, Result};
use understudy_testkit::daemon::DaemonConfig;

use crate::Site;

/// A primary and a replica, paired by invitation.
#[derive(Debug)]
pub struct Pair {
    /// Where the guests run.
    pub primary: Site,
    /// Where their copies are.
    pub replica: Site,
}

impl Pair {
    /// Starts both and lets the primary join by an invitation of the replica.
    pub fn start() -> Result<Self> {
        Self::start_with(|config| config)
    }

    /// As [`Pair::start`], with more to say about both daemons.
    pub fn start_with(prepare: impl Fn(DaemonConfig) -> DaemonConfig) -> Result<Self> {
        let primary = Site::start_with("primary", &prepare)?;
        let pair = Pair { primary, replica: Site::start_with("replica", &prepare)? };
        pair.primary.text(&["peer", "join", &pair.invite()?])?;
        Ok(pair)
    }

    /// A fresh invitation of the replica.
    pub fn invite(&self) -> Result<String> {
        let invitation = self.replica.json(&["peer", "invite"])?;
        let token = invitation["token"].as_str().with_context(|| format!("no token in {invitation}"))?;
        Ok(token.to_owned())
    }

    /// What both have logged last, to explain a failure.
    pub fn logs(&self) -> String {
        format!("{}\n{}", self.primary.config().shown_log(), self.replica.config().shown_log())
    }

    /// Stops both in good order; fails when a log holds what it must not.
    pub fn stop(mut self) -> Result<()> {
        self.primary.stop()?;
        self.replica.stop()
    }
}
