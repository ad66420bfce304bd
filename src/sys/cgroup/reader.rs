//! Reading a cgroup's figures, again and again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, openat};

use super::hierarchy::Place;
use super::memory::V1_UNLIMITED;
use super::{
    Cgroup, CgroupStats, CpuStats, IoDevice, MemoryStats, PidsStats, Pressure, Psi, PsiLine, SwapStats, parse,
    processes,
};

/// More than any of the files read here has; what exceeds it is not looked at.
pub(super) const BUFFER_BYTES: usize = 16 * 1024;

/// The directories of one cgroup, kept open: a reading looks up no long paths and can never meet another cgroup of
/// the same name. The files are opened for each reading, which costs less than the page of kernel memory that each
/// would hold if it stayed open.
#[derive(Debug)]
pub struct CgroupReader {
    /// `cpuacct` and `cpu`, or the cgroup2 directory, which counts CPU time without any controller.
    cpu: Cpu,
    pub(super) memory: Option<Version>,
    pids: Option<OwnedFd>,
    io: Option<Version>,
    pub(super) hugetlb: Option<Version>,
    pub(super) cgroup2: Option<OwnedFd>,
}

#[derive(Debug)]
enum Cpu {
    V1 { cpuacct: OwnedFd, cpu: Option<OwnedFd> },
    V2,
    None,
}

#[derive(Debug)]
pub(super) enum Version {
    V1(OwnedFd),
    V2,
}

impl Cgroup {
    /// One reading. For several use [`CgroupReader`].
    pub fn stats(&self) -> io::Result<CgroupStats> {
        CgroupReader::open(self)?.read()
    }
}

impl CgroupReader {
    /// Opens the directories of `cgroup`. `NotFound` if it does not exist.
    pub fn open(cgroup: &Cgroup) -> io::Result<Self> {
        let v1 = |controller: &str| match cgroup.hierarchy.place(controller) {
            Some(Place::V1(root)) => processes::open_directory(&cgroup.dir_below(root)).map(Some),
            _ => Ok(None),
        };
        let cgroup2 = cgroup
            .cgroup2_dir()
            .map(|dir| processes::open_directory(&dir))
            .transpose()?;
        let version = |controller: &str| {
            Ok::<_, io::Error>(match (v1(controller)?, cgroup.hierarchy.cgroup2_offers(controller)) {
                (Some(dir), _) => Some(Version::V1(dir)),
                (None, true) => Some(Version::V2),
                (None, false) => None,
            })
        };
        let cpu = match v1("cpuacct")? {
            Some(cpuacct) => Cpu::V1 {
                cpuacct,
                cpu: v1("cpu")?,
            },
            None if cgroup2.is_some() => Cpu::V2,
            None => Cpu::None,
        };
        let io = match v1("blkio")? {
            Some(dir) => Some(Version::V1(dir)),
            None => version("io")?,
        };
        Ok(Self {
            cpu,
            memory: version("memory")?,
            pids: v1("pids")?,
            io,
            hugetlb: version("hugetlb")?,
            cgroup2,
        })
    }

    /// Reads all figures but those of block devices. `NotFound` once the cgroup is gone.
    pub fn read(&self) -> io::Result<CgroupStats> {
        let mut buffer = [0; BUFFER_BYTES];
        let buffer = &mut buffer;
        let mut stats = CgroupStats {
            timestamp_ns: now_ns(),
            ..CgroupStats::default()
        };
        stats.cpu = self.read_cpu(buffer)?;
        match &self.memory {
            Some(Version::V1(dir)) => read_memory_v1(dir, &mut stats, buffer)?,
            Some(Version::V2) => self.read_memory_v2(&mut stats, buffer)?,
            None => {}
        }
        stats.pids = self.read_pids(buffer)?;
        stats.pressure = Pressure {
            cpu: self.read_pressure("cpu.pressure", buffer)?,
            memory: self.read_pressure("memory.pressure", buffer)?,
            io: self.read_pressure("io.pressure", buffer)?,
        };
        Ok(stats)
    }

    fn read_cpu(&self, buffer: &mut [u8]) -> io::Result<Option<CpuStats>> {
        let mut stats = CpuStats::default();
        match (&self.cpu, &self.cgroup2) {
            (Cpu::V1 { cpuacct, cpu }, _) => {
                stats.usage_ns = read_number(cpuacct, "cpuacct.usage", buffer)?.unwrap_or(0);
                for (key, ticks) in parse::fields(read(cpuacct, "cpuacct.stat", buffer)?.unwrap_or_default()) {
                    // In USER_HZ, which is 100 on every architecture that Linux still has but alpha and ia64.
                    match key {
                        b"user" => stats.user_ns = ticks.saturating_mul(10_000_000),
                        b"system" => stats.system_ns = ticks.saturating_mul(10_000_000),
                        _ => {}
                    }
                }
                if let Some(cpu) = cpu {
                    for (key, value) in parse::fields(read(cpu, "cpu.stat", buffer)?.unwrap_or_default()) {
                        match key {
                            b"nr_periods" => stats.periods = value,
                            b"nr_throttled" => stats.throttled_periods = value,
                            b"throttled_time" => stats.throttled_ns = value,
                            _ => {}
                        }
                    }
                }
            }
            (Cpu::V2, Some(dir)) => {
                for (key, value) in parse::fields(read(dir, "cpu.stat", buffer)?.unwrap_or_default()) {
                    match key {
                        b"usage_usec" => stats.usage_ns = value.saturating_mul(1000),
                        b"user_usec" => stats.user_ns = value.saturating_mul(1000),
                        b"system_usec" => stats.system_ns = value.saturating_mul(1000),
                        b"nr_periods" => stats.periods = value,
                        b"nr_throttled" => stats.throttled_periods = value,
                        b"throttled_usec" => stats.throttled_ns = value.saturating_mul(1000),
                        _ => {}
                    }
                }
            }
            _ => return Ok(None),
        }
        Ok(Some(stats))
    }

    fn read_memory_v2(&self, stats: &mut CgroupStats, buffer: &mut [u8]) -> io::Result<()> {
        let Some(dir) = &self.cgroup2 else { return Ok(()) };
        let Some(usage_bytes) = read_number(dir, "memory.current", buffer)? else {
            return Ok(());
        };
        let mut memory = MemoryStats {
            usage_bytes,
            ..MemoryStats::default()
        };
        let mut inactive_file = 0;
        for (key, value) in parse::fields(read(dir, "memory.stat", buffer)?.unwrap_or_default()) {
            match key {
                b"anon" => memory.rss_bytes = value,
                b"inactive_file" => inactive_file = value,
                b"file" => memory.cache_bytes = value,
                b"file_mapped" => memory.mapped_file_bytes = value,
                b"pgfault" => memory.page_faults = value,
                b"pgmajfault" => memory.major_page_faults = value,
                _ => {}
            }
        }
        (memory.own_page_faults, memory.own_major_page_faults) = (memory.page_faults, memory.major_page_faults);
        memory.working_set_bytes = usage_bytes.saturating_sub(inactive_file);
        memory.limit_bytes = read_number(dir, "memory.max", buffer)?;
        stats.memory = Some(memory);
        if let Some(usage_bytes) = read_number(dir, "memory.swap.current", buffer)? {
            stats.swap = Some(SwapStats {
                usage_bytes,
                limit_bytes: read_number(dir, "memory.swap.max", buffer)?,
            });
        }
        stats.oom_kills = read(dir, "memory.events", buffer)?.and_then(|text| parse::field(text, b"oom_kill"));
        Ok(())
    }

    fn read_pids(&self, buffer: &mut [u8]) -> io::Result<Option<PidsStats>> {
        let Some(dir) = self.pids.as_ref().or(self.cgroup2.as_ref()) else {
            return Ok(None);
        };
        let Some(current) = read_number(dir, "pids.current", buffer)? else {
            return Ok(None);
        };
        Ok(Some(PidsStats {
            current,
            limit: read_number(dir, "pids.max", buffer)?,
        }))
    }

    /// None without the file, or with pressure accounting switched off (`psi=0`: EOPNOTSUPP).
    fn read_pressure(&self, name: &str, buffer: &mut [u8]) -> io::Result<Option<Psi>> {
        let Some(dir) = &self.cgroup2 else { return Ok(None) };
        let text = match read(dir, name, buffer) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut psi = Psi::default();
        for line in text.split(|b| *b == b'\n') {
            if line.starts_with(b"some ") {
                psi.some = psi_line(line);
            } else if line.starts_with(b"full ") {
                psi.full = psi_line(line);
            }
        }
        Ok(Some(psi))
    }

    /// What each block device moved for the cgroup and all below it. Empty where nothing was moved or counted.
    pub fn read_io(&self) -> io::Result<Vec<IoDevice>> {
        let mut buffer = [0; BUFFER_BYTES];
        match (&self.io, &self.cgroup2) {
            (Some(Version::V1(dir)), _) => {
                let mut devices = Vec::new();
                for (name, bytes) in [
                    ("blkio.throttle.io_service_bytes_recursive", true),
                    ("blkio.throttle.io_serviced_recursive", false),
                ] {
                    io_v1(read(dir, name, &mut buffer)?.unwrap_or_default(), bytes, &mut devices);
                }
                Ok(devices)
            }
            (Some(Version::V2), Some(dir)) => Ok(io_v2(read(dir, "io.stat", &mut buffer)?.unwrap_or_default())),
            _ => Ok(Vec::new()),
        }
    }
}

fn read_memory_v1(dir: &OwnedFd, stats: &mut CgroupStats, buffer: &mut [u8]) -> io::Result<()> {
    let Some(usage_bytes) = read_number(dir, "memory.usage_in_bytes", buffer)? else {
        return Ok(());
    };
    let mut memory = MemoryStats {
        usage_bytes,
        ..MemoryStats::default()
    };
    let mut inactive_file = 0;
    for (key, value) in parse::fields(read(dir, "memory.stat", buffer)?.unwrap_or_default()) {
        match key {
            b"total_rss" => memory.rss_bytes = value,
            b"total_inactive_file" => inactive_file = value,
            b"total_cache" => memory.cache_bytes = value,
            b"total_mapped_file" => memory.mapped_file_bytes = value,
            b"total_pgfault" => memory.page_faults = value,
            b"total_pgmajfault" => memory.major_page_faults = value,
            b"pgfault" => memory.own_page_faults = value,
            b"pgmajfault" => memory.own_major_page_faults = value,
            _ => {}
        }
    }
    let limited = |value: Option<u64>| value.filter(|value| *value < V1_UNLIMITED);
    memory.working_set_bytes = usage_bytes.saturating_sub(inactive_file);
    memory.limit_bytes = limited(read_number(dir, "memory.limit_in_bytes", buffer)?);
    stats.memory = Some(memory);
    if let Some(both) = read_number(dir, "memory.memsw.usage_in_bytes", buffer)? {
        let limit_both = limited(read_number(dir, "memory.memsw.limit_in_bytes", buffer)?);
        stats.swap = Some(SwapStats {
            usage_bytes: both.saturating_sub(usage_bytes),
            limit_bytes: limit_both.map(|both| both.saturating_sub(memory.limit_bytes.unwrap_or(0))),
        });
    }
    stats.oom_kills = read(dir, "memory.oom_control", buffer)?.and_then(|text| parse::field(text, b"oom_kill"));
    Ok(())
}

fn psi_line(line: &[u8]) -> PsiLine {
    PsiLine {
        avg10: parse::assigned_float(line, b"avg10").unwrap_or(0.0),
        avg60: parse::assigned_float(line, b"avg60").unwrap_or(0.0),
        avg300: parse::assigned_float(line, b"avg300").unwrap_or(0.0),
        total_us: parse::assigned_number(line, b"total").unwrap_or(0),
    }
}

fn device(name: &[u8]) -> Option<IoDevice> {
    let colon = name.iter().position(|b| *b == b':')?;
    let number = |text| parse::number(text).and_then(|n| u32::try_from(n).ok());
    Some(IoDevice {
        major: number(&name[..colon])?,
        minor: number(&name[colon + 1..])?,
        ..IoDevice::default()
    })
}

/// `8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 ...`
fn io_v2(text: &[u8]) -> Vec<IoDevice> {
    let lines = text.split(|b| *b == b'\n');
    let parsed = lines.filter_map(|line| {
        let mut found = device(line.split(|b| *b == b' ').next()?)?;
        let value = |key| parse::assigned_number(line, key).unwrap_or(0);
        found.read_bytes = value(b"rbytes");
        found.write_bytes = value(b"wbytes");
        found.reads = value(b"rios");
        found.writes = value(b"wios");
        Some(found)
    });
    parsed.collect()
}

/// `8:0 Read 4096`, one line per device and kind.
fn io_v1(text: &[u8], bytes: bool, devices: &mut Vec<IoDevice>) {
    for line in text.split(|b| *b == b'\n') {
        let mut parts = line.split(|b| *b == b' ');
        let (Some(name), Some(kind), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (Some(found), Some(value)) = (device(name), parse::number(value)) else {
            continue;
        };
        let same = |known: &&mut IoDevice| (known.major, known.minor) == (found.major, found.minor);
        let entry = match devices.iter_mut().find(same) {
            Some(entry) => entry,
            None => {
                devices.push(found);
                devices.last_mut().expect("pushed on the line above")
            }
        };
        match (kind, bytes) {
            (b"Read", true) => entry.read_bytes = value,
            (b"Write", true) => entry.write_bytes = value,
            (b"Read", false) => entry.reads = value,
            (b"Write", false) => entry.writes = value,
            _ => {}
        }
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

pub(super) fn read_number(dir: &OwnedFd, name: &str, buffer: &mut [u8]) -> io::Result<Option<u64>> {
    Ok(read(dir, name, buffer)?.and_then(parse::number))
}

/// The content of a file, none if the cgroup has no such file. `NotFound` if the cgroup itself is gone.
pub(super) fn read<'a>(dir: &OwnedFd, name: &str, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    let named = |e: rustix::io::Errno| {
        let kind = if e == rustix::io::Errno::NODEV {
            io::ErrorKind::NotFound
        } else {
            io::Error::from(e).kind()
        };
        io::Error::new(kind, format!("read cgroup file {name}: {e}"))
    };
    let file = match openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) if exists(dir) => return Ok(None),
        Err(e) => return Err(named(e)),
    };
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(&file, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(named(e)),
        }
    }
    Ok(Some(&buffer[..filled]))
}

/// Every cgroup directory has `cgroup.procs`; one that was removed has nothing.
fn exists(dir: &OwnedFd) -> bool {
    rustix::fs::accessat(
        dir.as_fd(),
        "cgroup.procs",
        rustix::fs::Access::EXISTS,
        rustix::fs::AtFlags::empty(),
    )
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::{io_v1, io_v2, psi_line};

    #[test]
    fn devices_are_read_from_both_versions() {
        let v2 =
            io_v2(b"8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:1 rbytes=5 wbytes=0 rios=1 wios=0\n\n");
        assert_eq!(v2.len(), 2);
        assert_eq!(
            (
                v2[0].major,
                v2[0].read_bytes,
                v2[0].write_bytes,
                v2[0].reads,
                v2[0].writes
            ),
            (8, 10, 20, 1, 2)
        );
        let mut v1 = Vec::new();
        io_v1(b"8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n", true, &mut v1);
        io_v1(b"8:0 Read 1\n8:0 Write 2\nTotal 3\n", false, &mut v1);
        assert_eq!(v1, v2[..1]);
    }

    #[test]
    fn a_line_of_pressure_is_read() {
        let line = psi_line(b"some avg10=1.25 avg60=0.50 avg300=0.10 total=4711");
        assert_eq!(
            (line.avg10, line.avg60, line.avg300, line.total_us),
            (1.25, 0.5, 0.1, 4711)
        );
    }
}
