//! RuntimeService, as a table of contents.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::error::status as failed;
use super::respond::{Loudness::*, respond};
use super::rooms::Rooms;
use super::stream::Answers;
use super::{events, list, stats, status, stream, streaming, to_cri};
use crate::cri::runtime_service_server::RuntimeService;
use crate::cri::*;
use crate::stats::metric_descriptors;

/// RuntimeService.
pub struct RuntimeApi {
    rooms: Rooms,
}

impl RuntimeApi {
    /// Answers from `rooms`.
    pub fn new(rooms: Rooms) -> Self {
        Self { rooms }
    }
}

/// The answer to CheckpointContainer, CheckpointPod and RestorePod, which crisp does not have yet (README, Status): `what`
/// is missing.
fn missing<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(what))
}

fn config_of<T>(config: Option<T>, what: &str) -> Result<T, Status> {
    config.ok_or_else(|| Status::invalid_argument(format!("{what} is missing")))
}

/// A grace or timeout of the CRI, in seconds; a negative one is none.
fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[tonic::async_trait]
impl RuntimeService for RuntimeApi {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        respond("Version", "", Look, async { Ok(status::version()) }).await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let verbose = request.into_inner().verbose;
        respond("Status", "", Look, async {
            Ok(status::status(&self.rooms, verbose).await)
        })
        .await
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        respond("RuntimeConfig", "", Look, async {
            Ok(status::runtime_config(&self.rooms))
        })
        .await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let config = config_of(request.config, "config")?;
            let id = self.rooms.sandboxes.run(config, request.runtime_handler).await;
            let pod_sandbox_id = id.map_err(|e| failed(&*e))?.to_string();
            Ok(RunPodSandboxResponse { pod_sandbox_id })
        };
        respond("RunPodSandbox", "", Change, work).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let work = async {
            self.rooms.sandboxes.stop(&id).await.map_err(|e| failed(&e))?;
            Ok(StopPodSandboxResponse {})
        };
        respond("StopPodSandbox", &id, Change, work).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let work = async {
            let ids = stats::ids_of_pod(&self.rooms, &id);
            self.rooms.sandboxes.remove(&id).await.map_err(|e| failed(&e))?;
            ids.iter().for_each(|id| self.rooms.stats.forget(id));
            Ok(RemovePodSandboxResponse {})
        };
        respond("RemovePodSandbox", &id, Change, work).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let PodSandboxStatusRequest {
            pod_sandbox_id: id,
            verbose,
        } = request.into_inner();
        let work = async { status::pod_sandbox(&self.rooms, &id, verbose) };
        respond("PodSandboxStatus", &id, Look, work).await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let filter = request.into_inner().filter;
        let work = async { Ok(list::sandboxes_answer(&self.rooms, filter.as_ref())) };
        respond("ListPodSandbox", "", Look, work).await
    }

    type StreamPodSandboxesStream = Answers<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let filter = request.into_inner().filter;
        let work = async {
            let items = list::sandboxes(&self.rooms, filter.as_ref());
            Ok(stream::batches(items, |pod_sandboxes| StreamPodSandboxesResponse {
                pod_sandboxes,
            }))
        };
        respond("StreamPodSandboxes", "", Look, work).await
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let CreateContainerRequest {
            pod_sandbox_id,
            config,
            sandbox_config: _,
        } = request.into_inner();
        let work = async {
            let config = config_of(config, "config")?;
            let pod = self.rooms.sandboxes.ready_pod(&pod_sandbox_id).await;
            let pod = pod.map_err(|e| failed(&e))?;
            let id = self.rooms.containers.create(pod, config).await;
            let container_id = id.map_err(|e| failed(&*e))?.to_string();
            Ok(CreateContainerResponse { container_id })
        };
        respond("CreateContainer", &pod_sandbox_id, Change, work).await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let work = async {
            self.rooms.containers.start(&id).await.map_err(|e| failed(&*e))?;
            Ok(StartContainerResponse {})
        };
        respond("StartContainer", &id, Change, work).await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let StopContainerRequest {
            container_id: id,
            timeout,
        } = request.into_inner();
        let work = async {
            let stopped = self.rooms.containers.stop(&id, seconds(timeout)).await;
            stopped.map_err(|e| failed(&e))?;
            Ok(StopContainerResponse {})
        };
        respond("StopContainer", &id, Change, work).await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let work = async {
            let found = self.rooms.containers.find(&id).ok();
            self.rooms.containers.remove(&id).await.map_err(|e| failed(&e))?;
            found.inspect(|container| self.rooms.stats.forget(container.record.id.as_str()));
            Ok(RemoveContainerResponse {})
        };
        respond("RemoveContainer", &id, Change, work).await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let filter = request.into_inner().filter;
        let work = async { Ok(list::containers_answer(&self.rooms, filter.as_ref())) };
        respond("ListContainers", "", Look, work).await
    }

    type StreamContainersStream = Answers<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let filter = request.into_inner().filter;
        let work = async {
            let items = list::containers(&self.rooms, filter.as_ref());
            Ok(stream::batches(items, |containers| StreamContainersResponse {
                containers,
            }))
        };
        respond("StreamContainers", "", Look, work).await
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let ContainerStatusRequest {
            container_id: id,
            verbose,
        } = request.into_inner();
        let work = async { status::container(&self.rooms, &id, verbose).await };
        respond("ContainerStatus", &id, Look, work).await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let UpdateContainerResourcesRequest {
            container_id: id,
            linux,
            ..
        } = request.into_inner();
        let work = async {
            let update = config_of(linux, "linux")?;
            let updated = self.rooms.containers.update_resources(&id, update).await;
            updated.map_err(|e| failed(&e))?;
            Ok(UpdateContainerResourcesResponse {})
        };
        respond("UpdateContainerResources", &id, Change, work).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Result<Response<ReopenContainerLogResponse>, Status> {
        let id = request.into_inner().container_id;
        let work = async {
            self.rooms.containers.reopen_log(&id).await.map_err(|e| failed(&e))?;
            Ok(ReopenContainerLogResponse {})
        };
        respond("ReopenContainerLog", &id, Change, work).await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Result<Response<ExecSyncResponse>, Status> {
        let ExecSyncRequest {
            container_id: id,
            cmd,
            timeout,
        } = request.into_inner();
        let work = async {
            let done = self.rooms.containers.exec_sync(&id, &cmd, seconds(timeout)).await;
            Ok(to_cri::exec_output(done.map_err(|e| failed(&e))?))
        };
        respond("ExecSync", &id, Look, work).await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        respond("Exec", &id, Look, async { streaming::exec(&self.rooms, request) }).await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        respond("Attach", &id, Look, async { streaming::attach(&self.rooms, request) }).await
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        respond("PortForward", &id, Look, async {
            streaming::port_forward(&self.rooms, request)
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Result<Response<ContainerStatsResponse>, Status> {
        let id = request.into_inner().container_id;
        let work = async { stats::container(&self.rooms, &id).await };
        respond("ContainerStats", &id, Look, work).await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Result<Response<ListContainerStatsResponse>, Status> {
        let filter = request.into_inner().filter;
        let work = async {
            Ok(ListContainerStatsResponse {
                stats: stats::containers(&self.rooms, filter.as_ref()).await,
            })
        };
        respond("ListContainerStats", "", Look, work).await
    }

    type StreamContainerStatsStream = Answers<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let filter = request.into_inner().filter;
        let work = async {
            let items = stats::containers(&self.rooms, filter.as_ref()).await;
            Ok(stream::batches(items, |container_stats| StreamContainerStatsResponse {
                container_stats,
            }))
        };
        respond("StreamContainerStats", "", Look, work).await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Result<Response<PodSandboxStatsResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let work = async { stats::pod_sandbox(&self.rooms, &id).await };
        respond("PodSandboxStats", &id, Look, work).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        let filter = request.into_inner().filter;
        let work = async {
            Ok(ListPodSandboxStatsResponse {
                stats: stats::pod_sandboxes(&self.rooms, filter.as_ref()).await,
            })
        };
        respond("ListPodSandboxStats", "", Look, work).await
    }

    type StreamPodSandboxStatsStream = Answers<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let filter = request.into_inner().filter;
        let work = async {
            let items = stats::pod_sandboxes(&self.rooms, filter.as_ref()).await;
            Ok(stream::batches(items, |pod_sandbox_stats| {
                StreamPodSandboxStatsResponse { pod_sandbox_stats }
            }))
        };
        respond("StreamPodSandboxStats", "", Look, work).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        let config = request.into_inner().runtime_config.unwrap_or_default();
        let pod_cidr = config.network_config.unwrap_or_default().pod_cidr;
        let work = async {
            // A node without a pod CIDR says nothing that could be taken over.
            if !pod_cidr.is_empty() {
                let set = self.rooms.sandboxes.set_pod_cidrs(&pod_cidr).await;
                set.map_err(|e| failed(&e))?;
            }
            Ok(UpdateRuntimeConfigResponse {})
        };
        respond("UpdateRuntimeConfig", "", Change, work).await
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Result<Response<CheckpointContainerResponse>, Status> {
        missing("CheckpointContainer: checkpoints are not supported")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<CheckpointPodRequest>,
    ) -> Result<Response<CheckpointPodResponse>, Status> {
        missing("CheckpointPod: checkpoints are not supported")
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Result<Response<RestorePodResponse>, Status> {
        missing("RestorePod: checkpoints are not supported")
    }

    type GetContainerEventsStream = Answers<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let work = async { Ok(events::subscribe(self.rooms.clone())) };
        respond("GetContainerEvents", "", Look, work).await
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Result<Response<ListMetricDescriptorsResponse>, Status> {
        let work = async {
            Ok(ListMetricDescriptorsResponse {
                descriptors: metric_descriptors(),
            })
        };
        respond("ListMetricDescriptors", "", Look, work).await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Result<Response<ListPodSandboxMetricsResponse>, Status> {
        let work = async {
            Ok(ListPodSandboxMetricsResponse {
                pod_metrics: stats::metrics(&self.rooms).await,
            })
        };
        respond("ListPodSandboxMetrics", "", Look, work).await
    }

    type StreamPodSandboxMetricsStream = Answers<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let work = async {
            let items = stats::metrics(&self.rooms).await;
            Ok(stream::batches(items, |pod_sandbox_metrics| {
                StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
            }))
        };
        respond("StreamPodSandboxMetrics", "", Look, work).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        let work = async {
            let updated = self.rooms.sandboxes.update_resources(request).await;
            updated.map_err(|e| failed(&e))?;
            Ok(UpdatePodSandboxResourcesResponse {})
        };
        respond("UpdatePodSandboxResources", &id, Change, work).await
    }
}
