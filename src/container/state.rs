//! A container's states.
//!
//! ```text
//!  Created --started--> Running --exited--> Exited
//!     |                                        ^
//!     +---------------exited-------------------+      (start failed, or killed before it started)
//! ```

use crate::store::{Exit, Process};

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its first process waits to execute its program.
    Created {
        process: Process,
    },
    Running {
        process: Process,
        started_at_ns: i64,
    },
    /// `started_at_ns` is absent if it never ran.
    Exited {
        started_at_ns: Option<i64>,
        exit: Exit,
    },
}

/// A transition that the state does not allow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("container is {state}, not created")]
pub struct NotCreated {
    state: &'static str,
}

impl State {
    /// The state's name, as users know it.
    pub fn name(&self) -> &'static str {
        match self {
            State::Created { .. } => "created",
            State::Running { .. } => "running",
            State::Exited { .. } => "exited",
        }
    }

    /// The first process, as long as it lives.
    pub fn process(&self) -> Option<Process> {
        match self {
            State::Created { process } | State::Running { process, .. } => Some(*process),
            State::Exited { .. } => None,
        }
    }

    /// The end, once it has come.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            State::Exited { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// Nanoseconds since 1970 of the start, if there was one.
    pub fn started_at_ns(&self) -> Option<i64> {
        match self {
            State::Created { .. } => None,
            State::Running { started_at_ns, .. } => Some(*started_at_ns),
            State::Exited { started_at_ns, .. } => *started_at_ns,
        }
    }

    /// The program is being executed. Fine if the process has exited already: a short program is faster than its
    /// start's reply.
    pub fn started(&mut self, at_ns: i64) -> Result<(), NotCreated> {
        match self {
            State::Created { process } => {
                *self = State::Running {
                    process: *process,
                    started_at_ns: at_ns,
                }
            }
            State::Exited {
                started_at_ns: started @ None,
                ..
            } => *started = Some(at_ns),
            State::Running { .. } | State::Exited { .. } => return Err(NotCreated { state: self.name() }),
        }
        Ok(())
    }

    /// The program could not be executed: that is the end, and why, whatever else was told of it.
    pub fn start_failed(&mut self, exit: Exit) {
        *self = State::Exited {
            started_at_ns: None,
            exit,
        };
    }

    /// The first process has ended. The first end told is the true one.
    pub fn exited(&mut self, exit: Exit) {
        if !matches!(self, State::Exited { .. }) {
            *self = State::Exited {
                started_at_ns: self.started_at_ns(),
                exit,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process { pid: 5, start_time: 7 }
    }

    fn end(code: i32) -> Exit {
        Exit {
            code,
            finished_at_ns: 9,
            oom_killed: false,
            reason: String::new(),
            message: String::new(),
        }
    }

    fn states() -> [State; 4] {
        [
            State::Created { process: process() },
            State::Running {
                process: process(),
                started_at_ns: 1,
            },
            State::Exited {
                started_at_ns: None,
                exit: end(1),
            },
            State::Exited {
                started_at_ns: Some(1),
                exit: end(1),
            },
        ]
    }

    #[test]
    fn every_state_meets_a_start() {
        let after: Vec<_> = states()
            .into_iter()
            .map(|mut state| {
                let allowed = state.started(3).is_ok();
                (allowed, state.name(), state.started_at_ns())
            })
            .collect();
        assert_eq!(
            after,
            [
                (true, "running", Some(3)),
                (false, "running", Some(1)),
                (true, "exited", Some(3)),
                (false, "exited", Some(1))
            ]
        );
    }

    #[test]
    fn every_state_meets_an_end_and_keeps_the_first() {
        let after: Vec<_> = states()
            .into_iter()
            .map(|mut state| {
                state.exited(end(2));
                (
                    state.exit().map(|exit| exit.code),
                    state.started_at_ns(),
                    state.process(),
                )
            })
            .collect();
        assert_eq!(
            after,
            [
                (Some(2), None, None),
                (Some(2), Some(1), None),
                (Some(1), None, None),
                (Some(1), Some(1), None)
            ]
        );
    }
}
