//! What became of policies, and how long the roots last.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{ResourceExt as _, api::DynamicObject};
use x509_parser::pem::Pem;

use super::finding::{Finding, count};

/// The ConfigMap of the roots, which weir-control writes, and its key.
pub(crate) const ROOTS: &str = "weir-ca-roots";
const ROOTS_KEY: &str = "roots.pem";
/// Rotating a root takes three steps of a day each; who has a month has time to do it right.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Policies that are not in force as they stand.
pub(crate) fn policies(policies: &[DynamicObject]) -> Vec<Finding> {
    const ABOUT: &str = "Policies";
    let mut findings = Vec::new();
    for policy in policies {
        let conditions = policy.data["status"]["conditions"].as_array();
        let refused = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "Accepted" && condition["status"] == "False");
        if let Some(condition) = refused {
            let kind = policy.types.as_ref().map_or("policy", |types| &types.kind);
            findings.push(Finding::fail(
                ABOUT,
                format!(
                    "{kind} {}/{} is not accepted: {}",
                    policy.namespace().unwrap_or_default(),
                    policy.name_any(),
                    condition["message"].as_str().unwrap_or("no reason is given")
                ),
                "what it concerns is denied until it is put right: docs/policy.md",
            ));
        }
    }
    if findings.is_empty() && !policies.is_empty() {
        let what = format!("{} looked at, none refused", count(policies.len(), "object"));
        findings.push(Finding::ok(ABOUT, what));
    }
    findings
}

/// The roots that agents know the control plane by.
pub(crate) fn roots(map: Option<&ConfigMap>, now: Timestamp) -> Vec<Finding> {
    const ABOUT: &str = "Roots";
    let pem = map.and_then(|map| map.data.as_ref()?.get(ROOTS_KEY));
    let Some(pem) = pem.filter(|pem| !pem.trim().is_empty()) else {
        return vec![Finding::fail(
            ABOUT,
            format!("the ConfigMap {ROOTS} has no {ROOTS_KEY}: agents cannot know the control plane"),
            "weir-control writes it: see its log",
        )];
    };
    let mut findings = Vec::new();
    let mut last = None;
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let parsed = block.as_ref().ok().and_then(|block| block.parse_x509().ok());
        let Some(certificate) = parsed else {
            let what = format!("the ConfigMap {ROOTS} has something that is no certificate");
            findings.push(Finding::fail(
                ABOUT,
                what,
                "weir-control writes it anew within five minutes: see its log",
            ));
            break;
        };
        let subject = certificate.subject().to_string();
        let Ok(end) = Timestamp::from_second(certificate.validity().not_after.timestamp()) else {
            continue;
        };
        last = last.max(Some(end));
        let todo = "rotate the root: docs/control-plane.md";
        if end <= now {
            findings.push(Finding::fail(
                ABOUT,
                format!("{subject} has expired at {end:.0}"),
                todo,
            ));
        } else if end.duration_since(now) < SOON {
            findings.push(Finding::warn(
                ABOUT,
                format!("{subject} expires at {end:.0}"),
                todo,
            ));
        }
    }
    match last {
        Some(last) if findings.is_empty() => {
            findings.push(Finding::ok(ABOUT, format!("valid until {last:.0}")));
        }
        None if findings.is_empty() => findings.push(Finding::fail(
            ABOUT,
            format!("the ConfigMap {ROOTS} has no certificate"),
            "weir-control writes it: see its log",
        )),
        _ => {}
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

    fn policy(status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "api", "namespace": "shop"}, "spec": {}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_policy_that_is_not_accepted_is_named_with_the_reason() {
        let condition = |status: &str| json!({"conditions": [{"type": "Accepted", "status": status, "message": "no rule"}]});
        let refused = policy(condition("False"));
        let fine = [policy(condition("True")), policy(Value::Null)];
        let words = "AuthorizationPolicy shop/api is not accepted: no rule";
        assert_found(&policies(&[refused, fine[0].clone()]), &[(Level::Fail, words)]);
        assert_found(&policies(&fine), &[(Level::Ok, "2 objects")]);
        assert!(policies(&[]).is_empty());
    }

    #[test]
    fn roots_that_end_are_told_in_time() {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let map = |text: &str| -> ConfigMap {
            serde_json::from_value(json!({"data": {"roots.pem": text}})).unwrap()
        };
        for (now, text, expected) in [
            (
                "2029-01-01T00:00:00Z",
                pem.as_str(),
                (Level::Ok, "valid until 2030-01-01"),
            ),
            (
                "2029-12-20T00:00:00Z",
                &pem,
                (Level::Warn, "expires at 2030-01-01"),
            ),
            ("2030-01-02T00:00:00Z", &pem, (Level::Fail, "has expired")),
            ("2029-01-01T00:00:00Z", "", (Level::Fail, "has no roots.pem")),
            ("2029-01-01T00:00:00Z", "x", (Level::Fail, "has no certificate")),
        ] {
            assert_found(&roots(Some(&map(text)), now.parse().unwrap()), &[expected]);
        }
        assert_found(
            &roots(None, Timestamp::UNIX_EPOCH),
            &[(Level::Fail, "no roots.pem")],
        );
    }
}
