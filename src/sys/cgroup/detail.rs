//! The figures that only a full account asks for.

use std::io;
use std::os::fd::OwnedFd;

use super::reader::{BUFFER_BYTES, Version, read, read_number};
use super::{CgroupReader, Detail, Hugepages, parse};

impl CgroupReader {
    /// Reads what [`CgroupReader::read`] leaves out, but for block devices. `page_sizes` are those of [`page_sizes`].
    /// `NotFound` once the cgroup is gone.
    pub fn read_detail(&self, page_sizes: &[String]) -> io::Result<Detail> {
        let mut buffer = [0; BUFFER_BYTES];
        let buffer = &mut buffer;
        let mut detail = Detail::default();
        match (&self.memory, &self.cgroup2) {
            (Some(Version::V1(dir)), _) => {
                detail.memory_peak_bytes = read_number(dir, "memory.max_usage_in_bytes", buffer)?;
                detail.memory_limit_hits = read_number(dir, "memory.failcnt", buffer)?;
                detail.kernel_memory_bytes = read_number(dir, "memory.kmem.usage_in_bytes", buffer)?;
            }
            (Some(Version::V2), Some(dir)) => read_memory_v2(dir, &mut detail, buffer)?,
            _ => {}
        }
        for page_size in page_sizes {
            detail.hugepages.extend(self.read_hugepages(page_size, buffer)?);
        }
        Ok(detail)
    }

    fn read_hugepages(&self, page_size: &str, buffer: &mut [u8]) -> io::Result<Option<Hugepages>> {
        let (usage, peak) = match (&self.hugetlb, &self.cgroup2) {
            (Some(Version::V1(dir)), _) => (
                read_number(dir, &format!("hugetlb.{page_size}.usage_in_bytes"), buffer)?,
                read_number(dir, &format!("hugetlb.{page_size}.max_usage_in_bytes"), buffer)?,
            ),
            (Some(Version::V2), Some(dir)) => {
                (read_number(dir, &format!("hugetlb.{page_size}.current"), buffer)?, None)
            }
            _ => (None, None),
        };
        Ok(usage.map(|usage_bytes| Hugepages {
            page_size: page_size.to_owned(),
            usage_bytes,
            peak_bytes: peak,
        }))
    }
}

fn read_memory_v2(dir: &OwnedFd, detail: &mut Detail, buffer: &mut [u8]) -> io::Result<()> {
    detail.memory_peak_bytes = read_number(dir, "memory.peak", buffer)?;
    let events = read(dir, "memory.events", buffer)?.unwrap_or_default();
    detail.memory_limit_hits = parse::field(events, b"max");
    let stat = read(dir, "memory.stat", buffer)?.unwrap_or_default();
    detail.kernel_memory_bytes = parse::field(stat, b"kernel");
    Ok(())
}

/// The sizes of huge pages that this kernel has, by the names that the controller's files have: `2MB`.
pub fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let mut found: Vec<u64> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(page_size_name).collect()
}

/// As mem_fmt() of the kernel's mm/hugetlb_cgroup.c.
fn page_size_name(kib: u64) -> String {
    if kib >= 1 << 20 {
        format!("{}GB", kib >> 20)
    } else if kib >= 1 << 10 {
        format!("{}MB", kib >> 10)
    } else {
        format!("{kib}KB")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn page_sizes_are_named_as_the_kernel_names_its_files() {
        assert_eq!([64, 2048, 1 << 20].map(super::page_size_name), ["64KB", "2MB", "1GB"]);
    }
}
