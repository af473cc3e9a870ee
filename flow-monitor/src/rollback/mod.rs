//! `weir rollback`: one namespace back to plaintext.

mod plan;

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use tokio::time::Instant;
use weir::style::{BOLD, GOOD, WARN, clean, paint};

use self::plan::{Plan, plan};
use crate::{
    cluster::Cluster,
    mesh::{ENROLLED, GROUP, SWITCH, VERSION, has_ended, is_enrolled},
    target::{Options, Usage},
};

/// Who changes the fields, for `kubectl get --show-managed-fields`.
const MANAGER: &str = "weir-rollback";
/// How often it is looked whether the pods have left.
const POLL: Duration = Duration::from_millis(500);
/// Names in a line before the rest is only counted.
const NAMED: usize = 8;

/// Takes a namespace out of the mesh: its pods talk plaintext again.
///
/// Sets the namespace's label weir.dev/mesh to 'disabled', and the annotation of those pods that have a switch of their
/// own; then waits until no pod of it is in the mesh. No pod is restarted, and open connections go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir rollback shop --dry-run       what it would do\n  \
    weir rollback shop                 asks first\n  \
    weir rollback shop --yes --timeout 2m\n\n\
    Exit codes: 0 no pod of it is in the mesh any more, 1 failed or some still are, 2 not confirmed, 3 no API server.")]
pub(crate) struct Rollback {
    /// The namespace.
    namespace: String,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
    /// How long to wait until no pod is in the mesh.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = seconds)]
    timeout: Duration,
}

/// `90`, `90s` or `2m`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u32 = number
        .parse()
        .map_err(|_| "expected seconds or minutes: 60s, 2m")?;
    Ok(Duration::from_secs(u64::from(number) * unit))
}

impl Rollback {
    pub(crate) async fn run(self, options: &Options) -> anyhow::Result<()> {
        options.only_cluster()?;
        let cluster = Cluster::new(options).await?;
        let plan = self.look(&cluster).await?;
        let mut out = anstream::stdout();
        show(&mut out, &plan, &cluster.name)?;
        if !plan.is_empty() {
            meaning(&mut out, &plan)?;
        }
        if self.dry_run {
            writeln!(out, "\nNothing was changed.")?;
            return Ok(());
        }
        if plan.is_empty() && plan.enrolled.is_empty() {
            return Ok(());
        }
        if !plan.is_empty() {
            if !self.yes {
                confirm()?;
            }
            let carried_out = self.carry_out(&cluster, &plan).await;
            // Also where it went wrong half-way.
            undo(&mut out, &plan)?;
            carried_out?;
        }
        let left = self.wait(&cluster).await?;
        if left.is_empty() {
            let text = format!("No pod of {} is in the mesh any more.", self.namespace);
            writeln!(out, "\n{}", paint(GOOD, clean(&text)))?;
            return Ok(());
        }
        bail!(
            "after {:?} {} still in the mesh: {}. Their agents have not said that they let go: 'weir status' and \
             'weir check' say more, and the next 'weir rollback {}' waits again",
            self.timeout,
            pods(left.len(), "is", "are"),
            named(&left),
            self.namespace
        )
    }

    async fn look(&self, cluster: &Cluster) -> anyhow::Result<Plan> {
        let namespaces = Api::<Namespace>::all(cluster.client.clone());
        let found = cluster.answer(namespaces.get_opt(&self.namespace)).await;
        let namespace = match found {
            Ok(Some(namespace)) => namespace,
            Ok(None) => bail!("there is no namespace {} in {}", self.namespace, cluster.name),
            Err(why) => return Err(cluster.unreachable(why)),
        };
        let pods = self.pods(cluster).await?;
        let kind = kube::core::GroupVersionKind::gvk(GROUP, VERSION, "PeerAuthentication");
        let resource = ApiResource::from_gvk(&kind);
        let peers = Api::<DynamicObject>::all_with(cluster.client.clone(), &resource);
        let peers = match cluster.answer(peers.list(&ListParams::default())).await {
            Ok(list) => list.items,
            Err(why) if why.is_absent() => Vec::new(),
            Err(why) => {
                // What is left is only told: it must not stand in the way.
                let text = format!("{why}: which PeerAuthentications are STRICT is not known");
                anstream::eprintln!("weir: {}", clean(&text));
                Vec::new()
            }
        };
        Ok(plan(&namespace, &pods, &peers, &cluster.namespace))
    }

    async fn pods(&self, cluster: &Cluster) -> anyhow::Result<Vec<Pod>> {
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &self.namespace);
        Ok(cluster.answer(pods.list(&ListParams::default())).await?.items)
    }

    /// The namespace first, so that pods that start meanwhile do not join.
    async fn carry_out(&self, cluster: &Cluster, plan: &Plan) -> anyhow::Result<()> {
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        if let Some(change) = &plan.label {
            let namespaces = Api::<Namespace>::all(cluster.client.clone());
            let patch = Patch::Merge(change.patch("labels"));
            let patching = namespaces.patch(&change.name, &params, &patch);
            cluster
                .answer(patching)
                .await
                .with_context(|| format!("the label of the namespace {}", change.name))?;
        }
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &self.namespace);
        let mut failed = 0;
        for change in &plan.pods {
            let patch = Patch::Merge(change.patch("annotations"));
            match cluster.answer(pods.patch(&change.name, &params, &patch)).await {
                Ok(_) => {}
                // It has gone by itself, or is another one.
                Err(why) if why.is_absent() || why.names_another() => {}
                Err(why) => {
                    failed += 1;
                    anstream::eprintln!("weir: pod {}: {}", change.name, clean(&why.to_string()));
                }
            }
        }
        if failed > 0 {
            bail!("{failed} of {} could not be changed", pods_of(plan.pods.len()));
        }
        Ok(())
    }

    /// Waits until no pod is in the mesh; which ones still are when the time is up.
    async fn wait(&self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        let until = Instant::now() + self.timeout;
        let terminal = io::stderr().is_terminal();
        let mut shown = false;
        let left = loop {
            let still = self.pods(cluster).await?.into_iter();
            let still = still.filter(|pod| is_enrolled(pod) && !has_ended(pod));
            let left: Vec<String> = still.filter_map(|pod| pod.metadata.name).collect();
            if left.is_empty() || Instant::now() >= until {
                break left;
            }
            if terminal {
                shown = true;
                let rest = until.saturating_duration_since(Instant::now()).as_secs();
                let line = format!(
                    "{} still in the mesh, {rest}s left",
                    pods(left.len(), "is", "are")
                );
                eprint!("\r{line:<60}");
            }
            tokio::time::sleep(POLL).await;
        };
        if shown {
            eprint!("\r{:<60}\r", "");
        }
        Ok(left)
    }
}

pub(crate) fn confirm() -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!(Usage(
            "there is no terminal to ask at: --yes does it without asking".to_owned()
        ));
    }
    eprint!("\nDo it? [y/N] ");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if matches!(line.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    bail!(Usage("nothing was changed".to_owned()))
}

fn show(out: &mut impl io::Write, plan: &Plan, cluster: &str) -> io::Result<()> {
    let title = format!("Namespace {} of {cluster}", plan.namespace);
    writeln!(out, "{}", paint(BOLD, clean(&title)))?;
    if plan.is_empty() {
        writeln!(
            out,
            "  nothing to change: neither the namespace nor a pod of it says '{SWITCH}: enabled'"
        )?;
    }
    if let Some(change) = &plan.label {
        let before = change.before.as_deref().unwrap_or("(unset)");
        writeln!(out, "  label       {SWITCH}: {} -> disabled", clean(before))?;
    }
    if !plan.pods.is_empty() {
        let names: Vec<String> = plan.pods.iter().map(|pod| pod.name.clone()).collect();
        writeln!(
            out,
            "  annotation  {SWITCH}: disabled, on {} with a switch of their own: {}",
            pods_of(names.len()),
            clean(&named(&names))
        )?;
    }
    let enrolled = &plan.enrolled;
    if enrolled.is_empty() {
        writeln!(out, "  no pod of it is in the mesh now ({ENROLLED})")?;
    } else {
        let names = named(enrolled);
        writeln!(
            out,
            "  in the mesh now: {}: {}",
            pods_of(enrolled.len()),
            clean(&names)
        )?;
    }
    if !plan.templates.is_empty() {
        let templates: Vec<String> = plan.templates.iter().cloned().collect();
        let text = format!(
            "pods made later have the switch again, from the template of {}: remove it there too",
            named(&templates)
        );
        writeln!(out, "  {} {}", paint(WARN, "note:"), clean(&text))?;
    }
    if !plan.strict.is_empty() {
        let text = format!("PeerAuthentication STRICT concerns it: {}", named(&plan.strict));
        writeln!(out, "  {} {}", paint(WARN, "note:"), clean(&text))?;
    }
    Ok(())
}

/// What it is like afterwards.
fn meaning(out: &mut impl io::Write, plan: &Plan) -> io::Result<()> {
    writeln!(out, "\n{}", paint(BOLD, "What that means"))?;
    writeln!(
        out,
        "  Policies of Weir protect none of its pods any more: whoever reaches one may connect, in plaintext."
    )?;
    if !plan.strict.is_empty() {
        let text = format!(
            "Of these PeerAuthentications STRICT is in force for nobody in it: {}.",
            named(&plan.strict)
        );
        writeln!(out, "  {}", clean(&text))?;
    }
    writeln!(
        out,
        "  Its pods have no identity towards others: AuthorizationPolicies that ask for one do not let them in."
    )?;
    if !plan.strict_elsewhere.is_empty() {
        let text = format!(
            "Where these PeerAuthentications are STRICT they are refused: {}.",
            named(&plan.strict_elsewhere)
        );
        writeln!(out, "  {} {}", paint(WARN, "note:"), clean(&text))?;
    }
    Ok(())
}

/// The way back.
fn undo(out: &mut impl io::Write, plan: &Plan) -> io::Result<()> {
    writeln!(out, "\n{}", paint(BOLD, "To undo it"))?;
    plan.undo()
        .iter()
        .try_for_each(|command| writeln!(out, "  {}", clean(command)))
}

fn named(names: &[String]) -> String {
    let mut text = names[..names.len().min(NAMED)].join(", ");
    if names.len() > NAMED {
        text.push_str(&format!(" and {} more", names.len() - NAMED));
    }
    text
}

fn pods_of(count: usize) -> String {
    if count == 1 {
        "1 pod".to_owned()
    } else {
        format!("{count} pods")
    }
}

fn pods(count: usize, one: &str, more: &str) -> String {
    format!("{} {}", pods_of(count), if count == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_minutes() {
        assert_eq!(seconds("90"), Ok(Duration::from_secs(90)));
        assert_eq!(seconds("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        assert!(seconds("soon").is_err());
        assert!(seconds("-1").is_err());
    }
}
