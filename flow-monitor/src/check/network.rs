//! Networks that decide over connections before Weir does.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{ResourceExt as _, api::DynamicObject};

use super::finding::Finding;

/// Cilium, by its configuration.
pub(crate) fn cilium(config: &ConfigMap) -> Vec<Finding> {
    const ABOUT: &str = "Cilium";
    let value = |key: &str| -> &str {
        let data = config.data.as_ref();
        data.and_then(|data| data.get(key)).map_or("", String::as_str)
    };
    let mut findings = Vec::new();
    // Without kube-proxy it translates services in `connect` too, unless told not to.
    let replaces = matches!(value("kube-proxy-replacement"), "true" | "strict");
    let in_sockets = value("bpf-lb-sock") == "true" || (replaces && value("bpf-lb-sock") != "false");
    if in_sockets && value("bpf-lb-sock-hostns-only") != "true" {
        findings.push(Finding::fail(
            ABOUT,
            "its socket load balancer picks a backend inside of pods, where Weir then does not see which service was \
             asked for",
            "Helm: socketLB.hostNamespaceOnly=true (cilium-config: bpf-lb-sock-hostns-only), then restart its agents",
        ));
    }
    if value("cni-exclusive") == "true" {
        findings.push(Finding::fail(
            ABOUT,
            "it removes other CNI configuration, and with it Weir's plugin",
            "Helm: cni.exclusive=false (cilium-config: cni-exclusive), then restart its agents",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(ABOUT, "set up so that Weir works beside it"));
    }
    findings
}

/// Calico's eBPF data plane.
pub(crate) fn calico(configurations: &[DynamicObject]) -> Vec<Finding> {
    const ABOUT: &str = "Calico";
    let mut findings = Vec::new();
    for configuration in configurations {
        let spec = &configuration.data["spec"];
        let balances = match spec["bpfConnectTimeLoadBalancing"].as_str() {
            Some(mode) => mode != "Disabled",
            // What it was called before 3.27. The default is TCP.
            None => spec["bpfConnectTimeLoadBalancingEnabled"] != false,
        };
        if spec["bpfEnabled"] == true && balances {
            let name = configuration.name_any();
            findings.push(Finding::fail(
                ABOUT,
                format!(
                    "FelixConfiguration {name}: its eBPF data plane picks backends in connect, where Weir then does not \
                     see which service was asked for"
                ),
                "set bpfConnectTimeLoadBalancing: Disabled and bpfHostNetworkedNATWithoutCTLB: Enabled there",
            ));
        }
    }
    if findings.is_empty() && !configurations.is_empty() {
        findings.push(Finding::ok(ABOUT, "set up so that Weir works beside it"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    #[test]
    fn ciliums_socket_load_balancer_must_stay_out_of_pods() {
        let exclusive = (Level::Fail, "cni.exclusive=false");
        let sockets = (Level::Fail, "socketLB.hostNamespaceOnly=true");
        let ok = (Level::Ok, "beside it");
        let table: [(Value, &[(Level, &str)]); 8] = [
            (
                json!({"kube-proxy-replacement": "false", "bpf-lb-sock": "false", "cni-exclusive": "false"}),
                &[ok],
            ),
            (json!({"kube-proxy-replacement": "true"}), &[sockets]),
            (
                json!({"kube-proxy-replacement": "true", "bpf-lb-sock": "false"}),
                &[ok],
            ),
            (
                json!({"kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true"}),
                &[ok],
            ),
            (
                json!({"bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "false"}),
                &[sockets],
            ),
            (json!({"cni-exclusive": "true"}), &[exclusive]),
            (
                json!({"bpf-lb-sock": "true", "cni-exclusive": "true"}),
                &[sockets, exclusive],
            ),
            (json!({}), &[ok]),
        ];
        for (data, expected) in table {
            let config: ConfigMap = serde_json::from_value(json!({ "data": data })).unwrap();
            assert_found(&cilium(&config), expected);
        }
    }

    #[test]
    fn calicos_load_balancing_in_connect_must_be_off() {
        let wrong: &[(Level, &str)] = &[(Level::Fail, "bpfConnectTimeLoadBalancing: Disabled")];
        let ok: &[(Level, &str)] = &[(Level::Ok, "")];
        for (spec, expected) in [
            (json!({}), ok),
            (json!({"bpfEnabled": true}), wrong),
            (
                json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "TCP"}),
                wrong,
            ),
            (
                json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "Disabled"}),
                ok,
            ),
            (
                json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancingEnabled": false}),
                ok,
            ),
            (
                json!({"bpfEnabled": false, "bpfConnectTimeLoadBalancing": "TCP"}),
                ok,
            ),
        ] {
            let felix: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration",
                "metadata": {"name": "default"}, "spec": spec,
            }))
            .unwrap();
            assert_found(&calico(&[felix]), expected);
        }
        assert!(calico(&[]).is_empty());
    }
}
