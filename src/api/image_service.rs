//! ImageService, as a table of contents.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status};

use super::error::status as failed;
use super::respond::{Loudness::*, respond};
use super::rooms::Rooms;
use super::stream::Answers;
use super::{stream, to_cri};
use crate::container::now_ns;
use crate::cri::image_service_server::ImageService;
use crate::cri::*;
use crate::image::PullRequest;
use crate::image::registry::Auth;

/// ImageService.
pub struct ImageApi {
    rooms: Rooms,
}

impl ImageApi {
    /// Answers from `rooms`.
    pub fn new(rooms: Rooms) -> Self {
        Self { rooms }
    }

    fn listed(&self, filter: Option<ImageFilter>) -> Vec<Image> {
        match filter
            .and_then(|filter| filter.image)
            .filter(|spec| !spec.image.is_empty())
        {
            Some(spec) => self
                .rooms
                .images
                .find(&spec.image)
                .iter()
                .map(|image| to_cri::image(image))
                .collect(),
            None => self
                .rooms
                .images
                .list()
                .iter()
                .map(|image| to_cri::image(image))
                .collect(),
        }
    }
}

fn reference(image: Option<ImageSpec>) -> Result<String, Status> {
    match image {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image),
        _ => Err(Status::invalid_argument("image is missing")),
    }
}

/// Secrets leave the request here; what holds them from here on does not print them.
fn auth(auth: AuthConfig) -> Auth {
    Auth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let filter = request.into_inner().filter;
        respond("ListImages", "", Look, async {
            Ok(ListImagesResponse {
                images: self.listed(filter),
            })
        })
        .await
    }

    type StreamImagesStream = Answers<StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let filter = request.into_inner().filter;
        let work = async {
            let items = self.listed(filter);
            Ok(stream::batches(items, |images| StreamImagesResponse { images }))
        };
        respond("StreamImages", "", Look, work).await
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let ImageStatusRequest { image, verbose } = request.into_inner();
        let work = async {
            let found = self.rooms.images.find(&reference(image)?);
            let mut info = BTreeMap::new();
            if let Some(image) = found.as_ref().filter(|_| verbose) {
                let told = serde_json::json!({
                    "imageSpec": image.config,
                    "manifestDigest": image.manifest_digest,
                    "layers": image.layers,
                });
                info.insert("info".to_owned(), told.to_string());
            }
            // An image that is not there is no error (CRI).
            Ok(ImageStatusResponse {
                image: found.map(|image| to_cri::image(&image)),
                info,
            })
        };
        respond("ImageStatus", "", Look, work).await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let PullImageRequest {
            image,
            auth: credentials,
            ..
        } = request.into_inner();
        // All handlers have their images in one store; one that there is not has none.
        let handler = image
            .as_ref()
            .map(|spec| spec.runtime_handler.clone())
            .unwrap_or_default();
        let reference = reference(image)?;
        let work = async {
            self.rooms.handlers.find(&handler).map_err(|e| failed(&e))?;
            let request = PullRequest {
                reference: reference.clone(),
                auth: credentials.map(auth),
            };
            let image_id = self.rooms.images.pull(request).await.map_err(|e| failed(&e))?;
            Ok(PullImageResponse {
                image_ref: image_id.to_string(),
            })
        };
        respond("PullImage", &reference, Change, work).await
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let reference = reference(request.into_inner().image)?;
        let work = async {
            self.rooms.images.remove(&reference).await.map_err(|e| failed(&e))?;
            Ok(RemoveImageResponse {})
        };
        respond("RemoveImage", &reference, Change, work).await
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Result<Response<ImageFsInfoResponse>, Status> {
        let work = async {
            let usage = self.rooms.images.fs_usage().await;
            let filesystem = FilesystemUsage {
                timestamp: now_ns(),
                fs_id: Some(FilesystemIdentifier {
                    mountpoint: usage.mountpoint.display().to_string(),
                }),
                used_bytes: Some(UInt64Value {
                    value: usage.used_bytes,
                }),
                inodes_used: Some(UInt64Value { value: usage.inodes }),
            };
            Ok(ImageFsInfoResponse {
                image_filesystems: vec![filesystem.clone()],
                container_filesystems: vec![filesystem],
            })
        };
        respond("ImageFsInfo", "", Look, work).await
    }
}
