//! Fail points: places where a test can make this process die, fail or wait.
//!
//! Nothing happens unless the environment variable [`VARIABLE`] was set when [`arm`] was called: `kill@<name>` ends the
//! process by SIGKILL, as `kill -9` would; `error@<name>` makes the step fail; `sleep@<name>=<milliseconds>` delays it.
//! A fault strikes once. A point that is not armed costs the load of one static flag.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The environment variable that arms a point.
pub const VARIABLE: &str = "CRISP_FAULT";

static ARMED: AtomicBool = AtomicBool::new(false);
static FAULT: Mutex<Option<Fault>> = Mutex::new(None);

/// What a test asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    name: String,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Kill,
    Error,
    Sleep(Duration),
}

/// The failure that a test asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("injected fault at {name:?}")]
pub struct Injected {
    name: &'static str,
}

/// Reads [`VARIABLE`], once, when the process begins.
///
/// # Errors
/// The variable's value, if it asks for nothing that there is: a test that misspells must not pass.
pub fn arm() -> Result<(), String> {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(());
    };
    let text = text.to_string_lossy().into_owned();
    *FAULT.lock().expect("no panic holds it") = Some(parse(&text).ok_or(text)?);
    ARMED.store(true, Ordering::Release);
    Ok(())
}

fn parse(text: &str) -> Option<Fault> {
    let (effect, name) = text.split_once('@')?;
    let (name, effect) = match effect {
        "kill" => (name, Effect::Kill),
        "error" => (name, Effect::Error),
        "sleep" => {
            let (name, milliseconds) = name.rsplit_once('=')?;
            (name, Effect::Sleep(Duration::from_millis(milliseconds.parse().ok()?)))
        }
        _ => return None,
    };
    Some(Fault {
        name: name.to_owned(),
        effect,
    })
}

/// The point `name` in asynchronous code.
///
/// # Errors
/// [`Injected`], if a test wants this step to fail.
#[inline]
pub async fn point(name: &'static str) -> Result<(), Injected> {
    if !ARMED.load(Ordering::Relaxed) {
        return Ok(());
    }
    match strike(name) {
        Some(Effect::Sleep(time)) => tokio::time::sleep(time).await,
        Some(Effect::Error) => return Err(Injected { name }),
        Some(Effect::Kill) | None => {}
    }
    Ok(())
}

/// The point `name` on a thread that may block.
///
/// # Errors
/// [`Injected`], if a test wants this step to fail.
#[inline]
pub fn blocking_point(name: &'static str) -> Result<(), Injected> {
    if !ARMED.load(Ordering::Relaxed) {
        return Ok(());
    }
    match strike(name) {
        Some(Effect::Sleep(time)) => std::thread::sleep(time),
        Some(Effect::Error) => return Err(Injected { name }),
        Some(Effect::Kill) | None => {}
    }
    Ok(())
}

/// What is to happen here; a kill has happened.
fn strike(name: &'static str) -> Option<Effect> {
    let fault = FAULT
        .lock()
        .expect("no panic holds it")
        .take_if(|fault| fault.name == name)?;
    tracing::warn!(name, effect = ?fault.effect, "fail point");
    if fault.effect == Effect::Kill {
        // Not caught, no destructor, no flush: exactly what the kernel's OOM killer or an operator does.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
    Some(fault.effect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_asks_for_is_understood_or_refused() {
        let fault = |name: &str, effect| {
            Some(Fault {
                name: name.to_owned(),
                effect,
            })
        };
        assert_eq!(parse("kill@run: recorded"), fault("run: recorded", Effect::Kill));
        assert_eq!(parse("error@run: recorded"), fault("run: recorded", Effect::Error));
        assert_eq!(
            parse("sleep@a=b=250"),
            fault("a=b", Effect::Sleep(Duration::from_millis(250)))
        );
        for wrong in ["", "kill", "sleep@x", "sleep@x=y", "dance@x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_point_that_is_not_armed_does_nothing() {
        assert_eq!(point("nobody asked").await, Ok(()));
        assert_eq!(blocking_point("nobody asked"), Ok(()));
    }
}
