//! For the tests of the guard, which need processes that can be killed: `guard` is a guard, `stop MONITOR` stops the
//! VM behind a monitor under the eyes of a guard and then stands still.

use std::io::{Write, stdin, stdout};
use std::os::fd::AsFd;
use std::path::PathBuf;

use understudy_hypervisor::guard::{self, Duty, GuardClient};
use understudy_hypervisor::qmp::{Command, Monitor, Patience};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|a| a.to_str()) {
        Some("guard") => Ok(guard::run(stdin().as_fd().try_clone_to_owned()?)?),
        Some("stop") if args.len() == 2 => stop(PathBuf::from(&args[1])),
        _ => Err("say `guard` or `stop MONITOR`".into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn stop(monitor: PathBuf) -> Result<()> {
    let guard = GuardClient::new(std::env::current_exe()?, ["guard"]);
    let watch = guard.arm(Duty::Resume { monitor: monitor.clone() }).await?;
    let mut held = Monitor::connect(&monitor, Patience::default()).await?;
    held.execute(Command::bare("stop")).await?;
    println!("stopped {}", guard.pid().ok_or("no guard")?);
    stdout().flush()?;
    std::future::pending::<()>().await;
    watch.done();
    Ok(())
}
