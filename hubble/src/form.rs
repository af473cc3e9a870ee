//! In which form clients get what Hubble's flow has no field for.
//!
//! Tools that print JSON cannot print an `Any` of a type that they do not know, and give up the whole flow. So who does not ask
//! for Weir's own message gets its content as a `google.protobuf.Struct`, which all of them know.

use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, SerializeOptions};
use prost_types::{Struct, Value, value::Kind};
use tonic::{Request, metadata::MetadataValue};
use weir_proto::{
    Any,
    flow::Flow,
    observer::{GetFlowsResponse, get_flows_response::ResponseTypes},
    weir::flow::v1::Details,
};

use crate::{convert::DETAILS, reflect};

/// The metadata by which a client asks for Weir's own message, and its value.
const METADATA: (&str, &str) = ("weir-extensions", "weir.flow.v1.Details");
/// The names of both messages.
const MESSAGE: &str = "weir.flow.v1.Details";
const STRUCT: &str = "google.protobuf.Struct";
/// The type's URL of the form that everybody knows.
pub const ANYBODYS: &str = "type.googleapis.com/google.protobuf.Struct";

/// A request for flows whose answers have Weir's own message: smaller, and made faster.
#[must_use]
pub fn own<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    let value = MetadataValue::from_static(METADATA.1);
    request.metadata_mut().insert(METADATA.0, value);
    request
}

/// Whether a client asks for Weir's own message.
pub(crate) fn wants_own<T>(request: &Request<T>) -> bool {
    let asked = request.metadata().get(METADATA.0);
    asked.is_some_and(|asked| asked == METADATA.1)
}

/// A response in the form that everybody knows.
#[must_use]
pub fn anybodys(mut response: GetFlowsResponse) -> GetFlowsResponse {
    if let Some(ResponseTypes::Flow(flow)) = &mut response.response_types
        && let Some(extensions) = flow.extensions.as_ref().and_then(of_details)
    {
        flow.extensions = Some(extensions);
    }
    response
}

/// What Hubble has no field for, in either form; `None` if it is not Weir's.
pub(crate) fn details(flow: &Flow) -> Option<Details> {
    let any = flow.extensions.as_ref()?;
    match any.type_url.as_str() {
        DETAILS => Details::decode(any.value.clone()).ok(),
        ANYBODYS => {
            let text = json(STRUCT, &any.value)?;
            let mut deserializer = serde_json::Deserializer::from_slice(&text);
            // Of a newer version there may be more.
            let options = DeserializeOptions::new().deny_unknown_fields(false);
            let message = reflect::message(MESSAGE);
            let message =
                DynamicMessage::deserialize_with_options(message, &mut deserializer, &options).ok()?;
            Details::decode(&*message.encode_to_vec()).ok()
        }
        _ => None,
    }
}

fn of_details(own: &Any) -> Option<Any> {
    if own.type_url != DETAILS {
        return None;
    }
    let details = Details::decode(own.value.clone()).ok()?;
    Some(Any {
        type_url: ANYBODYS.to_owned(),
        value: as_struct(&details).encode_to_vec().into(),
    })
}

/// The message in the form that its JSON has: numbers of 64 bits are texts, and what is not set is left out.
fn as_struct(own: &Details) -> Struct {
    let mut all = Fields::default();
    all.long("sequence", own.sequence);
    all.long("connection", own.connection);
    all.name("event", own.event != 0, own.event().as_str_name());
    all.text("reason", &own.reason);
    all.text("detail", &own.detail);
    all.name("path", own.path != 0, own.path().as_str_name());
    all.text("source_identity", &own.source_identity);
    all.text("destination_identity", &own.destination_identity);
    all.text("original_destination", &own.original_destination);
    all.text("tls", &own.tls);
    for (field, matched) in [("policy", &own.policy), ("dry_run", &own.dry_run)] {
        if let Some(matched) = matched {
            let mut below = Fields::default();
            below.text("policy", &matched.policy);
            below.short("rule", matched.rule);
            all.below(field, below);
        }
    }
    all.long("bytes_sent", own.bytes_sent);
    all.long("bytes_received", own.bytes_received);
    all.long("duration_us", own.duration_us);
    all.short("rtt_us", own.rtt_us);
    all.short("retransmits", own.retransmits);
    if let Some(process) = &own.process {
        let mut below = Fields::default();
        below.short("pid", Some(process.pid).filter(|pid| *pid != 0));
        below.text("name", &process.name);
        all.below("process", below);
    }
    if let Some(span) = &own.span {
        let mut below = Fields::default();
        below.text("span_id", &span.span_id);
        below.text("parent_span_id", &span.parent_span_id);
        if span.sampled {
            below.put("sampled", Kind::BoolValue(true));
        }
        all.below("span", below);
    }
    all.0
}

#[derive(Default)]
struct Fields(Struct);

impl Fields {
    fn put(&mut self, field: &str, kind: Kind) {
        self.0.fields.insert(field.to_owned(), Value { kind: Some(kind) });
    }

    fn text(&mut self, field: &str, text: &str) {
        self.name(field, !text.is_empty(), text);
    }

    fn name(&mut self, field: &str, is_set: bool, name: &str) {
        if is_set {
            self.put(field, Kind::StringValue(name.to_owned()));
        }
    }

    fn long(&mut self, field: &str, number: u64) {
        if number != 0 {
            self.put(field, Kind::StringValue(number.to_string()));
        }
    }

    fn short(&mut self, field: &str, number: Option<u32>) {
        if let Some(number) = number {
            self.put(field, Kind::NumberValue(number.into()));
        }
    }

    fn below(&mut self, field: &str, below: Self) {
        self.put(field, Kind::StructValue(below.0));
    }
}

/// A message as protobuf's JSON.
fn json(message: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let message = DynamicMessage::decode(reflect::message(message), bytes).ok()?;
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(&mut serializer, &options).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weir_proto::weir::flow::v1::{PolicyMatch, Process};

    use super::*;

    fn response(details: &Details) -> GetFlowsResponse {
        let flow = Flow {
            extensions: Some(Any {
                type_url: DETAILS.to_owned(),
                value: details.encode_to_vec().into(),
            }),
            ..Flow::default()
        };
        GetFlowsResponse {
            response_types: Some(ResponseTypes::Flow(flow)),
            ..GetFlowsResponse::default()
        }
    }

    fn flow(response: &GetFlowsResponse) -> &Flow {
        match &response.response_types {
            Some(ResponseTypes::Flow(flow)) => flow,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let all = Details {
            sequence: u64::MAX,
            connection: 1 << 53,
            event: 2,
            reason: "policy_denied".to_owned(),
            path: 1,
            source_identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
            policy: Some(PolicyMatch {
                policy: "shop/no".to_owned(),
                rule: Some(0),
            }),
            rtt_us: Some(0),
            process: Some(Process {
                pid: 7,
                name: "a\u{1b}\"".to_owned(),
            }),
            ..Details::default()
        };
        for own in [Details::default(), all] {
            let own_form = response(&own);
            let other = anybodys(own_form.clone());
            assert_eq!(
                flow(&other).extensions.as_ref().unwrap().type_url,
                "type.googleapis.com/google.protobuf.Struct"
            );
            for form in [&own_form, &other] {
                assert_eq!(details(flow(form)).as_ref(), Some(&own));
            }
            // Once more changes nothing.
            assert_eq!(anybodys(other.clone()), other);
        }
    }

    #[test]
    fn what_tools_print_is_what_they_know() {
        let own = Details {
            bytes_sent: 58,
            path: 1,
            ..Details::default()
        };
        let line = crate::json::to_line(&response(&own)).unwrap();
        let printed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            printed["flow"]["extensions"],
            json!({
                "@type": "type.googleapis.com/google.protobuf.Struct",
                "value": { "bytes_sent": "58", "path": "PATH_TUNNEL" },
            })
        );
        let read = crate::json::of_line(&line).unwrap();
        assert_eq!(details(flow(&read)), Some(own));
    }

    #[test]
    fn what_is_not_ours_stays_and_tells_nothing() {
        for (kind, value) in [
            ("type.googleapis.com/google.protobuf.Empty", &b""[..]),
            (DETAILS, b"\xff\xff"),
            (ANYBODYS, b"\xff"),
        ] {
            let mut other = response(&Details::default());
            if let Some(ResponseTypes::Flow(flow)) = &mut other.response_types {
                flow.extensions = Some(Any {
                    type_url: kind.to_owned(),
                    value: value.to_vec().into(),
                });
            }
            assert_eq!(anybodys(other.clone()), other, "{kind}");
            assert_eq!(details(flow(&other)), None, "{kind}");
        }
    }
}
