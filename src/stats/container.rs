//! A reading in the CRI's words.

use super::ContainerTarget;
use super::tracked::Reading;
use crate::cri;
use crate::sys::cgroup::{Psi, PsiLine};

pub(super) fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

/// The figures of a container; without a reading (it does not run) only its writable layer.
pub(super) fn container_stats(
    target: &ContainerTarget,
    reading: Option<&Reading>,
    writable_layer: Option<cri::FilesystemUsage>,
) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(target.attributes.clone()),
        cpu: reading.and_then(cpu_usage),
        memory: reading.and_then(memory_usage),
        writable_layer,
        swap: reading.and_then(swap_usage),
        io: reading.and_then(io_usage),
    }
}

pub(super) fn cpu_usage(reading: &Reading) -> Option<cri::CpuUsage> {
    let cpu = reading.stats.cpu?;
    Some(cri::CpuUsage {
        timestamp: reading.stats.timestamp_ns,
        usage_core_nano_seconds: number(cpu.usage_ns),
        usage_nano_cores: reading.usage_nano_cores.and_then(number),
        psi: psi_stats(reading.stats.pressure.cpu),
    })
}

pub(super) fn memory_usage(reading: &Reading) -> Option<cri::MemoryUsage> {
    let memory = reading.stats.memory?;
    Some(cri::MemoryUsage {
        timestamp: reading.stats.timestamp_ns,
        working_set_bytes: number(memory.working_set_bytes),
        // Absent without a limit: there is no telling then what the container may still take.
        available_bytes: memory.available_bytes().and_then(number),
        usage_bytes: number(memory.usage_bytes),
        rss_bytes: number(memory.rss_bytes),
        page_faults: number(memory.page_faults),
        major_page_faults: number(memory.major_page_faults),
        psi: psi_stats(reading.stats.pressure.memory),
    })
}

fn swap_usage(reading: &Reading) -> Option<cri::SwapUsage> {
    let swap = reading.stats.swap?;
    Some(cri::SwapUsage {
        timestamp: reading.stats.timestamp_ns,
        swap_available_bytes: swap
            .limit_bytes
            .and_then(|limit| number(limit.saturating_sub(swap.usage_bytes))),
        swap_usage_bytes: number(swap.usage_bytes),
    })
}

pub(super) fn io_usage(reading: &Reading) -> Option<cri::IoUsage> {
    let psi = psi_stats(reading.stats.pressure.io)?;
    Some(cri::IoUsage {
        timestamp: reading.stats.timestamp_ns,
        psi: Some(psi),
    })
}

fn psi_stats(psi: Option<Psi>) -> Option<cri::PsiStats> {
    let psi = psi?;
    Some(cri::PsiStats {
        full: Some(psi_data(psi.full)),
        some: Some(psi_data(psi.some)),
    })
}

/// The CRI's total is in nanoseconds (api.proto, `PsiData`), the kernel's in microseconds.
fn psi_data(line: PsiLine) -> cri::PsiData {
    cri::PsiData {
        total: line.total_us.saturating_mul(1000),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    }
}
