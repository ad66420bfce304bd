//! One connection to the system bus: calls to systemd's manager, and the ends of the jobs that they start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use tokio::sync::oneshot;
use zbus::Variant;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream};

use super::{CALL_DEADLINE, Scope};

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// No limit of tasks but the pod's own: without it the node's DefaultTasksMax= would be one.
const INFINITY: u64 = u64::MAX;

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<String>>>>;

pub struct Bus {
    connection: Connection,
    /// Who waits for the job of which unit.
    waiting: Waiting,
    /// Reads the signals as long as the connection lives.
    listener: tokio::task::JoinHandle<()>,
}

/// A job to be: what becomes of the next one of its unit.
pub struct Job {
    unit: String,
    waiting: Waiting,
    result: Option<oneshot::Receiver<String>>,
}

impl Bus {
    pub async fn connect() -> zbus::Result<Self> {
        let builder = zbus::connection::Builder::system();
        let connection = builder.method_timeout(CALL_DEADLINE).build().await?;
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SERVICE)
            .path(PATH)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()?;
        // Ours are never many at once; whoever does not read loses the oldest, and says so at the deadline.
        let signals = MessageStream::for_match_rule(rule, &connection, std::num::NonZeroUsize::new(4096)).await?;
        // Without it systemd tells nobody of jobs.
        connection
            .call_method(Some(SERVICE), PATH, Some(MANAGER), "Subscribe", &())
            .await?;
        let waiting = Waiting::default();
        let listener = tokio::spawn(listen(signals, waiting.clone()));
        Ok(Self {
            connection,
            waiting,
            listener,
        })
    }

    pub fn is_alive(&self) -> bool {
        !self.listener.is_finished()
    }

    /// To be called before what starts the job: its end may come before the call's answer.
    pub fn job_of(&self, unit: &str) -> Job {
        let (tell, result) = oneshot::channel();
        self.waiting
            .lock()
            .expect("no panic holds it")
            .insert(unit.to_owned(), tell);
        Job {
            unit: unit.to_owned(),
            waiting: self.waiting.clone(),
            result: Some(result),
        }
    }

    pub async fn start_transient_unit(&self, scope: Scope<'_>) -> zbus::Result<()> {
        let properties = [
            ("Description", Variant::from(scope.description)),
            ("Slice", Variant::from(scope.slice.name())),
            ("PIDs", Variant::from(vec![scope.pid])),
            ("Delegate", Variant::from(true)),
            ("CPUAccounting", Variant::from(true)),
            ("MemoryAccounting", Variant::from(true)),
            ("IOAccounting", Variant::from(true)),
            ("TasksAccounting", Variant::from(true)),
            ("TasksMax", Variant::from(INFINITY)),
            // The kubelet ends pods before the node goes down, in an order that is its own.
            ("DefaultDependencies", Variant::from(false)),
            // A scope in which something was killed for memory has failed, and must go all the same.
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        let properties: Vec<(&str, Variant)> = properties.into();
        let auxiliary: Vec<(&str, Vec<(&str, Variant)>)> = Vec::new();
        let body = (scope.unit, "fail", properties, auxiliary);
        self.connection
            .call_method(Some(SERVICE), PATH, Some(MANAGER), "StartTransientUnit", &body)
            .await?;
        Ok(())
    }

    pub async fn set_unit_properties(&self, unit: &str, properties: Vec<(&str, Variant<'_>)>) -> zbus::Result<()> {
        let body = (unit, true, properties);
        self.connection
            .call_method(Some(SERVICE), PATH, Some(MANAGER), "SetUnitProperties", &body)
            .await?;
        Ok(())
    }

    pub async fn stop_unit(&self, unit: &str) -> zbus::Result<()> {
        self.connection
            .call_method(Some(SERVICE), PATH, Some(MANAGER), "StopUnit", &(unit, "replace"))
            .await?;
        Ok(())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Job {
    /// How it ended; none if the connection ended first.
    pub async fn result(mut self) -> Option<String> {
        self.result.take()?.await.ok()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.waiting.lock().expect("no panic holds it").remove(&self.unit);
    }
}

/// Tells whoever waits, until the connection ends; then nobody waits any more.
async fn listen(mut signals: MessageStream, waiting: Waiting) {
    while let Some(Ok(signal)) = signals.next().await {
        let body = signal.body();
        let Ok((_, _, unit, result)) = body.deserialize::<(u32, zbus::ObjectPath<'_>, String, String)>() else {
            continue;
        };
        let waiter = waiting.lock().expect("no panic holds it").remove(&unit);
        if let Some(waiter) = waiter {
            // Who has given up does not hear it.
            let _ = waiter.send(result);
        }
    }
    waiting.lock().expect("no panic holds it").clear();
}

pub fn is_no_such_unit(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit")
}
