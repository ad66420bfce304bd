//! A process policy in the monitor's words, its seccomp filter compiled.

use std::os::unix::ffi::OsStrExt;

use super::spec::Policy;
use super::{ContainerError, Containers};
use crate::monitor::protocol;

impl Containers {
    /// The policy as the monitor takes it. Filters are compiled once for all containers that share one.
    pub(super) fn monitor_policy(&self, policy: &Policy) -> Result<protocol::Policy, ContainerError> {
        let (seccomp, seccomp_flags) = match &policy.seccomp {
            None => (Vec::new(), 0),
            Some(source) => {
                let filter = self.parts.seccomp.compile(source, policy.capabilities.bounding)?;
                (filter.program.to_vec(), filter.flags)
            }
        };
        let limits = policy.rlimits.iter().map(|limit| protocol::Limit {
            resource: limit.resource,
            soft: limit.soft,
            hard: limit.hard,
        });
        Ok(protocol::Policy {
            args: policy.args.clone(),
            env: policy.env.clone(),
            cwd: policy.cwd.as_os_str().as_bytes().to_vec(),
            uid: policy.user.uid,
            gid: policy.user.gid,
            groups: policy.user.additional_gids.clone(),
            umask: Some(policy.user.umask),
            bounding: policy.capabilities.bounding,
            effective: policy.capabilities.effective,
            permitted: policy.capabilities.permitted,
            inheritable: policy.capabilities.inheritable,
            ambient: policy.capabilities.ambient,
            no_new_privs: policy.no_new_privs,
            seccomp,
            seccomp_flags,
            limits: limits.collect(),
            oom_score_adj: Some(policy.oom_score_adj),
            apparmor: policy.apparmor.clone(),
        })
    }
}
