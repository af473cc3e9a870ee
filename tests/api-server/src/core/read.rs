//! Get and list.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Call, Core, Reply};
use crate::{
    request::Representation,
    resource::{Resource, shown},
    selector::{FieldSelector, LabelSelector},
    status::{Cause, Status},
    store::Compacted,
};

/// What of a collection is asked for.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    namespace: String,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    pub(super) fn of(call: &Call<'_>) -> Result<Self, Status> {
        let query = &call.request.query;
        let labels = LabelSelector::parse(query.text("labelSelector")).map_err(Status::bad_request)?;
        let fields = match &call.target.name {
            Some(name) => FieldSelector::by_name(name),
            None => FieldSelector::parse(query.text("fieldSelector"), &call.resource)
                .map_err(Status::bad_request)?,
        };
        Ok(Self {
            namespace: call.target.namespace.clone(),
            labels,
            fields,
        })
    }

    pub(super) fn matches(&self, resource: &Resource, object: &Value) -> bool {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        (self.namespace.is_empty() || namespace == self.namespace)
            && self.labels.matches(object)
            && (self.fields.is_empty() || self.fields.matches(&shown(resource, object)))
    }

    fn selects(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }
}

/// Where a list goes on: the revision of its first page, and the last key that was sent.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Continue {
    rv: u64,
    after: String,
}

/// The metadata of an object, as `PartialObjectMetadata`.
pub(super) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

pub(super) fn invalid_options(field: &str, why: &str) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", &[Cause::forbidden(field, why)])
}

impl Core {
    pub(super) fn get(&self, call: &Call<'_>) -> Result<Reply, Status> {
        let found = self.store.find(&call.resource.storage(), &call.key());
        call.shown(found.ok_or_else(|| call.not_found())?).map(Reply::ok)
    }

    pub(super) fn list(&self, call: &Call<'_>) -> Result<Reply, Status> {
        let representation = Representation::accepted(&call.request.accept, true)?;
        let selection = Selection::of(call)?;
        let query = &call.request.query;
        let (mut revision, objects, limit, after) = self.page(call)?;
        if revision == 0 {
            revision = self.store.revision();
        }
        let mut selected = objects
            .iter()
            .filter(|(key, object)| **key > after && selection.matches(&call.resource, object));
        let mut items = Vec::new();
        let mut last = None;
        for (key, object) in selected.by_ref().take(limit.unwrap_or(usize::MAX)) {
            let whole = shown(&call.resource, object);
            items.push(match representation {
                Representation::Whole => whole,
                Representation::Metadata => partial(&whole),
            });
            last = Some(key);
        }
        let remaining = selected.count();
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if let Some(last) = last.filter(|_| remaining > 0) {
            let token = Continue {
                rv: revision,
                after: last.clone(),
            };
            let token = serde_json::to_vec(&token).map_err(|why| Status::internal(why.to_string()))?;
            metadata["continue"] = json!(URL_SAFE_NO_PAD.encode(token));
            // How many are left is not known where a selector is used.
            if !selection.selects() && query.text("fieldSelector").is_empty() {
                metadata["remainingItemCount"] = json!(remaining);
            }
        }
        let (kind, api_version) = match representation {
            Representation::Whole => (call.resource.list_kind.as_str(), call.resource.api_version()),
            Representation::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
        };
        Ok(Reply::ok(
            json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items}),
        ))
    }

    /// The revision a list is of (0: the present one), its objects, how many are wanted, after which key.
    #[expect(
        clippy::type_complexity,
        reason = "has one caller, which takes it apart at once"
    )]
    fn page(
        &self,
        call: &Call<'_>,
    ) -> Result<(u64, BTreeMap<String, Arc<Value>>, Option<usize>, String), Status> {
        let query = &call.request.query;
        let storage = call.resource.storage();
        let limit = query.number("limit")?.filter(|limit| *limit > 0);
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let (version, how) = (query.text("resourceVersion"), query.text("resourceVersionMatch"));
        if let Some(token) = Some(query.text("continue")).filter(|token| !token.is_empty()) {
            if !matches!(version, "" | "0") {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let decoded = URL_SAFE_NO_PAD.decode(token).ok();
            let token: Option<Continue> = decoded.and_then(|token| serde_json::from_slice(&token).ok());
            let token = token.ok_or_else(|| Status::bad_request("continue key is not valid"))?;
            let objects = self.store.at(&storage, token.rv).map_err(|Compacted(_)| {
                Status::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can \
                     start a new list without the continue parameter.",
                )
            })?;
            return Ok((token.rv, objects, limit, token.after));
        }
        let asked = query.number("resourceVersion")?;
        match (how, asked) {
            ("", _) => {}
            (_, None) => {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                return Err(invalid_options("resourceVersionMatch", why));
            }
            ("Exact", Some(0)) => {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                return Err(invalid_options("resourceVersionMatch", why));
            }
            ("Exact", Some(exact)) => {
                if exact > self.store.revision() {
                    return Err(Status::too_large_version(exact, self.store.revision()));
                }
                let objects = self.store.at(&storage, exact);
                let objects = objects.map_err(|Compacted(oldest)| Status::too_old(exact, oldest))?;
                return Ok((exact, objects, limit, String::new()));
            }
            ("NotOlderThan", _) => {}
            _ => {
                return Err(invalid_options(
                    "resourceVersionMatch",
                    "must be Exact or NotOlderThan",
                ));
            }
        }
        let asked = asked.unwrap_or(0);
        if asked > self.store.revision() {
            return Err(Status::too_large_version(asked, self.store.revision()));
        }
        // A list of any version is served from the watch cache, which does not page.
        let limit = limit.filter(|_| version != "0");
        let objects = self
            .store
            .all(&storage)
            .map(|(key, object)| (key.clone(), Arc::clone(object)));
        Ok((0, objects.collect(), limit, String::new()))
    }
}
