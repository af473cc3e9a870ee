//! Checks where what the file does not say comes from: files of a CA, or a control plane.

use serde_saphyr::Location;

use super::{CaConfig, ConfigFile, ControlPlaneKind, parse::Problem};

/// Where all that the file does not say comes from.
pub(super) fn check(config: &ConfigFile) -> Result<(), Problem> {
    let Some(control) = &config.control_plane else {
        let Some(ca) = &config.ca else {
            let problem = "expected 'ca', or 'controlPlane'";
            return Err(Problem::new(Location::UNKNOWN, "(file)", problem));
        };
        return check_ca(&ca.value).map_err(|problem| Problem::new(ca.referenced, "ca", problem));
    };
    if let Some(ca) = &config.ca {
        let problem = "expected either 'ca' or 'controlPlane', not both";
        return Err(Problem::new(ca.referenced, "ca", problem));
    }
    let lists = [
        ("pods", config.pods.first().map(|p| p.referenced)),
        ("workloads", config.workloads.first().map(|w| w.referenced)),
        ("services", config.services.first().map(|s| s.referenced)),
        (
            "authorizationPolicies",
            config.authorization_policies.first().map(|p| p.referenced),
        ),
        (
            "peerAuthentications",
            config.peer_authentications.first().map(|p| p.referenced),
        ),
    ];
    for (field, first) in lists {
        if let Some(at) = first {
            let problem = "expected none: with a control plane they come from there";
            return Err(Problem::new(at, field, problem));
        }
    }
    for (field, path) in [
        ("roots", &control.value.roots),
        ("token", &control.value.token),
        ("podLogs", &control.value.pod_logs),
    ] {
        if !path.is_absolute() {
            let field = format!("controlPlane.{field}");
            return Err(Problem::new(
                control.referenced,
                field,
                "expected an absolute path",
            ));
        }
    }
    if let (ControlPlaneKind::Istiod, Some(cni)) = (control.value.kind, &config.cni) {
        let problem = "expected none with 'kind: istiod', which tells of a pod only once it runs: it would wait for ever";
        return Err(Problem::new(cni.referenced, "cni", problem));
    }
    Ok(())
}

fn check_ca(ca: &CaConfig) -> Result<(), &'static str> {
    match (&ca.dir, &ca.certificate, &ca.key) {
        (Some(_), None, None) | (None, Some(_), Some(_)) => Ok(()),
        (None, None, None) => Err("expected 'dir', or 'certificate' and 'key'"),
        (Some(_), _, _) => Err("expected either 'dir', or 'certificate' and 'key', not both"),
        _ => Err("expected both 'certificate' and 'key'"),
    }
}
