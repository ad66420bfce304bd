//! The line between the monitor and a process that is being made: a socket that closes by itself when the program is
//! executed, and when anybody on the way dies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::scm;

/// Why there is no process, as in the protocol's `FailureKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Failed = 0,
    ProgramNotFound = 5,
    ProgramDenied = 6,
}

/// What the monitor hears.
pub enum Said {
    /// The process, and its terminal's master. It waits for [`start`].
    Process { pid: i32, terminal: Option<OwnedFd> },
    /// The process has let go of all that its program is not to have.
    Resting,
    /// It has come to nothing.
    Refused { kind: Refusal, why: String },
    /// A cause that the refusal, if there is one, does not mention.
    Diagnosis(String),
    /// The line is closed: the program is executing if there was a process and no refusal, else everybody died.
    Closed,
}

const PROCESS: u8 = b'P';
const RESTING: u8 = b'W';
const REFUSED: u8 = b'R';
const DIAGNOSIS: u8 = b'D';
const START: u8 = b'S';

/// The longest message; what is longer is cut.
const LONGEST: usize = 2 << 10;

fn say(line: &OwnedFd, what: u8, text: &[u8], fd: Option<&OwnedFd>) {
    let mut message = vec![what];
    message.extend_from_slice(&text[..text.len().min(LONGEST - 1)]);
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    // When the monitor is gone nobody is left to be told, and a full socket holds more than anyone reads.
    let _ = scm::send(line, &message, &fds);
}

/// Child: tells the process.
pub fn say_process(line: &OwnedFd, pid: i32, terminal: Option<&OwnedFd>) {
    say(line, PROCESS, &pid.to_le_bytes(), terminal);
}

/// Child: tells that it is ready for the word, see [`Said::Resting`].
pub fn say_resting(line: &OwnedFd) {
    say(line, RESTING, &[], None);
}

/// Child: tells that it has come to nothing.
pub fn say_refused(line: &OwnedFd, kind: Refusal, why: &str) {
    let mut text = vec![kind as u8];
    text.extend_from_slice(why.as_bytes());
    say(line, REFUSED, &text, None);
}

/// Child: tells a cause.
pub fn say_diagnosis(line: &OwnedFd, text: &str) {
    say(line, DIAGNOSIS, text.as_bytes(), None);
}

/// Child: waits for the word to go on. `false`: there is none, the monitor is gone or gave up.
pub fn wait_for_start(line: &OwnedFd) -> bool {
    let mut word = [0];
    matches!(scm::receive(line, &mut word, &mut Vec::new(), true), Ok(1)) && word[0] == START
}

/// Monitor: gives the word to execute the program.
pub fn start(line: &OwnedFd) -> io::Result<()> {
    scm::send(line, &[START], &[]).map(drop)
}

/// Monitor: the next that was said; `None` when there is nothing at present.
pub fn hear(line: &OwnedFd) -> io::Result<Option<Said>> {
    let mut message = [0; LONGEST];
    let mut fds = Vec::new();
    let length = match scm::receive(line, &mut message, &mut fds, false) {
        Ok(length) => length,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        // The other side closed before it read all that it was sent.
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => 0,
        Err(e) => return Err(e),
    };
    let text = |from: usize| String::from_utf8_lossy(&message[from..length]).into_owned();
    Ok(Some(match (message[0], length) {
        (_, 0) => Said::Closed,
        (PROCESS, 5) => {
            let pid = i32::from_le_bytes([message[1], message[2], message[3], message[4]]);
            Said::Process {
                pid,
                terminal: fds.pop(),
            }
        }
        (RESTING, 1) => Said::Resting,
        (REFUSED, 2..) => {
            let kind = match message[1] {
                5 => Refusal::ProgramNotFound,
                6 => Refusal::ProgramDenied,
                _ => Refusal::Failed,
            };
            Said::Refused { kind, why: text(2) }
        }
        (DIAGNOSIS, _) => Said::Diagnosis(text(1)),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a message of the line")),
    }))
}
