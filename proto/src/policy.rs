//! Policies on the wire, from and to the form that is evaluated.

use std::net::IpAddr;

use weir_policy as policy;

use crate::istio::security::{
    Action, Address, Authorization, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};

/// Why a policy cannot be understood. It must then deny: what it would have denied is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizationError {
    /// It has no name or no namespace.
    #[error("the policy has no name or no namespace")]
    NoName,
    /// A scope or an action of a later version.
    #[error("{field} is {value}, which this version does not know")]
    Unknown {
        /// `scope` or `action`.
        field: &'static str,
        /// Its number.
        value: i32,
    },
    /// A comparison of a later version.
    #[error("a text is compared in a way that this version does not know")]
    Comparison,
    /// A block of addresses that is none.
    #[error("a block of addresses has {bytes} bytes and a length of {length} bits")]
    Block {
        /// Bytes of its address.
        bytes: usize,
        /// Its length.
        length: u32,
    },
    /// A port over 65535, or 0.
    #[error("{0} is not a port")]
    Port(u32),
}

// === impl Authorization ===

impl From<&policy::Authorization> for Authorization {
    /// Of a policy in the form of [`policy::Policies::to_wire`]: selectors and what L4 cannot decide are not told.
    fn from(policy: &policy::Authorization) -> Self {
        let scope = match policy.scope {
            policy::Scope::Mesh => Scope::Global,
            policy::Scope::Namespace => Scope::Namespace,
            policy::Scope::Workload(_) | policy::Scope::Listed => Scope::WorkloadSelector,
        };
        let action = match policy.action {
            policy::Action::Allow => Action::Allow,
            policy::Action::Deny => Action::Deny,
        };
        let rule = |rule: &policy::Rule| {
            let clauses = rule.clauses.iter().map(|clause| Clause {
                matches: clause.matches.iter().map(Match::from).collect(),
            });
            Rule {
                clauses: clauses.collect(),
            }
        };
        Self {
            name: policy.name.clone(),
            namespace: policy.namespace.clone(),
            scope: scope.into(),
            action: action.into(),
            rules: policy.rules.iter().map(rule).collect(),
            dry_run: policy.dry_run,
            extensions: Vec::new(),
        }
    }
}

impl TryFrom<&Authorization> for policy::Authorization {
    type Error = AuthorizationError;

    fn try_from(wire: &Authorization) -> Result<Self, AuthorizationError> {
        if wire.name.is_empty() || wire.namespace.is_empty() {
            return Err(AuthorizationError::NoName);
        }
        let action = match Action::try_from(wire.action) {
            Ok(Action::Allow) => policy::Action::Allow,
            Ok(Action::Deny) => policy::Action::Deny,
            Err(_) => {
                return Err(AuthorizationError::Unknown {
                    field: "action",
                    value: wire.action,
                });
            }
        };
        let rule = |rule: &Rule| {
            let clauses = rule.clauses.iter().map(|clause| {
                let matches = clause.matches.iter().map(policy::Match::try_from);
                Ok(policy::Clause {
                    matches: matches.collect::<Result<_, AuthorizationError>>()?,
                })
            });
            Ok(policy::Rule {
                clauses: clauses.collect::<Result<_, AuthorizationError>>()?,
            })
        };
        Ok(Self {
            name: wire.name.clone(),
            namespace: wire.namespace.clone(),
            scope: scope_of(wire)?,
            action,
            rules: wire
                .rules
                .iter()
                .map(rule)
                .collect::<Result<_, AuthorizationError>>()?,
            dry_run: wire.dry_run,
        })
    }
}

/// The workloads that a policy concerns, which can be told also where the rest cannot.
///
/// # Errors
/// When it is one of a later version.
pub fn scope_of(wire: &Authorization) -> Result<policy::Scope, AuthorizationError> {
    match Scope::try_from(wire.scope) {
        Ok(Scope::Global) => Ok(policy::Scope::Mesh),
        Ok(Scope::Namespace) => Ok(policy::Scope::Namespace),
        Ok(Scope::WorkloadSelector) => Ok(policy::Scope::Listed),
        Err(_) => Err(AuthorizationError::Unknown {
            field: "scope",
            value: wire.scope,
        }),
    }
}

// === impl Match ===

impl From<&policy::Match> for Match {
    fn from(one: &policy::Match) -> Self {
        let texts = |texts: &[policy::StringMatch]| texts.iter().map(StringMatch::from).collect();
        let accounts = |accounts: &[policy::ServiceAccountMatch]| {
            let account = |account: &policy::ServiceAccountMatch| ServiceAccountMatch {
                namespace: account.namespace.clone(),
                service_account: account.service_account.clone(),
            };
            accounts.iter().map(account).collect()
        };
        let blocks = |blocks: &[policy::Cidr]| blocks.iter().map(Address::from).collect();
        let ports = |ports: &[u16]| ports.iter().copied().map(u32::from).collect();
        Self {
            namespaces: texts(&one.namespaces),
            not_namespaces: texts(&one.not_namespaces),
            principals: texts(&one.principals),
            not_principals: texts(&one.not_principals),
            source_ips: blocks(&one.source_ips),
            not_source_ips: blocks(&one.not_source_ips),
            destination_ips: blocks(&one.destination_ips),
            not_destination_ips: blocks(&one.not_destination_ips),
            destination_ports: ports(&one.destination_ports),
            not_destination_ports: ports(&one.not_destination_ports),
            service_accounts: accounts(&one.service_accounts),
            not_service_accounts: accounts(&one.not_service_accounts),
            extensions: Vec::new(),
        }
    }
}

impl TryFrom<&Match> for policy::Match {
    type Error = AuthorizationError;

    fn try_from(wire: &Match) -> Result<Self, AuthorizationError> {
        Ok(Self {
            namespaces: each(&wire.namespaces)?,
            not_namespaces: each(&wire.not_namespaces)?,
            principals: each(&wire.principals)?,
            not_principals: each(&wire.not_principals)?,
            service_accounts: accounts(&wire.service_accounts),
            not_service_accounts: accounts(&wire.not_service_accounts),
            source_ips: each(&wire.source_ips)?,
            not_source_ips: each(&wire.not_source_ips)?,
            destination_ips: each(&wire.destination_ips)?,
            not_destination_ips: each(&wire.not_destination_ips)?,
            destination_ports: ports(&wire.destination_ports)?,
            not_destination_ports: ports(&wire.not_destination_ports)?,
            undecidable: false,
        })
    }
}

fn each<'a, W, P>(wire: &'a [W]) -> Result<Vec<P>, AuthorizationError>
where
    P: TryFrom<&'a W, Error = AuthorizationError>,
{
    wire.iter().map(P::try_from).collect()
}

fn accounts(wire: &[ServiceAccountMatch]) -> Vec<policy::ServiceAccountMatch> {
    let account = |account: &ServiceAccountMatch| policy::ServiceAccountMatch {
        namespace: account.namespace.clone(),
        service_account: account.service_account.clone(),
    };
    wire.iter().map(account).collect()
}

fn ports(wire: &[u32]) -> Result<Vec<u16>, AuthorizationError> {
    let port = |port: &u32| match u16::try_from(*port) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(AuthorizationError::Port(*port)),
    };
    wire.iter().map(port).collect()
}

impl From<&policy::StringMatch> for StringMatch {
    fn from(text: &policy::StringMatch) -> Self {
        let kind = match text {
            policy::StringMatch::Exact(text) => MatchType::Exact(text.clone()),
            policy::StringMatch::Prefix(text) => MatchType::Prefix(text.clone()),
            policy::StringMatch::Suffix(text) => MatchType::Suffix(text.clone()),
            policy::StringMatch::Presence => MatchType::Presence(()),
        };
        Self {
            match_type: Some(kind),
        }
    }
}

impl TryFrom<&StringMatch> for policy::StringMatch {
    type Error = AuthorizationError;

    fn try_from(wire: &StringMatch) -> Result<Self, AuthorizationError> {
        match &wire.match_type {
            Some(MatchType::Exact(text)) => Ok(Self::Exact(text.clone())),
            Some(MatchType::Prefix(text)) => Ok(Self::Prefix(text.clone())),
            Some(MatchType::Suffix(text)) => Ok(Self::Suffix(text.clone())),
            Some(MatchType::Presence(())) => Ok(Self::Presence),
            None => Err(AuthorizationError::Comparison),
        }
    }
}

impl From<&policy::Cidr> for Address {
    fn from(block: &policy::Cidr) -> Self {
        Self {
            address: crate::address_bytes(block.network()),
            length: block.prefix_length().into(),
        }
    }
}

impl TryFrom<&Address> for policy::Cidr {
    type Error = AuthorizationError;

    fn try_from(wire: &Address) -> Result<Self, AuthorizationError> {
        let error = || AuthorizationError::Block {
            bytes: wire.address.len(),
            length: wire.length,
        };
        let address: IpAddr = crate::address(&wire.address).ok_or_else(error)?;
        let length = u8::try_from(wire.length).map_err(|_| error())?;
        Self::new(address, length).map_err(|_| error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> policy::Authorization {
        let texts = || {
            vec![
                policy::StringMatch::Exact("a".to_owned()),
                policy::StringMatch::Prefix("b".to_owned()),
                policy::StringMatch::Suffix("c".to_owned()),
                policy::StringMatch::Presence,
            ]
        };
        let accounts = |namespace: &str| {
            vec![policy::ServiceAccountMatch {
                namespace: namespace.to_owned(),
                service_account: "x".to_owned(),
            }]
        };
        let blocks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        policy::Authorization {
            name: "p".to_owned(),
            namespace: "a".to_owned(),
            scope: policy::Scope::Listed,
            action: policy::Action::Deny,
            rules: vec![policy::Rule {
                clauses: vec![policy::Clause {
                    matches: vec![policy::Match {
                        namespaces: texts(),
                        not_namespaces: texts()[..1].to_vec(),
                        principals: texts()[1..].to_vec(),
                        not_principals: texts()[2..].to_vec(),
                        service_accounts: accounts("n"),
                        not_service_accounts: accounts("m"),
                        source_ips: blocks(&["10.0.0.0/8", "0.0.0.0/0"]),
                        not_source_ips: blocks(&["10.0.0.1", "::/0"]),
                        destination_ips: blocks(&["fd00::/9"]),
                        not_destination_ips: blocks(&["fd00::1"]),
                        destination_ports: vec![1, 65535],
                        not_destination_ports: vec![80],
                        undecidable: false,
                    }],
                }],
            }],
            dry_run: true,
        }
    }

    #[test]
    fn every_field_comes_back_as_it_was() {
        let policy = whole();
        assert_eq!(
            policy::Authorization::try_from(&Authorization::from(&policy)),
            Ok(policy)
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let wire = || Authorization::from(&whole());
        let broken = |change: fn(&mut Match)| {
            let mut wire = wire();
            change(&mut wire.rules[0].clauses[0].matches[0]);
            policy::Authorization::try_from(&wire).unwrap_err()
        };
        assert_eq!(
            broken(|one| one.principals.push(StringMatch::default())),
            AuthorizationError::Comparison
        );
        assert_eq!(
            broken(|one| one.destination_ports.push(65536)),
            AuthorizationError::Port(65536)
        );
        assert_eq!(
            broken(|one| one.not_destination_ports.push(0)),
            AuthorizationError::Port(0)
        );
        let block = |bytes, length| AuthorizationError::Block { bytes, length };
        assert_eq!(broken(|one| one.source_ips[0].length = 33), block(4, 33));
        assert_eq!(
            broken(|one| one.source_ips[0].address = vec![1, 2, 3].into()),
            block(3, 8)
        );
        for change in [
            (|wire| wire.action = 2) as fn(&mut Authorization),
            |wire| wire.scope = 3,
            |wire| wire.name.clear(),
            |wire| wire.namespace.clear(),
        ] {
            let mut wire = wire();
            change(&mut wire);
            assert!(policy::Authorization::try_from(&wire).is_err(), "{wire:?}");
        }
    }
}
