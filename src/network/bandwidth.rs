//! How fast a pod may receive and send: annotations of Kubernetes.

use super::Attachment;

/// Below a kilobit, or above a petabit, per second is taken for a mistake, as Kubernetes does.
const RATE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// What a pod asks for, in bits per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Into the pod.
    pub ingress: Option<u64>,
    /// Out of it.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// What the annotations say; nonsense in them is told to the log and limits nothing.
    pub fn of(attachment: &Attachment) -> Self {
        let rate = |direction| {
            let text = attachment
                .annotations
                .get(&format!("kubernetes.io/{direction}-bandwidth"))?;
            let rate = quantity(text).filter(|rate| RATE.contains(rate));
            if rate.is_none() {
                tracing::warn!(sandbox_id = %attachment.sandbox_id, direction, %text, "ignoring a bandwidth");
            }
            rate
        };
        Self {
            ingress: rate("ingress"),
            egress: rate("egress"),
        }
    }
}

/// A Kubernetes quantity that is a whole positive number: digits, a fraction, a suffix or an exponent.
fn quantity(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let scale = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 2f64.powi(10),
        "Mi" => 2f64.powi(20),
        "Gi" => 2f64.powi(30),
        "Ti" => 2f64.powi(40),
        "Pi" => 2f64.powi(50),
        "Ei" => 2f64.powi(60),
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let value = number.parse::<f64>().ok()? * scale;
    (value.is_finite() && value >= 0.0 && value <= 2f64.powi(63)).then_some(value.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, expected) in [
            ("10M", Some(10_000_000)),
            ("1Gi", Some(1 << 30)),
            ("1.5k", Some(1500)),
            ("2e3", Some(2000)),
            ("7", Some(7)),
        ] {
            assert_eq!(quantity(text), expected, "{text}");
        }
        for text in ["", "M", "-1M", "1X", "1e", "1.2.3", "9e99"] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }
}
