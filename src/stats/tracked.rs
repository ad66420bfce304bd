//! What is remembered about one container or pod between requests.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::filesystem::Layer;
use super::rate::Rate;
use crate::sys::cgroup::{Cgroup, CgroupReader, CgroupStats, Detail, IoDevice};

/// Requests that come together share one reading.
const SHARED_FOR: Duration = Duration::from_millis(20);

/// A reading and the CPU use per second, in billionths of a core, if one is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) stats: CgroupStats,
    pub(super) usage_nano_cores: Option<u64>,
}

/// A reading, and all else that the cgroup tells.
#[derive(Clone, Debug, Default)]
pub(super) struct Full {
    pub(super) reading: Reading,
    pub(super) detail: Detail,
    pub(super) devices: Vec<IoDevice>,
}

#[derive(Debug)]
pub(super) struct Tracked {
    readings: Mutex<Readings>,
    pub(super) layer: Option<Arc<Layer>>,
    used: Mutex<Instant>,
}

#[derive(Debug, Default)]
struct Readings {
    reader: Option<CgroupReader>,
    cpu: Rate,
    last: Option<(Instant, Reading)>,
}

impl Tracked {
    pub(super) fn new(writable_layer: Option<PathBuf>) -> Self {
        let layer = writable_layer.map(|path| Arc::new(Layer::new(path)));
        Self {
            readings: Mutex::default(),
            layer,
            used: Mutex::new(Instant::now()),
        }
    }

    /// Reads the cgroup; none if it is gone (an exited container). The lock makes callers that come at once wait for
    /// one reading and share it.
    pub(super) fn read(&self, cgroup: &Cgroup) -> io::Result<Option<Reading>> {
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        match readings.read(cgroup) {
            Ok(reading) => Ok(Some(reading)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                *readings = Readings::default();
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// As [`Tracked::read`], with the figures that only a full account has.
    pub(super) fn read_full(&self, cgroup: &Cgroup, page_sizes: &[String]) -> io::Result<Option<Full>> {
        let Some(reading) = self.read(cgroup)? else {
            return Ok(None);
        };
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reader) = &readings.reader else {
            return Ok(None);
        };
        let further = reader
            .read_detail(page_sizes)
            .and_then(|detail| Ok((detail, reader.read_io()?)));
        match further {
            Ok((detail, devices)) => Ok(Some(Full {
                reading,
                detail,
                devices,
            })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// How long nobody has asked.
    pub(super) fn idle(&self) -> Duration {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Readings {
    fn read(&mut self, cgroup: &Cgroup) -> io::Result<Reading> {
        if let Some((when, reading)) = &self.last
            && when.elapsed() < SHARED_FOR
        {
            return Ok(reading.clone());
        }
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => CgroupReader::open(cgroup)?,
        };
        let stats = reader.read()?;
        self.reader = Some(reader);
        let now = Instant::now();
        let usage_nano_cores = stats.cpu.and_then(|cpu| self.cpu.observe(now, cpu.usage_ns));
        let reading = Reading {
            stats,
            usage_nano_cores,
        };
        self.last = Some((now, reading.clone()));
        Ok(reading)
    }
}
