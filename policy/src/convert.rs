//! From `AuthorizationPolicy`, as people write it, to [`Authorization`].

use crate::{
    Action, Authorization, Caution, Cidr, Clause, Match, PolicyError, Problem, Rule, Scope,
    ServiceAccountMatch, StringMatch, Warning,
    istio::{AuthorizationPolicy, Condition, Operation, PolicyAction, PolicyRule, Source},
};

/// What a policy's principal may begin with, as an identity's URI does.
const SCHEME: &str = "spiffe://";
/// Keys of conditions that Istio knows and L4 cannot decide: whole, or the beginning of those that end with a dot.
const L7_KEYS: [&str; 4] = ["request.", "remote.ip", "connection.sni", "experimental."];

// === impl AuthorizationPolicy ===

impl AuthorizationPolicy {
    /// The policy in its internal form, and what of it may not do what was meant.
    ///
    /// # Errors
    /// When a field is wrong; the first that is.
    pub fn compile(&self, root_namespace: &str) -> Result<(Authorization, Vec<Warning>), PolicyError> {
        named(&self.name, &self.namespace)?;
        let mut conversion = Conversion {
            policy: self,
            action: match self.action {
                PolicyAction::Allow => Action::Allow,
                PolicyAction::Deny => Action::Deny,
            },
            warnings: Vec::new(),
        };
        let rules = self.rules.iter().enumerate();
        let rules = rules
            .map(|(index, rule)| conversion.rule(rule, &format!("rules[{index}]")))
            .collect::<Result<_, _>>()?;
        let authorization = Authorization {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            scope: match &self.selector {
                Some(selector) => Scope::Workload(selector.clone()),
                None if self.namespace == root_namespace => Scope::Mesh,
                None => Scope::Namespace,
            },
            action: conversion.action,
            rules,
            dry_run: self.dry_run,
        };
        Ok((authorization, conversion.warnings))
    }
}

struct Conversion<'a> {
    policy: &'a AuthorizationPolicy,
    action: Action,
    warnings: Vec<Warning>,
}

// === impl Conversion ===

impl Conversion<'_> {
    fn rule(&mut self, rule: &PolicyRule, path: &str) -> Result<Rule, PolicyError> {
        let mut clauses = Vec::with_capacity(2 + rule.when.len());
        let mut add = |matches: Vec<Match>| {
            if !matches.is_empty() {
                clauses.push(Clause { matches });
            }
        };
        let (from, to) = (rule.from.iter().enumerate(), rule.to.iter().enumerate());
        let only = rule.from.len() == 1;
        add(from
            .map(|(i, from)| self.source(&from.source, &format!("{path}.from[{i}].source"), only))
            .collect::<Result<_, _>>()?);
        let only = rule.to.len() == 1;
        add(to
            .map(|(i, to)| self.operation(&to.operation, &format!("{path}.to[{i}].operation"), only))
            .collect::<Result<_, _>>()?);
        for (i, condition) in rule.when.iter().enumerate() {
            add(vec![self.condition(condition, &format!("{path}.when[{i}]"))?]);
        }
        Ok(Rule { clauses })
    }

    fn source(&mut self, source: &Source, path: &str, only: bool) -> Result<Match, PolicyError> {
        if *source == Source::default() {
            return Err(PolicyError::new(path, Problem::NoField));
        }
        let beside = [
            &source.principals,
            &source.not_principals,
            &source.namespaces,
            &source.not_namespaces,
        ];
        for (field, accounts) in [
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
        ] {
            if !accounts.is_empty() && beside.iter().any(|values| !values.is_empty()) {
                return Err(PolicyError::new(
                    format!("{path}.{field}"),
                    Problem::ServiceAccountsBeside,
                ));
            }
        }
        let account = |value: &str| account(value, &self.policy.namespace);
        let result = Match {
            principals: each(&source.principals, path, "principals", principal)?,
            not_principals: each(&source.not_principals, path, "notPrincipals", principal)?,
            namespaces: each(&source.namespaces, path, "namespaces", text)?,
            not_namespaces: each(&source.not_namespaces, path, "notNamespaces", text)?,
            service_accounts: each(&source.service_accounts, path, "serviceAccounts", account)?,
            not_service_accounts: each(&source.not_service_accounts, path, "notServiceAccounts", account)?,
            source_ips: each(&source.ip_blocks, path, "ipBlocks", cidr)?,
            not_source_ips: each(&source.not_ip_blocks, path, "notIpBlocks", cidr)?,
            undecidable: self.l7(
                path,
                only,
                [
                    ("requestPrincipals", &source.request_principals),
                    ("notRequestPrincipals", &source.not_request_principals),
                    ("remoteIpBlocks", &source.remote_ip_blocks),
                    ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
                ],
            ),
            ..Match::default()
        };
        Ok(result)
    }

    fn operation(&mut self, operation: &Operation, path: &str, only: bool) -> Result<Match, PolicyError> {
        if *operation == Operation::default() {
            return Err(PolicyError::new(path, Problem::NoField));
        }
        Ok(Match {
            destination_ports: each(&operation.ports, path, "ports", port)?,
            not_destination_ports: each(&operation.not_ports, path, "notPorts", port)?,
            undecidable: self.l7(
                path,
                only,
                [
                    ("hosts", &operation.hosts),
                    ("notHosts", &operation.not_hosts),
                    ("methods", &operation.methods),
                    ("notMethods", &operation.not_methods),
                    ("paths", &operation.paths),
                    ("notPaths", &operation.not_paths),
                ],
            ),
            ..Match::default()
        })
    }

    fn condition(&mut self, condition: &Condition, path: &str) -> Result<Match, PolicyError> {
        let Condition {
            key,
            values,
            not_values,
        } = condition;
        if values.is_empty() && not_values.is_empty() {
            return Err(PolicyError::new(path, Problem::NoValues));
        }
        let account = |value: &str| account(value, &self.policy.namespace);
        let mut result = Match::default();
        match key.as_str() {
            "source.ip" => {
                result.source_ips = each(values, path, "values", cidr)?;
                result.not_source_ips = each(not_values, path, "notValues", cidr)?;
            }
            "source.namespace" => {
                result.namespaces = each(values, path, "values", text)?;
                result.not_namespaces = each(not_values, path, "notValues", text)?;
            }
            "source.principal" => {
                result.principals = each(values, path, "values", principal)?;
                result.not_principals = each(not_values, path, "notValues", principal)?;
            }
            "source.serviceAccount" => {
                result.service_accounts = each(values, path, "values", account)?;
                result.not_service_accounts = each(not_values, path, "notValues", account)?;
            }
            "destination.ip" => {
                result.destination_ips = each(values, path, "values", cidr)?;
                result.not_destination_ips = each(not_values, path, "notValues", cidr)?;
            }
            "destination.port" => {
                result.destination_ports = each(values, path, "values", port)?;
                result.not_destination_ports = each(not_values, path, "notValues", port)?;
            }
            key if L7_KEYS
                .iter()
                .any(|l7| key == *l7 || (l7.ends_with('.') && key.starts_with(l7))) =>
            {
                result.undecidable = true;
                self.warn(format!("{path}.key"), true);
            }
            key => {
                let key = key.to_owned();
                return Err(PolicyError::new(format!("{path}.key"), Problem::Key { key }));
            }
        }
        Ok(result)
    }

    /// Whether there is a condition of L7; warns of each.
    fn l7<const N: usize>(&mut self, path: &str, only: bool, fields: [(&str, &Vec<String>); N]) -> bool {
        let mut found = false;
        for (field, values) in fields {
            if !values.is_empty() {
                found = true;
                self.warn(format!("{path}.{field}"), only);
            }
        }
        found
    }

    fn warn(&mut self, field: String, whole_rule: bool) {
        self.warnings.push(Warning {
            policy: format!("{}/{}", self.policy.namespace, self.policy.name),
            field,
            caution: Caution::Undecidable {
                action: self.action,
                whole_rule,
            },
        });
    }
}

/// Refuses a policy without name or namespace.
pub(crate) fn named(name: &str, namespace: &str) -> Result<(), PolicyError> {
    for (field, value) in [("name", name), ("namespace", namespace)] {
        if value.is_empty() {
            return Err(PolicyError::new(field, Problem::NoName));
        }
    }
    Ok(())
}

fn each<T>(
    values: &[String],
    path: &str,
    field: &str,
    read: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Vec<T>, PolicyError> {
    let read = |(i, value): (usize, &String)| {
        read(value).map_err(|problem| PolicyError::new(format!("{path}.{field}[{i}]"), problem))
    };
    values.iter().enumerate().map(read).collect()
}

fn text(value: &str) -> Result<StringMatch, Problem> {
    let (parsed, rest) = if value.is_empty() {
        return Err(Problem::EmptyValue);
    } else if value == "*" {
        return Ok(StringMatch::Presence);
    } else if let Some(rest) = value.strip_suffix('*') {
        (StringMatch::Prefix(rest.to_owned()), rest)
    } else if let Some(rest) = value.strip_prefix('*') {
        (StringMatch::Suffix(rest.to_owned()), rest)
    } else {
        (StringMatch::Exact(value.to_owned()), value)
    };
    if rest.contains('*') {
        let value = value.to_owned();
        return Err(Problem::Wildcard { value });
    }
    Ok(parsed)
}

fn principal(value: &str) -> Result<StringMatch, Problem> {
    text(value.strip_prefix(SCHEME).unwrap_or(value))
}

fn account(value: &str, own_namespace: &str) -> Result<ServiceAccountMatch, Problem> {
    let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
    if value.is_empty() {
        return Err(Problem::EmptyValue);
    }
    if namespace.is_empty() || account.is_empty() || account.contains('/') || value.contains('*') {
        let value = value.to_owned();
        return Err(Problem::ServiceAccount { value });
    }
    Ok(ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
    })
}

fn cidr(value: &str) -> Result<Cidr, Problem> {
    Ok(value.parse()?)
}

/// A port in digits alone: `u16::from_str` takes a sign too.
pub(crate) fn port(value: &str) -> Result<u16, Problem> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match value.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(Problem::Port {
            value: value.to_owned(),
        }),
    }
}
