//! The policies of a mesh.

use std::sync::Arc;

use weir_policy::{Authorization, Policies, PolicyError, Warning};

use crate::config::ConfigFile;

/// Policies as they were written, to know whether they changed, and compiled.
#[derive(Debug)]
pub(super) struct PolicySource {
    root_namespace: String,
    authorization: Vec<weir_policy::AuthorizationPolicy>,
    peer: Vec<weir_policy::PeerAuthentication>,
    pub(super) compiled: Policies,
    pub(super) warnings: Vec<Warning>,
}

// === impl PolicySource ===

impl Default for PolicySource {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "nothing is wrong with no policies")]
        let compiled = Policies::new("", Vec::new(), &[]).expect("no policies");
        Self {
            root_namespace: String::new(),
            authorization: Vec::new(),
            peer: Vec::new(),
            compiled,
            warnings: Vec::new(),
        }
    }
}

impl PolicySource {
    /// Those of a configuration; the previous ones as they are if they are the same.
    pub(super) fn of(config: &ConfigFile, previous: &Arc<Self>) -> Result<Arc<Self>, PolicyError> {
        let authorization = config.authorization_policies.iter().map(|p| &p.value);
        let peer = config.peer_authentications.iter().map(|p| &p.value);
        if previous.root_namespace == config.root_namespace
            && authorization.clone().eq(&previous.authorization)
            && peer.clone().eq(&previous.peer)
        {
            return Ok(previous.clone());
        }
        let root = &config.root_namespace;
        let mut warnings = Vec::new();
        let mut compiled: Vec<Authorization> = Vec::new();
        for policy in authorization.clone() {
            let (policy, cautions) = policy.compile(root)?;
            compiled.push(policy);
            warnings.extend(cautions);
        }
        let peer: Vec<_> = peer.cloned().collect();
        let compiled = Policies::new(root, compiled, &peer)?;
        warnings.extend_from_slice(compiled.warnings());
        Ok(Arc::new(Self {
            root_namespace: root.clone(),
            authorization: authorization.cloned().collect(),
            warnings,
            compiled,
            peer,
        }))
    }

    /// Policies that came over the wire.
    pub(super) fn received(compiled: Policies) -> Arc<Self> {
        Arc::new(Self {
            compiled,
            ..Self::default()
        })
    }
}
