//! The embedded pod network: a bridge, a veth pair per pod, addresses from files, translation by nf_tables. No plugin
//! binaries and no processes: netlink(7) from one thread.
//!
//! Nothing exists until the first pod comes. A pod's link goes with its namespace, in the kernel's own time: DEL only
//! makes sure that it does, and keeps the address until it has (`departures`). Bridge and table stay for a while after
//! the last pod, and go then, or when the daemon ends.

mod conntrack;
mod departures;
mod leases;
mod link;
mod nft;
mod plan;
mod renumber;
mod route;
mod shape;
mod subnet;
mod sysctl;
mod worker;

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::attachment::Backend;
use super::{Attached, NetworkError, Plan, PodNetwork};
pub use plan::EmbeddedConfig;
pub use subnet::{NoSubnet, Subnet};
use worker::Worker;

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// The embedded network of one instance.
///
/// All work happens on one thread, which belongs to the network namespace of [`Embedded::open`]'s caller. The kernel
/// does this work one piece at a time anyway (its RTNL lock), and a caller that goes away does not stop a piece halfway.
pub struct Embedded {
    jobs: mpsc::Sender<Job>,
}

impl Embedded {
    /// Reads what is recorded in `dir` (made if missing) and starts the thread. Touches nothing of the host's network.
    pub fn open(dir: &Path, config: &EmbeddedConfig, pod_cidrs: Vec<Subnet>) -> Result<Self, NetworkError> {
        let mut worker = Worker::open(dir, config)?;
        worker.set_pod_cidrs(pod_cidrs);
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("network".into())
            .spawn(move || work(&queue, &mut worker))
            .map_err(|source| NetworkError::Kernel {
                op: "start",
                subject: "the network thread".into(),
                source,
            })?;
        Ok(Self { jobs })
    }

    /// Whether the kernel lets us do our work at all.
    pub async fn probe(&self) -> Result<(), NetworkError> {
        self.run(Worker::probe).await
    }

    /// The pod CIDRs that the kubelet gave this node: new pods get addresses of them, unless the settings name a network.
    /// Pods that have an address keep it.
    pub async fn set_pod_cidrs(&self, subnets: Vec<Subnet>) -> Result<(), NetworkError> {
        self.run(move |worker| {
            worker.set_pod_cidrs(subnets);
            Ok(())
        })
        .await
    }

    /// Ends what is still on its way out: links of pods that had their DEL, and bridge and table if no pod is left.
    pub async fn settle(&self) -> Result<(), NetworkError> {
        self.run(Worker::settle).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move |worker: &mut Worker| {
            // The caller may have gone; its plan is recorded, and it, or its successor, undoes by that.
            let _ = reply.send(work(worker));
        });
        self.jobs.send(job).map_err(|_| NetworkError::Stopped)?;
        answer.await.map_err(|_| NetworkError::Stopped)?
    }
}

/// Does the jobs as they come, and what has its own time in between, until nobody can send any more.
fn work(queue: &mpsc::Receiver<Job>, worker: &mut Worker) {
    loop {
        let job = match worker.next_look() {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => queue.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match job {
            Ok(job) => job(worker),
            Err(RecvTimeoutError::Timeout) => worker.look(Instant::now()),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[async_trait]
impl PodNetwork for Embedded {
    async fn add(&self, plan: &Plan) -> Result<Attached, NetworkError> {
        let attachment = plan.attachment.clone();
        self.run(move |worker| worker.add(&attachment)).await
    }

    /// When it returns no host port leads to the pod any more. Its link may be there a little longer.
    async fn del(&self, plan: &Plan, _: Option<&Attached>) -> Result<(), NetworkError> {
        let sandbox_id = plan.attachment.sandbox_id.clone();
        self.run(move |worker| worker.begin_del(&sandbox_id)).await
    }

    async fn gc(&self, valid: &[Plan]) -> Result<(), NetworkError> {
        let ours = valid.iter().filter(|plan| plan.backend == Backend::Embedded);
        let valid = ours.map(|plan| plan.attachment.sandbox_id.clone()).collect();
        self.run(move |worker| worker.gc(&valid)).await
    }
}
