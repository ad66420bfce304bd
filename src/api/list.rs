//! The filters of the List requests: every condition that is set must hold; an id may be the beginning of one.

use std::collections::BTreeMap;

use super::Rooms;
use super::to_cri;
use crate::container::Container;
use crate::cri;
use crate::sandbox::Sandbox;

fn labels_hold(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether `filter` takes the sandbox; no filter takes all.
pub fn takes_sandbox(filter: Option<&cri::PodSandboxFilter>, sandbox: &Sandbox) -> bool {
    filter.is_none_or(|filter| {
        sandbox.record.id.as_str().starts_with(&filter.id)
            && filter
                .state
                .is_none_or(|wanted| wanted.state == i32::from(to_cri::sandbox_state(sandbox)))
            && labels_hold(&filter.label_selector, &sandbox.record.config.labels)
    })
}

/// Whether `filter` takes the container; no filter takes all.
pub fn takes_container(filter: Option<&cri::ContainerFilter>, container: &Container) -> bool {
    filter.is_none_or(|filter| {
        let record = &container.record;
        record.id.as_str().starts_with(&filter.id)
            && record.sandbox_id.as_str().starts_with(&filter.pod_sandbox_id)
            && filter
                .state
                .is_none_or(|wanted| wanted.state == i32::from(to_cri::container_state(&container.state())))
            && labels_hold(&filter.label_selector, &record.config.labels)
    })
}

/// The sandboxes that `filter` takes, oldest first.
pub fn sandboxes(rooms: &Rooms, filter: Option<&cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
    rooms
        .sandboxes
        .list(|sandbox| takes_sandbox(filter, sandbox))
        .iter()
        .map(|s| to_cri::sandbox(s))
        .collect()
}

/// The containers that `filter` takes, oldest first.
pub fn containers(rooms: &Rooms, filter: Option<&cri::ContainerFilter>) -> Vec<cri::Container> {
    rooms
        .containers
        .list(|container| takes_container(filter, container))
        .iter()
        .map(|c| to_cri::container(c))
        .collect()
}

/// The answer to ListPodSandbox.
pub fn sandboxes_answer(rooms: &Rooms, filter: Option<&cri::PodSandboxFilter>) -> cri::ListPodSandboxResponse {
    let mut answer = cri::ListPodSandboxResponse::default();
    for sandbox in rooms.sandboxes.list(|sandbox| takes_sandbox(filter, sandbox)) {
        let fixed = sandbox.listing(|sandbox| cri::ListPodSandboxResponse::fixed(to_cri::sandbox(sandbox)));
        answer.push(fixed, to_cri::sandbox_state(&sandbox).into());
    }
    answer
}

/// The answer to ListContainers.
pub fn containers_answer(rooms: &Rooms, filter: Option<&cri::ContainerFilter>) -> cri::ListContainersResponse {
    let mut answer = cri::ListContainersResponse::default();
    for container in rooms.containers.list(|container| takes_container(filter, container)) {
        let fixed = container.listing(|container| cri::ListContainersResponse::fixed(to_cri::container(container)));
        answer.push(fixed, to_cri::container_state(&container.state()).into());
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::labels_hold;
    use std::collections::BTreeMap;

    #[test]
    fn every_label_of_a_selector_must_hold() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        };
        let labels = map(&[("a", "1"), ("b", "2")]);
        assert!(labels_hold(&map(&[]), &labels));
        assert!(labels_hold(&map(&[("a", "1"), ("b", "2")]), &labels));
        assert!(!labels_hold(&map(&[("a", "1"), ("b", "3")]), &labels));
        assert!(!labels_hold(&map(&[("c", "")]), &labels));
    }
}
