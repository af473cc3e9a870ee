//! Policies as people write them: Istio's `AuthorizationPolicy` and `PeerAuthentication`, their specs flattened.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

pub use crate::authorization::Selector;

/// Who may connect to workloads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    /// Its name, unique in its namespace.
    pub name: String,
    /// Its Kubernetes namespace. In the root namespace it concerns all namespaces.
    pub namespace: String,
    /// Only report what it would do.
    #[serde(default)]
    pub dry_run: bool,
    /// The workloads that it concerns; all of its namespace if absent.
    #[serde(default)]
    pub selector: Option<Selector>,
    /// What a match means.
    #[serde(default)]
    pub action: PolicyAction,
    /// One of these must match. Without any, ALLOW denies everything and DENY nothing; an empty one matches everything.
    #[serde(default)]
    pub rules: Vec<PolicyRule>,
}

/// What it means that a rule matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// Allowed, if no DENY policy matches. What no ALLOW policy matches is denied, if any concerns the workload.
    #[default]
    Allow,
    /// Denied.
    Deny,
}

/// Matches when one of `from`, one of `to` and each of `when` does; an absent list counts as matching.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicyRule {
    /// Sources.
    pub from: Vec<From>,
    /// Operations.
    pub to: Vec<To>,
    /// Further conditions.
    pub when: Vec<Condition>,
}

/// A source of connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct From {
    /// All of its fields must match.
    pub source: Source,
}

/// What a connection is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct To {
    /// All of its fields must match.
    pub operation: Operation,
}

/// A source. In texts `*` is any, `a*` what begins with a, `*a` what ends with a; all else is exact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Source {
    /// Identities: `<trust domain>/ns/<namespace>/sa/<account>`.
    pub principals: Vec<String>,
    /// Identities that do not match.
    pub not_principals: Vec<String>,
    /// L7: the subjects of tokens. Not seen here; see `rules` of a DENY policy.
    pub request_principals: Vec<String>,
    /// L7: the subjects of tokens that do not match.
    pub not_request_principals: Vec<String>,
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// Namespaces that do not match.
    pub not_namespaces: Vec<String>,
    /// Service accounts: `<namespace>/<account>`, or `<account>` in the policy's namespace. Exact; not beside principals or namespaces.
    pub service_accounts: Vec<String>,
    /// Service accounts that do not match.
    pub not_service_accounts: Vec<String>,
    /// Addresses, or blocks of them: `10.0.0.1`, `10.0.0.0/8`, `fd00::/8`.
    pub ip_blocks: Vec<String>,
    /// Addresses that do not match.
    pub not_ip_blocks: Vec<String>,
    /// L7: addresses from X-Forwarded-For.
    pub remote_ip_blocks: Vec<String>,
    /// L7: addresses from X-Forwarded-For that do not match.
    pub not_remote_ip_blocks: Vec<String>,
}

/// What a connection is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Operation {
    /// L7: host names.
    pub hosts: Vec<String>,
    /// L7: host names that do not match.
    pub not_hosts: Vec<String>,
    /// Ports of the workload, as `"8080"`.
    pub ports: Vec<String>,
    /// Ports that do not match.
    pub not_ports: Vec<String>,
    /// L7: HTTP methods.
    pub methods: Vec<String>,
    /// L7: HTTP methods that do not match.
    pub not_methods: Vec<String>,
    /// L7: paths.
    pub paths: Vec<String>,
    /// L7: paths that do not match.
    pub not_paths: Vec<String>,
}

/// A further condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// `source.ip`, `source.namespace`, `source.principal`, `source.serviceAccount`, `destination.ip` or `destination.port`.
    pub key: String,
    /// One of these must match.
    #[serde(default)]
    pub values: Vec<String>,
    /// None of these may match.
    #[serde(default)]
    pub not_values: Vec<String>,
}

/// Whether workloads accept plaintext: workload over namespace over mesh.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthentication {
    /// Its name, unique in its namespace.
    pub name: String,
    /// Its Kubernetes namespace. In the root namespace it concerns the mesh.
    pub namespace: String,
    /// The workloads of its namespace that it concerns; all if absent or empty.
    #[serde(default)]
    pub selector: Option<Selector>,
    /// The mode; inherited if absent.
    #[serde(default)]
    pub mtls: Option<Mtls>,
    /// Modes of single ports of the workload, 1 to 65535. Needs a selector.
    #[serde(default, deserialize_with = "ports")]
    #[schemars(with = "BTreeMap<String, Mtls>")]
    pub port_level_mtls: BTreeMap<u16, Mtls>,
}

/// Whether plaintext is accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mtls {
    /// The mode.
    pub mode: PeerMode,
}

/// Whether plaintext is accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PeerMode {
    /// That of the next wider scope; PERMISSIVE if none has one.
    #[default]
    Unset,
    /// As PERMISSIVE: mutual TLS is accepted too.
    Disable,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl<'de> Deserialize<'de> for PolicyAction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "ALLOW" => Ok(Self::Allow),
            "DENY" => Ok(Self::Deny),
            other => Err(de::Error::custom(format_args!(
                "expected ALLOW or DENY, the actions that are supported, not '{other}'"
            ))),
        }
    }
}

/// A port as a key: YAML has it as a number, JSON as text.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct PortKey(u16);

impl<'de> Deserialize<'de> for PortKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = PortKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port, 1 to 65535")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortKey, E> {
                match u16::try_from(number) {
                    Ok(port) if port != 0 => Ok(PortKey(port)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(number), &self)),
                }
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortKey, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(number), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortKey, E> {
                let invalid = || E::invalid_value(de::Unexpected::Str(text), &self);
                crate::convert::port(text).map(PortKey).map_err(|_| invalid())
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u16, Mtls>, D::Error> {
    struct Visitor;

    impl<'de> de::Visitor<'de> for Visitor {
        type Value = BTreeMap<u16, Mtls>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of ports to modes")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut ports = BTreeMap::new();
            while let Some((PortKey(port), mtls)) = map.next_entry()? {
                if ports.insert(port, mtls).is_some() {
                    return Err(de::Error::custom(format_args!("expected port {port} once")));
                }
            }
            Ok(ports)
        }
    }

    deserializer.deserialize_map(Visitor)
}
