//! The end of each process of the pod: the record first, then the event.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

use super::birth::Birth;
use super::container::State;
use super::protocol::{Answer, EXITS, Empty, ExecExited, Exit, Exited, Saying};
use super::sandbox::Sandbox;
use super::server::Monitor;
use crate::sys::process::{self, Ended};

/// A child that ended before it was known whose it was.
pub struct Stray {
    ended: Ended,
    at_ns: i64,
}

impl Monitor {
    /// Reaps every child that has ended.
    pub fn reap(&mut self) {
        while let Some(ended) = process::reap() {
            let at_ns = now_ns();
            if !self.is_over(ended, at_ns) && self.is_expecting() {
                self.strays.push(Stray { ended, at_ns });
            }
        }
        if !self.is_expecting() {
            self.strays = Vec::new();
        }
        self.rest();
    }

    /// Whether a process is in the making whose pid is not known yet.
    fn is_expecting(&self) -> bool {
        matches!(self.sandbox, Sandbox::Making(..))
            || self.containers.iter().any(|container| container.process.is_none())
            || self.execs.iter().any(|exec| exec.process.is_none())
    }

    /// `pid` has become known: perhaps it has ended already.
    pub fn adopt_stray(&mut self, pid: i32) {
        if let Some(at) = self.strays.iter().position(|stray| stray.ended.pid == pid) {
            let stray = self.strays.swap_remove(at);
            self.is_over(stray.ended, stray.at_ns);
        }
    }

    /// Says and records the end of a process of the pod. `false` if it is none.
    fn is_over(&mut self, ended: Ended, at_ns: i64) -> bool {
        let is = |process: Option<super::protocol::Process>| process.is_some_and(|process| process.pid == ended.pid);
        let exit = Exit {
            code: ended.code,
            signal: ended.signal,
            finished_at_ns: at_ns,
            oom_killed: false,
        };
        if let Sandbox::Alive(pause) = &mut self.sandbox
            && pause.process.pid == ended.pid
        {
            let (process, stopping) = (pause.process, std::mem::take(&mut pause.stopping));
            self.sandbox = Sandbox::Dead { process, exit };
            self.wire.say(Saying::PauseExited(exit));
            for reply in stopping {
                self.wire.answer(reply, Answer::Done(Empty {}), Vec::new());
            }
            return true;
        }
        let alive = |state: &State| !matches!(state, State::Exited(_));
        if let Some(at) = self.containers.iter().position(|c| is(c.process) && alive(&c.state)) {
            self.container_over(at, exit);
            return true;
        }
        if let Some(at) = self.execs.iter().position(|exec| is(exec.process)) {
            self.exec_over(at, exit);
            return true;
        }
        false
    }

    fn container_over(&mut self, at: usize, mut exit: Exit) {
        // The line may hold why its program was not executed. One that never got the word has nobody waiting.
        if matches!(self.containers[at].state, State::Starting(_))
            && let Some(progress) = self.containers[at].birth().map(Birth::conclude)
        {
            self.container_done(at, progress);
        }
        let epoll = self.wire.epoll();
        let container = &mut self.containers[at];
        container.output.drain(&epoll, &mut self.scratch);
        let killed = exit.signal == libc::SIGKILL && !container.killed_by_us;
        let says_killed = exit.signal == 0 && exit.code == 128 + libc::SIGKILL;
        exit.oom_killed = (killed || says_killed) && container.oom.take().is_some_and(|watch| watch.rose());
        container.pidfd = None;
        container.stdin = None;
        container.state = State::Exited(exit);
        let container_id = container.id.clone();
        if let Err(e) = self.record(&container_id, exit) {
            // The snapshot has it, and so does the event; only a monitor that dies next takes it along.
            self.complain(&format!("record the exit of {container_id}: {e}"));
        }
        self.wire.say(Saying::Exited(Exited { container_id, exit }));
    }

    fn exec_over(&mut self, at: usize, exit: Exit) {
        let (key, exec_id) = (self.execs[at].key, self.execs[at].exec_id);
        if let Some(progress) = self.execs[at].birth.as_mut().map(Birth::conclude) {
            self.exec_done(at, progress);
        }
        // A failed one is gone from the list, and its failure is its answer.
        if let Some(at) = self.execs.iter().position(|exec| exec.key == key) {
            self.execs.swap_remove(at);
            self.wire.say(Saying::ExecExited(ExecExited { exec_id, exit }));
        }
    }

    /// Publishes an exit record: whoever finds it finds it whole. No fsync: the directory is on a tmpfs, and what a
    /// crash of the node takes along has no reader.
    fn record(&self, container_id: &str, exit: Exit) -> io::Result<()> {
        let temporary = format!("{EXITS}/.{container_id}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&self.run_dir, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let text = exit.to_record();
        let published = match rustix::io::write(&file, text.as_bytes()) {
            Ok(length) if length == text.len() => renameat(
                &self.run_dir,
                &temporary,
                &self.run_dir,
                format!("{EXITS}/{container_id}"),
            ),
            Ok(_) => Err(rustix::io::Errno::NOSPC),
            Err(e) => Err(e),
        };
        if published.is_err() {
            let _ = unlinkat(&self.run_dir, &temporary, AtFlags::empty());
        }
        Ok(published?)
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
