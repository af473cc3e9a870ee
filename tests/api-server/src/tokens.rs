//! Tokens of service accounts: `TokenRequest`, `TokenReview`, and the requests that are made with them.
//!
//! They look like the JWTs of a real server; their signature is random bytes, and the server knows a token by
//! having issued it.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    access::User,
    core::{Core, Reply, seconds},
    json::{items, meta},
    status::{Cause, Status},
};

/// What a token is for when its request names nothing: the API server itself.
pub(crate) const DEFAULT_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";
const DEFAULT_SECONDS: i64 = 3600;
/// `TokenRequest` refuses less than ten minutes.
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// How long after its deletion timestamp an object still holds up the tokens bound to it.
const DELETION_LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// More than any test asks for.
const MAX_TOKENS: usize = 100_000;

/// The tokens that were issued, with what they say.
#[derive(Debug, Default)]
pub(crate) struct Tokens(HashMap<String, Arc<Value>>);

/// Who holds a token, and for which of the audiences that were asked about.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) user: User,
    audiences: Vec<String>,
}

impl Core {
    /// Answers `POST .../serviceaccounts/NAME/token`.
    pub(crate) fn issue_token(
        &mut self,
        namespace: &str,
        account: &Value,
        mut request: Value,
        now: Timestamp,
    ) -> Result<Reply, Status> {
        let spec = &request["spec"];
        let expiry = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
        let refused = match expiry {
            ..MIN_SECONDS => Some("may not specify a duration less than 10 minutes"),
            MAX_SECONDS.. => Some("may not specify a duration larger than 2^32 seconds"),
            _ => None,
        };
        if let Some(why) = refused {
            let cause = Cause::invalid("spec.expirationSeconds", &expiry.into(), why);
            return Err(Status::invalid(
                "authentication.k8s.io",
                "TokenRequest",
                "",
                &[cause],
            ));
        }
        let audiences = match items(&spec["audiences"]) {
            [] => vec![json!(DEFAULT_AUDIENCE)],
            named => named.to_vec(),
        };
        let name = meta(account, "name");
        let mut about = json!({
            "namespace": namespace, "serviceaccount": {"name": name, "uid": meta(account, "uid")},
        });
        self.bind(&mut about, namespace, name, &spec["boundObjectRef"])?;
        let expires = now + SignedDuration::from_secs(expiry);
        let claims = json!({
            "aud": audiences, "exp": expires.as_second(), "iat": now.as_second(), "nbf": now.as_second(),
            "iss": DEFAULT_AUDIENCE, "jti": self.uuid(), "kubernetes.io": about,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
        });
        if self.tokens.0.len() >= MAX_TOKENS {
            return Err(Status::internal("too many tokens"));
        }
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signature = URL_SAFE_NO_PAD.encode(self.random_bytes());
        let token = format!(
            "{}.{}.{signature}",
            encode(&json!({"alg": "RS256", "kid": "test"})),
            encode(&claims)
        );
        self.tokens.0.insert(token.clone(), Arc::new(claims));
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["kind"] = json!("TokenRequest");
        request["metadata"] =
            json!({"name": name, "namespace": namespace, "creationTimestamp": seconds(now)});
        request["spec"] = json!({
            "audiences": audiences, "expirationSeconds": expiry, "boundObjectRef": request["spec"]["boundObjectRef"],
        });
        request["status"] = json!({"token": token, "expirationTimestamp": seconds(expires)});
        Ok(Reply::created(request))
    }

    /// Adds the object that a token is bound to, which must be there and, of a pod, run as the account.
    fn bind(
        &self,
        about: &mut Value,
        namespace: &str,
        account: &str,
        reference: &Value,
    ) -> Result<(), Status> {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
        let (plural, object) = match (kind, text("apiVersion")) {
            _ if reference.is_null() => return Ok(()),
            ("Pod", "v1") => ("pods", self.pod(namespace, name)),
            ("Node", "v1") => ("nodes", self.node(name)),
            ("Secret", "v1") => (
                "secrets",
                self.store.find("secrets", &crate::store::key(namespace, name)),
            ),
            (kind, version) => {
                let message = format!("cannot bind token to object of type {version}, Kind={kind}");
                return Err(Status::bad_request(message));
            }
        };
        let object = object.ok_or_else(|| Status::not_found("", plural, name))?;
        let held = meta(object, "uid");
        if !uid.is_empty() && uid != held {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might \
                 have been deleted and then recreated"
            );
            return Err(Status::conflict("", plural, name, &why));
        }
        about[kind.to_lowercase()] = json!({"name": name, "uid": held});
        if kind == "Pod" {
            if object["spec"]["serviceAccountName"] != account {
                let running = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount \
                     name {running:?}."
                )));
            }
            if let Some(node) = object["spec"]["nodeName"]
                .as_str()
                .filter(|node| !node.is_empty())
            {
                about["node"] = match self.node(node) {
                    Some(object) => json!({"name": node, "uid": meta(object, "uid")}),
                    None => json!({ "name": node }),
                };
            }
        }
        Ok(())
    }

    /// Answers a `TokenReview`.
    pub(crate) fn review_token(&mut self, mut review: Value, now: Timestamp) -> Result<Reply, Status> {
        let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            return Err(Status::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        let named = items(&review["spec"]["audiences"])
            .iter()
            .filter_map(Value::as_str);
        let mut audiences: Vec<String> = named.map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences.push(DEFAULT_AUDIENCE.to_owned());
        }
        review["apiVersion"] = json!("authentication.k8s.io/v1");
        review["kind"] = json!("TokenReview");
        crate::json::metadata_mut(&mut review);
        review["status"] = match self.authenticate(&token, &audiences, now) {
            Ok(held) => {
                json!({"authenticated": true, "user": held.user.to_json(), "audiences": held.audiences})
            }
            // What is false is left out, and nobody is an empty user.
            Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
        };
        Ok(Reply::created(review))
    }

    /// Who a token says its holder is, for at least one of these audiences.
    pub(crate) fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Held, String> {
        let claims = self
            .tokens
            .0
            .get(token)
            .ok_or("square/go-jose: error in cryptographic primitive")?;
        let held = items(&claims["aud"]);
        let shared: Vec<String> = audiences
            .iter()
            .filter(|audience| held.contains(&json!(audience)))
            .cloned()
            .collect();
        if shared.is_empty() {
            let held = Value::from(held.to_vec());
            return Err(format!(
                "token audiences {held} is invalid for the target audiences {audiences:?}"
            ));
        }
        if claims["exp"]
            .as_i64()
            .is_none_or(|expires| now.as_second() > expires)
        {
            return Err("service account token has expired".to_owned());
        }
        let about = &claims["kubernetes.io"];
        let namespace = about["namespace"].as_str().unwrap_or_default();
        let name = |kind: &str| about[kind]["name"].as_str().unwrap_or_default();
        let is_the_same = |kind: &str, object: Option<&Arc<Value>>| {
            about[kind].is_null()
                || object
                    .is_some_and(|object| about[kind]["uid"] == meta(object, "uid") && !is_gone(object, now))
        };
        let secret = self
            .store
            .find("secrets", &crate::store::key(namespace, name("secret")));
        let bound_to_node = about["pod"].is_null();
        if !is_the_same(
            "serviceaccount",
            self.service_account(namespace, name("serviceaccount")),
        ) || !is_the_same("pod", self.pod(namespace, name("pod")))
            || !is_the_same("secret", secret)
            || (bound_to_node && !is_the_same("node", self.node(name("node"))))
        {
            return Err("service account token has been invalidated".to_owned());
        }
        Ok(Held {
            user: user(claims),
            audiences: shared,
        })
    }
}

fn is_gone(object: &Value, now: Timestamp) -> bool {
    let deleted = meta(object, "deletionTimestamp").parse::<Timestamp>();
    deleted.is_ok_and(|deleted| deleted + DELETION_LEEWAY < now)
}

fn user(claims: &Value) -> User {
    let about = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&about["namespace"]);
    let mut extra = vec![(
        "authentication.kubernetes.io/credential-id".to_owned(),
        format!("JTI={}", text(&claims["jti"])),
    )];
    for kind in ["pod", "node"] {
        for field in ["name", "uid"] {
            if let Some(value) = about[kind][field].as_str() {
                extra.push((
                    format!("authentication.kubernetes.io/{kind}-{field}"),
                    value.to_owned(),
                ));
            }
        }
    }
    User {
        name: text(&claims["sub"]),
        uid: text(&about["serviceaccount"]["uid"]),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
        extra,
    }
}
