//! Which clients are let in to which Servers.

use std::collections::BTreeMap;

use serde_json::Value;

use super::clients::{Clients, Who, identity, name, networks, service_account};
use crate::migrate::{Settings, addresses::Addresses, input::Item, report::Entry};

type Key = (String, String);

/// MeshTLSAuthentications and NetworkAuthentications, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Authentications {
    /// Nobody, if it is not understood.
    identities: BTreeMap<Key, (Who, Entry, bool)>,
    networks: BTreeMap<Key, (Addresses, Entry, bool)>,
}

/// What was granted, and what there is to say of it.
#[derive(Debug, Default)]
pub(super) struct Granted(Vec<Grant>);

#[derive(Debug)]
struct Grant {
    namespace: String,
    target: Target,
    clients: Option<Clients>,
    entry: Entry,
    used: bool,
}

#[derive(Debug)]
enum Target {
    Server(String),
    /// All Servers of the namespace that have these labels.
    Servers(Value),
    Nothing,
}

// === impl Authentications ===

impl Authentications {
    pub(super) fn read<'a>(
        mesh_tls: impl Iterator<Item = &'a Item>,
        network: impl Iterator<Item = &'a Item>,
        settings: &Settings,
    ) -> Self {
        let mut read = Self::default();
        for item in mesh_tls {
            let mut entry = Entry::new(item);
            let who = mesh_tls_clients(item, settings, &mut entry);
            read.identities.insert(key(item), (who, entry, false));
        }
        for item in network {
            let mut entry = Entry::new(item);
            let from = networks(&item.spec()["networks"], |text| entry.stricter(text));
            read.networks.insert(key(item), (from, entry, false));
        }
        read
    }

    pub(super) fn entries(self) -> Vec<Entry> {
        let identities = self
            .identities
            .into_values()
            .map(|(_, entry, used)| (entry, used));
        let networks = self.networks.into_values().map(|(_, entry, used)| (entry, used));
        identities
            .chain(networks)
            .map(|(entry, used)| said(entry, used, "no AuthorizationPolicy refers to it"))
            .collect()
    }
}

fn mesh_tls_clients(item: &Item, settings: &Settings, entry: &mut Entry) -> Who {
    let mut who = Who::nobody();
    let spec = item.spec();
    for text in spec["identities"].as_array().into_iter().flatten() {
        match identity(text.as_str().unwrap_or_default(), settings) {
            Ok(more) => who = who.or(more),
            Err(why) => entry.stricter(format!("identities: left out: {why}")),
        }
    }
    for reference in spec["identityRefs"].as_array().into_iter().flatten() {
        let text = |field: &str| reference[field].as_str();
        let named = text("name").unwrap_or_default();
        let namespace = namespace_of(reference, item);
        let principal = match text("kind") {
            Some("ServiceAccount") if name(named) && name(namespace) => {
                service_account(namespace, named, settings)
            }
            Some("Namespace") if name(named) => format!("{}/ns/{named}/*", settings.trust_domain),
            kind => {
                entry.stricter(format!(
                    "identityRefs: {} {named} is left out: it is not known",
                    kind.unwrap_or("?")
                ));
                continue;
            }
        };
        who = who.or(Who::These([principal].into()));
    }
    who
}

// === impl Granted ===

impl Granted {
    /// An AuthorizationPolicy.
    pub(super) fn policy(&mut self, item: &Item, known: &mut Authentications, settings: &Settings) {
        let mut entry = Entry::new(item);
        let reference = &item.spec()["targetRef"];
        let named = reference["name"].as_str().unwrap_or_default();
        let target = match reference["kind"].as_str() {
            Some("Server") => Target::Server(named.to_owned()),
            Some("Namespace") if named == item.namespace => Target::Servers(Value::Null),
            kind => {
                let kind = kind.unwrap_or("?");
                self.0.push(Grant {
                    namespace: item.namespace.clone(),
                    target: Target::Nothing,
                    clients: None,
                    entry: Entry::none(
                        item,
                        format!(
                            "it is for {kind} {named}, and Weir sees no requests: whom it lets in is left out, so they are refused \
                             where nothing else lets them in"
                        ),
                    ),
                    used: true,
                });
                return;
            }
        };
        let clients = required(item, known, settings, &mut entry);
        self.0.push(Grant {
            namespace: item.namespace.clone(),
            target,
            clients,
            entry,
            used: false,
        });
    }

    /// A ServerAuthorization.
    pub(super) fn authorization(&mut self, item: &Item, settings: &Settings) {
        let mut entry = Entry::new(item);
        let server = &item.spec()["server"];
        let target = match &server["name"] {
            Value::Null => Target::Servers(server["selector"].clone()),
            name => Target::Server(name.as_str().unwrap_or_default().to_owned()),
        };
        let client = &item.spec()["client"];
        let mesh = &client["meshTLS"];
        let who = if client["unauthenticated"] == true {
            Who::Anybody
        } else if mesh["unauthenticatedTLS"] == true {
            entry.stricter(
                "client.meshTLS.unauthenticatedTLS: Weir knows no TLS without an identity: who has one is let in",
            );
            Who::Identified
        } else {
            let mut who = Who::nobody();
            for text in mesh["identities"].as_array().into_iter().flatten() {
                match identity(text.as_str().unwrap_or_default(), settings) {
                    Ok(more) => who = who.or(more),
                    Err(why) => entry.stricter(format!("client.meshTLS.identities: left out: {why}")),
                }
            }
            for account in mesh["serviceAccounts"].as_array().into_iter().flatten() {
                let named = account["name"].as_str().unwrap_or_default();
                let namespace = namespace_of(account, item);
                if name(named) && name(namespace) {
                    who = who.or(Who::These([service_account(namespace, named, settings)].into()));
                } else {
                    entry.stricter("client.meshTLS.serviceAccounts: one is left out: it is not understood");
                }
            }
            who
        };
        let from = match &client["networks"] {
            Value::Null => Addresses::all(),
            Value::Array(list) if list.is_empty() => Addresses::all(),
            list => networks(list, |text| entry.stricter(format!("client.{text}"))),
        };
        self.0.push(Grant {
            namespace: item.namespace.clone(),
            target,
            clients: Some(Clients { who, from }),
            entry,
            used: false,
        });
    }

    /// The clients that are let in to a Server.
    pub(super) fn of(&mut self, server: &Item) -> Vec<Clients> {
        let mut clients = Vec::new();
        for grant in &mut self.0 {
            let targeted = match &grant.target {
                Target::Server(name) => name == server.name(),
                Target::Servers(selector) => {
                    let matched = selects(selector, &server.value["metadata"]["labels"]);
                    if matched.is_none() {
                        grant
                            .entry
                            .stricter("server.selector is not understood: it lets nobody in");
                    }
                    matched == Some(true)
                }
                Target::Nothing => false,
            };
            if grant.namespace == server.namespace && targeted {
                grant.used = true;
                clients.extend(grant.clients.clone());
            }
        }
        clients
    }

    pub(super) fn entries(self) -> Vec<Entry> {
        let grants = self.0.into_iter();
        grants
            .map(|grant| said(grant.entry, grant.used, "no Server that was read is meant by it"))
            .collect()
    }
}

/// Whom an AuthorizationPolicy lets in; nothing where Linkerd ignores it.
fn required(
    item: &Item,
    known: &mut Authentications,
    settings: &Settings,
    entry: &mut Entry,
) -> Option<Clients> {
    let (mut who, mut from) = (None, None);
    let references = item.spec()["requiredAuthenticationRefs"].as_array();
    if references.is_none() {
        entry.stricter("requiredAuthenticationRefs is absent: it lets nobody in");
        return None;
    }
    for reference in references.into_iter().flatten() {
        let text = |field: &str| reference[field].as_str();
        let kind = text("kind").unwrap_or("?");
        let namespace = namespace_of(reference, item).to_owned();
        let named = text("name").unwrap_or_default().to_owned();
        let key = (namespace.clone(), named.clone());
        let (found, twice) = match kind {
            "MeshTLSAuthentication" => match known.identities.get_mut(&key) {
                Some((identities, _, used)) => {
                    *used = true;
                    (true, who.replace(identities.clone()).is_some())
                }
                None => (false, false),
            },
            "NetworkAuthentication" => match known.networks.get_mut(&key) {
                Some((addresses, _, used)) => {
                    *used = true;
                    (true, from.replace(addresses.clone()).is_some())
                }
                None => (false, false),
            },
            "ServiceAccount" if name(&named) && name(&namespace) => {
                let principal = service_account(&namespace, &named, settings);
                (true, who.replace(Who::These([principal].into())).is_some())
            }
            _ => (false, false),
        };
        if !found || twice {
            let why = if twice {
                "is the second of its kind"
            } else {
                "was not found"
            };
            entry.stricter(format!(
                "{kind} {namespace}/{named} {why}: the policy lets nobody in, as with Linkerd"
            ));
            return None;
        }
    }
    Some(Clients {
        who: who.unwrap_or(Who::Anybody),
        from: from.unwrap_or_else(Addresses::all),
    })
}

fn said(entry: Entry, used: bool, unused: &str) -> Entry {
    if used {
        let mut entry = entry;
        if entry.notes.is_empty() {
            entry.say("in the policies of the Servers that it is for");
        }
        return entry;
    }
    Entry {
        outcome: crate::migrate::report::Outcome::NotNeeded,
        notes: Vec::new(),
        ..entry
    }
    .with(
        crate::migrate::report::Outcome::NotNeeded,
        crate::migrate::report::Effect::Same,
        unused,
    )
}

/// Whether labels are selected; nothing if the selector is not understood.
fn selects(selector: &Value, labels: &Value) -> Option<bool> {
    if selector["matchExpressions"]
        .as_array()
        .is_some_and(|all| !all.is_empty())
    {
        return None;
    }
    let own = match selector {
        Value::Null => return Some(true),
        Value::Object(_) => &selector["matchLabels"],
        _ => return None,
    };
    let mut own = match own {
        Value::Null => return Some(true),
        own => own.as_object()?.iter(),
    };
    Some(own.all(|(key, value)| labels[key] == *value))
}

/// The namespace that a reference names, or that it stands in. One that is no text is no namespace's name.
fn namespace_of<'a>(reference: &'a Value, item: &'a Item) -> &'a str {
    match &reference["namespace"] {
        Value::Null => &item.namespace,
        named => named.as_str().unwrap_or_default(),
    }
}

fn key(item: &Item) -> Key {
    (item.namespace.clone(), item.name().to_owned())
}
