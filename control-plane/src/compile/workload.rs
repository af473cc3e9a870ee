//! A pod as agents know it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use prost::Message as _;
use weir_proto::{
    Any, address_bytes,
    istio::workload::{
        Address, Extension, Locality, NetworkMode, PortList, TunnelProtocol, Workload, WorkloadType,
        address::Type,
    },
    weir::node::v1 as node,
};

use weir_types::TrustDomain;

use crate::cluster::{Node, ObjectName, Pod, Switch};

/// The trust domain that Istio has unless told otherwise.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Labels that name the application that a pod belongs to, the first that is there.
const APPLICATION: [&str; 4] = [
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
];
/// Labels that name its version.
const REVISION: [&str; 3] = [
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
];

/// The extension by which agents know labels and kind.
const ABOUT: &str = "about";

/// What a workload's message is made of besides the pod.
pub(super) struct Surroundings<'a> {
    pub(super) cluster: &'a str,
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) name: &'a ObjectName,
    pub(super) pod: &'a Pod,
    pub(super) node: Option<&'a Node>,
    pub(super) switch: Switch,
    /// Those of the pod's addresses that it has.
    pub(super) addresses: &'a [IpAddr],
    pub(super) services: BTreeMap<String, PortList>,
    /// Names of policies.
    pub(super) policies: Vec<Arc<str>>,
}

/// The name under which agents know a pod: as istiod has it, so that names of both mean the same.
pub(super) fn workload_uid(cluster: &str, name: &ObjectName) -> String {
    format!("{cluster}//Pod/{}/{}", name.namespace, name.name)
}

// === impl Surroundings ===

impl Surroundings<'_> {
    pub(super) fn message(&self) -> Address {
        let pod = self.pod;
        let owner = pod.owner.as_ref();
        let own_name = self.name.name.to_string();
        let workload_name = owner.map_or_else(|| own_name.clone(), |owner| owner.name.to_string());
        let label = |keys: &[&str]| keys.iter().find_map(|key| pod.labels.get(*key)).cloned();
        let workload = Workload {
            name: own_name,
            namespace: self.name.namespace.to_string(),
            addresses: self.addresses.iter().copied().map(address_bytes).collect(),
            tunnel_protocol: self.tunnel().into(),
            // Left out it is Istio's default to a ztunnel, and the mesh's to an agent.
            trust_domain: match self.trust_domain.as_str() {
                DEFAULT_TRUST_DOMAIN => String::new(),
                own => own.to_owned(),
            },
            service_account: pod.service_account.to_string(),
            node: pod.node.to_string(),
            canonical_name: label(&APPLICATION).unwrap_or_else(|| workload_name.clone()),
            canonical_revision: label(&REVISION).unwrap_or_else(|| "latest".to_owned()),
            workload_type: match owner.map(|owner| &*owner.kind) {
                Some("Job") => WorkloadType::Job,
                Some("CronJob") => WorkloadType::Cronjob,
                Some(_) => WorkloadType::Deployment,
                None => WorkloadType::Pod,
            }
            .into(),
            workload_name,
            authorization_policies: self.policies.iter().map(ToString::to_string).collect(),
            cluster_id: self.cluster.to_owned(),
            uid: workload_uid(self.cluster, self.name),
            services: self.services.clone(),
            locality: self
                .node
                .filter(|node| !(node.region.is_empty() && node.zone.is_empty()))
                .map(|node| Locality {
                    region: node.region.to_string(),
                    zone: node.zone.to_string(),
                    subzone: String::new(),
                }),
            network_mode: if pod.host_network {
                NetworkMode::HostNetwork
            } else {
                NetworkMode::Standard
            }
            .into(),
            extensions: vec![Extension {
                name: ABOUT.to_owned(),
                config: Some(self.about()),
            }],
            ..Workload::default()
        };
        Address {
            r#type: Some(Type::Workload(workload)),
        }
    }

    /// What people know it by, and Istio's message has no field for.
    fn about(&self) -> Any {
        let about = node::About {
            labels: self.pod.labels.clone(),
            workload_kind: self
                .pod
                .owner
                .as_ref()
                .map_or("Pod", |owner| &*owner.kind)
                .to_owned(),
        };
        Any {
            type_url: "type.googleapis.com/weir.node.v1.About".to_owned(),
            value: about.encode_to_vec().into(),
        }
    }

    /// HBONE once the pod's agent has said that it takes it: until then a tunnel would find nobody.
    fn tunnel(&self) -> TunnelProtocol {
        if self.is_managed() == Some(node::Mode::Enabled) && self.pod.enrolled {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        }
    }

    /// What the agent of the pod's node is to do with it.
    fn is_managed(&self) -> Option<node::Mode> {
        match self.switch {
            _ if self.pod.unfit.is_some() => None,
            Switch::Enabled => Some(node::Mode::Enabled),
            Switch::Observe => Some(node::Mode::Observe),
            Switch::Disabled => None,
        }
    }

    /// What the agent of its node is told of the pod; nothing if it is not to be enrolled.
    pub(super) fn node_message(&self) -> Option<node::Pod> {
        let mode = self.is_managed()?;
        Some(node::Pod {
            uid: self.pod.uid.to_string(),
            workload: workload_uid(self.cluster, self.name),
            namespace: self.name.namespace.to_string(),
            name: self.name.name.to_string(),
            service_account: self.pod.service_account.to_string(),
            mode: mode.into(),
            addresses: self.addresses.iter().copied().map(address_bytes).collect(),
            probe_ports: self.pod.probe_ports.iter().copied().map(u32::from).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_and_other_node_proxies_need_to_know_of_a_workload_is_told() {
        let pod = Pod {
            uid: "1".into(),
            created: 0,
            node: "n1".into(),
            service_account: "web".into(),
            addresses: Vec::new(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            switch: None,
            host_network: false,
            unfit: None,
            enrolled: false,
            probe_ports: Vec::new(),
            owner: None,
        };
        for (domain, told) in [("cluster.local", ""), ("example.org", "example.org")] {
            let name = ObjectName::new("shop", "web-0");
            let surroundings = Surroundings {
                cluster: "Kubernetes",
                trust_domain: &domain.parse().unwrap(),
                name: &name,
                pod: &pod,
                node: None,
                switch: Switch::Disabled,
                addresses: &[],
                services: BTreeMap::new(),
                policies: Vec::new(),
            };
            let Some(Type::Workload(workload)) = surroundings.message().r#type else {
                panic!("a workload");
            };
            assert_eq!(workload.trust_domain, told);
            let extension = &workload.extensions[0];
            assert_eq!(extension.name, "about");
            let about = node::About::decode(extension.config.clone().unwrap().value).unwrap();
            assert_eq!(
                (about.labels["app"].as_str(), about.workload_kind.as_str()),
                ("web", "Pod")
            );
        }
    }
}
