//! Objects of one namespace that claim what is another's: nobody who did not ask for them is led there.

use std::net::Ipv4Addr;

use k8s_openapi::api::{
    core::v1::{Pod as KubePod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use weir_e2e::{
    cluster::{Cluster, Member},
    direct::at,
    run, serve,
};
use weir_lab::{PATIENCE, Pod, poll};

/// The victim's service.
const SHOP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The attacker's.
const EVIL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 66);

/// A client and a server of one namespace, and a pod of another one, on the client's node.
struct Stage {
    cluster: Cluster,
    client: Member,
    server: Member,
    evil: Member,
    _servers: Vec<weir_lab::Process>,
}

impl Stage {
    fn new(name: &str) -> Self {
        let mut cluster = Cluster::new(name);
        cluster.namespace("evil", Some("enabled"));
        let client = cluster.pod("node1", "shop", "a");
        let server = cluster.pod("node2", "shop", "c");
        let evil = cluster.pod("node1", "evil", "mallory");
        cluster.service("shop", "api", SHOP, (80, 7000), &[&server]);
        cluster.wait_enrolled(&[&client, &server, &evil]);
        let named = |pod: &Member, name: &str| {
            serve(
                pod,
                ["name-server", "--name", name, "--port", "7000", "--dual-stack"],
            )
            .0
        };
        let _servers = vec![named(&server, "victim"), named(&evil, "mallory")];
        let stage = Self {
            cluster,
            client,
            server,
            evil,
            _servers,
        };
        stage.answers(&at(SHOP, 80), "victim");
        stage
    }

    /// Waits until what answers at an address is this.
    fn answers(&self, to: &str, wanted: &str) {
        poll("the answer", PATIENCE, || {
            Ok((who(&self.client, to) == wanted).then_some(()))
        })
        .unwrap();
    }

    /// Sees for a while that what answers at the victim's addresses is the victim.
    fn unchanged(&self) {
        for _ in 0..20 {
            for to in [at(SHOP, 80), at(self.server.v4(), 7000)] {
                assert_eq!(who(&self.client, &to), "victim", "at {to}");
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// Who answers at an address; nothing if nobody does.
fn who(pod: &Pod, to: &str) -> String {
    let line = run(pod, ["connect", to, "--read-all", "--timeout-ms", "3000"])
        .json()
        .unwrap();
    line["text"].as_str().unwrap_or_default().trim_end().to_owned()
}

fn slice(namespace: &str, service: &str, name: &str, address: &Value, target: Value) -> Value {
    json!({
        "metadata": { "name": name, "namespace": namespace, "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "name": "tcp", "port": 7000, "protocol": "TCP" }],
        "endpoints": [{
            "addresses": [address], "conditions": { "ready": true, "serving": true }, "targetRef": target,
        }],
    })
}

#[test]
fn external_addresses_of_a_service_lead_nobody_there() {
    let stage = Stage::new("external");
    let (cluster, evil) = (&stage.cluster, &stage.evil);
    cluster.service("evil", "trap", EVIL, (7000, 7000), &[evil]);
    stage.answers(&at(EVIL, 7000), "mallory");
    // What is the victim's, by each of the fields that a user may write.
    for (name, fields) in [
        ("outer", json!({ "externalIPs": [stage.server.v4(), SHOP] })),
        (
            "balancer",
            json!({ "type": "LoadBalancer", "loadBalancerIP": stage.server.v4() }),
        ),
    ] {
        let mut spec = json!({
            "ports": [{ "name": "tcp", "port": 7000, "targetPort": 7000 }, { "name": "http", "port": 80, "targetPort": 7000 }],
        });
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        cluster.create::<Service>(
            Some("evil"),
            json!({ "metadata": { "name": name }, "spec": spec }),
        );
        let target = json!({ "kind": "Pod", "namespace": "evil", "name": "mallory", "uid": evil.uid });
        let own = slice("evil", name, &format!("{name}-1"), &json!(evil.v4()), target);
        cluster.create::<EndpointSlice>(Some("evil"), own);
    }
    stage.unchanged();
}

#[test]
fn an_endpoint_slice_of_another_namespace_leads_nobody_to_or_from_the_victim() {
    let stage = Stage::new("slices");
    let (cluster, evil, server) = (&stage.cluster, &stage.evil, &stage.server);
    cluster.service("evil", "trap", EVIL, (80, 7000), &[]);
    // One that bears the name of the victim's service: it is of another namespace.
    let own = json!({ "kind": "Pod", "namespace": "evil", "name": "mallory", "uid": evil.uid });
    let posing = slice("evil", "api", "posing", &json!(evil.v4()), own);
    cluster.create::<EndpointSlice>(Some("evil"), posing);
    // And one that offers the victim's pod as the attacker's, with each way to name it.
    for (index, target) in [
        Value::Null,
        json!({ "kind": "Pod", "namespace": "shop", "name": "c", "uid": server.uid }),
        json!({ "kind": "Pod", "namespace": "evil", "name": "mallory", "uid": evil.uid }),
    ]
    .into_iter()
    .enumerate()
    {
        let foreign = slice(
            "evil",
            "trap",
            &format!("foreign-{index}"),
            &json!(server.v4()),
            target,
        );
        cluster.create::<EndpointSlice>(Some("evil"), foreign);
    }
    stage.unchanged();
    let to = at(EVIL, 80);
    for _ in 0..5 {
        // Its own pod, perhaps, which one of the slices names.
        assert_ne!(
            who(&stage.client, &to),
            "victim",
            "the attacker's service leads to the victim's pod"
        );
    }
}

#[test]
fn a_pod_that_claims_anothers_address_is_told_so_and_gets_nothing_else() {
    let stage = Stage::new("double");
    let (cluster, server) = (&stage.cluster, &stage.server);
    // Pods are older by whole seconds: that is how finely Kubernetes tells when they were made.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    cluster.idle_pod("node2", "evil", "double");
    cluster.idle_pod("node1", "evil", "far");
    // One on the victim's node, in whose range the address is, and one elsewhere; and a service's address.
    let claims = [
        ("double", json!(server.v4()), "the older pod shop/c has it"),
        ("far", json!(SHOP), ""),
    ];
    for (name, address, _) in &claims {
        let status = json!({ "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        let name = (*name).to_owned();
        cluster.block(async move |client| {
            let pods: Api<KubePod> = Api::namespaced(client, "evil");
            pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
                .await
        });
    }
    for (name, _, note) in claims {
        cluster.wait(async |client| {
            let events: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(client, "evil");
            let all = events.list(&ListParams::default()).await.unwrap().items;
            let mut about = all.into_iter().filter(|event| {
                event.reason.as_deref() == Some("AddressRefused")
                    && event.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(name)
            });
            about.find(|event| event.note.as_deref().unwrap_or_default().contains(note))
        });
        // And says so itself, beside what the kubelet says.
        cluster.wait(async |client| {
            let pods: Api<KubePod> = Api::namespaced(client, "evil");
            let conditions = pods.get(name).await.unwrap().status?.conditions?;
            let condition = |kind: &str| conditions.iter().find(|one| one.type_ == kind);
            let refused = condition("weir.dev/Address").filter(|one| one.status == "False")?;
            assert!(refused.message.as_deref().unwrap_or_default().contains(note));
            condition("Ready").filter(|one| one.status == "True").cloned()
        });
    }
    stage.unchanged();
}
