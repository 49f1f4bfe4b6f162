//! Waiting for a state, with a bound: what tests use in place of a sleep and a hope.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks. Short against what is waited for (processes, disks), long against the cost of looking.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until the closure gives a value; an error ends the wait at once, and so does the bound.
pub fn wait_for<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() >= bound {
            bail!("waited {:.1} s for {what}, in vain", bound.as_secs_f64());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Looks until the closure says yes, and panics with `what` when the bound is over: for the body of a test.
#[track_caller]
pub fn wait_until(what: &str, bound: Duration, mut is_so: impl FnMut() -> bool) {
    if let Err(err) = wait_for(what, bound, || Ok(is_so().then_some(()))) {
        panic!("{err}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_comes_is_seen_and_one_that_does_not_is_named() {
        let mut looks = 0;
        wait_until("the third look", Duration::from_secs(5), || {
            looks += 1;
            looks == 3
        });
        let err = wait_for::<()>("rain", Duration::from_millis(1), || Ok(None)).unwrap_err();
        assert!(err.to_string().contains("rain"));
        assert!(wait_for::<()>("nothing", Duration::from_secs(60), || bail!("broken")).is_err());
    }
}
