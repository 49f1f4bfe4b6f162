//! One host: a daemon, and the way into it.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::Value;
use understudy_testkit::daemon::{Daemon, DaemonConfig};
use understudy_testkit::link::LinkProxy;

/// A host. Others reach its daemon through [`Site::link`] only, so that the way can be cut, held or slowed down, and so that a daemon
/// may listen on another port after each start.
#[derive(Debug)]
pub struct Site {
    config: DaemonConfig,
    daemon: Option<Daemon>,
    link: LinkProxy,
}

impl Site {
    /// A host of this name, with its daemon running.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, |config| config)
    }

    /// As [`Site::start`], with more to say about the daemon.
    pub fn start_with(name: &str, prepare: impl FnOnce(DaemonConfig) -> DaemonConfig) -> Result<Self> {
        let nowhere: SocketAddr = ([127, 0, 0, 1], 1).into();
        let link = LinkProxy::start(nowhere)?;
        let way_in = link.address().to_string();
        let config = DaemonConfig::new(name)?.arguments(&["--name", name, "--advertise", &way_in]);
        let mut site = Site { config: prepare(config), daemon: None, link };
        site.up()?;
        Ok(site)
    }

    /// Starts the daemon, with the state it had.
    pub fn up(&mut self) -> Result<()> {
        let daemon = self.config.start()?;
        self.link.retarget(daemon.address()?);
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Kills the daemon as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.link.cut();
        self.daemon.take().context("the daemon does not run")?.kill().map(drop)
    }

    /// Stops the daemon in good order.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.take().context("the daemon does not run")?.stop().map(drop)
    }

    /// What tests call it, and what it calls itself.
    pub fn name(&self) -> &str {
        self.config.name()
    }

    /// Its directories and how it is started.
    pub fn config(&self) -> &DaemonConfig {
        &self.config
    }

    /// The running daemon.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("the daemon does not run")
    }

    /// The way into this host.
    pub fn link(&self) -> &LinkProxy {
        &self.link
    }

    /// Runs a command of the command line and gives the object it prints.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        self.config.json(words)
    }

    /// Runs a command of the command line and gives the text it prints.
    pub fn text(&self, words: &[&str]) -> Result<String> {
        self.config.text(words)
    }
}
