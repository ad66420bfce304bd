//! A process until its program executes: forked, in its cgroups, on the line with the monitor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use super::connection::ReplyTo;
use super::protocol::{self, Failure, FailureKind, Process, Role};
use crate::oci::line::{self, Refusal, Said};
use crate::oci::{self, Namespace};
use crate::sys::{fd, pidfd, process};

/// How many causes of a failure are kept.
const CAUSES_KEPT: usize = 4;

/// A process in the making.
pub struct Birth {
    pub line: OwnedFd,
    /// Who waits for it.
    pub reply: Option<ReplyTo>,
    /// The forked child that makes it.
    pub maker: i32,
    pub process: Option<Process>,
    pub terminal: Option<OwnedFd>,
    /// Whether it is made only when it has said so itself.
    is_awaited: bool,
    refusal: Option<(Refusal, String)>,
    causes: Vec<String>,
}

/// What has become of a birth.
pub enum Progress {
    Nothing,
    /// There is a process; it waits for the word to execute its program.
    Made,
    Executing,
    Failed(Failure),
}

impl Birth {
    /// `line` is the monitor's end.
    pub fn new(line: OwnedFd, maker: i32, reply: ReplyTo) -> Self {
        Self {
            line,
            reply: Some(reply),
            maker,
            process: None,
            terminal: None,
            is_awaited: false,
            refusal: None,
            causes: Vec::new(),
        }
    }

    /// One that is made when its process has let go of all that its program is not to have: it may wait for long, where
    /// others can look at it.
    pub fn until_it_rests(mut self) -> Self {
        self.is_awaited = true;
        self
    }

    /// Listens on the line.
    pub fn hear(&mut self) -> Progress {
        loop {
            match line::hear(&self.line) {
                Ok(None) => return Progress::Nothing,
                Ok(Some(Said::Process { pid, terminal })) => {
                    self.process = Some(Process {
                        pid,
                        start_time: pidfd::start_time(pid).unwrap_or(0),
                    });
                    self.terminal = terminal;
                    if !self.is_awaited {
                        return Progress::Made;
                    }
                }
                Ok(Some(Said::Resting)) => {
                    // Two processes say the two things: either may come first.
                    if std::mem::take(&mut self.is_awaited) && self.process.is_some() {
                        return Progress::Made;
                    }
                }
                Ok(Some(Said::Refused { kind, why })) => self.refusal = Some((kind, why)),
                Ok(Some(Said::Diagnosis(text))) => {
                    if self.causes.len() < CAUSES_KEPT && !self.causes.contains(&text) {
                        self.causes.push(text);
                    }
                }
                Ok(Some(Said::Closed)) => {
                    return match (self.refusal.take(), self.process) {
                        (None, Some(_)) if !self.is_awaited => Progress::Executing,
                        (refusal, _) => Progress::Failed(self.failure(refusal)),
                    };
                }
                Err(e) => {
                    return Progress::Failed(failure(FailureKind::Failed, format!("listen to a new process: {e}")));
                }
            }
        }
    }

    /// What has become of it, now that its process has ended. Others on the way may still hold the line, so there may be no
    /// end of it; but a process that was not executed said why, before it ended.
    pub fn conclude(&mut self) -> Progress {
        loop {
            match self.hear() {
                Progress::Made => {}
                Progress::Nothing => {
                    return match self.refusal.take() {
                        Some(refusal) => Progress::Failed(self.failure(Some(refusal))),
                        None => Progress::Executing,
                    };
                }
                other => return other,
            }
        }
    }

    fn failure(&mut self, refusal: Option<(Refusal, String)>) -> Failure {
        let (kind, mut why) = refusal.unwrap_or_else(|| {
            (
                Refusal::Failed,
                "the process died before its program was executed".to_owned(),
            )
        });
        if !self.causes.is_empty() {
            why.push_str(" (");
            why.push_str(&self.causes.join("; "));
            why.push(')');
        }
        let kind = match kind {
            Refusal::Failed => FailureKind::Failed,
            Refusal::ProgramNotFound => FailureKind::ProgramNotFound,
            Refusal::ProgramDenied => FailureKind::ProgramDenied,
        };
        failure(kind, why)
    }
}

/// A failure to answer with.
pub fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind: kind as i32,
        message: message.into(),
    }
}

/// Descriptors that came with a request, by role.
pub struct Sent(BTreeMap<i32, Vec<OwnedFd>>);

impl Sent {
    /// Sorts `fds` by their `roles`.
    pub fn sort(roles: &[i32], fds: Vec<OwnedFd>) -> Result<Self, Failure> {
        if roles.len() != fds.len() {
            let what = format!("{} descriptors came where {} were announced", fds.len(), roles.len());
            return Err(failure(FailureKind::Invalid, what));
        }
        let mut sorted: BTreeMap<i32, Vec<OwnedFd>> = BTreeMap::new();
        for (&role, fd) in roles.iter().zip(fds) {
            sorted.entry(role).or_default().push(fd);
        }
        Ok(Self(sorted))
    }

    /// The one descriptor of `role`, if it came.
    pub fn one(&mut self, role: Role) -> Option<OwnedFd> {
        self.0.remove(&(role as i32))?.pop()
    }

    /// All descriptors of `role`, in order.
    pub fn all(&mut self, role: Role) -> Vec<OwnedFd> {
        self.0.remove(&(role as i32)).unwrap_or_default()
    }
}

/// What a forked child is given before it goes its way.
pub struct Outfit {
    pub line: OwnedFd,
    pub cgroup_procs: Vec<OwnedFd>,
    /// The cgroup2 cgroup that it is born in.
    pub cgroup_dir: Option<OwnedFd>,
    pub oom_score_adj: Option<i32>,
    pub limits: Vec<(u32, u64, u64)>,
}

impl Outfit {
    /// Child: puts it on: dies with the monitor, hears signals, is in its cgroups, holds only `keep` and the line.
    /// A child that this does not fit tells why and ends.
    pub fn put_on(self, keep: &[RawFd]) -> Rc<OwnedFd> {
        if let Err(e) = self.try_on(keep) {
            line::say_refused(&self.line, Refusal::Failed, &e.to_string());
            process::exit_now(1);
        }
        std::mem::forget((self.cgroup_procs, self.cgroup_dir));
        Rc::new(self.line)
    }

    fn try_on(&self, keep: &[RawFd]) -> io::Result<()> {
        process::set_parent_death_signal(libc::SIGKILL)?;
        process::unblock_signals();
        for procs in &self.cgroup_procs {
            rustix::io::write(procs, b"0").map_err(|e| crate::sys::failed("join a cgroup", e))?;
        }
        if let Some(adjustment) = self.oom_score_adj {
            adjust_oom_score(adjustment)?;
        }
        for &(resource, soft, hard) in &self.limits {
            process::raise_limit(resource, soft, hard);
        }
        let mut keep = keep.to_vec();
        keep.push(self.line.as_raw_fd());
        fd::close_all_but(&keep)
    }
}

/// Writes this process's oom_score_adj. A node that does not allow to lower it (no CAP_SYS_RESOURCE) keeps what there is.
pub fn adjust_oom_score(adjustment: i32) -> io::Result<()> {
    match std::fs::write("/proc/self/oom_score_adj", adjustment.to_string()) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(|e| crate::sys::failed("write oom_score_adj", e)),
    }
}

/// The policy as `oci` has it.
pub fn policy(policy: protocol::Policy) -> oci::Policy {
    use std::os::unix::ffi::OsStringExt;
    oci::Policy {
        args: policy.args,
        env: policy.env,
        cwd: std::ffi::OsString::from_vec(policy.cwd).into(),
        uid: policy.uid,
        gid: policy.gid,
        groups: policy.groups,
        umask: policy.umask.unwrap_or(0o022),
        bounding: policy.bounding,
        effective: policy.effective,
        permitted: policy.permitted,
        inheritable: policy.inheritable,
        ambient: policy.ambient,
        no_new_privs: policy.no_new_privs,
        seccomp: policy.seccomp,
        seccomp_flags: policy.seccomp_flags,
        limits: limits(&policy.limits),
        apparmor: policy.apparmor,
    }
}

/// Limits as `sys` has them.
pub fn limits(limits: &[protocol::Limit]) -> Vec<(u32, u64, u64)> {
    limits
        .iter()
        .map(|limit| (limit.resource, limit.soft, limit.hard))
        .collect()
}

/// Opens the namespaces `kinds` of the living process `pid`.
pub fn namespaces_of(pid: i32, kinds: &[Namespace]) -> io::Result<oci::Namespaces> {
    kinds
        .iter()
        .map(|&kind| {
            let path = format!("/proc/{pid}/ns/{}", kind.name());
            let opened = std::fs::File::open(&path).map_err(|e| crate::sys::failed(&format!("open {path}"), e))?;
            Ok((kind, opened.into()))
        })
        .collect()
}

/// Makes the pipes of a process its user's, whose number on the node is `uid`: the user of a user namespace could not take
/// what belongs to nobody there.
pub fn give_pipes(stdio: &oci::Stdio, uid: u32) -> io::Result<()> {
    use rustix::fs::{FileType, Uid, fchown, fstat};
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten() {
        if FileType::from_raw_mode(fstat(stream)?.st_mode) == FileType::Fifo {
            fchown(stream, Some(Uid::from_raw(uid)), None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn birth(line: OwnedFd, is_awaited: bool) -> Birth {
        Birth {
            line,
            reply: None,
            maker: 0,
            process: None,
            terminal: None,
            is_awaited,
            refusal: None,
            causes: Vec::new(),
        }
    }

    #[test]
    fn a_process_that_is_awaited_is_made_when_both_words_have_come() {
        for process_first in [true, false] {
            let (ours, theirs) = process::message_pair().unwrap();
            let mut birth = birth(ours, true);
            let say = |process: bool| match process {
                true => line::say_process(&theirs, 1, None),
                false => line::say_resting(&theirs),
            };
            say(process_first);
            assert!(matches!(birth.hear(), Progress::Nothing));
            say(!process_first);
            assert!(matches!(birth.hear(), Progress::Made));
            drop(theirs);
            assert!(matches!(birth.hear(), Progress::Executing));
        }
    }

    #[test]
    fn a_process_that_dies_before_it_rests_is_a_failure() {
        let (ours, theirs) = process::message_pair().unwrap();
        let mut birth = birth(ours, true);
        line::say_process(&theirs, 1, None);
        drop(theirs);
        assert!(matches!(birth.hear(), Progress::Failed(_)));
    }

    #[test]
    fn a_process_that_is_not_awaited_is_made_at_its_own_word() {
        let (ours, theirs) = process::message_pair().unwrap();
        let mut birth = birth(ours, false);
        line::say_process(&theirs, 1, None);
        assert!(matches!(birth.hear(), Progress::Made));
        line::say_resting(&theirs);
        assert!(matches!(birth.hear(), Progress::Nothing));
    }
}
