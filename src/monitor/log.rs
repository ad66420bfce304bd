//! The container's log in CRI's format: `<RFC 3339 time> stdout|stderr F|P <line>`, one record per line, `P` where a line
//! goes on in the next record.
//!
//! Nothing here can stop the application: what the file does not take (disk full, I/O error) is dropped and counted, and
//! writing goes on as soon as it can.

use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest line before it is split, unless the request says otherwise.
pub const DEFAULT_LINE_LIMIT: usize = 16 << 10;

/// How much is put together before it is written, in bytes.
const BATCH: usize = 64 << 10;

pub struct Log {
    file: Option<OwnedFd>,
    limit: usize,
    /// Bytes that the file did not take.
    pub lost: u64,
    /// The file ends in the middle of a record.
    torn: bool,
}

impl Log {
    /// Without a file, everything is thrown away. `line_limit` 0 is the default.
    pub fn new(file: Option<OwnedFd>, line_limit: u32) -> Self {
        let limit = if line_limit == 0 {
            DEFAULT_LINE_LIMIT
        } else {
            line_limit as usize
        };
        Self {
            file,
            limit,
            lost: 0,
            torn: false,
        }
    }

    /// Goes on in `file`. Records are only ever written whole, so this is between two of them.
    pub fn reopen(&mut self, file: OwnedFd) {
        self.file = Some(file);
        self.torn = false;
    }

    fn write(&mut self, mut bytes: &[u8]) {
        let Some(file) = &self.file else { return };
        if self.torn && !bytes.is_empty() {
            if rustix::io::write(file, b"\n") != Ok(1) {
                self.lost += bytes.len() as u64;
                return;
            }
            self.torn = false;
        }
        while !bytes.is_empty() {
            match rustix::io::write(file, bytes) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                Ok(written) => {
                    self.torn = bytes[written - 1] != b'\n';
                    bytes = &bytes[written..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.lost += bytes.len() as u64;
    }
}

/// One stream's lines on their way into the log.
pub struct Lines {
    name: &'static str,
    /// The beginning of a line whose end has not come; at most the limit long.
    carry: Vec<u8>,
}

impl Lines {
    /// `name` is `stdout` or `stderr`.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            carry: Vec::new(),
        }
    }

    /// Logs `bytes`, using `batch` to put records together.
    pub fn feed(&mut self, log: &mut Log, bytes: &[u8], batch: &mut Vec<u8>) {
        if log.file.is_none() {
            return;
        }
        let prefix = format!("{} {} ", rfc3339(SystemTime::now()), self.name);
        let limit = log.limit;
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if self.carry.is_empty() && line.len() <= limit {
                record(log, batch, &prefix, 'F', line);
                continue;
            }
            self.carry.extend_from_slice(line);
            self.split(log, batch, &prefix);
            record(log, batch, &prefix, 'F', &self.carry);
            self.carry.clear();
        }
        self.carry.extend_from_slice(rest);
        self.split(log, batch, &prefix);
        log.write(batch);
        batch.clear();
        if self.carry.is_empty() {
            self.carry = Vec::new();
        }
    }

    /// Takes full pieces off the carry until what is left fits in one record.
    fn split(&mut self, log: &mut Log, batch: &mut Vec<u8>, prefix: &str) {
        let mut taken = 0;
        while self.carry.len() - taken > log.limit {
            record(log, batch, prefix, 'P', &self.carry[taken..taken + log.limit]);
            taken += log.limit;
        }
        self.carry.drain(..taken);
    }

    /// The stream has ended: a last line without an end is logged as partial.
    pub fn end(&mut self, log: &mut Log, batch: &mut Vec<u8>) {
        let carry = std::mem::take(&mut self.carry);
        if !carry.is_empty() {
            record(
                log,
                batch,
                &format!("{} {} ", rfc3339(SystemTime::now()), self.name),
                'P',
                &carry,
            );
            log.write(batch);
            batch.clear();
        }
    }
}

fn record(log: &mut Log, batch: &mut Vec<u8>, prefix: &str, tag: char, line: &[u8]) {
    if !batch.is_empty() && batch.len() + prefix.len() + line.len() + 3 > BATCH {
        log.write(batch);
        batch.clear();
    }
    batch.extend_from_slice(prefix.as_bytes());
    batch.extend_from_slice(&[tag as u8, b' ']);
    batch.extend_from_slice(line);
    batch.push(b'\n');
}

/// `time` as RFC 3339 in UTC with nine digits of the second's fraction.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z",
        since.subsec_nanos()
    )
}

/// The Gregorian date that is `days` after 1970-01-01. Years are counted from March, in eras of 400.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::{Lines, Log, rfc3339};
    use std::io::{Read, Seek};
    use std::time::{Duration, UNIX_EPOCH};

    struct Written {
        file: std::fs::File,
        log: Log,
    }

    impl Written {
        fn new(limit: u32) -> Self {
            let file = std::fs::File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::empty()).unwrap());
            let log = Log::new(Some(file.try_clone().unwrap().into()), limit);
            Self { file, log }
        }

        /// What was logged, without the times.
        fn records(mut self) -> Vec<String> {
            self.file.rewind().unwrap();
            let mut text = String::new();
            self.file.read_to_string(&mut text).unwrap();
            text.lines()
                .map(|line| line.split_once(' ').unwrap().1.to_owned())
                .collect()
        }
    }

    #[test]
    fn lines_come_whole_however_they_were_cut_on_the_way() {
        let mut written = Written::new(0);
        let (mut lines, mut batch) = (Lines::new("stdout"), Vec::new());
        for piece in ["one\ntw", "o", "\n\nfour\nfi", "ve"] {
            lines.feed(&mut written.log, piece.as_bytes(), &mut batch);
        }
        lines.end(&mut written.log, &mut batch);
        assert_eq!(
            written.records(),
            [
                "stdout F one",
                "stdout F two",
                "stdout F ",
                "stdout F four",
                "stdout P five"
            ]
        );
    }

    #[test]
    fn a_line_longer_than_the_limit_becomes_partial_records() {
        let mut written = Written::new(4);
        let (mut lines, mut batch) = (Lines::new("stderr"), Vec::new());
        lines.feed(&mut written.log, b"abcd\nabcdefghij\nabcdefgh", &mut batch);
        lines.feed(&mut written.log, b"\n", &mut batch);
        let expected = ["F abcd", "P abcd", "P efgh", "F ij", "P abcd", "F efgh"];
        assert_eq!(written.records(), expected.map(|text| format!("stderr {text}")));
    }

    #[test]
    fn what_the_file_does_not_take_is_counted_and_the_next_record_starts_a_line() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut log = Log::new(Some(full.into()), 0);
        let (mut lines, mut batch) = (Lines::new("stdout"), Vec::new());
        lines.feed(&mut log, b"lost\n", &mut batch);
        assert!(log.lost >= 5);
        let mut written = Written::new(0);
        written.log.torn = true;
        lines.feed(&mut written.log, b"kept\n", &mut batch);
        written.file.rewind().unwrap();
        let mut text = String::new();
        written.file.read_to_string(&mut text).unwrap();
        assert!(text.starts_with('\n') && text.ends_with("stdout F kept\n"), "{text:?}");
    }

    #[test]
    fn times_are_rfc_3339() {
        let at = |seconds, nanos| rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_782_399, 5), "2000-02-28T23:59:59.000000005Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(1_798_761_599, 999_999_999), "2026-12-31T23:59:59.999999999Z");
    }
}
