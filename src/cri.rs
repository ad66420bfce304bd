//! The CRI's messages and services, generated from `proto/runtime/v1/api.proto`.

#![allow(missing_docs, clippy::all, reason = "generated")]

mod listed;

pub use listed::{ListContainersResponse, ListPodSandboxResponse};

tonic::include_proto!("runtime.v1");
