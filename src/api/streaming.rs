//! Exec, Attach and PortForward: requests become offers of the streaming server.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use super::error::status as failed;
use super::rooms::Rooms;
use crate::container::{Attachment, Containers, ExecProcess, ExecStreams, Pipes};
use crate::cri;
use crate::sandbox::Sandboxes;
use crate::streaming::{Cause, Command, Dial, Next, Process, Running, Wants};

/// How long output of an attached container may go on after the container's end.
const ATTACH_DRAIN: Duration = Duration::from_secs(5);

pub fn exec(rooms: &Rooms, request: cri::ExecRequest) -> Result<cri::ExecResponse, Status> {
    let cri::ExecRequest {
        container_id: id,
        cmd,
        tty,
        stdin,
        stdout,
        stderr,
    } = request;
    let wants = check(Wants {
        stdin,
        stdout,
        stderr,
        tty,
    })?;
    if cmd.is_empty() {
        return Err(Status::invalid_argument("cmd is missing"));
    }
    rooms.containers.check_running(&id).map_err(|e| failed(&e))?;
    let command = Exec {
        containers: rooms.containers.clone(),
        id,
        cmd,
        wants,
    };
    let url = rooms.streaming.exec(wants, command).map_err(|e| failed(&e))?;
    Ok(cri::ExecResponse { url })
}

pub fn attach(rooms: &Rooms, request: cri::AttachRequest) -> Result<cri::AttachResponse, Status> {
    let cri::AttachRequest {
        container_id: id,
        stdin,
        tty,
        stdout,
        stderr,
    } = request;
    let wants = check(Wants {
        stdin,
        stdout,
        stderr,
        tty,
    })?;
    rooms.containers.check_running(&id).map_err(|e| failed(&e))?;
    let command = Attach {
        containers: rooms.containers.clone(),
        id,
        wants,
    };
    let url = rooms.streaming.attach(wants, command).map_err(|e| failed(&e))?;
    Ok(cri::AttachResponse { url })
}

pub fn port_forward(rooms: &Rooms, request: cri::PortForwardRequest) -> Result<cri::PortForwardResponse, Status> {
    let ports = request
        .port
        .iter()
        .map(|port| u16::try_from(*port).ok().filter(|port| *port != 0));
    let ports = ports
        .collect::<Option<Vec<u16>>>()
        .ok_or_else(|| Status::invalid_argument("port: 1 to 65535"))?;
    let id = request.pod_sandbox_id;
    rooms.sandboxes.check_ready(&id).map_err(|e| failed(&e))?;
    let dial = PortForward {
        sandboxes: rooms.sandboxes.clone(),
        id,
    };
    let url = rooms.streaming.port_forward(ports, dial).map_err(|e| failed(&e))?;
    Ok(cri::PortForwardResponse { url })
}

fn check(wants: Wants) -> Result<Wants, Status> {
    if wants.tty && wants.stderr {
        return Err(Status::invalid_argument(
            "tty and stderr cannot both be true: a terminal has one output",
        ));
    }
    if !(wants.stdin || wants.stdout || wants.stderr) {
        return Err(Status::invalid_argument("one of stdin, stdout and stderr must be true"));
    }
    Ok(wants)
}

fn running(pipes: Pipes, process: impl Process + 'static, drain: Option<Duration>) -> Running {
    Running {
        stdin: pipes.stdin,
        stdout: pipes.stdout,
        stderr: pipes.stderr,
        process: Box::new(process),
        drain,
    }
}

struct Exec {
    containers: Arc<Containers>,
    id: String,
    cmd: Vec<String>,
    wants: Wants,
}

#[tonic::async_trait]
impl Command for Exec {
    async fn start(self: Box<Self>) -> Result<Running, Cause> {
        let Wants {
            stdin,
            stdout,
            stderr,
            tty,
        } = self.wants;
        let streams = ExecStreams {
            stdin,
            stdout,
            stderr,
            tty,
        };
        let (process, pipes) = self.containers.exec(&self.id, &self.cmd, streams).await?;
        Ok(running(pipes, process, None))
    }
}

#[tonic::async_trait]
impl Process for ExecProcess {
    async fn ended(&mut self) -> Result<i32, Cause> {
        Ok(ExecProcess::ended(self).await?)
    }

    async fn resize(&mut self, columns: u16, rows: u16) {
        ExecProcess::resize(self, columns, rows);
    }

    async fn stdin_ended(&mut self) -> Next {
        Next::Stay
    }

    fn left(&mut self) -> Next {
        if self.let_go() { Next::HangUp } else { Next::Stay }
    }
}

struct Attach {
    containers: Arc<Containers>,
    id: String,
    wants: Wants,
}

#[tonic::async_trait]
impl Command for Attach {
    async fn start(self: Box<Self>) -> Result<Running, Cause> {
        let Wants {
            stdin, stdout, stderr, ..
        } = self.wants;
        let (attachment, pipes) = self.containers.attach(&self.id, stdin, stdout, stderr).await?;
        Ok(running(pipes, attachment, Some(ATTACH_DRAIN)))
    }
}

#[tonic::async_trait]
impl Process for Attachment {
    /// The container's exit code is the container's, not the attachment's.
    async fn ended(&mut self) -> Result<i32, Cause> {
        Attachment::ended(self).await;
        Ok(0)
    }

    async fn resize(&mut self, columns: u16, rows: u16) {
        Attachment::resize(self, columns, rows).await;
    }

    async fn stdin_ended(&mut self) -> Next {
        if self.input_ended().await {
            Next::Stay
        } else {
            Next::Detach
        }
    }

    fn left(&mut self) -> Next {
        Next::Detach
    }
}

struct PortForward {
    sandboxes: Arc<Sandboxes>,
    id: String,
}

#[tonic::async_trait]
impl Dial for PortForward {
    async fn dial(&self, port: u16) -> Result<tokio::net::TcpStream, Cause> {
        let connection = self.sandboxes.connect(&self.id, port).await?;
        Ok(tokio::net::TcpStream::from_std(connection)?)
    }
}
