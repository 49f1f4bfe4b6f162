//! `understudy serve`: the configuration with flags on top, the log, and the daemon.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use tracing_subscriber::EnvFilter;
use understudy_daemon::assembly::{GuardProgram, RealSides};
use understudy_daemon::config::{Config, Log, LogFormat};
use understudy_daemon::service;

use crate::arguments::Serve;
use crate::failure::Failure;

/// Runs the daemon to its end.
pub async fn run(flags: Serve, socket: Option<PathBuf>) -> Result<(), Failure> {
    let config = configuration(flags, socket)?;
    begin_log(&config.log)?;
    let program = std::env::current_exe().context("the service does not start: this program cannot be found")?;
    let guard = GuardProgram { program, args: vec!["guard".to_owned()] };
    service::run(config, &RealSides { guard }).await.map_err(|err| {
        let hint = err.hint();
        let err = anyhow::Error::new(err).context("the service does not start");
        Failure::Other(if hint.is_empty() { err } else { anyhow!("{err:#}\nhint: {hint}") })
    })
}

fn configuration(flags: Serve, socket: Option<PathBuf>) -> Result<Config, Failure> {
    let mut config = match &flags.config {
        Some(path) => Config::read(path).context("the service does not start")?,
        None => Config::default(),
    };
    let full = |path: PathBuf| std::path::absolute(&path).with_context(|| format!("{} is no path", path.display()));
    if let Some(state) = flags.state {
        config.state = full(state)?;
    }
    if let Some(storage) = flags.storage {
        config.storage = Some(full(storage)?);
    }
    if let Some(socket) = socket {
        config.socket = Some(full(socket)?);
    }
    config.listen = flags.listen.unwrap_or(config.listen);
    config.name = flags.name.or(config.name);
    if !flags.advertise.is_empty() {
        config.advertise = flags.advertise;
    }
    Ok(config)
}

fn begin_log(log: &Log) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&log.filter).with_context(|| format!("`log.filter` is {:?}", log.filter))?;
    let to_stderr = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => to_stderr.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => to_stderr.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Serve {
        Serve { config: None, state: None, listen: None, storage: None, advertise: vec![], name: None }
    }

    #[test]
    fn flags_win_over_the_file_and_relative_paths_become_full() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\nname = \"from-file\"\nstate = \"/from/file\"\n").unwrap();
        let given =
            Serve { config: Some(file), name: Some("from-flag".into()), storage: Some("here".into()), ..flags() };
        let config = configuration(given, Some("/run/s".into())).unwrap();
        assert_eq!((config.name.as_deref(), config.listen.port()), (Some("from-flag"), 1));
        assert_eq!((config.state.to_str(), config.socket_path().to_str()), (Some("/from/file"), Some("/run/s")));
        assert!(config.storage_dir().is_absolute() && config.storage_dir().ends_with("here"));
    }

    #[test]
    fn a_bad_file_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\nlissten = 1\n").unwrap();
        let Err(Failure::Other(err)) = configuration(Serve { config: Some(file), ..flags() }, None) else {
            panic!("it was taken")
        };
        let text = format!("{err:#}");
        assert!(text.contains("c.toml") && text.contains("line 2") && text.contains("lissten"), "{text}");
    }
}
