//! The versions of the remote command protocol, and their negotiation.

/// A version of the protocol of exec and attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V1,
    V2,
    /// With sizes of the terminal.
    V3,
    /// With the exit code in a metav1.Status.
    V4,
    /// With the end of single streams over WebSocket.
    V5,
}

/// The protocols over SPDY, by their names in X-Stream-Protocol-Version.
pub const SPDY_COMMAND: [(&str, Version); 4] = [
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];

/// The protocols over WebSocket, by their names in Sec-WebSocket-Protocol, and whether data is in base64.
pub const WEBSOCKET_COMMAND: [(&str, (Version, bool)); 5] = [
    ("v5.channel.k8s.io", (Version::V5, false)),
    ("v4.channel.k8s.io", (Version::V4, false)),
    ("v4.base64.channel.k8s.io", (Version::V4, true)),
    ("channel.k8s.io", (Version::V1, false)),
    ("base64.channel.k8s.io", (Version::V1, true)),
];

/// Port-forward over SPDY.
pub const SPDY_PORT_FORWARD: [(&str, ()); 1] = [("portforward.k8s.io", ())];

/// How port-forward goes over WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// SPDY in binary messages.
    Tunnel,
    /// Two channels for each port of the request.
    Channels { base64: bool },
}

/// Port-forward over WebSocket.
pub const WEBSOCKET_PORT_FORWARD: [(&str, Forwarding); 6] = [
    ("SPDY/3.1+portforward.k8s.io", Forwarding::Tunnel),
    ("v4.channel.k8s.io", Forwarding::Channels { base64: false }),
    ("v4.base64.channel.k8s.io", Forwarding::Channels { base64: true }),
    ("portforward.k8s.io", Forwarding::Channels { base64: false }),
    ("channel.k8s.io", Forwarding::Channels { base64: false }),
    ("base64.channel.k8s.io", Forwarding::Channels { base64: true }),
];

/// The client's first choice that is served. `offered` are a header's values, each perhaps a list with commas.
pub fn choose<'a, T: Copy>(
    offered: impl IntoIterator<Item = &'a str>,
    served: &[(&'static str, T)],
) -> Option<(&'static str, T)> {
    let names = offered.into_iter().flat_map(|value| value.split(',')).map(str::trim);
    names
        .filter_map(|name| served.iter().find(|(known, _)| *known == name))
        .copied()
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_s_first_choice_wins() {
        let spdy = |offered: &[&str]| choose(offered.iter().copied(), &SPDY_COMMAND).map(|(_, version)| version);
        assert_eq!(
            spdy(&["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"]),
            Some(Version::V4)
        );
        assert_eq!(spdy(&["v2.channel.k8s.io, v4.channel.k8s.io"]), Some(Version::V2));
        assert_eq!(spdy(&["v9.channel.k8s.io"]), None);
        assert_eq!(spdy(&[]), None);
    }
}
