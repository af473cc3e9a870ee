//! Distributed traces, as the W3C's Trace Context (level 1) carries them from one service to the next.

use std::{
    fmt,
    num::{NonZeroU64, NonZeroU128},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Bytes of a `traceparent` of version 00: `00-<32>-<16>-<2>`.
const LENGTH: usize = 55;
/// The flag that says that the caller records its span (section 3.2.2.5.1); the others have no meaning in level 1.
const SAMPLED: u8 = 1;

/// A trace: 32 hexadecimal digits, not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceId(NonZeroU128);

/// A span of a trace: 16 hexadecimal digits, not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpanId(NonZeroU64);

/// What `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: TraceId,
    /// The caller's span.
    pub span_id: SpanId,
    /// Whether the caller records it.
    pub sampled: bool,
}

/// A connection's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTrace {
    /// The trace.
    pub trace_id: TraceId,
    /// The connection's own span, as the recording agent saw it.
    pub span_id: SpanId,
    /// The span that it is below; none for the first of its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_span_id: Option<SpanId>,
    /// Whether spans of the trace are recorded.
    pub sampled: bool,
}

/// Why something is no part of a trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Other characters than `0-9a-f`, too few or too many of them, or zeros only.
    #[error("expected {0} lower-case hexadecimal digits, not all zero")]
    Id(usize),
    /// The header is not as it must be.
    #[error("expected a traceparent, as 00-<32 digits>-<16 digits>-<2 digits>")]
    Parent,
}

// === impl TraceId ===

impl TraceId {
    /// Of a number; `None` for zero.
    #[must_use]
    pub fn new(number: u128) -> Option<Self> {
        NonZeroU128::new(number).map(Self)
    }

    /// Its 16 bytes, in network order.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }

    /// Whether it is one of the one in `most` that are chosen: the same answer for all who ask of this trace.
    #[must_use]
    pub fn is_one_in(self, most: std::num::NonZeroU32) -> bool {
        self.0.get().is_multiple_of(u128::from(most.get()))
    }
}

impl From<NonZeroU128> for TraceId {
    fn from(number: NonZeroU128) -> Self {
        Self(number)
    }
}

impl FromStr for TraceId {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        digits(text, 32).and_then(|number| Self::new(number).ok_or(TraceError::Id(32)))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl TryFrom<String> for TraceId {
    type Error = TraceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TraceId> for String {
    fn from(id: TraceId) -> Self {
        id.to_string()
    }
}

// === impl SpanId ===

impl SpanId {
    /// Of a number; `None` for zero.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// Its 8 bytes, in network order.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl From<NonZeroU64> for SpanId {
    fn from(number: NonZeroU64) -> Self {
        Self(number)
    }
}

impl FromStr for SpanId {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = digits(text, 16)?;
        // 16 digits fit.
        let number = u64::try_from(number).map_err(|_| TraceError::Id(16))?;
        Self::new(number).ok_or(TraceError::Id(16))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl TryFrom<String> for SpanId {
    type Error = TraceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SpanId> for String {
    fn from(id: SpanId) -> Self {
        id.to_string()
    }
}

/// Exactly so many digits. Upper case is refused (section 3.2.2), and so are the signs that the standard library reads.
fn digits(text: &str, count: usize) -> Result<u128, TraceError> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != count || !text.bytes().all(is_digit) {
        return Err(TraceError::Id(count));
    }
    u128::from_str_radix(text, 16).map_err(|_| TraceError::Id(count))
}

// === impl TraceParent ===

impl FromStr for TraceParent {
    type Err = TraceError;

    /// Of a version above 00 it takes what version 00 has, and nothing of what follows (section 4.3).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = text.get(..LENGTH).ok_or(TraceError::Parent)?;
        let rest = &text[LENGTH..];
        let mut parts = known.split('-');
        let mut next = |count| {
            let part = parts.next().ok_or(TraceError::Parent)?;
            digits(part, count).map(|_| part)
        };
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let may_follow = version != "00" && rest.starts_with('-');
        if version == "ff" || !(rest.is_empty() || may_follow) {
            return Err(TraceError::Parent);
        }
        let flags = u8::from_str_radix(flags, 16).map_err(|_| TraceError::Parent)?;
        Ok(Self {
            trace_id: trace.parse()?,
            span_id: span.parse()?,
            sampled: flags & SAMPLED != 0,
        })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = if self.sampled { SAMPLED } else { 0 };
        write!(f, "00-{}-{}-{flags:02x}", self.trace_id, self.span_id)
    }
}

// === impl FlowTrace ===

impl FlowTrace {
    /// What the next service is told.
    #[must_use]
    pub fn parent(&self) -> TraceParent {
        TraceParent {
            trace_id: self.trace_id,
            span_id: self.span_id,
            sampled: self.sampled,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_traceparent_is_taken_as_the_specification_says_and_else_not_at_all() {
        let expected = |sampled| {
            Some(TraceParent {
                trace_id: TRACE.parse().unwrap(),
                span_id: SPAN.parse().unwrap(),
                sampled,
            })
        };
        let table = [
            (format!("00-{TRACE}-{SPAN}-01"), expected(true)),
            (format!("00-{TRACE}-{SPAN}-00"), expected(false)),
            // Flags that level 1 does not know.
            (format!("00-{TRACE}-{SPAN}-ff"), expected(true)),
            (format!("00-{TRACE}-{SPAN}-02"), expected(false)),
            // Later versions.
            (format!("01-{TRACE}-{SPAN}-01"), expected(true)),
            (format!("cc-{TRACE}-{SPAN}-01-what-will-be"), expected(true)),
            (format!("cc-{TRACE}-{SPAN}-01-"), expected(true)),
            (format!("cc-{TRACE}-{SPAN}-01.what"), None),
            (format!("cc-{TRACE}-{SPAN}-010"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{TRACE}-{SPAN}-01-"), None),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("00-{TRACE}-{SPAN}-0"), None),
            (format!("00-{TRACE}-{SPAN}-0g"), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{TRACE}-{}-01", SPAN.to_uppercase()), None),
            (format!("CC-{TRACE}-{SPAN}-01"), None),
            (format!("00-+{}-{SPAN}-01", &TRACE[1..]), None),
            (format!("00-{TRACE}-+{}-01", &SPAN[1..]), None),
            (format!("00-{SPAN}-{TRACE}-01"), None),
            (format!("00_{TRACE}_{SPAN}_01"), None),
            (format!(" 00-{TRACE}-{SPAN}-01"), None),
            (format!("0-0{TRACE}-{SPAN}-01"), None),
            ("é".repeat(40), None),
            (String::new(), None),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<TraceParent>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_record_says_its_place_in_a_trace_in_its_json() {
        let own = FlowTrace {
            trace_id: TRACE.parse().unwrap(),
            span_id: SPAN.parse().unwrap(),
            parent_span_id: SpanId::new(0xab),
            sampled: true,
        };
        let json = serde_json::json!({
            "traceId": TRACE, "spanId": SPAN, "parentSpanId": "00000000000000ab", "sampled": true,
        });
        assert_eq!(serde_json::to_value(own).unwrap(), json);
        assert_eq!(serde_json::from_value::<FlowTrace>(json).unwrap(), own);
        for wrong in ["", "0", &"0".repeat(32), &TRACE.to_uppercase()] {
            assert!(
                serde_json::from_value::<TraceId>(wrong.into()).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn one_in_so_many_is_chosen() {
        let chosen = |most| {
            let most = NonZeroU32::new(most).unwrap();
            (1..=1000)
                .filter(|number| TraceId::new(*number).unwrap().is_one_in(most))
                .count()
        };
        assert_eq!((chosen(1), chosen(10), chosen(1000)), (1000, 100, 1));
    }

    proptest! {
        #[test]
        fn what_is_sent_is_understood(trace in 1_u128.., span in 1_u64.., sampled in any::<bool>()) {
            let own = TraceParent {
                trace_id: TraceId::new(trace).unwrap(),
                span_id: SpanId::new(span).unwrap(),
                sampled,
            };
            let text = own.to_string();
            prop_assert_eq!(text.len(), LENGTH);
            prop_assert_eq!(text.parse(), Ok(own));
        }

        #[test]
        fn nothing_that_somebody_sends_is_more_than_refused(
            text in prop_oneof!["\\PC{0,80}", "[0-9a-f]{2}-[0-9a-fA-F]{31,33}-[0-9a-f]{15,17}-[0-9a-f]{2}(-.{0,9})?"],
        ) {
            if let Ok(own) = text.parse::<TraceParent>() {
                // What it says, and not more.
                prop_assert_eq!(own.trace_id.to_string(), &text[3..35]);
                prop_assert_eq!(own.span_id.to_string(), &text[36..52]);
                prop_assert!(!text.starts_with("ff"));
            }
        }
    }
}
