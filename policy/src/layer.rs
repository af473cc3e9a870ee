//! Policies of one scope, compiled together.

use std::sync::Arc;

use crate::{
    Action, Authorization, Matched,
    index::{Builder, Origin, Prepared, RuleSet},
};

/// A policy to be compiled, with its name.
pub(crate) struct Named<'a> {
    pub(crate) name: Arc<str>,
    pub(crate) authorization: &'a Authorization,
    /// It is a PeerAuthentication's: what it denies is plaintext.
    pub(crate) plaintext: bool,
}

/// Policies of one scope.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) policies: Vec<Policy>,
    pub(crate) deny: RuleSet,
    pub(crate) allow: RuleSet,
    pub(crate) dry_run_deny: RuleSet,
    pub(crate) dry_run_allow: RuleSet,
}

/// What of a policy is not in its rules.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: Arc<str>,
    pub(crate) action: Action,
    pub(crate) dry_run: bool,
    pub(crate) plaintext: bool,
}

// === impl Layer ===

impl Layer {
    pub(crate) fn compile<'a>(policies: impl Iterator<Item = Named<'a>>) -> Self {
        let builder = |action| move || Builder::new(action);
        let (deny, allow) = (builder(Action::Deny), builder(Action::Allow));
        let mut builders = [deny(), allow(), deny(), allow()];
        let mut described = Vec::new();
        for (number, named) in (0..).zip(policies) {
            let authorization = named.authorization;
            let builder = match (authorization.dry_run, authorization.action) {
                (false, Action::Deny) => &mut builders[0],
                (false, Action::Allow) => &mut builders[1],
                (true, Action::Deny) => &mut builders[2],
                (true, Action::Allow) => &mut builders[3],
            };
            for (index, rule) in (0..).zip(&authorization.rules) {
                let origin = Origin {
                    policy: number,
                    rule: index,
                };
                builder.add(rule, origin);
            }
            described.push(Policy {
                name: named.name,
                action: authorization.action,
                dry_run: authorization.dry_run,
                plaintext: named.plaintext,
            });
        }
        let [deny, allow, dry_run_deny, dry_run_allow] = builders.map(Builder::build);
        Self {
            policies: described,
            deny,
            allow,
            dry_run_deny,
            dry_run_allow,
        }
    }

    /// The first rule of a set of this layer that matches, and its policy.
    pub(crate) fn first<'a>(
        &'a self,
        set: &RuleSet,
        request: &Prepared<'_>,
    ) -> Option<(&'a Policy, Matched<'a>)> {
        let origin = set.first(request)?;
        let policy = &self.policies[origin.policy as usize];
        let matched = Matched {
            policy: &policy.name,
            rule: origin.rule,
        };
        Some((policy, matched))
    }
}
