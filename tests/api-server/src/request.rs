//! A request as it came over HTTP, parsed once: what it is about, its query, what it accepts.

use crate::status::Status;

/// The parts of a request that the answer depends on.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Query,
    pub(crate) accept: String,
    pub(crate) content_type: String,
    pub(crate) user_agent: String,
    /// A bearer token, where one was sent.
    pub(crate) bearer: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// What a path under `/api/v1` or `/apis/GROUP/VERSION` names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    /// Empty for resources of the cluster, and for those of all namespaces.
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Target {
    /// Parses a path; nothing where it names no resource.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let segments: Vec<String> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(percent_decoded)
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ("", version, rest),
            ["apis", group, version, rest @ ..] => (*group, version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // Subresources of a namespace itself, not resources in it.
            ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, None, None),
            [plural, name] => (*plural, Some(*name), None),
            [plural, name, subresource] => (*plural, Some(*name), Some(*subresource)),
            _ => return None,
        };
        Some(Self {
            group: group.to_owned(),
            version: (*version).to_owned(),
            plural: plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.map(str::to_owned),
            subresource: subresource.map(str::to_owned),
        })
    }
}

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decoded(name), form_decoded(value))
        };
        Self(
            query
                .split('&')
                .filter(|part| !part.is_empty())
                .map(pair)
                .collect(),
        )
    }

    /// A parameter; empty where it is not given.
    pub(crate) fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(one, _)| one == name);
        found.map_or("", |(_, value)| value.as_str())
    }

    /// A parameter that is true or false.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1")
    }

    /// A parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseUint: parsing {text:?}: invalid syntax ({name})"
                ))
            }),
        }
    }

    /// Whether nothing is to be written (`dryRun=All`).
    pub(crate) fn dry_run(&self) -> bool {
        self.text("dryRun") == "All"
    }
}

/// How an answer is to be represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Representation {
    Whole,
    /// Only the metadata, as `PartialObjectMetadata` of `meta.k8s.io/v1`.
    Metadata,
}

impl Representation {
    /// The first media type of an Accept header that can be served. `as` names what is asked of the request: a
    /// list is asked for as `PartialObjectMetadataList`, everything else as `PartialObjectMetadata`. Tables and
    /// protobuf are not served, and clients that ask for them name JSON as well.
    pub(crate) fn accepted(accept: &str, list: bool) -> Result<Self, Status> {
        let wanted = if list {
            "PartialObjectMetadataList"
        } else {
            "PartialObjectMetadata"
        };
        let mut any = false;
        for media in accept.split(',').map(str::trim).filter(|media| !media.is_empty()) {
            any = true;
            let mut parts = media.split(';').map(str::trim);
            let essence = parts.next().unwrap_or_default();
            if !matches!(essence, "application/json" | "*/*" | "application/*") {
                continue;
            }
            let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
            let parameter = |name: &str| {
                parameters
                    .iter()
                    .find(|(one, _)| *one == name)
                    .map(|(_, value)| *value)
            };
            match parameter("as") {
                None => return Ok(Self::Whole),
                Some(name)
                    if name == wanted
                        && parameter("g") == Some("meta.k8s.io")
                        && parameter("v") == Some("v1") =>
                {
                    return Ok(Self::Metadata);
                }
                Some(_) => {}
            }
        }
        if any {
            Err(Status::not_acceptable())
        } else {
            Ok(Self::Whole)
        }
    }
}

fn form_decoded(text: &str) -> String {
    percent_decoded(&text.replace('+', " "))
}

/// Decodes `%XX`; what is not a hexadecimal number stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_the_documentation_says() {
        let target = |group: &str, plural: &str, namespace: &str, name: Option<&str>, sub: Option<&str>| {
            Some(Target {
                group: group.to_owned(),
                version: "v1".to_owned(),
                plural: plural.to_owned(),
                namespace: namespace.to_owned(),
                name: name.map(str::to_owned),
                subresource: sub.map(str::to_owned),
            })
        };
        for (path, expected) in [
            ("/api/v1/pods", target("", "pods", "", None, None)),
            ("/api/v1/namespaces/a/pods", target("", "pods", "a", None, None)),
            (
                "/api/v1/namespaces/a/pods/b/status",
                target("", "pods", "a", Some("b"), Some("status")),
            ),
            (
                "/api/v1/namespaces/a",
                target("", "namespaces", "", Some("a"), None),
            ),
            (
                "/api/v1/namespaces/a/status",
                target("", "namespaces", "", Some("a"), Some("status")),
            ),
            (
                "/apis/g.io/v1/things/a%3Ab",
                target("g.io", "things", "", Some("a:b"), None),
            ),
            ("/api/v1", None),
            ("/api/v1/namespaces/a/pods/b/c/d", None),
            ("/other", None),
        ] {
            assert_eq!(Target::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn the_first_media_type_that_can_be_served_is() {
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        for (accept, list, expected) in [
            ("", true, Some(Representation::Whole)),
            ("*/*", true, Some(Representation::Whole)),
            (metadata, true, Some(Representation::Metadata)),
            (metadata, false, None),
            (
                &format!("{table},application/json"),
                true,
                Some(Representation::Whole),
            ),
            ("application/vnd.kubernetes.protobuf", true, None),
        ] {
            assert_eq!(Representation::accepted(accept, list).ok(), expected, "{accept}");
        }
    }
}
