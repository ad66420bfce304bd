//! What the runtime tells plugins: CNI_ARGS, and `runtimeConfig` for the capabilities they declare (CNI conventions).

use serde_json::{Map, Value, json};

use super::conflist::Plugin;
use crate::network::Attachment;

/// The pod's identity in the form that Kubernetes' plugins expect.
pub fn arguments(attachment: &Attachment) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        attachment.namespace, attachment.name, attachment.sandbox_id, attachment.uid
    )
}

/// The `runtimeConfig` for one plugin: only what it says that it can take.
pub fn config(plugin: &Plugin, attachment: &Attachment, pod_cidrs: &[String]) -> Map<String, Value> {
    let values = plugin.capabilities.iter().filter_map(|capability| {
        let value = match capability.as_str() {
            "portMappings" => ports(attachment),
            "dns" => dns(attachment),
            "bandwidth" => bandwidth(attachment),
            "ipRanges" if !pod_cidrs.is_empty() => {
                Some(pod_cidrs.iter().map(|subnet| json!([{ "subnet": subnet }])).collect())
            }
            "cgroupPath" => attachment.cgroup_parent.clone().map(Value::from),
            "io.kubernetes.cri.pod-annotations" => Some(json!(attachment.annotations)),
            _ => None,
        };
        Some((capability.clone(), value?))
    });
    values.collect()
}

fn ports(attachment: &Attachment) -> Option<Value> {
    let ports: Vec<Value> = attachment
        .ports
        .iter()
        .map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    (!ports.is_empty()).then(|| ports.into())
}

fn dns(attachment: &Attachment) -> Option<Value> {
    let dns = &attachment.dns;
    let any = !dns.servers.is_empty() || !dns.searches.is_empty() || !dns.options.is_empty();
    any.then(|| json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options }))
}

/// The bandwidth plugin wants a burst with each rate, in bits; the largest it takes leaves the rate alone to decide.
const BURST_BITS: u32 = i32::MAX as u32;
/// Below a kilobit, or above a petabit, per second is taken for a mistake, as Kubernetes does.
const RATE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

fn bandwidth(attachment: &Attachment) -> Option<Value> {
    let mut limits = Map::new();
    for direction in ["ingress", "egress"] {
        let Some(text) = attachment
            .annotations
            .get(&format!("kubernetes.io/{direction}-bandwidth"))
        else {
            continue;
        };
        match quantity(text).filter(|rate| RATE.contains(rate)) {
            Some(rate) => {
                limits.insert(format!("{direction}Rate"), rate.into());
                limits.insert(format!("{direction}Burst"), BURST_BITS.into());
            }
            None => tracing::warn!(sandbox_id = %attachment.sandbox_id, direction, %text, "ignoring a bandwidth"),
        }
    }
    (!limits.is_empty()).then(|| limits.into())
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
    use crate::model::SandboxId;
    use crate::network::cni::conflist::ConfList;
    use crate::network::{Dns, PortMapping, Protocol};

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

    #[test]
    fn a_plugin_is_told_what_it_can_take_and_no_more() {
        let attachment = Attachment {
            sandbox_id: SandboxId::new("id"),
            namespace: "ns".into(),
            name: "pod".into(),
            uid: "u".into(),
            netns: "/n".into(),
            ports: vec![PortMapping {
                protocol: Protocol::Udp,
                container_port: 53,
                host_port: 5353,
                host_ip: None,
            }],
            dns: Dns {
                servers: vec!["1.1.1.1".into()],
                ..Dns::default()
            },
            annotations: [
                ("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned()),
                ("kubernetes.io/egress-bandwidth".to_owned(), "1".to_owned()),
            ]
            .into(),
            cgroup_parent: Some("/kubepods/x".into()),
        };
        assert_eq!(
            arguments(&attachment),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID=id;K8S_POD_UID=u"
        );
        let list = ConfList::parse(
            r#"{"name":"n","type":"t","capabilities":{"portMappings":true,"dns":true,"bandwidth":true,"ipRanges":true,
                "cgroupPath":true,"io.kubernetes.cri.pod-annotations":true,"mac":true,"aliases":false}}"#,
        )
        .unwrap();
        let config = Value::from(config(&list.plugins[0], &attachment, &["10.1.0.0/24".to_owned()]));
        assert_eq!(
            config,
            json!({
                "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}],
                "dns": {"servers": ["1.1.1.1"], "searches": [], "options": []},
                "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 2147483647},
                "ipRanges": [[{"subnet": "10.1.0.0/24"}]],
                "cgroupPath": "/kubepods/x",
                "io.kubernetes.cri.pod-annotations": {
                    "kubernetes.io/ingress-bandwidth": "1M", "kubernetes.io/egress-bandwidth": "1",
                },
            })
        );
    }
}
