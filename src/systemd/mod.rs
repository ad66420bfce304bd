//! systemd, asked over D-Bus for what is its to give: one transient scope per pod, below the slice that the kubelet
//! names (org.freedesktop.systemd1(5); systemd's "Control Group APIs and Delegation").
//!
//! A scope is delegated: systemd makes it and never looks below it, so the cgroups of the pod's containers are made by
//! plain files, as with the other driver. A scope lives as long as any process in it or below it; when the last one is
//! gone systemd removes it, with all cgroups below.

mod bus;
mod limits;
mod slice;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bus::Bus;
pub use limits::Limits;
pub use slice::{Slice, SliceError};

/// How long systemd may take for one job.
const JOB_DEADLINE: Duration = Duration::from_secs(25);

/// How long connecting may take, and each call be without an answer.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// What went wrong between us and systemd.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("systemd is not this machine's init: there is no {path}")]
    NotRunning { path: &'static str },
    #[error("connect to systemd over D-Bus")]
    Connect(#[source] zbus::Error),
    #[error("{op} unit {unit}")]
    Call {
        op: &'static str,
        unit: String,
        source: zbus::Error,
    },
    #[error("{op} unit {unit}: the job ended with {result:?}")]
    Job {
        op: &'static str,
        unit: String,
        result: String,
    },
    #[error("{op} unit {unit}: the connection to systemd ended")]
    Lost { op: &'static str, unit: String },
    #[error("{op} unit {unit}: systemd did not finish within {seconds} s")]
    Timeout {
        op: &'static str,
        unit: String,
        seconds: u64,
    },
}

/// A scope to be.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// `crisp-<id>.scope`.
    pub unit: &'a str,
    pub slice: &'a Slice,
    pub description: &'a str,
    /// Its first process: a scope cannot be empty.
    pub pid: u32,
}

/// systemd's manager. Connects when it is first needed, and again after the connection was lost.
#[derive(Default)]
pub struct Systemd {
    bus: tokio::sync::Mutex<Option<Arc<Bus>>>,
}

impl Systemd {
    /// Refuses a machine on which something else is init. Asks nobody.
    pub fn find() -> Result<Self, SystemdError> {
        // What sd_booted(3) looks at.
        const BOOTED: &str = "/run/systemd/system";
        if Path::new(BOOTED).is_dir() {
            Ok(Self::default())
        } else {
            Err(SystemdError::NotRunning { path: BOOTED })
        }
    }

    /// Makes `scope`, with its first process in it, and returns when it is there.
    pub async fn start_scope(&self, scope: Scope<'_>) -> Result<(), SystemdError> {
        const OP: &str = "start";
        let bus = self.connected().await?;
        let job = bus.job_of(scope.unit);
        let call = bus.start_transient_unit(scope);
        within(CALL_DEADLINE, OP, scope.unit, call).await?.map_err(|source| {
            let unit = scope.unit.to_owned();
            SystemdError::Call { op: OP, unit, source }
        })?;
        finished(OP, scope.unit, job).await
    }

    /// Sets limits of `unit` as a whole, until the node goes down.
    pub async fn limit(&self, unit: &str, limits: &Limits) -> Result<(), SystemdError> {
        const OP: &str = "limit";
        let bus = self.connected().await?;
        let call = bus.set_unit_properties(unit, limits.properties());
        within(CALL_DEADLINE, OP, unit, call).await?.map_err(|source| {
            let unit = unit.to_owned();
            SystemdError::Call { op: OP, unit, source }
        })
    }

    /// Stops `unit`: systemd ends what is left in it. Fine if there is no such unit.
    pub async fn stop(&self, unit: &str) -> Result<(), SystemdError> {
        const OP: &str = "stop";
        let bus = self.connected().await?;
        let job = bus.job_of(unit);
        match within(CALL_DEADLINE, OP, unit, bus.stop_unit(unit)).await? {
            Err(error) if bus::is_no_such_unit(&error) => Ok(()),
            Err(source) => Err(SystemdError::Call {
                op: OP,
                unit: unit.to_owned(),
                source,
            }),
            Ok(()) => finished(OP, unit, job).await,
        }
    }

    async fn connected(&self) -> Result<Arc<Bus>, SystemdError> {
        let mut held = self.bus.lock().await;
        if let Some(bus) = held.as_ref().filter(|bus| bus.is_alive()) {
            return Ok(bus.clone());
        }
        let bus = within(CALL_DEADLINE, "connect for", "of systemd", Bus::connect()).await?;
        let bus = Arc::new(bus.map_err(SystemdError::Connect)?);
        *held = Some(bus.clone());
        Ok(bus)
    }
}

async fn within<T>(
    deadline: Duration,
    op: &'static str,
    unit: &str,
    work: impl Future<Output = T>,
) -> Result<T, SystemdError> {
    tokio::time::timeout(deadline, work)
        .await
        .map_err(|_| SystemdError::Timeout {
            op,
            unit: unit.to_owned(),
            seconds: deadline.as_secs(),
        })
}

async fn finished(op: &'static str, unit: &str, job: bus::Job) -> Result<(), SystemdError> {
    let unit_name = || unit.to_owned();
    match within(JOB_DEADLINE, op, unit, job.result()).await? {
        Some(result) if result == "done" => Ok(()),
        Some(result) => Err(SystemdError::Job {
            op,
            unit: unit_name(),
            result,
        }),
        None => Err(SystemdError::Lost { op, unit: unit_name() }),
    }
}
