//! Who asks, and what they may do: everything, unless a test says otherwise.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    core::{Core, Reply},
    request::{Request, Target},
    status::Status,
};

/// Something that a user may not do. `*` stands for any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// `system:serviceaccount:NAMESPACE:NAME`, or another user.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural, as `pods`, or with a subresource, as `pods/status`.
    pub resource: String,
}

impl Denied {
    fn covers(&self, user: &str, verb: &str, group: &str, resource: &str) -> bool {
        let is = |rule: &str, value: &str| rule == "*" || rule == value;
        is(&self.user, user) && is(&self.verb, verb) && is(&self.group, group) && is(&self.resource, resource)
    }
}

/// Who makes a request.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: Vec<(String, String)>,
}

impl User {
    /// Who comes without a token, as over the certificate of an administrator.
    pub(crate) fn admin() -> Self {
        Self {
            name: "kubernetes-admin".to_owned(),
            uid: String::new(),
            groups: vec!["system:masters".to_owned(), "system:authenticated".to_owned()],
            extra: Vec::new(),
        }
    }

    /// `UserInfo`.
    pub(crate) fn to_json(&self) -> Value {
        let mut extra = json!({});
        for (name, value) in &self.extra {
            extra[name] = json!([value]);
        }
        json!({"username": self.name, "uid": self.uid, "groups": self.groups, "extra": extra})
    }
}

/// Refuses what a user may not do.
pub(crate) fn allowed(denied: &[Denied], user: &User, target: &Target, verb: &str) -> Result<(), Status> {
    let resource = match &target.subresource {
        Some(subresource) => format!("{}/{subresource}", target.plural),
        None => target.plural.clone(),
    };
    if !denied
        .iter()
        .any(|rule| rule.covers(&user.name, verb, &target.group, &resource))
    {
        return Ok(());
    }
    let whose = match target.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let why = format!(
        "User {:?} cannot {verb} resource {resource:?} in API group {:?} {whose}",
        user.name, target.group
    );
    Err(Status::forbidden(
        &target.group,
        &target.plural,
        target.name.as_deref().unwrap_or_default(),
        &why,
    ))
}

impl Core {
    /// Answers the reviews, which are created and never stored; nothing where the request is none.
    pub(crate) fn review(
        &mut self,
        request: &Request,
        target: &Target,
        user: &User,
        now: Timestamp,
    ) -> Result<Option<Reply>, Status> {
        let review = matches!(
            (
                target.group.as_str(),
                target.version.as_str(),
                target.plural.as_str()
            ),
            (
                "authentication.k8s.io",
                "v1",
                "tokenreviews" | "selfsubjectreviews"
            ) | (
                "authorization.k8s.io",
                "v1",
                "subjectaccessreviews" | "selfsubjectaccessreviews"
            )
        );
        if !review || target.name.is_some() {
            return Ok(None);
        }
        if request.method != "POST" {
            return Err(Status::method_not_allowed());
        }
        let mut body: Value =
            serde_json::from_slice(&request.body).map_err(|why| Status::bad_request(why.to_string()))?;
        if !body.is_object() {
            return Err(Status::bad_request("the object provided is no JSON object"));
        }
        let reviewed = match target.plural.as_str() {
            "tokenreviews" => return self.review_token(body, now).map(Some),
            "selfsubjectreviews" => {
                body["status"] = json!({"userInfo": user.to_json()});
                return Ok(Some(Reply::created(body)));
            }
            "selfsubjectaccessreviews" => user.name.clone(),
            _ => body["spec"]["user"].as_str().unwrap_or_default().to_owned(),
        };
        let about = &body["spec"]["resourceAttributes"];
        let text = |field: &str| about[field].as_str().unwrap_or_default();
        let resource = match text("subresource") {
            "" => text("resource").to_owned(),
            subresource => format!("{}/{subresource}", text("resource")),
        };
        let denied = self
            .denied
            .iter()
            .any(|rule| rule.covers(&reviewed, text("verb"), text("group"), &resource));
        body["status"] = json!({ "allowed": !denied });
        Ok(Some(Reply::created(body)))
    }
}
