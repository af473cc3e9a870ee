//! The API server without its sockets and clocks: a request and a time in, an answer out.

mod delete;
mod read;
mod update;
mod watch;
mod write;

use std::sync::Arc;

use jiff::Timestamp;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

pub(crate) use watch::{Poll, Watch};

use crate::{
    access::{self, Denied, User},
    apply::Writer,
    discovery,
    json::meta,
    request::{Representation, Request, Target},
    resource::{Registry, Resource},
    status::Status,
    store::{self, Store},
    tokens::Tokens,
};

/// Namespaces that every cluster has.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Everything there is.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    pub(crate) tokens: Tokens,
    pub(crate) denied: Vec<Denied>,
    random: StdRng,
    /// The last byte pair of the next service's address, in 10.96.0.0/16.
    next_address: u16,
}

/// The answer where nothing is served, which is no Status.
const NOWHERE: Reply = Reply::Text {
    code: 404,
    body: "404 page not found\n",
};

/// An answer.
#[derive(Debug)]
pub(crate) enum Reply {
    Object { code: u16, body: Value },
    Text { code: u16, body: &'static str },
    Watch(Box<Watch>),
}

impl Reply {
    pub(crate) fn ok(body: Value) -> Self {
        Self::Object { code: 200, body }
    }

    pub(crate) fn created(body: Value) -> Self {
        Self::Object { code: 201, body }
    }
}

/// What a request is about, and who makes it.
#[derive(Debug)]
struct Call<'a> {
    request: &'a Request,
    target: Target,
    resource: Arc<Resource>,
    now: Timestamp,
}

impl Call<'_> {
    fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or_default()
    }

    fn key(&self) -> String {
        store::key(&self.target.namespace, self.name())
    }

    fn subresource(&self) -> &str {
        self.target.subresource.as_deref().unwrap_or_default()
    }

    /// Whole seconds, as `metav1.Time` has.
    fn time(&self) -> String {
        seconds(self.now)
    }

    fn not_found(&self) -> Status {
        Status::not_found(&self.resource.group, &self.resource.plural, self.name())
    }

    fn invalid(&self, name: &str, causes: &[crate::status::Cause]) -> Status {
        Status::invalid(&self.resource.group, &self.resource.kind, name, causes)
    }

    fn body(&self) -> Result<Value, Status> {
        serde_json::from_slice(&self.request.body).map_err(|why| {
            Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): {why}",
                self.resource.kind
            ))
        })
    }

    /// An object as this version of the resource and the Accept header have it.
    fn shown(&self, object: &Value) -> Result<Value, Status> {
        let whole = crate::resource::shown(&self.resource, object);
        Ok(match Representation::accepted(&self.request.accept, false)? {
            Representation::Whole => whole,
            Representation::Metadata => read::partial(&whole),
        })
    }

    /// Who is written as the manager of the fields: the one named, or else the program that asks.
    fn writer(&self, operation: &'static str) -> Writer {
        let agent = self.request.user_agent.split('/').next().unwrap_or_default();
        let manager = match (self.request.query.text("fieldManager"), agent) {
            ("", "") => "unknown",
            ("", agent) => agent,
            (manager, _) => manager,
        };
        Writer {
            manager: manager.to_owned(),
            operation,
            subresource: self.subresource().to_owned(),
            api_version: self.resource.api_version(),
            time: self.time(),
        }
    }
}

/// A time as `metav1.Time` has it.
pub(crate) fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

/// Whole objects come as JSON; patches have types of their own.
fn check_content_type(request: &Request) -> Result<(), Status> {
    let essence = request.content_type.split(';').next().unwrap_or_default().trim();
    let whole = matches!(request.method.as_str(), "POST" | "PUT");
    if whole && !matches!(essence, "" | "*/*" | "application/json") {
        return Err(Status::unsupported_media_type("application/json"));
    }
    Ok(())
}

impl Core {
    /// A server with the namespaces of every cluster. `seed` decides the UIDs.
    pub(crate) fn new(seed: u64, now: Timestamp) -> Self {
        let mut core = Self {
            registry: Registry::default(),
            store: Store::default(),
            tokens: Tokens::default(),
            denied: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            next_address: 1,
        };
        for namespace in NAMESPACES {
            core.make_namespace(namespace, now);
        }
        core
    }

    fn make_namespace(&mut self, name: &str, now: Timestamp) {
        let metadata = json!({
            "name": name, "uid": self.uuid(), "creationTimestamp": seconds(now),
            "labels": {"kubernetes.io/metadata.name": name},
        });
        let namespace = json!({"metadata": metadata, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        self.store.put("namespaces", name, namespace);
        self.furnish_namespace(name, now);
    }

    /// What controllers put into every new namespace.
    fn furnish_namespace(&mut self, namespace: &str, now: Timestamp) {
        for (plural, name) in [("serviceaccounts", "default"), ("configmaps", "kube-root-ca.crt")] {
            let mut object = json!({"metadata": {
                "name": name, "namespace": namespace, "uid": self.uuid(), "creationTimestamp": seconds(now),
            }});
            if plural == "configmaps" {
                object["data"] = json!({"ca.crt": ""});
            }
            self.store.put(plural, &store::key(namespace, name), object);
        }
    }

    /// Stores an object as it is, but for a UID if it has none.
    pub(crate) fn put(&mut self, stored: &str, mut object: Value) {
        if meta(&object, "uid").is_empty() {
            object["metadata"]["uid"] = self.uuid().into();
        }
        let key = store::key(meta(&object, "namespace"), meta(&object, "name"));
        self.store.put(stored, &key, object);
    }

    /// A random UUID (version 4).
    pub(crate) fn uuid(&mut self) -> String {
        let mut bytes: [u8; 16] = self.random.random();
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }

    /// The five letters that `generateName` ends in.
    fn suffix(&mut self) -> String {
        // Those of k8s.io/apimachinery/pkg/util/rand: no vowels, so no words.
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..5)
            .map(|_| char::from(LETTERS[self.random.random_range(0..LETTERS.len())]))
            .collect()
    }

    pub(crate) fn random_bytes(&mut self) -> [u8; 32] {
        self.random.random()
    }

    fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.store.find(plural, &store::key(namespace, name))
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.object("pods", namespace, name)
    }

    pub(crate) fn service_account(&self, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.object("serviceaccounts", namespace, name)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Arc<Value>> {
        self.object("nodes", "", name)
    }

    /// Answers a request.
    pub(crate) fn answer(&mut self, request: &Request, now: Timestamp) -> Result<Reply, Status> {
        if matches!(request.path.as_str(), "/readyz" | "/livez" | "/healthz") {
            return Ok(Reply::Text {
                code: 200,
                body: "ok",
            });
        }
        let user = self.user(request, now)?;
        if let Some(document) = discovery::document(&self.registry, request) {
            return match request.method.as_str() {
                "GET" | "HEAD" => Ok(Reply::ok(document)),
                _ => Err(Status::method_not_allowed()),
            };
        }
        let Some(target) = Target::parse(&request.path) else {
            return Ok(NOWHERE);
        };
        check_content_type(request)?;
        if let Some(reply) = self.review(request, &target, &user, now)? {
            return Ok(reply);
        }
        let found = self.registry.find(&target.group, &target.version, &target.plural);
        let Some(resource) = found else {
            // Groups of its own know what they do not have; of others nothing is known that could say it.
            let is_own = self.registry.has_built_in(&target.group);
            return if is_own {
                Err(Status::no_such_path())
            } else {
                Ok(NOWHERE)
            };
        };
        let named_or_listed = target.name.is_some() || request.method == "POST";
        if !resource.namespaced && !target.namespace.is_empty()
            || resource.namespaced && target.namespace.is_empty() && named_or_listed
        {
            return Err(Status::no_such_path());
        }
        let call = Call {
            request,
            target,
            resource,
            now,
        };
        access::allowed(&self.denied, &user, &call.target, call.verb())?;
        self.carry_out(&call)
    }

    /// Whether a port of a pod may be forwarded to whoever asks.
    pub(crate) fn may_forward(
        &mut self,
        request: &Request,
        target: &Target,
        now: Timestamp,
    ) -> Result<(), Status> {
        let user = self.user(request, now)?;
        // By the method as by the subresource, of which 1.35 wants both.
        for verb in ["get", "create"] {
            access::allowed(&self.denied, &user, target, verb)?;
        }
        let name = target.name.as_deref().unwrap_or_default();
        match self.pod(&target.namespace, name) {
            Some(_) => Ok(()),
            None => Err(Status::not_found("", "pods", name)),
        }
    }

    fn user(&mut self, request: &Request, now: Timestamp) -> Result<User, Status> {
        let Some(token) = &request.bearer else {
            return Ok(User::admin());
        };
        let audiences = [crate::tokens::DEFAULT_AUDIENCE.to_owned()];
        let held = self.authenticate(token, &audiences, now);
        held.map(|held| held.user).map_err(|_| Status::unauthorized())
    }

    fn carry_out(&mut self, call: &Call<'_>) -> Result<Reply, Status> {
        match (
            call.subresource(),
            call.resource.status,
            call.resource.kind.as_str(),
            call.request.method.as_str(),
        ) {
            ("", ..) => {}
            ("status", true, _, "GET" | "PUT" | "PATCH") => {}
            ("token", _, "ServiceAccount", "POST") => return self.request_token(call),
            ("status", true, ..) | ("token", _, "ServiceAccount", _) => {
                return Err(Status::method_not_allowed());
            }
            _ => return Err(Status::no_such_path()),
        }
        match (call.request.method.as_str(), &call.target.name) {
            ("GET", _) if call.watches() => self.watch(call),
            ("GET" | "HEAD", Some(_)) => self.get(call),
            ("GET" | "HEAD", None) => self.list(call),
            ("POST", None) => self.create(call),
            ("PUT", Some(_)) => self.replace(call),
            ("PATCH", Some(_)) => self.patch(call),
            ("DELETE", Some(_)) => self.delete(call),
            ("DELETE", None) => self.delete_collection(call),
            _ => Err(Status::method_not_allowed()),
        }
    }

    fn request_token(&mut self, call: &Call<'_>) -> Result<Reply, Status> {
        let account = self.store.find("serviceaccounts", &call.key()).cloned();
        let account = account.ok_or_else(|| call.not_found())?;
        self.issue_token(meta(&account, "namespace"), &account, call.body()?, call.now)
    }
}

impl Call<'_> {
    fn watches(&self) -> bool {
        self.request.query.flag("watch") && self.subresource().is_empty()
    }

    /// The verb as RBAC has it.
    fn verb(&self) -> &'static str {
        match (self.request.method.as_str(), self.target.name.is_some()) {
            ("GET", _) if self.watches() => "watch",
            ("GET" | "HEAD", true) => "get",
            ("GET" | "HEAD", false) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "delete",
            _ => "deletecollection",
        }
    }
}
