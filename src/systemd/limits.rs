//! Limits of a unit. systemd writes them into the unit's cgroup, again and again: nobody else may.

use zbus::Variant;

/// What systemd writes as `max`.
const INFINITY: u64 = u64::MAX;

/// What is to change; none is left as it is, a negative value is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// 1 to 10000, as in `cpu.weight`.
    pub cpu_weight: Option<u64>,
    /// CPU time per period, and the period, in microseconds.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_bytes: Option<i64>,
    /// Swap alone, without memory.
    pub swap_bytes: Option<i64>,
}

impl Limits {
    /// As systemd.resource-control(5) has them, with the types of org.freedesktop.systemd1(5).
    pub(super) fn properties(&self) -> Vec<(&'static str, Variant<'static>)> {
        const SECOND_US: u64 = 1_000_000;
        let period = self.cpu_period_us.unwrap_or(100_000).max(1);
        // systemd keeps the time per second, and the period apart from it.
        let per_second = |quota: i64| match u64::try_from(quota) {
            Ok(quota) => {
                u64::try_from(u128::from(quota) * u128::from(SECOND_US) / u128::from(period)).unwrap_or(INFINITY)
            }
            Err(_) => INFINITY,
        };
        let bytes = |limit: i64| u64::try_from(limit).unwrap_or(INFINITY);
        let properties = [
            ("CPUWeight", self.cpu_weight),
            ("CPUQuotaPerSecUSec", self.cpu_quota_us.map(per_second)),
            ("CPUQuotaPeriodUSec", self.cpu_period_us),
            ("MemoryMax", self.memory_bytes.map(bytes)),
            ("MemorySwapMax", self.swap_bytes.map(bytes)),
        ];
        let asked = properties.into_iter().filter_map(|(name, value)| Some((name, value?)));
        asked.map(|(name, value)| (name, Variant::from(value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use zbus::Variant;

    use super::Limits;

    #[test]
    fn time_is_told_per_second_and_no_limit_as_infinity() {
        let limits = Limits {
            cpu_quota_us: Some(25_000),
            cpu_period_us: Some(50_000),
            memory_bytes: Some(-1),
            ..Limits::default()
        };
        let expected = [
            ("CPUQuotaPerSecUSec", 500_000_u64),
            ("CPUQuotaPeriodUSec", 50_000),
            ("MemoryMax", u64::MAX),
        ];
        assert_eq!(
            limits.properties(),
            expected.map(|(name, value)| (name, Variant::from(value)))
        );
    }
}
