//! What the runtime tells plugins: CNI_ARGS, and `runtimeConfig` for the capabilities they declare (CNI conventions).

use serde_json::{Map, Value, json};

use super::conflist::Plugin;
use crate::network::Attachment;
use crate::network::bandwidth::Bandwidth;

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

fn bandwidth(attachment: &Attachment) -> Option<Value> {
    let asked = Bandwidth::of(attachment);
    let mut limits = Map::new();
    for (direction, rate) in [("ingress", asked.ingress), ("egress", asked.egress)] {
        if let Some(rate) = rate {
            limits.insert(format!("{direction}Rate"), rate.into());
            limits.insert(format!("{direction}Burst"), BURST_BITS.into());
        }
    }
    (!limits.is_empty()).then(|| limits.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SandboxId;
    use crate::network::cni::conflist::ConfList;
    use crate::network::{Dns, PortMapping, Protocol};

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
