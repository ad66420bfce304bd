//! Results of ADD (CNI spec 1.1, section 5), as old plugins print them, too.

use std::net::IpAddr;

use serde_json::Value;

/// The pod's addresses in a result of any version, in their order. Addresses of links outside of the pod are left out.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let inside = |ip: &Value| {
        let Some(index) = ip["interface"].as_u64() else {
            return true;
        };
        let link = usize::try_from(index)
            .ok()
            .and_then(|index| result["interfaces"].get(index));
        link.is_none_or(|link| link["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty()))
    };
    let listed = result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|ip| inside(ip))
        .map(|ip| &ip["address"]);
    let mut addresses = Vec::new();
    // 0.1 and 0.2 had at most one of each family
    for text in listed
        .chain([&result["ip4"]["ip"], &result["ip6"]["ip"]])
        .filter_map(Value::as_str)
    {
        let Ok(ip) = text.split('/').next().unwrap_or_default().parse() else {
            continue;
        };
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_of_every_version() {
        let found = |result: Value| addresses(&result).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            found(json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "br"}, {"name": "eth0", "sandbox": "/n"}],
                "ips": [
                    {"address": "10.0.0.1/24", "interface": 0},
                    {"address": "10.0.0.2/24", "interface": 1},
                    {"address": "fd00::2/64", "interface": 1},
                    {"address": "10.0.0.2/24"},
                ],
            })),
            ["10.0.0.2", "fd00::2"]
        );
        assert_eq!(
            found(json!({"ips": [{"version": "4", "address": "10.0.0.2/24"}]})),
            ["10.0.0.2"]
        );
        assert_eq!(
            found(json!({"ip4": {"ip": "10.0.0.2/24"}, "ip6": {"ip": "fd00::2/64"}})),
            ["10.0.0.2", "fd00::2"]
        );
        assert!(found(json!({"ips": [{"address": "x"}, 7]})).is_empty());
        assert!(found(json!([])).is_empty());
    }
}
