//! Saved flows: one JSON object a line, Weir's own or Hubble's.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::{Path, PathBuf},
};

use serde_json::Value;
use weir_hubble::{from_hubble, json::of_line};
use weir_types::Flow;

use super::record::Record;
use crate::target::Usage;

/// Longest line, in bytes: far more than a record with all labels that a pod may have.
const MAX_LINE: u64 = 1 << 20;

/// What a line says.
#[derive(Debug)]
enum Line {
    Flow(Box<Flow>),
    /// So many events of a node were lost.
    Lost(String, u64),
    /// Something else than a connection of TCP.
    Other,
    /// What comes back on a connection, which Hubble records by itself: it says nothing new.
    Reply,
}

/// Counts what stands in files; `-` is the standard input.
///
/// # Errors
/// When one cannot be read, or a line of it is not understood.
pub(super) fn files(paths: &[PathBuf], record: &mut Record) -> Result<(), Usage> {
    for path in paths {
        if path == Path::new("-") {
            lines("the standard input", &mut io::stdin().lock(), record)?;
        } else {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|error| Usage(format!("{name}: {error}")))?;
            lines(&name, &mut BufReader::new(file), record)?;
        }
    }
    Ok(())
}

/// Counts each line. No more than one is in memory.
pub(super) fn lines(name: &str, from: &mut impl BufRead, record: &mut Record) -> Result<(), Usage> {
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let wrong = |why: &dyn std::fmt::Display| Usage(format!("{name}: line {number}: {why}"));
        let read = from.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line);
        if read.map_err(|error| wrong(&error))? == 0 {
            break;
        }
        if line.len() as u64 > MAX_LINE {
            return Err(wrong(&format_args!("longer than {MAX_LINE} bytes: no flow is")));
        }
        let text = std::str::from_utf8(&line)
            .map_err(|_| wrong(&"no UTF-8 text: flows are one JSON object a line"))?;
        match text.trim() {
            "" => {}
            text => match parse(text).map_err(|why| wrong(&why))? {
                Line::Flow(flow) => record.add(&flow),
                Line::Lost(node, count) => record.lost(&node, count),
                Line::Other => record.others += 1,
                Line::Reply => {}
            },
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Line, String> {
    let own = match serde_json::from_str::<Flow>(text) {
        Ok(flow) => return Ok(Line::Flow(Box::new(flow))),
        Err(error) => error,
    };
    let hubbles = [
        "flow",
        "lost_events",
        "lostEvents",
        "node_status",
        "nodeStatus",
        "node_name",
        "nodeName",
    ];
    let value = serde_json::from_str::<Value>(text);
    if !value.is_ok_and(|value| hubbles.iter().any(|field| !value[field].is_null())) {
        return Err(format!(
            "no flow of 'weir flows -o json' or 'hubble observe -o jsonpb': {own}"
        ));
    }
    let response =
        of_line(text).map_err(|error| format!("no flow of 'hubble observe -o jsonpb': {error}"))?;
    use weir_proto::observer::get_flows_response::ResponseTypes;
    Ok(match response.response_types {
        Some(ResponseTypes::Flow(flow)) if flow.is_reply == Some(true) => Line::Reply,
        Some(ResponseTypes::Flow(flow)) => {
            from_hubble(&flow).map_or(Line::Other, |flow| Line::Flow(Box::new(flow)))
        }
        Some(ResponseTypes::LostEvents(lost)) => Line::Lost(response.node_name, lost.num_events_lost),
        Some(ResponseTypes::NodeStatus(_)) | None => Line::Other,
    })
}
