//! Which fields of a flow a client wants.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value};
use weir_proto::flow::Flow;

use crate::reflect;

/// Fields by their names, and what is wanted of each; nothing more: all of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mask(BTreeMap<String, Mask>);

// === impl Mask ===

impl Mask {
    /// Of paths, as `source.pod_name`.
    ///
    /// # Errors
    /// A path that leads to no field.
    pub fn new(paths: &[String]) -> Result<Self, String> {
        let mut mask = Self::default();
        for path in paths {
            let mut own = &mut mask;
            let mut message = Some(reflect::message("flow.Flow"));
            for name in path.split('.') {
                let field = message
                    .as_ref()
                    .and_then(|message| message.get_field_by_name(name));
                let field = field.ok_or_else(|| path.clone())?;
                message = match field.kind() {
                    Kind::Message(below) if !field.is_list() && !field.is_map() => Some(below),
                    _ => None,
                };
                own = own.0.entry(name.to_owned()).or_default();
            }
            // All of it, whatever else was said of its parts.
            own.0.insert(String::new(), Self::default());
        }
        mask.simplify();
        Ok(mask)
    }

    fn simplify(&mut self) {
        if self.0.contains_key("") {
            self.0.clear();
        }
        self.0.values_mut().for_each(Self::simplify);
    }

    /// A flow with these fields only.
    #[must_use]
    pub fn apply(&self, flow: &Flow) -> Flow {
        let bytes = flow.encode_to_vec();
        let Ok(mut message) = DynamicMessage::decode(reflect::message("flow.Flow"), &*bytes) else {
            return Flow::default();
        };
        self.keep(&mut message);
        Flow::decode(&*message.encode_to_vec()).unwrap_or_default()
    }

    fn keep(&self, message: &mut DynamicMessage) {
        let descriptor: MessageDescriptor = message.descriptor();
        for field in descriptor.fields() {
            match self.0.get(field.name()) {
                None => message.clear_field(&field),
                Some(below) if below.0.is_empty() || !message.has_field(&field) => {}
                Some(below) => {
                    if let Value::Message(own) = message.get_field_mut(&field) {
                        below.keep(own);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_proto::flow::Endpoint;

    use super::*;

    fn paths(all: &[&str]) -> Vec<String> {
        all.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn only_what_is_asked_for_stays() {
        let end = |name: &str| Endpoint {
            pod_name: name.to_owned(),
            namespace: "shop".to_owned(),
            ..Endpoint::default()
        };
        let flow = Flow {
            verdict: 1,
            node_name: "n1".to_owned(),
            source: Some(end("a")),
            destination: Some(end("b")),
            ..Flow::default()
        };
        let masked = |all: &[&str]| Mask::new(&paths(all)).unwrap().apply(&flow);
        let expected = Flow {
            verdict: 1,
            source: Some(Endpoint {
                pod_name: "a".to_owned(),
                ..Endpoint::default()
            }),
            ..Flow::default()
        };
        assert_eq!(masked(&["verdict", "source.pod_name"]), expected);
        // All of an end, also if one of its parts is named before or after.
        for all in [["source", "source.pod_name"], ["source.pod_name", "source"]] {
            assert_eq!(masked(&all).source, Some(end("a")));
        }
    }

    #[test]
    fn the_fields_that_hubbles_command_line_asks_for_are_all_there() {
        // Those that it names for its `compact`, `dict` and `table` output.
        let all = [
            "time",
            "source.identity",
            "source.namespace",
            "source.pod_name",
            "destination.identity",
            "destination.namespace",
            "destination.pod_name",
            "source_service",
            "destination_service",
            "l4",
            "IP",
            "ethernet",
            "l7",
            "Type",
            "node_name",
            "is_reply",
            "event_type",
            "verdict",
            "Summary",
            "tunnel",
            "file",
            "ip_trace_id",
            "interface",
            "debug_capture_point",
            "policy_log",
            "aggregate",
        ];
        Mask::new(&paths(&all)).unwrap();
    }

    #[test]
    fn a_path_to_nowhere_is_refused() {
        for path in [
            "",
            "nonsense",
            "source.nonsense",
            "verdict.x",
            "source..x",
            "source.labels.x",
        ] {
            assert_eq!(Mask::new(&paths(&[path])), Err(path.to_owned()));
        }
    }
}
