//! Protobuf's JSON, as Hubble's command line writes and reads it with `-o jsonpb`.

use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, SerializeOptions};
use weir_proto::observer::{GetFlowsResponse, get_flows_response::ResponseTypes};
use weir_types::Flow;

use crate::{Origin, form::anybodys, reflect, to_hubble};

const RESPONSE: &str = "observer.GetFlowsResponse";

/// Why a line is not one of a saved flow.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// It is not JSON, or not of this message.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It cannot be taken over.
    #[error("{0}")]
    Decode(#[from] prost::DecodeError),
}

/// A response in one line, fields under their names in the definitions.
///
/// # Errors
/// When an extension is of a type that is not known.
pub fn to_line(response: &GetFlowsResponse) -> Result<String, JsonError> {
    let response = anybodys(response.clone());
    let message = DynamicMessage::decode(reflect::message(RESPONSE), &*response.encode_to_vec())?;
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    message.serialize_with_options(
        &mut serializer,
        &SerializeOptions::new().use_proto_field_name(true),
    )?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A record in one line.
///
/// # Errors
/// As [`to_line`].
pub fn flow_to_line(flow: &Flow, origin: &Origin) -> Result<String, JsonError> {
    let hubble = to_hubble(flow, origin);
    to_line(&GetFlowsResponse {
        node_name: flow.node.clone(),
        time: hubble.time,
        response_types: Some(ResponseTypes::Flow(hubble)),
    })
}

/// A response of a line. What this version does not know is left out: files may be of newer ones.
///
/// # Errors
/// When it is none.
pub fn of_line(line: &str) -> Result<GetFlowsResponse, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message =
        DynamicMessage::deserialize_with_options(reflect::message(RESPONSE), &mut deserializer, &options)?;
    deserializer.end()?;
    Ok(GetFlowsResponse::decode(&*message.encode_to_vec())?)
}

#[cfg(test)]
mod tests;
