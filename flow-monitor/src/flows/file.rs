//! Flows that were saved.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
};

use anyhow::Context as _;
use weir_hubble::{
    Origin, from_hubble, json, to_hubble,
    window::{Number, Query},
};
use weir_proto::observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes};
use weir_types::Flow;

use crate::{merge::Item, target::Usage};

/// Longest line, in bytes.
const MAX_LINE: u64 = 4 << 20;

/// Hands on the flows of a file that a request wants, in the file's order.
///
/// # Errors
/// When the file cannot be read, or has a line that is no flow; or the sink's own.
pub(super) fn read(
    path: &Path,
    request: &GetFlowsRequest,
    mut sink: impl FnMut(Item) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let query = Query::new(request).map_err(|error| Usage(error.to_string()))?;
    let name = path.display();
    let mut input: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(path).map_err(|error| Usage(format!("{name}: {error}")))?;
        Box::new(BufReader::new(file))
    };
    let mut last = VecDeque::new();
    let mut count = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut input).take(MAX_LINE).read_until(b'\n', &mut line);
        if read.with_context(|| name.to_string())? == 0 {
            break;
        }
        let bad = |problem: &str| Usage(format!("{name}: line {number} is no saved flow: {problem}"));
        let text = std::str::from_utf8(&line)
            .map_err(|error| bad(&error.to_string()))?
            .trim();
        if text.is_empty() {
            continue;
        }
        let response = parse(text).map_err(|problem| bad(&problem))?;
        let Some(ResponseTypes::Flow(flow)) = &response.response_types else {
            continue;
        };
        let known = from_hubble(flow);
        let time = known.as_ref().map(|flow| flow.time);
        if !time.is_none_or(|time| query.is_within(time)) || !query.filters.matches(flow) {
            continue;
        }
        let Some(item) = Item::of(response, "") else {
            continue;
        };
        match query.number {
            Some(Number::First(most)) if count >= most => break,
            Some(Number::Last(most)) => {
                last.push_back(item);
                if last.len() > most {
                    last.pop_front();
                }
            }
            _ => sink(item)?,
        }
        count += 1;
    }
    last.into_iter().try_for_each(sink)
}

/// A line of either form.
fn parse(text: &str) -> Result<GetFlowsResponse, String> {
    // Only Weir's own has this field.
    if text.contains("\"sequence\":")
        && let Ok(flow) = serde_json::from_str::<Flow>(text)
    {
        let origin = Origin {
            cluster: String::new(),
            version: String::new(),
            run: 0,
        };
        let hubble = to_hubble(&flow, &origin);
        return Ok(GetFlowsResponse {
            node_name: flow.node,
            time: hubble.time,
            response_types: Some(ResponseTypes::Flow(hubble)),
        });
    }
    json::of_line(text).map_err(|error| error.to_string())
}
