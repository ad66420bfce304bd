//! The table: every error of the rooms below, and the gRPC code that it becomes. No `_`: a new error asks for its code.

use tonic::{Code, Status};

use crate::container::spec::SpecError;
use crate::container::{CdiError, ContainerError};
use crate::handler::UnknownHandler;
use crate::image::{ErrorKind, ImageError};
use crate::model::chain;
use crate::monitor::client::MonitorError;
use crate::monitor::protocol::FailureKind;
use crate::network::NetworkError;
use crate::sandbox::SandboxError;
use crate::stats::StatsError;
use crate::streaming::StreamingError;

/// The code of an error, and the error as the edge tells it: once, with all its causes.
pub fn status(error: &(impl ToCode + std::error::Error)) -> Status {
    Status::new(error.code(), chain(error))
}

/// The gRPC code of an error.
pub trait ToCode {
    fn code(&self) -> Code;
}

impl ToCode for SandboxError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Ambiguous { .. } | Self::Invalid { .. } | Self::UnknownHandler(_) => Code::InvalidArgument,
            Self::NotReady { .. } | Self::NoUserNamespaces { .. } => Code::FailedPrecondition,
            Self::MonitorSilent { .. } | Self::StillMaking { .. } => Code::DeadlineExceeded,
            Self::NameTaken { .. } | Self::NameBusy { .. } => Code::AlreadyExists,
            Self::Lost
            | Self::UserNamespace { .. }
            | Self::Network { .. }
            | Self::Path { .. }
            | Self::Cgroup { .. }
            | Self::Systemd { .. }
            | Self::Store(_)
            | Self::Fault(_) => Code::Internal,
            Self::Connect { .. } => Code::Unavailable,
            Self::PodCidrs {
                source: NetworkError::PodCidr { .. },
            } => Code::InvalidArgument,
            Self::PodCidrs { .. } => Code::Internal,
            Self::Monitor { source, .. } => source.code(),
            Self::Containers { source, .. } => source.code(),
            Self::Spec(source) => source.code(),
        }
    }
}

impl ToCode for ContainerError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::ImageNotFound { .. } | Self::ImageGone { .. } => Code::NotFound,
            Self::Ambiguous { .. } | Self::Invalid { .. } | Self::UnknownHandler(_) => Code::InvalidArgument,
            Self::NameTaken { .. } | Self::NameBusy { .. } => Code::AlreadyExists,
            Self::WrongState { .. } | Self::MonitorGone { .. } | Self::NoPolicy { .. } | Self::NoLog { .. } => {
                Code::FailedPrecondition
            }
            Self::ExecTimeout { .. } | Self::Hung { .. } | Self::StillHung { .. } | Self::MonitorSilent { .. } => {
                Code::DeadlineExceeded
            }
            Self::Lost
            | Self::StartFailed { .. }
            | Self::Unkillable { .. }
            | Self::Path { .. }
            | Self::Cgroup { .. }
            | Self::Store(_)
            | Self::Fault(_) => Code::Internal,
            Self::Monitor { source, .. } => source.code(),
            Self::Spec(source) => source.code(),
            Self::Seccomp(_) => Code::InvalidArgument,
            Self::Cdi(source) => source.code(),
        }
    }
}

impl ToCode for CdiError {
    fn code(&self) -> Code {
        match self {
            Self::Name { .. } => Code::InvalidArgument,
            Self::Unknown { .. } => Code::NotFound,
            Self::Twice { .. } | Self::Edit { .. } | Self::Node { .. } => Code::FailedPrecondition,
        }
    }
}

impl ToCode for UnknownHandler {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl ToCode for SpecError {
    fn code(&self) -> Code {
        match self {
            Self::NothingToRun
            | Self::Invalid { .. }
            | Self::TooLarge { .. }
            | Self::GroupWithoutUser { .. }
            | Self::UnknownUser { .. }
            | Self::UnknownGroup { .. }
            | Self::UnknownCapability { .. }
            | Self::UnknownSignal { .. }
            | Self::PrivilegedInSandbox
            | Self::NodeNamespaceInSandbox { .. }
            | Self::Unsupported { .. }
            | Self::Sysctl { .. } => Code::InvalidArgument,
            Self::MissingNamespace { .. } | Self::AppArmorUnavailable { .. } | Self::AppArmorNotLoaded { .. } => {
                Code::FailedPrecondition
            }
            Self::Read { .. } | Self::Device { .. } => Code::Internal,
        }
    }
}

impl ToCode for ImageError {
    fn code(&self) -> Code {
        match self.kind() {
            ErrorKind::Invalid => Code::InvalidArgument,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::Denied => Code::PermissionDenied,
            ErrorKind::Unavailable => Code::Unavailable,
            ErrorKind::Timeout => Code::DeadlineExceeded,
            ErrorKind::Exhausted => Code::ResourceExhausted,
            ErrorKind::Corrupt => Code::DataLoss,
            ErrorKind::Internal => Code::Internal,
            ErrorKind::Unsupported => Code::Unimplemented,
        }
    }
}

impl ToCode for StatsError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::Internal,
            Self::ShuttingDown { .. } => Code::Unavailable,
        }
    }
}

impl ToCode for StreamingError {
    fn code(&self) -> Code {
        match self {
            Self::Listen { .. } | Self::Tls(_) => Code::Internal,
            Self::TooManySessions { .. } | Self::TooManyTokens { .. } => Code::ResourceExhausted,
        }
    }
}

impl ToCode for MonitorError {
    fn code(&self) -> Code {
        match self {
            Self::Lost => Code::Unavailable,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Refused { kind, .. } => match kind {
                FailureKind::Invalid | FailureKind::ProgramNotFound | FailureKind::ProgramDenied => {
                    Code::InvalidArgument
                }
                FailureKind::NotFound => Code::NotFound,
                FailureKind::Exists => Code::AlreadyExists,
                FailureKind::State => Code::FailedPrecondition,
                FailureKind::Unknown => Code::Unimplemented,
                FailureKind::Failed => Code::Internal,
            },
            Self::TooLarge { .. } => Code::ResourceExhausted,
            Self::Nonsense { .. } | Self::Io { .. } => Code::Internal,
        }
    }
}
