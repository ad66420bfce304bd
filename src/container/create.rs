//! CreateContainer: everything that can fail without running the program happens here.
//!
//! Directories come first: by their name alone the next start sweeps them, and the cgroup, which is made while root file system
//! and description are. Then the record is written; then come limits, mounts and process, each with its undo.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use prost::Message;
use tokio::sync::watch;

use super::cdi;
use super::layers::Users;
use super::mounts::Origins;
use super::spec::{self, Built, CgroupMount, Input, JoinPaths};
use super::{Container, ContainerError, Containers, Inherited, Making, Pod, State, blocking, log, name_of, now_ns};
use crate::cri;
use crate::events::Kind;
use crate::fault;
use crate::image::{Image, Lease};
use crate::model::{ContainerId, chain};
use crate::monitor::client::{ContainerFds, ContainerSpec, LateMount, NamespaceKind};
use crate::operation::OperationError;
use crate::store::{ContainerPhase, ContainerRecord, PodRecord, Process, UPPER};
use crate::sys::cgroup::{Cgroup, JoinFds, Resources};
use crate::sys::pidfd;
use crate::undo::Undo;

/// A container that is described, its root file system at hand.
struct Described {
    built: Built,
    rootfs: OwnedFd,
    users: Option<Users>,
}

/// How to join a container's cgroup, and where the kernel counts its OOM kills.
struct Joined {
    fds: JoinFds,
    oom_events: Option<OwnedFd>,
}

/// A container's cgroup is in its pod's, and has its name.
pub(super) fn cgroup_of(pod: &PodRecord, id: &ContainerId) -> String {
    format!("{}/{id}", pod.cgroup_parent)
}

/// The users of a pod with a user namespace: that of pause, by which the pod's namespaces live.
fn users_of(pod: &Pod) -> Result<Option<Users>, ContainerError> {
    let Some(ids) = spec::namespaces::user_ids(&pod.record.config) else {
        return Ok(None);
    };
    let path = format!("/proc/{}/ns/user", pod.pause.pid);
    let opened = fs::File::open(&path).and_then(|namespace| {
        // Opened first: if it is still pause then, it was.
        match pidfd::start_time(pod.pause.pid)? == pod.pause.start_time {
            true => Ok(namespace.into()),
            false => Err(std::io::ErrorKind::NotFound.into()),
        }
    });
    let namespace = opened.map_err(ContainerError::path("open", path))?;
    Ok(Some(Users { namespace, ids }))
}

impl Containers {
    /// Creates a container in `pod` and returns its id. The same request again, while the first is under way or has
    /// not been answered, gets the first one's result; a failure that nobody received is tried again.
    pub async fn create(
        self: &Arc<Self>,
        (pod, making): (Pod, Making),
        config: cri::ContainerConfig,
    ) -> Result<ContainerId, Arc<ContainerError>> {
        let sandbox_id = pod.record.id.clone();
        let metadata = config.metadata.clone().unwrap_or_default();
        if metadata.name.is_empty() {
            let what = "container config: metadata needs a name".to_owned();
            return Err(Arc::new(ContainerError::Invalid { what }));
        }
        let name = name_of(&sandbox_id, &metadata);
        let request = config.encode_to_vec();
        let (this, key) = (self.clone(), name.clone());
        let work = || async move {
            let created = this.create_named(key, pod, config).await.map_err(Arc::new);
            drop(making);
            created
        };
        match self.creating.run(&name, request, work).await {
            Ok(result) => result,
            Err(OperationError::Conflict) => Err(Arc::new(ContainerError::NameBusy {
                name: metadata.name,
                sandbox_id,
            })),
            Err(OperationError::Lost) => Err(Arc::new(ContainerError::Lost)),
        }
    }

    async fn create_named(
        self: Arc<Self>,
        name: String,
        pod: Pod,
        config: cri::ContainerConfig,
    ) -> Result<ContainerId, ContainerError> {
        let id = ContainerId::new(crate::model::random_id());
        if let Some(made) = self.inherit(&name, &config).await? {
            return Ok(made);
        }
        {
            let mut names = self.names.lock().expect("no panic holds it");
            if let Some(holder) = names.get(&name) {
                let metadata = config.metadata.clone().unwrap_or_default();
                return Err(ContainerError::NameTaken {
                    name: metadata.name,
                    attempt: metadata.attempt,
                    sandbox_id: pod.record.id.clone(),
                    container_id: holder.clone(),
                });
            }
            names.insert(name.clone(), id.clone());
        }
        let (mut undo, mut recorded) = (Undo::default(), None);
        let this = self.clone();
        let access = pod.access.clone();
        let sandbox_id = pod.record.id.clone();
        undo.push("container name", move || async move {
            this.names.lock().expect("no panic holds it").remove(&name);
            Ok(())
        });
        match self.make(&id, pod, config, &mut undo, &mut recorded).await {
            Ok(container) => {
                undo.commit();
                fault::point("create: committed").await?;
                self.tell(Kind::Created, &container.record);
                Ok(id)
            }
            Err(error) => {
                let left = undo.unwind().await;
                let (store, at) = (self.parts.store.clone(), id);
                // By the record alone can what is left be undone: it goes last, or it stays.
                let undone = left.is_empty() && {
                    let removed = blocking(move || store.remove_container(&sandbox_id, &at)).await;
                    removed
                        .inspect_err(|error| tracing::warn!(error = %chain(error), "container directories remain"))
                        .is_ok()
                };
                if let Some(record) = recorded.filter(|_| !undone) {
                    self.undo_later(record, access);
                }
                Err(error)
            }
        }
    }

    /// Makes everything that a container is, up to the process that waits for its start; `undo` can unmake it, but for
    /// the directories. By `recorded` it can be removed if that fails.
    async fn make(
        self: &Arc<Self>,
        id: &ContainerId,
        pod: Pod,
        config: cri::ContainerConfig,
        undo: &mut Undo,
        recorded: &mut Option<ContainerRecord>,
    ) -> Result<Arc<Container>, ContainerError> {
        let sandbox_id = pod.record.id.clone();
        let log_path = log::path(&pod.record.config, &config)?;
        let runtime = self.runtime_for(&pod, &config)?;
        let lease = self.image_of(&config)?;
        let image = lease.image().clone();
        let volume_images = self.volume_images(&config)?;
        let mut record = ContainerRecord {
            id: id.clone(),
            sandbox_id: sandbox_id.clone(),
            image_id: image.id.clone(),
            volume_images: volume_images
                .iter()
                .map(|(reference, lease)| (reference.clone(), lease.image().id.clone()))
                .collect(),
            created_at_ns: now_ns(),
            cgroup: cgroup_of(&pod.record, id),
            log_path,
            stop_signal: libc::SIGTERM,
            user: cri::ContainerUser::default(),
            runtime,
            policy: None,
            config,
        };
        *recorded = Some(record.clone());
        let dir = {
            let (store, sandbox_id, id) = (self.parts.store.clone(), sandbox_id.clone(), id.clone());
            blocking(move || store.make_container_dirs(&sandbox_id, &id)).await?
        };
        undo.push("cgroup of the container", {
            let (this, path) = (self.clone(), record.cgroup.clone());
            move || async move {
                let unmade = async {
                    fault::point("create: cgroup unmade").await?;
                    this.remove_cgroup(&path).await
                };
                unmade.await.map_err(|error| chain(&error))
            }
        });
        let (described, joined) = tokio::join!(
            self.describe(&dir, &pod, &record, &image),
            self.make_cgroup(record.cgroup.clone()),
        );
        let (Described { built, rootfs, users }, cgroup) = (described?, joined?);
        fault::point("create: described").await?;
        self.check_features(&pod, &built)?;
        for capability in &built.capabilities_cut {
            tracing::warn!(container_id = %id, capability, "asked for, but the daemon does not have it");
        }
        record.stop_signal = built.stop_signal;
        record.user = container_user(&built);
        *recorded = Some(record.clone());
        self.write(&record, &built).await?;
        fault::point("create: recorded").await?;

        let run_dir = self.parts.store.pod_run_dir(&sandbox_id);
        let volumes: Vec<PathBuf> = built.volumes.iter().map(|volume| volume.destination.clone()).collect();
        let origins = Origins {
            volumes: &volumes,
            images: &volume_images,
            run_dir: &run_dir,
            dir: &dir,
            rootfs: &rootfs,
            users,
        };
        let log = async {
            match record.log_path.clone() {
                None => Ok(None),
                Some(path) => {
                    let paths = [path.clone()];
                    let opened = self.hung.ask(&paths, move |asking| {
                        asking.at(&path)?;
                        log::open(&path)
                    });
                    opened.await.map(Some)
                }
            }
        };
        // On cgroup v1 the container sees its cgroup by a bind: it is there by now.
        let (limited, mounts, log) = tokio::join!(
            self.limit(&record, built.resources.clone()),
            self.open_binds(&built.binds, origins),
            log,
        );
        let (mounts, log) = limited.and(mounts).and_then(|mounts| Ok((mounts, log?)))?;
        fault::point("create: cgroup limited").await?;
        let target = self.target_namespace(&pod, &record.config)?;
        let mut request = ContainerSpec {
            container_id: id.to_string(),
            tty: record.config.tty,
            stdin: record.config.stdin,
            log_line_limit: self.parts.log_line_max_bytes,
            ..ContainerSpec::default()
        };
        let mut fds = ContainerFds {
            rootfs,
            mounts,
            cgroup_procs: Vec::new(),
            cgroup_dir: cgroup.fds.directory,
            log,
            oom_events: cgroup.oom_events,
            namespaces: target
                .into_iter()
                .map(|namespace| (NamespaceKind::Pid, namespace))
                .collect(),
        };
        let created = match record.runtime.clone() {
            None => {
                request.spec = serde_json::to_vec(&built.spec).map_err(|error| ContainerError::Invalid {
                    what: format!("OCI spec: {error}"),
                })?;
                request.policy = Some(self.monitor_policy(&built.policy)?);
                request.late_mounts = late_mounts(&built.binds);
                fds.cgroup_procs = cgroup.fds.tasks;
                pod.monitor.create_container(request, fds).await
            }
            Some(runtime) => {
                self.create_external(&runtime, (&record, &built), &pod, (request, fds), undo)
                    .await?
            }
        };
        let process = created.map_err(ContainerError::monitor("create the process", id))?;
        undo.push("process of the container", {
            let (monitor, id) = (pod.monitor.clone(), id.clone());
            move || async move {
                monitor
                    .signal(&id, libc::SIGKILL)
                    .await
                    .map_err(|error| chain(&error))?;
                monitor.forget(&id).await.map_err(|error| chain(&error))
            }
        });
        if record.runtime.is_some() {
            // The cgroup is the runtime's, too, while it creates: crun 1.8 lifts the limit of memory and swap. Device rules are the
            // runtime's own.
            let resources = Resources {
                devices: Vec::new(),
                ..built.resources.clone()
            };
            self.limit(&record, resources).await?;
        }
        fault::point("create: process made").await?;
        let process = Process {
            pid: process.pid,
            start_time: process.start_time,
        };
        let resources = record
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.clone())
            .unwrap_or_default();
        let container = Arc::new(Container {
            record,
            state: watch::Sender::new(State::Created { process }),
            resources: Mutex::new(resources),
            updating: tokio::sync::Mutex::default(),
            policy: Some(built.policy),
            monitor: pod.access,
            starting: tokio::sync::Mutex::default(),
            end_told: false.into(),
            leases: volume_images.into_values().chain([lease]).collect(),
            inherited: Inherited::default(),
            listing: OnceLock::default(),
        });
        self.index
            .write()
            .expect("no panic holds it")
            .insert(id.clone(), container.clone());
        self.record_status(&container, ContainerPhase::Created).await;
        Ok(container)
    }

    fn image_of(&self, config: &cri::ContainerConfig) -> Result<Lease, ContainerError> {
        match config.image.as_ref().map(|image| image.image.as_str()) {
            None | Some("") => Err(ContainerError::Invalid {
                what: "container config: image is missing".to_owned(),
            }),
            Some(reference) => self.hold(reference),
        }
    }

    /// Keeps the layers of an image for a container.
    pub(super) fn hold(&self, reference: &str) -> Result<Lease, ContainerError> {
        let image = self.parts.images.find(reference);
        let image = image.ok_or_else(|| ContainerError::ImageNotFound {
            reference: reference.to_owned(),
        })?;
        let lease = self.parts.images.hold(&image.id);
        lease.ok_or_else(|| ContainerError::ImageGone {
            image_id: image.id.clone(),
        })
    }

    /// Root file system and description: what blocks is on a thread that may.
    async fn describe(
        self: &Arc<Self>,
        dir: &Path,
        pod: &Pod,
        record: &ContainerRecord,
        image: &Arc<Image>,
    ) -> Result<Described, ContainerError> {
        let this = self.clone();
        let (dir, pod, config, image) = (dir.to_owned(), pod.clone(), record.config.clone(), image.clone());
        let (cgroup, external) = (record.cgroup.clone(), record.runtime.is_some());
        let paths: Vec<PathBuf> = config
            .devices
            .iter()
            .map(|device| device.host_path.clone().into())
            .collect();
        let first = paths.first().cloned();
        let described = self.hung.ask(&paths, move |asking| {
            let users = users_of(&pod)?;
            let pod = pod.record;
            asking.at(&dir)?;
            let rootfs = this.mount_rootfs(&dir, &image, users.as_ref())?;
            let cdi::Edited { config, devices } = cdi::apply(&config, &this.parts.cdi_dirs)?;
            if let Some(first) = &first {
                asking.at(first)?;
            }
            let devices = [spec::devices::lookup(&config)?, devices].concat();
            let hostname = hostname(&pod.config);
            let cgroup_mounts = this.cgroup_mounts(&cgroup);
            let input = Input {
                sandbox: &pod.config,
                container: &config,
                image: &image.config,
                hostname: &hostname,
                namespaces: &JoinPaths::descriptors(),
                cgroup_mounts: &cgroup_mounts,
                external,
                devices: &devices,
                host: &this.parts.host,
            };
            let built = spec::build(&input, rootfs.as_fd())?;
            Ok(Described { built, rootfs, users })
        });
        described.await
    }

    /// The image's layers below a writable one, attached nowhere. The writable layer's root shows as `/`: it looks like
    /// the image's.
    fn mount_rootfs(&self, dir: &Path, image: &Image, users: Option<&Users>) -> Result<OwnedFd, ContainerError> {
        let upper = dir.join(UPPER);
        let like_the_image = || {
            chown(&upper, Some(image.root.uid), Some(image.root.gid))?;
            fs::set_permissions(&upper, fs::Permissions::from_mode(image.root.mode & 0o7777))
        };
        like_the_image().map_err(ContainerError::path("set the mode of", &upper))?;
        let lower = self.parts.images.layers(image);
        self.layers
            .root(&lower, dir, users)
            .map_err(ContainerError::path("mount the root file system of", dir))
    }

    /// The container's cgroup in every controller of cgroup v1, which it sees below /sys/fs/cgroup.
    pub(super) fn cgroup_mounts(&self, cgroup: &str) -> Vec<CgroupMount> {
        let roots = self.parts.cgroups.v1_roots();
        roots
            .filter_map(|root| {
                let name = root.file_name()?.to_str()?.to_owned();
                Some(CgroupMount {
                    name,
                    path: root.join(cgroup.trim_start_matches('/')),
                })
            })
            .collect()
    }

    /// Makes the cgroup, without limits.
    async fn make_cgroup(&self, path: String) -> Result<Joined, ContainerError> {
        let cgroups = self.parts.cgroups.clone();
        blocking(move || {
            let failed = |op| {
                let path = path.clone();
                move |source| ContainerError::Cgroup { op, path, source }
            };
            let cgroup = Cgroup::create(&cgroups, &path).map_err(failed("create"))?;
            fault::blocking_point("create: cgroup made")?;
            Ok(Joined {
                fds: cgroup.join_fds().map_err(failed("open"))?,
                oom_events: cgroup.oom_events_fd().ok(),
            })
        })
        .await
    }

    /// Sets the limits of the cgroup.
    async fn limit(&self, record: &ContainerRecord, resources: Resources) -> Result<(), ContainerError> {
        let (cgroups, path) = (self.parts.cgroups.clone(), record.cgroup.clone());
        let at = path.clone();
        let applied = blocking(move || Cgroup::open(&cgroups, &at)?.apply(&resources)).await;
        let warnings = applied.map_err(|source| ContainerError::Cgroup {
            op: "set limits",
            path,
            source,
        })?;
        for warning in warnings {
            tracing::warn!(container_id = %record.id, %warning, "limit not enforced");
        }
        Ok(())
    }

    /// Writes the record, with what exec has to know of `built`.
    async fn write(&self, record: &ContainerRecord, built: &Built) -> Result<(), ContainerError> {
        let policy = serde_json::value::to_raw_value(&built.policy).map_err(|error| ContainerError::Invalid {
            what: format!("process policy: {error}"),
        })?;
        let written = ContainerRecord {
            policy: Some(policy),
            ..record.clone()
        };
        let store = self.parts.store.clone();
        Ok(blocking(move || store.write_container(&written)).await?)
    }

    /// The pid namespace of the container that this one is to look into (`pid: TARGET`).
    fn target_namespace(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<Option<OwnedFd>, ContainerError> {
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = security.and_then(|security| security.namespace_options.as_ref());
        let Some(options) = options.filter(|options| options.pid() == cri::NamespaceMode::Target) else {
            return Ok(None);
        };
        let target = self.find(&options.target_id)?;
        let process = target
            .state()
            .process()
            .filter(|_| target.record.sandbox_id == pod.record.id);
        let Some(process) = process else {
            let what = format!("target container {} does not run in this pod", target.record.id);
            return Err(ContainerError::Invalid { what });
        };
        let path = format!("/proc/{}/ns/pid", process.pid);
        let namespace = fs::File::open(&path).map_err(ContainerError::path("open", path))?;
        Ok(Some(namespace.into()))
    }
}

/// The pod's host name: its own, or the node's with the node's network and where the request names none.
pub fn hostname(pod: &cri::PodSandboxConfig) -> String {
    if pod.hostname.is_empty() || spec::namespaces::host_network(pod) {
        return rustix::system::uname().nodename().to_string_lossy().into_owned();
    }
    pod.hostname.clone()
}

/// The binds that the description for libcontainer leaves out.
fn late_mounts(binds: &[spec::Bind]) -> Vec<LateMount> {
    use std::os::unix::ffi::OsStrExt;
    let late = binds.iter().enumerate().filter(|(_, bind)| bind.late);
    late.map(|(index, bind)| LateMount {
        index: index as u32,
        destination: bind.destination.as_os_str().as_bytes().to_vec(),
    })
    .collect()
}

/// `ContainerStatus.user`.
fn container_user(built: &Built) -> cri::ContainerUser {
    let user = &built.policy.user;
    cri::ContainerUser {
        linux: Some(cri::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.additional_gids.iter().map(|gid| i64::from(*gid)).collect(),
        }),
    }
}
