//! `weir install`: prints or applies the manifests of this version.

pub(crate) mod apply;
pub(crate) mod manifest;
mod rollout;

use std::{io::Write as _, time::Duration};

use anyhow::bail;
use clap::Args;
use serde_json::json;
use weir::style::{BOLD, GOOD, paint};

use self::manifest::{Object, Settings};
pub(crate) use self::rollout::ready;
use crate::{
    cluster::Cluster,
    target::{Options, Usage},
};

/// Installs Weir, or brings it to this version.
///
/// Applies one DaemonSet, one Deployment and what they need, and waits until they are ready. Settings of an installation that is
/// there are kept unless they are given. Nothing is in the mesh before a namespace is labelled.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir install --registry registry.example/weir\n  \
    weir install --print > weir.yaml       what it would apply\n  \
    weir install --trust-domain example.org --istio-policies true\n\n\
    For settings that are not here use the Helm chart. Before: 'weir check'.")]
pub(crate) struct Install {
    /// Only print what would be applied, as YAML.
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    settings: Settings,
    /// Do not wait until all is ready.
    #[arg(long, conflicts_with = "print")]
    no_wait: bool,
    /// How long to wait until all is ready.
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = crate::rollback::seconds)]
    timeout: Duration,
}

/// The two workloads, as far as they are needed to find them.
pub(crate) fn workload(namespace: &str, kind: &str, name: &str) -> Object {
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"namespace": namespace, "name": name}})
}

impl Install {
    pub(crate) async fn run(self, options: &Options) -> anyhow::Result<()> {
        options.only_cluster()?;
        let namespace = options.weir_namespace.clone();
        if self.print {
            let objects = manifest::objects(&namespace, &self.settings)?;
            let mut out = std::io::stdout().lock();
            for object in objects {
                writeln!(out, "---\n{}", serde_saphyr::to_string(&object)?.trim_end())?;
            }
            return Ok(());
        }
        let cluster = Cluster::new(options).await?;
        let deployment = apply::get(&cluster, &workload(&namespace, "Deployment", "weir-control")).await?;
        let agents = apply::get(&cluster, &workload(&namespace, "DaemonSet", "weir-agent")).await?;
        for present in deployment.iter().chain(&agents) {
            if present["metadata"]["annotations"]["meta.helm.sh/release-name"].is_string() {
                bail!(Usage(
                    "it was installed by Helm: use 'helm upgrade' as before".to_owned()
                ));
            }
        }
        let known = Settings::of(deployment.as_ref(), agents.as_ref());
        if let (Some(now), Some(wanted)) = (&known.trust_domain, &self.settings.trust_domain)
            && now != wanted
        {
            bail!(Usage(format!(
                "the trust domain is {now}: changing it to {wanted} would end every connection of the mesh. Uninstall first"
            )));
        }
        let objects = manifest::objects(&namespace, &self.settings.clone().or(known))?;
        let mut out = anstream::stdout();
        let what = if agents.is_some() {
            "Bringing Weir to"
        } else {
            "Installing Weir"
        };
        let title = format!("{what} {} in {}", env!("CARGO_PKG_VERSION"), cluster.name);
        writeln!(out, "{}", paint(BOLD, title))?;
        // Of an uninstallation that broke off: it would take out what comes now.
        apply::delete(
            &cluster,
            &workload(&namespace, "DaemonSet", crate::uninstall::DETACH),
        )
        .await?;
        for object in &objects {
            apply::apply(&cluster, object).await?;
            writeln!(out, "  {}", apply::title(object))?;
            if object["kind"] == "Deployment" && !self.no_wait {
                rollout::control(&cluster, &namespace, self.timeout).await?;
            }
        }
        if !self.no_wait {
            rollout::agents(&cluster, &namespace, self.timeout).await?;
            writeln!(
                out,
                "{}",
                paint(GOOD, "weir-control and an agent on every node are ready.")
            )?;
        }
        writeln!(
            out,
            "Next: kubectl label namespace NAME weir.dev/mesh=enabled, then 'weir status' and 'weir flows --follow'."
        )?;
        Ok(())
    }
}
